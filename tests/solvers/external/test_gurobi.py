"""Gurobi against enumeration; its licence, its clock, its honesty."""

import math
import time

import numpy as np
import pytest
from brute import assert_optimal
from layers import PATTERNS, begun, extreme_layers, hostile_layers, integer_layer, random_layer

from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.solvers.branch_and_bound.stage import BranchAndBound
from fwbench.solvers.external import gurobi_
from fwbench.solvers.external.base import CONVEXIFY, block_error
from fwbench.solvers.external.blocks import blocks
from fwbench.solvers.external.gurobi_ import FREE_LIMIT, Gurobi
from fwbench.solvers.semidefinite import search_diagonal
from fwbench.solvers.start.greedy import Greedy
from fwbench.solvers.start.scores import keep_highest
from fwbench.stage import Context, State

reason = gurobi_.licence_problem(1)
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))
free = pytest.mark.skipif(gurobi_.licence_problem(FREE_LIMIT + 1) is None, reason="there is a full Gurobi licence")


def assert_claimed_optimal(problem: Problem, after: State) -> None:
    assert_optimal(problem, after)
    assert after.certificate is None


@pytest.mark.parametrize("convexify", CONVEXIFY)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_enumeration(pattern, convexify):
    n = 4 if pattern.startswith("unstructured") else 12
    if convexify == "row" and n == 4:
        declined = Gurobi(convexify="row").supports(random_layer(pattern, n=n))
        assert declined == "convexify=row needs a pattern whose rows are independent, not unstructured:0.4"
        return
    for problem in (random_layer(pattern, n=n), integer_layer(pattern, n=n), random_layer(pattern, n=n, condition=1e6)):
        assert_claimed_optimal(problem, Gurobi(convexify=convexify).run(problem, begun(problem, Gurobi), Context()))


