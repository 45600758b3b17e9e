"""ADMM between the quadratic and the masks: near the optimum, on any device, on hostile layers."""

import numpy as np
import pytest
import torch
from brute import best_mask
from layers import PATTERNS, arriving, hostile_layers, random_layer

from fwbench.judge import count_reason
from fwbench.problems.synthetic import correlated
from fwbench.solvers.frank_wolfe import splitting
from fwbench.solvers.frank_wolfe.splitting import Splitting
from fwbench.solvers.rounding.stage import Round
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State


def mask_of(problem, stage, state=None, context=None):
    context = context or Context()
    after = stage.run(problem, state or State(), context)
    assert set(np.unique(after.relaxed)) <= {0.0, 1.0}
    keep = Round().run(problem, after, context).keep
    assert np.array_equal(keep, after.relaxed == 0)
    assert not count_reason(problem, keep)
    return keep


@pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.4"])
def test_comes_near_the_optimum_and_nearer_than_wanda(pattern):
    ratios, wanda = [], []
    for seed in range(10):
        problem = random_layer(pattern, rows=1 if pattern[0] == "u" else 3, seed=seed)
        optimum, _ = best_mask(problem)
        ratios.append(problem.error(mask_of(problem, Splitting())) / optimum)
        wanda.append(problem.error(Wanda().run(problem, State(), Context()).keep) / optimum)
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(ratios) < 1 + 0.5 * (np.mean(wanda) - 1)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_turn_is_the_three_updates_of_admm(pattern, target):
    problem = arriving(pattern, rows=4, n=24, seed=1)[0] if target else random_layer(pattern, rows=4, n=24, seed=1)
    scale = np.sqrt(problem.G.diagonal())
    G, W = problem.G / scale / scale[:, None], problem.W * scale
    size = np.abs(W).max(1, keepdims=True) if problem.pattern.separable else np.abs(W).max()
    W, t = W / size, problem.T / scale / size if target else 0.0
    u, y = problem.pattern.prune(np.abs(W)).astype(float), np.zeros_like(W)
    for rho, step in zip(np.geomspace(0.1, 1.0, 3), (0.1, np.sqrt(0.1), np.sqrt(0.1)), strict=True):
        y *= step if rho > 0.1 else 1.0  # the multiplier is ρ y
        for _ in range(2):
            x = np.linalg.solve(G + rho * np.eye(24), (rho * (W * u - y) - t).T).T
            u = problem.pattern.prune((x + y - W) ** 2 - (x + y) ** 2).astype(float)
            y = y + x - W * u
    stage = Splitting(iterations=6, levels=3, first=0.1, last=1.0)
    after = stage.run(problem, State(), Context(dtype="float64"))
    assert np.array_equal(after.relaxed, u)
    assert after.counters == {"iterations": 6, "gram_products": 6}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_kernel_equals_torch(pattern, monkeypatch):
    problem = random_layer(pattern, rows=6, n=24, seed=2)
    expected = Splitting().run(problem, State(), Context(dtype="float64"))

    def turn(w, product, y, u, x, counts, guess):
        part = splitting._Part(
            *(torch.from_numpy(array.reshape(problem.shape)) for array in (w, u, y, x)), problem.pattern, counts, guess
        )
        part.turn(torch.from_numpy(product.reshape(problem.shape)))
        for array, tensor in ((u, part.u), (y, part.y), (x, part.x)):
            array[:] = tensor.numpy().reshape(array.shape)

    monkeypatch.setattr(splitting, "turn", turn)
    found = Splitting().run(problem, State(), Context(dtype="float64"))
    assert np.array_equal(found.relaxed, expected.relaxed)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bears_hostile_layers(pattern):
    for problem in hostile_layers(pattern):
        mask_of(problem, Splitting())


def test_threads_do_not_matter_and_a_point_is_where_it_starts():
    problem = correlated(300, 24)
    one, two = (Splitting().run(problem, State(), Context(threads=threads)) for threads in (1, 2))
    assert np.array_equal(one.relaxed, two.relaxed)
    point = np.random.default_rng(0).random(problem.shape)
    late = Splitting().run(problem, State(relaxed=point), Context(deadline=0.0))
    assert late.stopped == "deadline"
    assert late.counters["iterations"] == 0
    assert np.array_equal(late.relaxed > 0, problem.pattern.prune(-point))


@pytest.mark.parametrize("given", [{"iterations": 0}, {"levels": 0}, {"first": 0.0}, {"first": 2.0}])
def test_what_is_no_parameter_is_refused(given):
    with pytest.raises(ValueError, match="positive"):
        Splitting(**given)
