"""Mirror descent, projected gradients and PDHG: closed forms, KKT, a QP solver, enumeration."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import PATTERNS, arriving, begun, hostile_layers, hostile_targets, integer_layer, random_layer
from oracles import gradient, group_sums, relaxed_minimum

from fwbench import patterns, verify
from fwbench.problem import Problem
from fwbench.problems.collections import one
from fwbench.solvers.first_order import mirror
from fwbench.solvers.first_order.mirror import Mirror
from fwbench.solvers.first_order.pdhg import PrimalDual
from fwbench.solvers.first_order.pgd import ProjectedGradient
from fwbench.solvers.first_order.simplex import CappedSimplex, largest_correlation
from fwbench.solvers.frank_wolfe.objective import Objective
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.stage import Context, State

EXACT = Context(dtype="float64")
STAGES = {
    "mirror": Mirror(steps=1500, gap=1e-7),
    "mirror, fixed": Mirror(steps=1500, gap=1e-7, step="fixed"),
    "pgd": ProjectedGradient(gap=1e-8),
    "plain pgd": ProjectedGradient(gap=1e-8, momentum=False),
    "pdhg": PrimalDual(gap=1e-7),
}
NEAR = {"mirror, fixed": 1e-4, "pdhg": 1e-3}  # of the value, after those steps; the others 1e-6
CASES = [("0.5", True), ("2:4", True), ("unstructured:0.4", False), ("rows", False)]  # pattern, whether with a target
EXAMPLES = settings(max_examples=6, deadline=None)


def solve(problem: Problem, stage, context: Context = EXACT) -> State:
    return stage.run(problem, begun(problem, FrankWolfe), context)


def assert_feasible(problem: Problem, u: np.ndarray, slack: float = 1e-9) -> None:
    sums = group_sums(problem.pattern, problem.shape) @ u.ravel()
    np.testing.assert_allclose(sums, problem.counts, atol=slack * problem.pattern.group_size(problem.shape))
    assert u.min() >= 0
    assert u.max() <= 1


# --- the projections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_euclidean_projection_is_that_of_patterns(pattern):
    problem = random_layer(pattern)
    z = torch.from_numpy(2 * np.random.default_rng(1).standard_normal(problem.shape))
    simplex = CappedSimplex.of(problem.pattern, z)
    for guess in (0.0, 1e6):
        found, _ = simplex.nearest(z, torch.ones_like(z), torch.full_like(simplex.counts, guess))
        np.testing.assert_allclose(found, patterns.project(problem.pattern, z.numpy()), atol=1e-9)


@EXAMPLES
@given(
    st.integers(0, 10**6), st.sampled_from(PATTERNS), st.floats(-8, 8), st.sampled_from([torch.float32, torch.float64])
)
def test_projections_satisfy_their_conditions(seed, pattern, spread, kind):
    """``nearest``: ``(u - z) / scale`` is one number where ``u`` is free; ``entropic``: so are the logits' moves."""
    problem, rng = random_layer(pattern, rows=3, n=12), np.random.default_rng(seed)
    z = torch.from_numpy(10.0**spread * rng.standard_normal(problem.shape)).to(kind)
    scale = torch.from_numpy(10.0 ** rng.uniform(-3, 3, problem.shape)).to(kind)
    simplex = CappedSimplex.of(problem.pattern, z)
    guess = torch.zeros_like(simplex.counts)
    rounding = 1e-9 if kind is torch.float64 else 1e-3
    for u in (simplex.nearest(z, scale, guess)[0], torch.sigmoid(simplex.entropic(z, scale, guess)[0])):
        sums = problem.pattern.groups(u).double().sum(1)
        # a level is known to its last digits, and a weight moves by scale times those
        room = rounding * (1 + 10.0 ** max(spread, 0)) * problem.pattern.group_size(problem.shape)
        np.testing.assert_allclose(sums, problem.counts, atol=room)
        assert u.min() >= 0
        assert u.max() <= 1
    u, level = simplex.nearest(z, scale, guess)
    expected = (problem.pattern.groups(z) - level * problem.pattern.groups(scale)).clamp(0, 1)
    choice = ((simplex.counts > 0) & (simplex.counts < expected.shape[1]))[:, 0]
    assert torch.equal(problem.pattern.groups(u)[choice], expected[choice])


def test_the_largest_correlation_is_the_eigenvalue_of_every_row():
    problem = random_layer("0.5", rows=3, n=40, condition=1e6)
    found = largest_correlation(torch.from_numpy(np.array(problem.G)))
    for w in problem.W.astype(float):
        Q = np.outer(w, w) * problem.G
        scaled = Q / np.sqrt(np.outer(Q.diagonal(), Q.diagonal()))
        assert found == pytest.approx(np.linalg.eigvalsh(scaled)[-1], rel=1e-6)


