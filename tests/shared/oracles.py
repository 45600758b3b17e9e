"""Independent answers for the tests of relaxations and bounds: an LP and a QP solver, and exact rational numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import qpsolvers
import scipy.sparse as sp
from scipy.optimize import linprog

from fwbench.patterns import Pattern
from fwbench.problem import Problem


def group_sums(pattern: Pattern, shape: tuple[int, int]) -> np.ndarray:
    """The matrix that adds up each group of a flattened layer, ``(groups, rows n)``."""
    size = pattern.group_size(shape)
    return np.kron(np.eye(shape[0] * shape[1] // size), np.ones((1, size)))


def equations(pattern: Pattern, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The sums of a flattened layer that the pattern fixes, and to what: of its groups, and of columns' groups too."""
    sums, counts = group_sums(pattern, shape), pattern.counts(shape)
    if pattern.grouped:
        return sums, counts
    rows, n = shape
    order = np.arange(rows * n).reshape(n, rows).T.ravel()  # of the transposed layer
    return np.vstack([sums, group_sums(pattern, (n, rows))[:, order]]), np.tile(counts, 2)


def linear_minimum(pattern: Pattern, g: np.ndarray) -> tuple[float, np.ndarray]:
    """``min gᵀv`` over the pattern's polytope by HiGHS, and a vertex ``(rows, n)`` that has it."""
    sums, counts = equations(pattern, g.shape)
    solved = linprog(g.ravel(), A_eq=sums, b_eq=counts, bounds=(0, 1), method="highs")
    return solved.fun, solved.x.reshape(g.shape)


def gradient(problem: Problem, u: np.ndarray) -> np.ndarray:
    """Of the error at ``u (rows, n)``: ``2 w∘((w∘u) G)`` (SparseFW, arXiv 2510.13713, eq. 5), and ``2 w∘t``."""
    W = problem.W.astype(float)
    return 2 * W * ((W * u) @ problem.G + (0 if problem.T is None else problem.T))


def relaxed_minimum(problem: Problem, e: np.ndarray | float = 0.0) -> tuple[float, np.ndarray]:
    """``min uᵀ(Q - D)u + (d + c)ᵀu + offset`` over the polytope by Clarabel, and a point ``(rows, n)`` that has it."""
    W = problem.W.astype(float)
    scale = float((W**2 * problem.G.diagonal()).mean()) or 1.0
    e = np.broadcast_to(e, problem.n)
    Q = sp.block_diag([np.outer(w, w) * (problem.G - np.diag(e)) for w in W], format="csc") / scale
    d = (W**2 * e + (0 if problem.T is None else 2 * W * problem.T)).ravel() / scale
    offset = 0.0 if problem.offset is None else float(problem.offset.sum())
    sums, counts = equations(problem.pattern, problem.shape)
    size = d.size
    program = qpsolvers.Problem(
        2 * Q, d, None, None, sp.csc_matrix(sums), counts.astype(float), np.zeros(size), np.ones(size)
    )
    tight = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
    u = np.clip(qpsolvers.solve_problem(program, "clarabel", **tight).x, 0, 1)
    return float(u @ (Q @ u) + d @ u) * scale + offset, u.reshape(problem.shape)


def exactly(x: np.ndarray) -> np.ndarray:
    """The same numbers as fractions."""
    return np.array([Fraction(float(value)) for value in np.ravel(x)], dtype=object).reshape(np.shape(x))


def exact_bound(problem: Problem, u: np.ndarray, e: np.ndarray) -> Fraction:
    """The bound in rational numbers: ``h(u) - max over masks of gradientᵀ(u - v)``, rows below 0 taken as 0.

    docs/mathematics.md, "The certified bound".
    """
    W, G, u, e = (exactly(x) for x in (problem.W, problem.G, u, e))
    d = W * W * e
    Su = W * ((W * u) @ G) - d * u  # (Q - D) u
    h, g = (u * Su + d * u).sum(axis=1), 2 * Su + d
    size, counts = problem.pattern.group_size(problem.shape), problem.counts
    least = [sum(sorted(part)[:count]) for part, count in zip(g.reshape(-1, size), counts, strict=True)]
    if not problem.pattern.separable:
        return max(Fraction(0), h.sum() - (g * u).sum() + least[0])
    per_row = np.array(least, dtype=object).reshape(problem.rows, -1).sum(axis=1)
    return sum((max(Fraction(0), x) for x in h - (g * u).sum(axis=1) + per_row), Fraction(0))


def exactly_psd(A: np.ndarray) -> bool:
    """Whether a matrix of fractions is positive semidefinite: elimination with exact pivots."""
    A = A.copy()
    for k in range(len(A)):
        if A[k, k] < 0 or (A[k, k] == 0 and any(A[k, k:] != 0)):
            return False
        if A[k, k] > 0:
            A[k + 1 :, k + 1 :] -= np.outer(A[k + 1 :, k], A[k, k + 1 :]) / A[k, k]
    return True
