"""QP back ends against each other and against the optimality conditions (the Frank-Wolfe gap)."""

import time

import numpy as np
import pytest
from layers import PATTERNS, begun, hostile_layers, random_layer
from oracles import gradient

from fwbench import verify
from fwbench.patterns import project
from fwbench.problem import Problem
from fwbench.solvers.external import qp
from fwbench.solvers.external.blocks import blocks
from fwbench.solvers.external.qp import BACKENDS, QuadraticProgram
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

INSTALLED = [name for name, backend in BACKENDS.items() if backend.installed]
# relative Frank-Wolfe gap at eps = 1e-8: interior points and active sets end tighter than first-order methods
GAP = {"osqp": 1e-3, "proxqp": 1e-3, "scs": 1e-4}


def solve(problem: Problem, backend: str, **options) -> State:
    return QuadraticProgram(backend, **options).run(problem, begun(problem, QuadraticProgram), Context())


def assert_feasible(problem: Problem, u: np.ndarray) -> None:
    assert u.shape == problem.shape
    assert u.min() >= 0
    assert u.max() <= 1
    off = problem.pattern.groups(u).sum(axis=1) - problem.counts
    assert np.abs(off).max() <= 1e-13 * problem.n * problem.rows


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("backend", INSTALLED)
def test_optimal_by_the_frank_wolfe_gap(backend, pattern):
    for condition in (1.0, 1e4):
        problem = random_layer(pattern, rows=3, n=16, condition=condition)
        after = solve(problem, backend)
        assert_feasible(problem, after.relaxed)
        f, g = problem.row_errors(after.relaxed).sum(), gradient(problem, after.relaxed)
        gap = (g * after.relaxed).sum() - g[problem.pattern.prune(g)].sum()
        assert gap <= GAP.get(backend, 1e-5) * f
        checked = verify.check(problem, after.certificate)
        assert checked.ok, checked.reason
        assert f * (1 - GAP.get(backend, 1e-5) - 1e-5) <= checked.bound <= f * (1 + 1e-12)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_back_ends_agree(pattern):
    problem = random_layer(pattern, rows=3, n=24, seed=1, condition=1e3)
    errors = [problem.row_errors(solve(problem, backend).relaxed).sum() for backend in INSTALLED]
    np.testing.assert_allclose(errors, errors[0], rtol=1e-5)


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4", "rows"])
@pytest.mark.parametrize("backend", INSTALLED)
def test_hostile_layers(backend, pattern):
    for problem in hostile_layers(pattern):
        after = solve(problem, backend)
        assert_feasible(problem, after.relaxed)
        f, trace = problem.row_errors(after.relaxed).sum(), (problem.W.astype(float) ** 2 * problem.G.diagonal()).sum()
        assert f - 1e-6 * trace <= after.lower <= f + 1e-14 * trace, problem.name
        assert problem.total == 0 or verify.check(problem, after.certificate).ok, problem.name


def test_certificate_of_a_layer_without_inputs():
    problem = Problem("all zero", np.ones((2, 8)), np.zeros((8, 8)), "0.5")
    assert verify.check(problem, solve(problem, "clarabel").certificate).ok


@pytest.mark.parametrize("backend", INSTALLED)
def test_deadline_between_rows_keeps_the_start(backend, monkeypatch):
    clock = iter([False, True])
    monkeypatch.setattr(Context, "expired", lambda self: next(clock, True))
    problem = random_layer("0.5", rows=3, n=16)
    keep = Wanda().run(problem, State(), Context()).keep
    after = QuadraticProgram(backend).run(problem, State(keep=keep), Context())
    assert after.stopped == "deadline"
    assert np.array_equal(after.relaxed[1:], ~keep[1:])
    assert not np.array_equal(after.relaxed[0], ~keep[0])
    assert_feasible(problem, after.relaxed)


