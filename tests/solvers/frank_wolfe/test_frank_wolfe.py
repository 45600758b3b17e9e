"""Frank-Wolfe against a plain reference, an LP and a QP solver, and enumeration."""

import math

import numpy as np
import pytest
import torch
from brute import best_mask
from layers import PATTERNS, arriving, hostile_layers, pattern_of, random_layer
from oracles import gradient, group_sums, linear_minimum, relaxed_minimum

from fwbench import pipeline, verify
from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe import loop
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.rounding.stage import Round
from fwbench.solvers.start.scores import Random, Ria, Wanda, ria_score, wanda_score
from fwbench.stage import Context, State

RULES = ("open", "short", "linesearch")
EXACT = Context(dtype="float64")


def integers(pattern: str, rows: int = 3, n: int = 8, seed: int = 0) -> Problem:
    """Whole numbers from a wide range: exact, and rarely tied."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-9, 10, (n, 30)).astype(float)
    return Problem("integers", rng.integers(-30, 31, (rows, n)), X @ X.T, pattern_of(pattern, rows, n))


def start(problem: Problem) -> State:
    return Wanda().run(problem, State(), Context())


def solve(problem: Problem, context: Context = EXACT, **options: object) -> State:
    return FrankWolfe(**options).run(problem, start(problem), context)


# --- the loop, step by step ------------------------------------------------------------------------------------------


def reference(problem: Problem, u: np.ndarray, rule: str, steps: int, e: np.ndarray | float = 0.0) -> np.ndarray:
    """Jaggi's algorithm 1 on each independent block, one dense matrix each; the oracle's vertex is an LP's optimum."""
    W = problem.W.astype(float)
    d = W**2 * e
    blocks = [[r] for r in range(problem.rows)] if problem.pattern.separable else [list(range(problem.rows))]
    u = u.copy()
    for t in range(steps):
        g = gradient(problem, u) + d * (1 - 2 * u)
        vertex = problem.pattern.prune(g).astype(float)
        assert (g * vertex).sum() == pytest.approx(linear_minimum(problem.pattern, g)[0], rel=1e-9, abs=1e-9)
        for block in blocks:
            move, gap = (vertex - u)[block], (g * (u - vertex))[block].sum()
            if rule == "open":
                step = 2 / (t + 2)
            elif rule == "linesearch":
                Qs = [np.outer(w, w) * (problem.G - np.diag(np.broadcast_to(e, problem.n))) for w in W[block]]
                curvature = sum(m @ Q @ m for m, Q in zip(move, Qs, strict=True))
                step = np.clip(gap / (2 * curvature), 0, 1) if gap > 0 else 0.0
            else:
                largest = max(np.abs(np.outer(w, w) * problem.G).sum(axis=1).max() for w in W[block])
                step = np.clip(gap / (2 * largest * (move**2).sum()), 0, 1) if gap > 0 else 0.0
            u[block] += step * move
    return u


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_reference_step_by_step(rule, pattern):
    problem = integers(pattern)
    layer, first = loop.Objective.of(problem, EXACT), (~start(problem).keep).astype(float)
    expected = first
    for steps in (1, 2, 3, 5, 10, 20, 50):
        expected = reference(problem, first, rule, steps)
        run = loop.minimise(layer, torch.tensor(first), loop.LoopOptions(steps=steps, step=rule), EXACT)
        np.testing.assert_allclose(run.u.numpy(), expected, atol=1e-8, err_msg=f"after {steps} steps")
        assert run.iterations == steps


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_equals_the_reference_when_convexified(pattern):
    problem = integers(pattern, seed=1)
    e = np.full(problem.n, 0.9 * np.linalg.eigvalsh(problem.G)[0])
    layer, first = (
        loop.Objective.of(problem, EXACT, problem.W.astype(np.float64) ** 2 * e),
        (~start(problem).keep).astype(float),
    )
    for rule in ("open", "linesearch"):
        run = loop.minimise(layer, torch.tensor(first), loop.LoopOptions(steps=30, step=rule), EXACT)
        np.testing.assert_allclose(run.u.numpy(), reference(problem, first, rule, 30, e), atol=1e-7, err_msg=rule)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rule", RULES)
def test_bounds_lie_below_the_minimum_and_grow(rule, pattern):
    problem = random_layer(pattern, n=12, condition=1e3)
    minimum, _ = relaxed_minimum(problem)
    after = solve(problem, step=rule, steps=100, gap=0.0)
    lower = np.array([moment.lower for moment in after.trace])
    assert len(lower) >= 10
    assert (np.diff(lower) >= -1e-12 * minimum).all()
    assert (lower <= minimum * (1 + 1e-9)).all()
    assert after.lower <= minimum * (1 + 1e-9)


# --- the stage -------------------------------------------------------------------------------------------------------