# --- the minimum ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["2:4", "rows"])
@pytest.mark.parametrize("name", STAGES)
def test_inputs_without_correlation_have_a_closed_form(name, pattern):
    """``f = Σ q u²``: the minimum is ``clip(λ / 2q, 0, 1)`` with the ``λ`` that gives each group its sum."""
    rng = np.random.default_rng(3)
    W, scales = rng.standard_normal((3, 12)).astype(np.float32), np.diag(rng.uniform(0.5, 2, 12))
    counts = np.array([0, 6, 12]) if pattern == "rows" else pattern
    problem = Problem("diagonal", W, scales, counts)
    q = problem.pattern.groups(W.astype(float) ** 2 * scales.diagonal())
    expected = np.zeros_like(q)
    for own, u, count in zip(q, expected, problem.counts, strict=True):
        low, high = 0.0, 4 * own.max() + 1
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if np.clip(middle / (2 * own), 0, 1).sum() < count else (low, middle)
        u[:] = np.clip(high / (2 * own), 0, 1)
    after = solve(problem, STAGES[name])
    np.testing.assert_allclose(problem.pattern.groups(after.relaxed), expected, atol=2e-3)
    value = problem.row_errors(after.relaxed).sum()
    assert value == pytest.approx(problem.row_errors(expected.reshape(problem.shape)).sum(), rel=1e-6)


@pytest.mark.parametrize(("pattern", "target"), CASES)
@pytest.mark.parametrize("name", STAGES)
def test_reaches_the_minimum_of_a_qp_solver_and_its_conditions(name, pattern, target):
    problem = arriving(pattern, n=12)[0] if target else random_layer(pattern, n=12)
    minimum, _ = relaxed_minimum(problem)
    after = solve(problem, STAGES[name])
    assert_feasible(problem, after.relaxed)
    value = problem.row_errors(after.relaxed).sum()
    near = NEAR.get(name, 1e-6)
    assert minimum * (1 - 1e-7) <= value <= minimum * (1 + near)
    assert minimum * (1 - 10 * near) <= after.lower <= minimum * (1 + 1e-9)
    assert after.trace[-1].relaxed == pytest.approx(value, rel=1e-6)
    assert after.trace[-1].lower == pytest.approx(after.lower, rel=1e-6)
    assert verify.check(problem, after.certificate).ok
    if name == "pgd":  # at the others' gap weights are near 0 and 1, not there
        u, g = (problem.pattern.groups(x) for x in (after.relaxed, gradient(problem, after.relaxed)))
        worst = np.where(u > 1e-6, g, -np.inf).max(axis=1) - np.where(u < 1 - 1e-6, g, np.inf).min(axis=1)
        assert worst.max() <= 1e-3 * np.abs(g).max()


@pytest.mark.parametrize("name", ["pgd", "pdhg", "mirror"])
@pytest.mark.parametrize(
    "selector", ["n016.gate_proj.random.0.5", "n016.o_proj.random-target.0.5", "n032.q_proj.random.0.6"]
)
def test_the_same_minimum_as_fw_on_real_layers(selector, name):
    problem = one(f"mini/{selector}")[1]
    minimum, _ = relaxed_minimum(problem)
    fw, ours = solve(problem, FrankWolfe(gap=1e-8)), solve(problem, STAGES[name])
    values = [problem.row_errors(after.relaxed).sum() for after in (fw, ours)]
    assert values == pytest.approx([minimum, minimum], rel=1e-6)
    assert ours.lower == pytest.approx(fw.lower, abs=10 * NEAR.get(name, 1e-6) * abs(minimum))


def test_in_float32_it_ends_at_its_gap():
    problem = one("mini/n064.down_proj.random-target.0.6")[1]
    for stage in (Mirror(gap=1e-3), ProjectedGradient(), PrimalDual(gap=1e-3)):
        after = solve(problem, stage, Context())
        assert after.stopped == ""
        assert after.counters["iterations"] < stage.steps
        value = problem.row_errors(after.relaxed).sum()
        assert value - after.lower <= 1.1 * stage.gap * abs(value)


@pytest.mark.parametrize("name", ["pgd", "pdhg", "mirror"])
def test_a_row_s_answer_is_its_own(name):
    """Rows that are done leave the work; the others go on as if alone."""
    problem = random_layer("rows", rows=6, n=12)
    stage = replace(STAGES[name], gap=1e-4)
    together = solve(problem, stage).relaxed
    for row in range(problem.rows):
        np.testing.assert_allclose(together[row], solve(problem.part([row]), stage).relaxed[0], atol=1e-6)


