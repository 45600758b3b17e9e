"""ADMM from a mask, the tabu search of cores, swaps: never worse, near the optimum, whatever the pattern."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from brute import best_mask
from layers import PATTERNS, arriving, hostile_layers, random_layer

from fwbench import pipeline
from fwbench.judge import count_reason
from fwbench.problems.synthetic import correlated
from fwbench.solvers.first_order import core_numba, resplit
from fwbench.solvers.first_order.resplit import Resplit
from fwbench.solvers.frank_wolfe.splitting import Scaled, alternate
from fwbench.solvers.local_search.anneal_numba import keys
from fwbench.solvers.start.scores import Random
from fwbench.stage import Context, State


def start(problem, seed=0):
    return Random().run(problem, State(), Context(seed=seed))


def never_worse(problem, stage=None):
    before = start(problem)
    keep = (stage or Resplit()).run(problem, before, Context()).keep
    assert not count_reason(problem, keep)
    old, new = problem.row_errors(~before.keep), problem.row_errors(~keep)
    if problem.pattern.separable:
        assert (new <= old).all()
    assert new.sum() <= old.sum()
    return keep


@pytest.mark.parametrize("pattern", PATTERNS)
def test_is_never_worse_than_the_mask_it_begins_with(pattern):
    for problem in (*hostile_layers(pattern), random_layer(pattern, rows=6, n=48), arriving(pattern, n=24)[0]):
        never_worse(problem)


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_comes_to_the_optimum_of_short_rows(pattern):
    ratios = []
    for seed in range(6):
        problem = random_layer(pattern, rows=3, seed=seed)
        ratios.append(problem.error(never_worse(problem)) / best_mask(problem)[0])
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(ratios) < 1.001


def test_is_about_as_good_as_fast_on_a_layer_of_correlated_inputs():
    problem = correlated(24, 96)

    def error(spec):
        return pipeline.run(problem, pipeline.resolve(spec), threads=1).result.error

    swapped, pushed, found = error("wanda+swap"), error("fast"), error("faster")
    assert pushed < swapped
    assert found < pushed + 0.2 * (swapped - pushed)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("pattern", ["0.5", "2:4", "8:16"])
def test_a_search_of_cores_keeps_counts_and_products_and_lowers_errors(pattern, target):
    problem = arriving(pattern, rows=5, n=160, seed=1)[0] if target else random_layer(pattern, rows=5, n=160, seed=1)
    layer = Scaled.of(problem, Context())
    W, G, u = layer.w.numpy(), layer.G.numpy(), (~start(problem).keep).astype(np.float32)
    half = W * layer.t.numpy() if target else np.zeros((5, 0), np.float32)
    X, before = (W * u) @ G, u.copy()
    core_numba.search(W, G, u, X, half, 48, 3, 60, 2, 6, problem.group, keys(0, np.arange(5), 0))
    assert np.array_equal(problem.pattern.groups(u).sum(-1), problem.pattern.groups(before).sum(-1))
    assert set(np.unique(u)) == {0, 1}
    assert np.allclose(X, (W * u) @ G, atol=1e-4)
    assert (problem.row_errors(u) < problem.row_errors(before)).all()


def test_a_search_takes_exchanges_that_lose_on_its_way():
    """1-swaps end above what it finds: it leaves their optimum, and comes back with the best that it met."""
    problem = correlated(16, 96)
    swapped = ~pipeline.run(problem, pipeline.resolve("wanda+swap"), threads=1).keep
    layer = Scaled.of(problem, Context())
    W, G, u = layer.w.numpy(), layer.G.numpy(), swapped.astype(np.float32)
    core_numba.search(
        W, G, u, (W * u) @ G, np.zeros((16, 0), np.float32), 96, 2, 200, 2, 6, 96, keys(0, np.arange(16), 0)
    )
    old, new = problem.row_errors(swapped), problem.row_errors(u)
    assert (new <= old * (1 + 1e-6)).all()
    assert (new < 0.999 * old).mean() > 0.5


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_large_penalty_holds_the_mask_that_admm_begins_with(pattern, target):
    """The multiplier it begins with makes the mask a fixed point; without it the same penalty would not."""
    problem = arriving(pattern, rows=4, n=24, seed=1)[0] if target else random_layer(pattern, rows=4, n=24, seed=1)
    pruned = torch.from_numpy(~start(problem).keep)
    double = Context(dtype="float64")
    layer = Scaled.of(problem, double)
    size = 1e4 * float(
        (layer.w.abs().max() / layer.w.abs().min()) * (1 if layer.t is None else layer.t.abs().max() + 1)
    )
    u, done = alternate(problem, layer, pruned, np.array([size]), 3, double, warm=True)
    assert done == 3
    assert np.array_equal(u.numpy() > 0, pruned.numpy())


def test_over_relaxed_steps_go_farther_at_the_first_half_of_the_penalties():
    problem = random_layer("0.5", rows=4, n=24, seed=3)
    double = Context(dtype="float64")
    layer = Scaled.of(problem, double)
    G, w = layer.G.numpy(), layer.w.numpy()
    u = (~start(problem).keep).astype(float)
    y = -((w * u) @ G) / 0.1
    pruned, before = torch.from_numpy(u > 0), 0.1
    for rho, over in ((0.1, 1.7), (0.3, 1.0)):
        y *= before / rho
        before = rho
        for _ in range(3):
            x = over * (w * u - y) @ np.linalg.inv(G + rho * np.eye(24)) * rho + (1 - over) * w * u
            score = w * (w - 2 * (x + y))
            u = problem.pattern.prune(score).astype(float)
            y = x + y - w * u
    found, _ = alternate(problem, layer, pruned, np.array([0.1, 0.3]), 6, double, over=1.7, warm=True)
    assert np.array_equal(found.numpy(), u)


@pytest.mark.parametrize(("hard", "products"), [(-1.0, 25 + 100), (1.0, 25)])
def test_only_rows_that_gained_much_get_another_round(hard, products, monkeypatch):
    monkeypatch.setattr(resplit, "HARD", hard)
    problem = correlated(6, 64)
    after = Resplit().run(problem, start(problem), Context())
    assert after.counters["gram_products"] == products


def test_threads_do_not_matter_and_a_deadline_leaves_the_mask():
    problem = correlated(300, 48)
    before = pipeline.run(problem, pipeline.resolve("wanda+swap"), threads=1)
    state = State(keep=before.keep)
    one, two = (Resplit().run(problem, state, Context(threads=threads)) for threads in (1, 2))
    assert np.array_equal(one.keep, two.keep)
    late = Resplit().run(problem, state, Context(deadline=0.0))
    assert late.stopped == "deadline"
    assert np.array_equal(late.keep, before.keep)


def test_a_row_ends_where_it_would_alone():
    problem = correlated(5, 64)
    state = start(problem)
    whole = Resplit(rounds=1, turns=0).run(problem, state, Context()).keep
    part = Resplit(rounds=1, turns=0).run(problem.part(slice(1, 5)), State(keep=state.keep[1:5]), Context()).keep
    assert np.array_equal(whole[1:5], part)


@pytest.mark.parametrize(
    "given", [{"iterations": 0}, {"rounds": 0}, {"first": 0.0}, {"last": 0.01}, {"over": 2.0}, {"core": 0.0}]
)
def test_what_is_no_parameter_is_refused(given):
    with pytest.raises(ValueError, match=r"must be|is a part"):
        replace(Resplit(), **given)