def assert_feasible(problem: Problem, u: np.ndarray, slack: float) -> None:
    sums = group_sums(problem.pattern, problem.shape) @ u.ravel().astype(float)
    assert np.abs(sums - problem.counts).max() <= slack * problem.pattern.group_size(problem.shape)
    assert u.min() >= 0
    assert u.max() <= 1


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("rule", "dtype"), [("open", "float64"), ("linesearch", "float64"), ("linesearch", "float32")])
def test_converges_to_the_minimum(rule, dtype, pattern):
    slack = {"open": 1e-3, "linesearch": 2.5e-3}[rule]  # exact line search zigzags more (Guelat and Marcotte 1986)
    for problem in (random_layer(pattern, n=12), random_layer(pattern, n=12, seed=1, condition=1e2)):
        minimum, _ = relaxed_minimum(problem)
        after = solve(problem, Context(dtype=dtype), step=rule, steps=4000, gap=0.0)
        assert_feasible(problem, after.relaxed, 1e-5)
        value = problem.row_errors(after.relaxed).sum()
        assert minimum * (1 - 1e-5) <= value <= minimum * (1 + slack), problem.name
        assert minimum * (1 - 2.5e-3) <= after.lower <= minimum * (1 + 1e-5)
        assert verify.check(problem, after.certificate).ok


def test_stops_at_the_gap():
    problem = random_layer("0.5", n=24)
    after = solve(problem, gap=0.05, steps=5000)
    assert after.counters["iterations"] < 2000
    value = problem.row_errors(after.relaxed)
    g = gradient(problem, after.relaxed)
    gaps = (g * after.relaxed).sum(axis=1) - np.where(problem.pattern.prune(g), g, 0).sum(axis=1)
    assert (gaps <= 0.05 * value * (1 + 1e-6)).all()
    assert solve(problem, gap=0.05, steps=3).counters["iterations"] == 3


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_steps_is_the_start(pattern):
    problem = random_layer(pattern, n=12)
    after = solve(problem, steps=0)
    assert np.array_equal(after.relaxed, ~start(problem).keep)
    assert verify.check(problem, after.certificate).ok
    vague = np.array(after.relaxed) * 0.5 + 0.5 * problem.pattern.prune(np.zeros(problem.shape))
    resumed = FrankWolfe(steps=0).run(problem, State(relaxed=vague), EXACT)
    np.testing.assert_allclose(resumed.relaxed, vague)


def test_a_start_is_needed():
    with pytest.raises(ValueError, match="there is no mask to begin with"):
        FrankWolfe().run(random_layer("0.5"), State(), Context())