def test_fewer_steps_of_the_accelerated_one():
    problem = one("mini/n064.o_proj.top.0.5")[1]
    steps = [
        solve(problem, ProjectedGradient(gap=1e-2, steps=800, momentum=momentum)).counters["iterations"]
        for momentum in (True, False)
    ]
    assert steps[0] < steps[1] / 2


# --- stochastic -------------------------------------------------------------------------------------------------------


def test_blocks_see_a_part_of_the_inputs_and_a_seed_decides_which():
    problem = random_layer("0.5", rows=4, n=24)
    stage = Mirror(blocks=4, steps=200, gap=1e-6)
    one_, two, other = (stage.run(problem, begun(problem, FrankWolfe), Context(seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one_.relaxed, two.relaxed)
    assert not np.array_equal(one_.relaxed, other.relaxed)
    looks = len(one_.trace)
    assert one_.counters["gram_products"] == 1 + 200 // 4 + looks  # a look at the average is a whole product
    minimum, _ = relaxed_minimum(problem)
    assert minimum <= problem.row_errors(one_.relaxed).sum() <= 1.25 * minimum


def test_one_block_is_the_whole_and_parts_are_right_on_average():
    """The first step with one block is that of fixed length; estimates of the product sum to it over a pass."""
    problem = random_layer("0.5", rows=2, n=12)
    layer = Objective.of(problem, EXACT)
    start = torch.full(problem.shape, 0.5, dtype=torch.float64)
    whole, blocks = mirror.Descent(layer, start, search=False), mirror.StochasticDescent(layer, start, 1, seed=0)
    whole.step()
    blocks.step()
    np.testing.assert_allclose(blocks.u, whole.u, rtol=1e-9)
    seen = []
    parts = mirror.StochasticDescent(layer, start, 4, seed=0)
    for _ in range(4):
        parts.u = start  # each at the same point
        seen.append(parts.estimate())
    np.testing.assert_allclose(torch.stack(seen).mean(0), layer.product(start), rtol=1e-12)


# --- hostile data, limits ---------------------------------------------------------------------------------------------


@EXAMPLES
@given(st.integers(0, 10**6), st.sampled_from(PATTERNS), st.integers(-12, 12), st.integers(0, 10))
def test_bounds_are_below_every_mask(seed, pattern, size, condition):
    rows = 1 if pattern.startswith("unstructured") else 2
    real = random_layer(pattern, rows=rows, n=8, seed=seed, condition=10.0**condition)
    for problem in (integer_layer(pattern, rows=rows, n=8, seed=seed), real):
        scaled = Problem("scaled", problem.W * np.float32(10.0**size), problem.G, problem.pattern)
        best, _ = best_mask(scaled)
        for stage in (Mirror(steps=20), Mirror(steps=20, blocks=2), ProjectedGradient(steps=20), PrimalDual(steps=20)):
            after = stage.run(scaled, begun(scaled, FrankWolfe), Context())
            assert np.isfinite(after.relaxed).all()
            assert after.lower <= best + scaled.rounding(), (stage, size, condition)
            assert verify.check(scaled, after.certificate).ok


@pytest.mark.parametrize("pattern", ["unstructured:0.4", "rows"])
def test_bears_hostile_layers(pattern):
    for problem in (*hostile_layers(pattern), *hostile_targets(pattern)):
        for stage in (
            Mirror(steps=50),
            Mirror(steps=50, step="fixed"),
            ProjectedGradient(steps=50),
            PrimalDual(steps=50),
        ):
            after = stage.run(problem, begun(problem, FrankWolfe), Context())
            assert_feasible(problem, after.relaxed, 1e-5)
            assert verify.check(problem, after.certificate).ok, (problem.name, stage)


def test_ends_in_time_and_begins_where_it_is_told():
    problem = random_layer("0.5", rows=4, n=24)
    for stage in (Mirror(), ProjectedGradient(), PrimalDual()):
        late = stage.run(problem, begun(problem, FrankWolfe), Context(deadline=time.monotonic()))
        assert late.stopped == "deadline"
        assert late.counters["iterations"] == 0
        assert late.lower is not None
    best = solve(problem, FrankWolfe(gap=1e-9))
    for stage in (ProjectedGradient(gap=1e-6), PrimalDual(gap=1e-6)):
        assert stage.run(problem, State(relaxed=best.relaxed), EXACT).counters["iterations"] == 0


@pytest.mark.parametrize(
    ("stage", "given"),
    [
        *((Mirror, {"step": "short"}), (Mirror, {"blocks": 0}), (Mirror, {"gap": -1.0})),
        *((ProjectedGradient, {"steps": -1}), (PrimalDual, {"seconds": -1.0})),
    ],
)
def test_what_is_no_parameter_is_refused(stage, given):
    with pytest.raises(ValueError, match=r"must|unknown"):
        stage(**given)
