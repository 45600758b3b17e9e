"""The relaxation by general-purpose QP solvers, through qpsolvers or cvxpy: what Frank-Wolfe is compared with."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from fwbench import bounds
from fwbench.patterns import project
from fwbench.problem import Problem
from fwbench.solvers.external.blocks import QuadraticBlock, blocks
from fwbench.stage import Context, Role, Stage, State, register

WORK_LIMIT = 1e10  # rows n³: about a minute of an interior point
MEMORY_LIMIT = 1e7  # entries of the one block-diagonal Q where the pattern does not separate


@dataclass(frozen=True)
class Backend:
    """How to talk to one back end: its package, and its options for a tolerance and a time limit."""

    package: str
    options: Callable[[float, float], dict[str, Any]]  # (eps, seconds)
    dense: bool = False  # it prefers a dense Q

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(name) for name in ("qpsolvers", self.package))


BACKENDS = {
    "clarabel": Backend(
        "clarabel",
        lambda eps, seconds: {"tol_gap_abs": eps, "tol_gap_rel": eps, "tol_feas": eps, "time_limit": seconds},
    ),
    "cvxpy": Backend(
        "cvxpy",
        lambda eps, seconds: {"tol_gap_abs": eps, "tol_gap_rel": eps, "tol_feas": eps, "time_limit": seconds},
    ),
    "highs": Backend(
        "highspy",
        lambda eps, seconds: {
            "primal_feasibility_tolerance": max(eps, 1e-10),
            "dual_feasibility_tolerance": max(eps, 1e-10),
            "time_limit": seconds,
        },
    ),
    "osqp": Backend(
        "osqp",
        lambda eps, seconds: {
            "eps_abs": eps,
            "eps_rel": eps,
            "max_iter": 200_000,
            "time_limit": min(seconds, 1e9),
            "raise_error": False,
        },
    ),
    "piqp": Backend("piqp", lambda eps, seconds: {"eps_abs": eps, "eps_rel": eps}, dense=True),
    "proxqp": Backend("proxsuite", lambda eps, seconds: {"eps_abs": eps, "eps_rel": eps}, dense=True),
    "scs": Backend(
        "scs",
        lambda eps, seconds: {
            "eps_abs": eps,
            "eps_rel": eps,
            "max_iters": 200_000,
            "time_limit_secs": 0 if math.isinf(seconds) else seconds,  # 0 is without limit
        },
    ),
}


@register
@dataclass(frozen=True)
class QuadraticProgram(Stage):
    """Solve the relaxation by a general-purpose QP solver, row by row (over the layer where rows do not separate).

    ``eps``: the back end's tolerance, for an objective whose Q has unit mean diagonal (or whose linear term has unit
    mean, if that is larger). Rows that a back end ends without reaching it are used as they are and counted
    (``inaccurate``). clarabel, cvxpy (which calls Clarabel), highs, osqp and scs stop within a row at the deadline,
    proxqp and piqp between rows.
    """

    backend: str = "clarabel"
    eps: float = 1e-8

    name: ClassVar[str] = "qp"
    role: ClassVar[Role] = Role.RELAX
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For the relaxation by a solver that is not ours, as a check; not for speed, `fw` has the same bound in "
        "less time."
    )
    requires: ClassVar[tuple[str, ...]] = ("qpsolvers",)
    source: ClassVar[str] = "Caron et al., qpsolvers; the solvers' own papers"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown backend {self.backend!r}; known: {', '.join(sorted(BACKENDS))}")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must lie between 0 and 1, got {self.eps}")

    def supports(self, problem: Problem) -> str | None:
        if not BACKENDS[self.backend].installed:
            needed = f"{self.backend} needs {BACKENDS[self.backend].package}"
            return f"back end {needed}, which is not installed (pip install 'fwbench[qp]')"
        work = problem.rows * float(problem.n) ** 3
        if work > WORK_LIMIT:
            return f"too large for a general QP solver: rows n³ = {work:.1e}, the limit is {WORK_LIMIT:.0e}"
        entries = problem.rows * float(problem.n) ** 2
        if not problem.pattern.separable and entries > MEMORY_LIMIT:
            return f"too large for one QP over the layer: rows n² = {entries:.1e}, the limit is {MEMORY_LIMIT:.0e}"
        return None

    def run(self, problem: Problem, state: State, context: Context) -> State:
        u, stopped, solves, inaccurate = _start(problem, state), "", 0, 0
        solved = np.zeros((problem.rows, 1), dtype=bool)
        for block in blocks(problem):
            if context.expired():
                stopped = "deadline"
                break
            if not (block.Q.diagonal().any() or block.c.any()):
                continue  # nothing to choose between
            x, accurate = self._solve(block, u[block.rows].ravel(), context)
            if not accurate and context.expired():
                stopped = "deadline"
            else:
                inaccurate += not accurate
            if x is not None:
                u[block.rows], solved[block.rows] = x.reshape(-1, problem.n), True
            elif not stopped:
                raise RuntimeError(f"{self.backend} gave no answer for row {block.rows.start}")
            solves += 1
        u = np.where(solved, project(problem.pattern, u), u)
        proof = bounds.certificate(problem, u, source=f"qp(backend={self.backend})")
        after = replace(state, relaxed=u, stopped=stopped).bound(proof.bound, proof)
        return after.count(solves=solves, inaccurate=inaccurate)

    def _solve(self, block: QuadraticBlock, start: np.ndarray, context: Context) -> tuple[np.ndarray | None, bool]:
        """A block's solution ``(m,)``, if there is one, and whether it is one to the tolerance."""
        backend = BACKENDS[self.backend]
        scale = max(block.Q.diagonal().mean(), np.abs(block.c).mean())
        dense = backend.dense and not sp.issparse(block.Q)
        P = 2 * block.Q / scale if dense else sp.csc_matrix(2 * block.Q / scale)
        A = block.sums().toarray() if dense else sp.csc_matrix(block.sums())
        options = backend.options(self.eps, max(context.left(), 1e-3))
        solve = _cvxpy if self.backend == "cvxpy" else _qpsolvers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they repeat what the status says
            x, accurate = solve(self.backend, P, block.c / scale, A, block.counts.astype(float), start, options)
        if x is None or not np.isfinite(x).all():
            return None, False
        return x, accurate