@pytest.mark.parametrize("alpha", [0.25, 0.9, 1.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_alpha_keeps_the_highest_scores(pattern, alpha):
    problem = random_layer(pattern, n=12)
    after = solve(problem, steps=200, alpha=alpha)
    score = problem.pattern.groups(np.abs(problem.W) * np.sqrt(problem.G.diagonal()))
    u = problem.pattern.groups(after.relaxed)
    for group, own, count in zip(score, u, problem.counts, strict=True):
        fixed = np.argsort(-group, kind="stable")[: math.floor(alpha * (group.size - count))]
        assert not own[fixed].any()
    assert_feasible(problem, after.relaxed, 1e-9)
    assert after.lower <= relaxed_minimum(problem)[0] * (1 + 1e-9)  # the proof is for all masks, fixed or not
    if alpha == 1.0:
        assert np.array_equal(after.relaxed, ~start(problem).keep)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("target", [False, True])
def test_alpha_of_one_is_the_mask_of_what_ranks(target, pattern):
    """From any start; ``start`` is the mask that it begins with."""
    problem = arriving(pattern, n=12)[0] if target else random_layer(pattern, n=12)
    begin = {"wanda": Wanda(), "ria": Ria(), "random": Random()}
    begin = {name: stage.run(problem, State(), Context(seed=3)) for name, stage in begin.items()}
    for first, state in begin.items():
        for fixed, ranked in (("wanda", "wanda"), ("ria", "ria"), ("start", first)):
            for options in ({}, {"variant": "pairwise"}, {"variant": "vanilla", "step": "open"}):
                after = FrankWolfe(alpha=1.0, fixed=fixed, steps=30, **options).run(problem, state, EXACT)
                assert np.array_equal(after.relaxed, ~begin[ranked].keep), (first, fixed, options)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_best_of_a_start_are_its_own_and_then_wanda_s(pattern):
    problem = random_layer(pattern, n=12)
    start = Random().run(problem, State(), Context(seed=3))
    after = FrankWolfe(alpha=0.5, fixed="start", steps=50).run(problem, start, EXACT)
    score = problem.pattern.groups(np.where(start.keep, wanda_score(problem.W, problem.G), -1.0))
    u = problem.pattern.groups(after.relaxed)
    for group, own, count in zip(score, u, problem.counts, strict=True):
        assert not own[np.argsort(-group, kind="stable")[: (group.size - count) // 2]].any()
    assert_feasible(problem, after.relaxed, 1e-9)


def test_no_alpha_nothing_is_fixed():
    problem = random_layer("0.5", n=12)
    plain = solve(problem, steps=50)
    for fixed in ("wanda", "ria", "start"):
        assert np.array_equal(solve(problem, steps=50, alpha=0.0, fixed=fixed).relaxed, plain.relaxed)


@pytest.mark.parametrize("score", ["wanda", "ria"])
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_the_presets_are_algorithm_2_as_printed(pattern, score):
    """SparseFW in the paper's terms: M, kept weights, gradient ``-2 W∘(H - (W∘M)G)``; k where it says at most k."""
    problem = random_layer(pattern, n=16, seed=4)
    W, G, steps = problem.W.astype(float), problem.G, 2000
    saliency = problem.pattern.groups((wanda_score if score == "wanda" else ria_score)(problem.W, G))
    kept = saliency.shape[1] - problem.counts

    def top(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
        order = np.argsort(np.argsort(-x, axis=1, kind="stable"), axis=1)
        return (order < counts[:, None]).astype(float)

    fixed = top(saliency, np.floor(0.9 * kept))
    free = kept - fixed.sum(axis=1)
    M = top(saliency, kept) - fixed
    for t in range(steps):
        both = (M + fixed).reshape(problem.shape)
        g = problem.pattern.groups(-2 * W * (W @ G - (W * both) @ G))
        vertex = top(np.where(fixed > 0, -np.inf, -g), free)
        M += 2 / (t + 2) * (vertex - M)
    expected = top(np.where(fixed > 0, -1.0, M), free) + fixed
    solver = pipeline.resolve("SparseFW" if score == "wanda" else "sparsefw_ria")
    found = pipeline.run(problem, solver, threads=1, dtype="float64")
    assert np.array_equal(found.keep, expected.reshape(problem.shape) > 0)
    assert solver.stages[1].steps == steps


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_shared_e_bounds_better_and_still_below_every_mask(pattern, seed):
    n = 5 if pattern == "unstructured:0.4" else 12
    problem = random_layer(pattern, n=n, seed=seed)
    best, _ = best_mask(problem)
    plain, shared = (solve(problem, steps=2000, gap=1e-6, convexify=kind) for kind in ("none", "shared"))
    assert plain.lower <= shared.lower * (1 + 1e-6)
    assert shared.lower <= best * (1 + 1e-12)
    assert verify.check(problem, shared.certificate).bound == pytest.approx(shared.lower, rel=1e-9)
    if pattern in ("0.5", "unstructured:0.4"):  # something is left to lift
        assert shared.lower > plain.lower * 1.01


@pytest.mark.parametrize("convexify", ["none", "shared"])
@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4", "rows"])
def test_hostile_layers(pattern, convexify):
    for problem in hostile_layers(pattern):
        after = solve(problem, Context(), steps=50, convexify=convexify)
        assert np.isfinite(after.relaxed).all(), problem.name
        assert_feasible(problem, after.relaxed, 1e-5)
        assert verify.check(problem, after.certificate).ok, problem.name
        assert not count_reason(problem, Round().run(problem, after, Context()).keep)


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_threads_do_not_change_the_answer(pattern):
    problem = random_layer(pattern, rows=5, n=24)
    one, two = (solve(problem, Context(threads=threads), steps=100) for threads in (1, 2))
    assert np.array_equal(one.relaxed, two.relaxed)
    assert one.lower == two.lower


def test_inputs_are_not_written_to():
    problem = random_layer("0.5")
    state = start(problem)
    keep, relaxed = state.keep.copy(), (~state.keep).astype(np.float64)
    FrankWolfe(steps=20, convexify="shared").run(problem, State(keep=state.keep, relaxed=relaxed), Context())
    assert np.array_equal(state.keep, keep)
    assert np.array_equal(relaxed, ~keep)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"step": "fast"}, {"variant": "sideways"}, {"convexify": "maybe"}, {"fixed": "yes"}),
        *({"alpha": 1.5}, {"alpha": -0.1}, {"gap": -1.0}),
    ],
)
def test_bad_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=r"known|must"):
        FrankWolfe(**wrong)


# --- rounding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rounding_prunes_the_largest(pattern):
    problem = random_layer(pattern)
    rng = np.random.default_rng(0)
    for u in (rng.random(problem.shape), rng.integers(0, 3, problem.shape) / 2):
        after = Round().run(problem, State(relaxed=u), Context())
        assert after.relaxed is None
        size, counts = problem.pattern.group_size(problem.shape), problem.counts
        for values, keep, count in zip(u.reshape(-1, size), after.keep.reshape(-1, size), counts, strict=True):
            assert sorted(np.flatnonzero(~keep)) == sorted(np.argsort(-values, kind="stable")[:count])


def test_a_mask_rounds_to_itself():
    problem = random_layer("2:4")
    keep = start(problem).keep
    assert np.array_equal(Round().run(problem, State(relaxed=~keep * 1.0), Context()).keep, keep)


def test_rounding_needs_a_point_and_a_known_method():
    with pytest.raises(ValueError, match="no fractional point"):
        Round().run(random_layer("0.5"), State(), Context())
    with pytest.raises(ValueError, match="unknown method 'dice'"):
        Round(method="dice")
