"""Frank-Wolfe with momentum against a plain numpy loop over rows, vanilla Frank-Wolfe, and a QP solver's minimum."""

from itertools import cycle, islice

import numpy as np
import pytest
import torch
from layers import PATTERNS, random_layer
from oracles import group_sums, relaxed_minimum

from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.solvers.frank_wolfe import loop
from fwbench.solvers.frank_wolfe.momentum import Averaging, iterates
from fwbench.solvers.frank_wolfe.push import middle
from fwbench.stage import Context


def split(problem: Problem, count: int) -> list[np.ndarray]:
    """Grams whose mean is the problem's, from the columns of a factor."""
    values, vectors = np.linalg.eigh(problem.G)
    factor = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return [count * factor[:, i::count] @ factor[:, i::count].T for i in range(count)]


def run(problem: Problem, grams: list[np.ndarray], steps: int, options: Averaging | None = None) -> list[np.ndarray]:
    """Iterates in float64 from the middle of the polytope, the batches in turn."""
    W, u = torch.tensor(problem.W, dtype=torch.float64), torch.tensor(middle(problem))
    found = iterates(W, cycle(map(torch.tensor, grams)), problem.pattern, u, options)
    return [x.numpy() for x in islice(found, steps)]


def published(w: np.ndarray, grams: list[np.ndarray], steps: int, options: Averaging) -> list[np.ndarray]:
    """One row with half of its weights pruned; the transport takes two gradients of the newest batch."""
    n, found = len(w), []
    u = before = np.full(n, 0.5)
    d = np.zeros(n)
    for t in range(steps):
        H = 2 * np.outer(w, w) * grams[t % len(grams)]
        alpha = 1 if t == 0 else options.alpha or 4 / (t + 8) ** (2 / 3)
        d = (1 - alpha) * (d + options.transport * (H @ u - H @ before)) + alpha * H @ u
        order = np.argsort(d)
        assert d[order[n // 2]] - d[order[n // 2 - 1]] > 1e-6, "a tie: rounding would choose"
        vertex = np.isin(np.arange(n), order[: n // 2])
        before, u = u, u + options.ell / (t + options.ell) * (vertex - u)
        found.append(u)
    return found


@pytest.mark.parametrize("transport", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_equals_the_papers_recursion_step_by_step(alpha, transport):
    rng = np.random.default_rng(3)
    inputs = [rng.integers(-9, 10, (10, 7)).astype(float) for _ in range(4)]
    grams, W = [X @ X.T for X in inputs], rng.integers(-30, 31, (3, 10))
    problem, options = Problem("integers", W, sum(grams) / 4, "0.5"), Averaging(alpha, transport, ell=3.0)
    rows = [published(w, grams, 30, options) for w in W.astype(float)]
    np.testing.assert_allclose(run(problem, grams, 30, options), np.stack(rows, axis=1), atol=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "options", [Averaging(alpha=1.0), Averaging(alpha=0.1, transport=True), Averaging(transport=True)]
)
def test_one_batch_is_vanilla_with_the_open_step(options, pattern):
    """Newest gradient only, or an average that is moved along exactly."""
    problem, exact = random_layer(pattern, n=12, seed=1), Context(dtype="float64")
    layer, start = loop.Objective.of(problem, exact), torch.tensor(middle(problem))
    for steps, u in enumerate(run(problem, [problem.G], 20, options), 1):
        vanilla = loop.minimise(layer, start, loop.LoopOptions(steps=steps, step="open"), exact)
        np.testing.assert_allclose(u, vanilla.u.numpy(), atol=1e-9)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_iterate_is_feasible(dtype, pattern):
    problem = random_layer(pattern, n=12, condition=1e4)
    sums, counts = group_sums(problem.pattern, problem.shape), problem.counts
    W, start = torch.tensor(problem.W, dtype=dtype), torch.tensor(middle(problem))
    found = 0
    for u in iterates(W, map(torch.tensor, 10 * split(problem, 3)), problem.pattern, start):
        assert u.dtype == dtype
        assert u.min() >= 0
        assert u.max() <= 1
        np.testing.assert_allclose(sums @ u.double().numpy().ravel(), counts, rtol=10 * torch.finfo(dtype).eps)
        found += 1
    assert found == 30, "a step for every Gram"
    assert np.array_equal(start.numpy(), middle(problem))


OPTIONS = [
    (Averaging(), 1),
    (Averaging(transport=False), 1),
    (Averaging(alpha=0.1), 1),
    (Averaging(alpha=0.1, transport=False), 1),
    (Averaging(alpha=1.0), 1),
]
BLOCKS = [problem for _, problem in load("mini/n064*") if problem.T is None]


@pytest.mark.parametrize("problem", BLOCKS, ids=[problem.name for problem in BLOCKS])
def test_batches_in_turn_reach_the_minimum(problem):
    minimum, _ = relaxed_minimum(problem)
    u = run(problem, split(problem, 4), 2000)[-1]
    assert minimum * (1 - 1e-9) <= problem.row_errors(u).sum() <= minimum * 1.01


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"alpha": 1.5}, {"ell": 0.0}])
def test_options_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="must"):
        Averaging(**wrong)
