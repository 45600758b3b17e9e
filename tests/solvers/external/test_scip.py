"""SCIP against enumeration and our own branch and bound; its clock, its honesty."""

import math
import time

import numpy as np
import pyscipopt
import pytest
from brute import assert_optimal
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import PATTERNS, begun, hostile_layers, integer_layer, random_layer

from fwbench import pipeline
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.solvers.branch_and_bound.stage import BranchAndBound
from fwbench.solvers.external import scip_
from fwbench.solvers.external.base import CONVEXIFY, OBJECTIVE
from fwbench.solvers.external.blocks import blocks
from fwbench.solvers.external.scip_ import Scip
from fwbench.solvers.start.greedy import Greedy
from fwbench.stage import Context, State


def assert_claimed_optimal(problem: Problem, after: State) -> None:
    assert_optimal(problem, after, 1e-6, 1e-12)
    assert after.certificate is None


@st.composite
def small_layers(draw) -> Problem:
    """Layers of at most 12 variables a block, of every pattern, whole numbers (ties) or not."""
    pattern = draw(st.sampled_from(PATTERNS))
    rows = draw(st.integers(1, 2))
    n = 4 if pattern.startswith("unstructured") else 4 * draw(st.integers(1, 3))
    make = draw(st.sampled_from([random_layer, integer_layer]))
    return make(pattern, rows=rows, n=n, seed=draw(st.integers(0, 2**32)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(small_layers(), st.sampled_from(CONVEXIFY))
def test_equals_enumeration(problem, convexify):
    solver = Scip(convexify=convexify)
    if not solver.supports(problem):
        assert_claimed_optimal(problem, solver.run(problem, begun(problem, solver), Context()))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern(pattern):
    n = 4 if pattern.startswith("unstructured") else 8
    assert_claimed_optimal(
        random_layer(pattern, n=n),
        Scip().run(random_layer(pattern, n=n), begun(random_layer(pattern, n=n), Scip), Context()),
    )


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_hostile_layers(pattern):
    for problem in hostile_layers(pattern, rows=2):
        assert_claimed_optimal(problem, Scip().run(problem, begun(problem, Scip), Context()))


@pytest.mark.parametrize("selector", ["n016.gate_proj", "n016.o_proj.top", "n016.v_proj", "n032.o_proj"])
def test_equals_bnb_on_real_layers(selector):
    [(_, problem)] = load(f"mini/*{selector}*")
    best = BranchAndBound().run(problem, begun(problem, BranchAndBound), Context())
    after = Scip(convexify="row").run(problem, State(keep=best.keep), Context())
    assert problem.error(after.keep) == pytest.approx(problem.error(best.keep), rel=1e-9)
    assert after.lower == pytest.approx(best.lower, rel=1e-6)
    assert after.proven


def test_rows_that_hang_together_are_declined_for_their_own_diagonals():
    declined = Scip(convexify="row").supports(random_layer("unstructured:0.4", n=4))
    assert declined == "convexify=row needs a pattern whose rows are independent, not unstructured:0.4"


def test_large_programs_are_declined():
    problem = Problem("large", np.ones((1, 401)), np.eye(401), "0.5")
    assert "largest=401 tries it" in Scip().supports(problem)
    assert Scip(largest=401).supports(problem) is None


def test_without_its_package_it_declines(monkeypatch):
    monkeypatch.setattr(Scip, "requires", ("no_such_package",))
    row = pipeline.run(random_layer("0.5"), pipeline.resolve("scip")).result
    assert row.status == "skipped"
    assert "scip needs no_such_package, which is not installed" in row.reason


def test_the_squares_are_the_objective():
    problem = random_layer("2:4", condition=1e6)
    for block in blocks(problem):
        scale = OBJECTIVE / np.trace(block.Q)
        F = scip_.factor(block, scale)
        np.testing.assert_allclose(F.T @ F, block.Q * scale, atol=1e-8)


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.5"])
def test_respects_the_deadline(pattern):
    rng = np.random.default_rng(3)
    rows, n = (4, 48) if pattern == "0.5" else (3, 40)
    X = np.exp(rng.standard_normal((n, 1))) * (rng.standard_normal((n, 6)) @ rng.standard_normal((6, 40)))
    problem = Problem("hard", rng.standard_normal((rows, n)), X @ X.T + np.eye(n), pattern)
    start = Greedy().run(problem, State(), Context()).keep
    began = time.monotonic()
    after = Scip().run(problem, State(keep=start), Context(deadline=began + 0.8))
    assert after.stopped == "deadline"
    assert not after.proven
    assert 0 <= after.lower <= problem.error(after.keep) <= problem.error(start) * (1 + 1e-12)
    seconds, upper, lower = np.array([moment[:3] for moment in after.trace]).T
    assert (np.diff(seconds) >= 0).all()
    assert (np.diff(upper) <= 1e-6 * upper[0]).all()
    assert (np.diff(lower) >= -1e-6 * upper[0]).all()


def test_no_time_returns_the_incumbent():
    problem = random_layer("0.5")
    start = Greedy().run(problem, State(), Context()).keep
    after = Scip().run(problem, State(keep=start), Context(deadline=time.monotonic() - 1))
    assert np.array_equal(after.keep, start)
    assert (after.lower, after.proven, after.stopped) == (0.0, False, "deadline")


class Failing(pyscipopt.Model):
    def optimize(self):
        raise Exception("SCIP: error in LP solver!")


def test_a_failure_keeps_the_incumbent(monkeypatch):
    problem = random_layer("0.5")
    start = Greedy().run(problem, State(), Context()).keep
    monkeypatch.setattr(pyscipopt, "Model", Failing)
    after = Scip().run(problem, State(keep=start), Context())
    assert np.array_equal(after.keep, start)
    assert not after.proven
    assert after.stopped == "SCIP failed: SCIP: error in LP solver!"


def test_a_gap_is_no_proof():
    problem = random_layer("0.5", rows=1, n=16)
    after = Scip(gap=0.2).run(problem, begun(problem, Scip), Context())
    assert not after.proven
    assert after.lower <= problem.error(after.keep) <= after.lower * 1.2 * (1 + 1e-6)


@pytest.mark.parametrize("wrong", [{"convexify": "row-wise"}, {"seconds": 0.0}, {"gap": -1.0}, {"seconds": math.nan}])
def test_bad_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=r"known|must"):
        Scip(**wrong)
