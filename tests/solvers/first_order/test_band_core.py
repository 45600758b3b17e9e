"""``resplit`` on transposable masks: never worse, near the optimum; its search of bands keeps what it must."""

from itertools import combinations, product

import numpy as np
import pytest
from brute import best_mask
from layers import arriving, hostile_layers, random_layer

from fwbench.judge import count_reason
from fwbench.problems.synthetic import correlated
from fwbench.solvers.first_order import band_core_numba, resplit
from fwbench.solvers.first_order.resplit import Resplit
from fwbench.solvers.frank_wolfe.splitting import Scaled
from fwbench.solvers.local_search.anneal_numba import keys
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.start.scores import Random
from fwbench.stage import Context, State

TWO_OF_FOUR = "transposable:2:4"


def start(problem, seed=0):
    return Random().run(problem, State(), Context(seed=seed))


def never_worse(problem):
    before = start(problem)
    keep = Resplit().run(problem, before, Context()).keep
    assert not count_reason(problem, keep)
    assert (problem.tied(problem.row_errors(~keep)) <= problem.tied(problem.row_errors(~before.keep))).all()
    return keep


def searched(problem, u, core=48, turns=3, iterations=60):
    """``u`` after a search, which is checked: sides, and the products that it carries along."""
    layer = Scaled.of(problem, Context())
    W, G, u = layer.w.numpy(), layer.G.numpy(), u.astype(np.float32)
    half = W * layer.t.numpy() if layer.t is not None else np.zeros((len(W), 0), np.float32)
    X, random = (W * u) @ G, keys(0, np.arange(len(W)), 0)
    band_core_numba.search(W, G, u, X, half, core, turns, iterations, 2, 6, problem.group, random)
    assert set(np.unique(u)) <= {0, 1}
    assert np.allclose(X, (W * u) @ G, atol=1e-4)
    assert not count_reason(problem, u == 0)
    return u


def test_is_never_worse_than_the_mask_it_begins_with(monkeypatch):
    layers = (*hostile_layers(TWO_OF_FOUR, 4), arriving(TWO_OF_FOUR, 4, 8)[0], random_layer("transposable:1:2", 4, 6))
    for problem in layers:
        never_worse(problem)
    monkeypatch.setattr(resplit, "HARD", -1.0)  # every band gets another round
    never_worse(random_layer(TWO_OF_FOUR, 8, 16))


def test_comes_to_the_optimum_of_small_bands():
    ratios = []
    for seed in range(6):
        problem = random_layer(TWO_OF_FOUR, 4, 8, seed)
        ratios.append(problem.error(never_worse(problem)) / best_mask(problem)[0])
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(ratios) < 1.01


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize(("pattern", "rows"), [(TWO_OF_FOUR, 8), ("transposable:4:8", 16)])
def test_a_search_keeps_counts_and_products_and_lowers_errors(pattern, rows, target):
    problem = arriving(pattern, rows, 96, seed=1)[0] if target else random_layer(pattern, rows, 96, seed=1)
    before = ~start(problem).keep
    after = searched(problem, before)
    assert (problem.tied(problem.row_errors(after)) < problem.tied(problem.row_errors(before))).all()


def test_the_first_exchange_is_the_best_one():
    """That of every exchange of two rows and two columns of a block, each judged by itself."""
    for seed in range(4):
        problem = random_layer(TWO_OF_FOUR, 4, 8, seed)
        before = start(problem, seed).keep
        errors = []
        for first in range(0, 8, 4):
            for (r, s), (i, j) in product(combinations(range(4), 2), combinations(range(first, first + 4), 2)):
                keep = before.copy()
                keep[np.ix_((r, s), (i, j))] ^= True
                if not count_reason(problem, keep):
                    errors.append(problem.error(keep))
        after = searched(problem, ~before, core=8, turns=1, iterations=1)
        assert problem.error(after == 0) == pytest.approx(min(errors), rel=1e-5)


def test_a_search_takes_exchanges_that_lose_on_its_way():
    problem = correlated(16, 64, pattern=TWO_OF_FOUR)
    swapped = ~Swap().run(problem, start(problem), Context()).mask
    after = searched(problem, swapped, core=64, turns=2, iterations=200)
    old, new = (problem.tied(problem.row_errors(mask))[::4] for mask in (swapped, after))
    assert (new <= old * (1 + 1e-6)).all()
    assert (new < 0.999 * old).mean() > 0.5


def test_threads_do_not_matter_and_a_deadline_leaves_the_mask():
    problem = correlated(264, 16, pattern="transposable:4:8")
    state = start(problem)
    one, two = (Resplit().run(problem, state, Context(threads=threads)) for threads in (1, 2))
    assert np.array_equal(one.keep, two.keep)
    late = Resplit().run(problem, state, Context(deadline=0.0))
    assert late.stopped == "deadline"
    assert np.array_equal(late.keep, state.keep)