def _start(problem: Problem, state: State) -> np.ndarray:
    """A feasible point, float64 ``(rows, n)``, new: the relaxed one at hand, else the mask."""
    if state.relaxed is not None:
        return np.array(state.relaxed, dtype=np.float64)
    return (~state.mask).astype(np.float64)


BackendAnswer = tuple[np.ndarray | None, bool]


def _qpsolvers(
    backend: str, P: Any, q: np.ndarray, A: Any, b: np.ndarray, start: np.ndarray, options: dict[str, Any]
) -> BackendAnswer:
    """``min ½xᵀPx + qᵀx``, ``Ax = b``, ``0 ≤ x ≤ 1`` by a back end of qpsolvers."""
    import qpsolvers

    if backend == "highs":
        _greet_highs()
    program = qpsolvers.Problem(P, q, None, None, A, b, np.zeros(q.size), np.ones(q.size))
    solution = qpsolvers.solve_problem(program, backend, initvals=start, verbose=False, **options)
    return solution.x, bool(solution.found)


@cache
def _greet_highs() -> None:
    """Let HiGHS print its banner, once in a process, where nobody reads it: no option silences it."""
    import highspy

    sys.stdout.flush()
    saved = os.dup(1)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            highspy.Highs()
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _cvxpy(
    backend: str, P: Any, q: np.ndarray, A: Any, b: np.ndarray, start: np.ndarray, options: dict[str, Any]
) -> BackendAnswer:
    """The same through cvxpy, which hands it to Clarabel."""
    import cvxpy

    x = cvxpy.Variable(q.size)
    objective = cvxpy.Minimize(cvxpy.quad_form(x, cvxpy.psd_wrap(P)) / 2 + q @ x)
    program = cvxpy.Problem(objective, [A @ x == b, x >= 0, x <= 1])
    program.solve(solver=cvxpy.CLARABEL, **options)
    return x.value, program.status == cvxpy.OPTIMAL