@pytest.mark.parametrize("convexify", ["none", "row"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_hostile_layers(pattern, convexify):
    for problem in hostile_layers(pattern, rows=2):
        solver = Gurobi(convexify=convexify)
        if not solver.supports(problem):
            assert_claimed_optimal(problem, solver.run(problem, begun(problem, solver), Context()))


@pytest.mark.parametrize("convexify", CONVEXIFY)
def test_of_masks_nearly_as_good_the_best(convexify):
    """The second best of this row is worse by a relative 2e-8."""
    problem = next(layer for layer in extreme_layers("2:4") if layer.name == "the null space of two tokens")
    for seed in range(3):
        solver = Gurobi(convexify=convexify)
        assert_claimed_optimal(problem, solver.run(problem, begun(problem, solver), Context(seed=seed)))


def test_shared_convexification_needs_fewer_nodes():
    problem = random_layer("0.5", rows=1, n=40)
    start = begun(problem, Gurobi)
    plain, shared = (Gurobi(convexify=kind).run(problem, start, Context()) for kind in ("none", "shared"))
    assert problem.error(shared.keep) == pytest.approx(problem.error(plain.keep), rel=1e-9)
    assert shared.counters["nodes"] < plain.counters["nodes"]


@pytest.mark.parametrize("pattern", ["0.5", "2:4", "rows"])
def test_a_rows_own_program_is_convex_and_equal_on_masks(pattern):
    problem = random_layer(pattern, n=12, condition=1e4)
    rng = np.random.default_rng(0)
    pruned = ~keep_highest(problem, rng.random(problem.shape))
    own = search_diagonal.row_diagonals(problem, ~pruned, Context())
    assert own
    for block in blocks(problem, own=own):
        u = pruned[block.rows].ravel().astype(float)
        value = u @ block.Q @ u + block.c @ u + block.constant
        assert value == pytest.approx(block_error(problem, block, u[None]), rel=1e-9, abs=1e-12)
        assert np.linalg.eigvalsh(block.Q)[0] >= -1e-12 * np.trace(block.Q)


def test_diagonals_for_deeper_nodes_save_nodes(monkeypatch):
    """On first rows of real layers, against the diagonals that are best for the root alone."""
    nodes = {}
    for deeper in (0.0, search_diagonal.DEEPER):
        monkeypatch.setattr(search_diagonal, "DEEPER", deeper)
        for _, layer in load("mini/*n096*"):
            if layer.pattern.separable:
                problem = layer.part([0], "row")
                start = Greedy().run(problem, State(), Context())
                after = Gurobi(convexify="row").run(problem, start, Context())
                assert after.proven
                nodes[deeper] = nodes.get(deeper, 0) + after.counters["nodes"]
    assert nodes[search_diagonal.DEEPER] < 0.6 * nodes[0.0]


@pytest.mark.parametrize("pattern", ["0.5", "2:4", "rows"])
def test_a_clock_that_is_up_leaves_rows_without_diagonals(pattern):
    problem = random_layer(pattern, n=12)
    late = Context(deadline=time.monotonic())
    assert search_diagonal.row_diagonals(problem, keep_highest(problem, abs(problem.W)), late) == {}


@pytest.mark.parametrize("selector", ["n016", "n032"])
def test_each_rows_diagonal_on_real_layers(selector):
    for _, problem in load(f"mini/*{selector}*"):
        if problem.pattern.separable:
            best = BranchAndBound().run(problem, begun(problem, BranchAndBound), Context())
            after = Gurobi(convexify="row").run(problem, begun(problem, Gurobi), Context())
            assert problem.error(after.keep) == pytest.approx(problem.error(best.keep), rel=1e-9), problem.name
            assert after.proven


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.5"])
def test_respects_the_deadline(pattern):
    rows, n = (4, 48) if pattern == "0.5" else (3, 64)
    rng = np.random.default_rng(3)
    X = np.exp(rng.standard_normal((n, 1))) * (rng.standard_normal((n, 6)) @ rng.standard_normal((6, 40)))
    problem = Problem("hard", rng.standard_normal((rows, n)), X @ X.T + np.eye(n), pattern)
    start = Greedy().run(problem, State(), Context()).keep
    began = time.process_time()
    after = Gurobi().run(problem, State(keep=start), Context(deadline=time.monotonic() + 0.3))
    assert time.process_time() - began < 2.0
    assert after.stopped == "deadline"
    assert not after.proven
    assert not count_reason(problem, after.keep)
    assert 0 <= after.lower <= problem.error(after.keep) <= problem.error(start) * (1 + 1e-12)
    assert_monotone(after.trace)


def test_no_time_returns_the_incumbent():
    problem = random_layer("0.5")
    start = Greedy().run(problem, State(), Context()).keep
    after = Gurobi().run(problem, State(keep=start), Context(deadline=time.monotonic() - 1))
    assert np.array_equal(after.keep, start)
    assert (after.lower, after.proven, after.stopped) == (0.0, False, "deadline")


def test_trace_ends_at_the_answer():
    problem = random_layer("0.5")
    after = Gurobi().run(problem, begun(problem, Gurobi), Context())
    assert_monotone(after.trace)
    assert after.trace[-1][1:3] == pytest.approx((problem.error(after.keep), after.lower), rel=1e-12)


def assert_monotone(trace: tuple) -> None:
    seconds, upper, lower = np.array([moment[:3] for moment in trace]).T
    assert (np.diff(seconds) >= 0).all()
    assert (np.diff(upper) <= 1e-12 * upper[0]).all()
    assert (np.diff(lower) >= -1e-12 * upper[0]).all()


def test_a_gap_is_no_proof():
    problem = random_layer("0.5", n=16)
    after = Gurobi(gap=0.2).run(problem, begun(problem, Gurobi), Context())
    assert not after.proven
    assert after.lower <= problem.error(after.keep) <= after.lower / (1 - 0.2) * (1 + 1e-9)


@free
@pytest.mark.parametrize(
    ("pattern", "rows", "n"), [("0.5", 1, FREE_LIMIT + 1), ("2:4", 1, FREE_LIMIT + 4), ("unstructured:0.5", 3, 100)]
)
def test_free_licence_is_refused_by_its_real_limit(pattern, rows, n):
    problem = Problem("large", np.ones((rows, n)), np.eye(n), pattern)
    size = n if pattern != "unstructured:0.5" else rows * n
    assert Gurobi().supports(problem) == (
        f"{size} variables in one program; Gurobi's free licence allows {FREE_LIMIT}, a full one is needed"
    )


@free
@pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.5"])
def test_the_limit_itself_is_solved(pattern):
    rows, n = (2, FREE_LIMIT // 2) if pattern == "unstructured:0.5" else (1, FREE_LIMIT)
    problem = Problem("limit", np.ones((rows, n)), np.eye(n), pattern)
    assert Gurobi().supports(problem) is None
    after = Gurobi().run(problem, begun(problem, Gurobi), Context())
    assert problem.error(after.keep) == pytest.approx(rows * n / 2)


@pytest.mark.parametrize(
    "wrong", [{"convexify": "row-wise"}, {"seconds": 0.0}, {"gap": -1.0}, {"threads": -1}, {"seconds": math.nan}]
)
def test_bad_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=r"known|must"):
        Gurobi(**wrong)