@pytest.mark.parametrize("backend", ["clarabel", "cvxpy", "highs", "osqp", "scs"])
def test_deadline_within_a_row(backend):
    if backend not in INSTALLED:
        pytest.skip("not installed")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 600)) * np.logspace(0, -2, 300)[:, None]
    problem = Problem("large", rng.standard_normal((1, 300)), X @ X.T, "0.5")
    began = time.process_time()
    after = QuadraticProgram(backend, eps=1e-12).run(
        problem, begun(problem, QuadraticProgram), Context(deadline=time.monotonic() + 0.05)
    )
    assert time.process_time() - began < 2.0
    assert_feasible(problem, after.relaxed)
    assert 0 <= after.lower <= problem.row_errors(after.relaxed).sum()


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown backend 'mosek'; known: clarabel, cvxpy, highs"):
        QuadraticProgram("mosek")
    with pytest.raises(ValueError, match="eps"):
        QuadraticProgram(eps=0.0)


def test_supports_says_why_not(monkeypatch):
    small = Problem("small", np.ones((2, 8)), np.eye(8), "0.5")
    assert QuadraticProgram().supports(small) is None
    monkeypatch.setattr(qp, "WORK_LIMIT", 1000.0)
    assert QuadraticProgram().supports(small) == (
        "too large for a general QP solver: rows n³ = 1.0e+03, the limit is 1e+03"
    )
    monkeypatch.undo()
    monkeypatch.setattr(qp, "MEMORY_LIMIT", 100.0)
    assert QuadraticProgram().supports(small) is None
    assert "rows n² = 1.3e+02, the limit is 1e+02" in QuadraticProgram().supports(
        small.with_pattern("unstructured:0.5")
    )
    monkeypatch.setitem(BACKENDS, "scs", qp.Backend("no_such_package", BACKENDS["scs"].options))
    reason = QuadraticProgram("scs").supports(small)
    assert reason == "back end scs needs no_such_package, which is not installed (pip install 'fwbench[qp]')"


def test_a_back_end_without_an_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(qp, "_qpsolvers", lambda *args: (None, False))
    with pytest.raises(RuntimeError, match="clarabel gave no answer for row 0"):
        solve(random_layer("0.5"), "clarabel")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_blocks_add_up_to_the_layer(pattern):
    problem = random_layer(pattern, rows=3, n=8)
    u = project(problem.pattern, np.random.default_rng(0).random(problem.shape))
    assert_feasible(problem, u)
    e = np.linspace(0, 0.1, problem.n)
    d = problem.W.astype(float) ** 2 * e
    plain = convex = 0.0
    for block, changed in zip(blocks(problem), blocks(problem, e), strict=True):
        x = u[block.rows].ravel()
        np.testing.assert_allclose(block.sums() @ x, block.counts, atol=1e-12)
        plain += x @ (block.Q @ x) + block.c @ x
        convex += x @ (changed.Q @ x) + changed.c @ x
    f = problem.row_errors(u).sum()
    assert plain == pytest.approx(f, rel=1e-12)
    assert convex == pytest.approx(f + (d * u * (1 - u)).sum(), rel=1e-12)


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4", "rows"])
def test_projection_is_the_nearest_point(pattern):
    """Against a QP: min ‖x - u‖² over the polytope, by Clarabel."""
    cvxpy = pytest.importorskip("cvxpy")
    point = 2 * np.random.default_rng(1).standard_normal((3, 8))
    problem = random_layer(pattern, rows=3, n=8)
    size, counts = problem.pattern.group_size(problem.shape), problem.counts
    x = cvxpy.Variable((counts.size, size))
    constraints = [x >= 0, x <= 1, cvxpy.sum(x, axis=1) == counts]
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x - point.reshape(-1, size))), constraints).solve(
        solver=cvxpy.CLARABEL
    )
    np.testing.assert_allclose(project(problem.pattern, point), x.value.reshape(3, 8), atol=1e-6)
