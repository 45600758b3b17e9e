"""Frank-Wolfe with momentum against a plain numpy loop over rows, vanilla Frank-Wolfe, and a QP solver's minimum."""

from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import pytest
import torch
from layers import PATTERNS, arriving, begun, extreme_layers, random_layer
from oracles import group_sums, relaxed_minimum

from fwbench.patterns import PerRow
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.solvers.frank_wolfe import loop
from fwbench.solvers.frank_wolfe.momentum import Averaging, Momentum, Tokens, cycle_of_grams, iterates
from fwbench.solvers.frank_wolfe.push import middle
from fwbench.stage import Context, State


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


@pytest.mark.parametrize("scale", [1.0, 1e-18])
@pytest.mark.parametrize("transport", [False, True])
def test_inputs_in_place_of_gram_matrices(transport, scale):
    rng = np.random.default_rng(5)
    inputs = [torch.tensor(scale * rng.standard_normal((6, 12))) for _ in range(3)]
    W, u = torch.tensor(rng.standard_normal((4, 12))), torch.full((4, 12), 0.5, dtype=torch.float64)
    pattern, options = PerRow(0.5), Averaging(transport=transport)
    by_gram = iterates(W, cycle([X.T @ X / 6 for X in inputs]), pattern, u, options)
    by_inputs = iterates(W, cycle([Tokens(X) for X in inputs]), pattern, u, options)
    for one, other in islice(zip(by_gram, by_inputs, strict=True), 30):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_inputs_whose_gram_matrix_would_not_fit():
    n = 200_000  # 160 GB
    X = torch.randn(3, n, generator=torch.Generator().manual_seed(0))
    start = torch.full((1, n), 0.5)
    for u in islice(iterates(torch.ones(1, n), cycle([Tokens(X)]), PerRow(0.5), start), 3):
        assert float(u.sum()) == pytest.approx(n / 2)


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


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_a_round_of_batches_has_the_gram_matrix_as_its_mean(count):
    for problem in (random_layer("0.5", n=12, condition=1e6), *extreme_layers("0.5", n=12)):
        batches = list(islice(cycle_of_grams(problem.G, count, seed=3), min(count, 12)))
        scale = np.sqrt(np.outer(problem.G.diagonal(), problem.G.diagonal()))
        np.testing.assert_allclose(np.mean(batches, axis=0), problem.G, atol=1e-12 * scale.max(), rtol=1e-9)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_stage_is_iterates_over_its_batches(pattern):
    problem, exact = random_layer(pattern, n=12, seed=2), Context(dtype="float64", seed=4)
    start = begun(problem, Momentum)
    after = Momentum(steps=10, batches=3, alpha=0.3).run(problem, start, exact)
    grams = map(torch.from_numpy, cycle_of_grams(problem.G, 3, 4))
    W, u = torch.tensor(problem.W, dtype=torch.float64), torch.tensor(~start.keep)
    expected = list(islice(iterates(W, grams, problem.pattern, u, Averaging(0.3)), 10))[-1]
    np.testing.assert_allclose(after.relaxed, expected.numpy(), atol=1e-9)
    assert after.counters == {"iterations": 10, "gram_products": 10}


@pytest.mark.parametrize("transport", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_with_a_target_one_batch_is_vanilla_with_the_open_step(pattern, transport):
    """Newest gradient only, or an average that is moved along exactly: the linear term is in every gradient once."""
    problem, exact = arriving(pattern, rows=2, n=12, seed=1)[0], Context(dtype="float64")
    start = State(relaxed=middle(problem))
    stage = Momentum(steps=20, batches=1, alpha=0.0 if transport else 1.0, transport=transport)
    vanilla = loop.minimise(
        loop.Objective.of(problem, exact), torch.tensor(middle(problem)), loop.LoopOptions(steps=20, step="open"), exact
    )
    np.testing.assert_allclose(stage.run(problem, start, exact).relaxed, vanilla.u.numpy(), atol=1e-9)


@pytest.mark.parametrize("target", [False, True])
def test_the_stage_reaches_the_minimum(target):
    problem = arriving("0.5", n=24, wrong=0.3)[0] if target else random_layer("0.5", n=24)
    minimum, _ = relaxed_minimum(problem)
    after = Momentum(steps=2000, batches=4).run(problem, begun(problem, Momentum), Context(dtype="float64"))
    assert minimum * (1 - 1e-9) <= problem.row_errors(after.relaxed).sum() <= minimum * 1.01


def test_seeds_units_and_the_deadline():
    problem = random_layer("0.5", n=12)
    start = begun(problem, Momentum)
    one, again, other = (Momentum(steps=30).run(problem, start, Context(seed=seed)).relaxed for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    scaled = replace(problem, W=problem.W * np.float32(2.0**60), G=problem.G * 2.0**60)
    np.testing.assert_allclose(Momentum(steps=30).run(scaled, start, Context(seed=1)).relaxed, one, atol=1e-5)
    late = Momentum().run(problem, start, Context(deadline=0.0))
    assert (late.stopped, late.counters["iterations"]) == ("deadline", 0)
    assert np.array_equal(late.relaxed, ~start.keep)


@pytest.mark.parametrize("given", [{"steps": 0}, {"batches": 0}, {"alpha": 2.0}, {"ell": 0.0}])
def test_what_is_no_parameter_is_refused(given):
    with pytest.raises(ValueError, match="must"):
        Momentum(**given)
