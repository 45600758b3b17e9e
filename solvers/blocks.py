"""A layer as the independent quadratic problems that general-purpose solvers take, one after another.

A block is ``min uᵀQu + cᵀu`` over ``0 ≤ u ≤ 1`` with an exact sum over each of its groups: one row of the layer, or the
whole layer where the pattern does not separate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from fwbench.patterns import Pattern
from fwbench.problem import Problem
from fwbench.verify_tree import FARTHEST

ORDINARY = 2.0**60  # what a row's errors may be in float32 and in what proofs store, and one over what they may be
DRIFT = 1e-5  # of a count: float32 sums of a relaxed point wander on ill-scaled rows


@dataclass(frozen=True)
class Block:
    """One independent problem of ``m`` variables (row-major where it spans rows)."""

    rows: slice  # rows of the layer
    Q: np.ndarray | sp.csc_array  # (m, m), dense for one row, block diagonal for a layer
    c: np.ndarray  # (m,)
    counts: np.ndarray  # pruned count of each group, (groups,)
    constant: float = 0.0  # to add to the objective

    @property
    def size(self) -> int:
        return self.c.size

    def sums(self) -> sp.csc_array:
        """The matrix of group sums, ``(groups, m)``: ``sums() @ u == counts``."""
        groups = self.counts.size
        return sp.csc_array(sp.kron(sp.eye_array(groups), np.ones((1, self.size // groups))))


def scale_for(size: float) -> float:
    """A power of two for the weights of a row whose errors are of this ``size``: times it they are ordinary.

    1 where they are so already. An error goes with the square of the weights, so numbers in float32 underflow or
    overflow where float64 does not; a power of two rounds nothing.
    """
    if not size > 0 or 1 / ORDINARY <= size <= ORDINARY:
        return 1.0
    return math.ldexp(1.0, min(max(-(math.frexp(size)[1] // 2), -FARTHEST), FARTHEST))


def in_range(
    W: np.ndarray, diagonal: np.ndarray, separable: bool, d: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Powers of two ``rows (rows, 1)`` and ``columns (n,)`` that bring a layer into the range of float32.

    ``W * rows * columns`` and ``G / columns / columns[:, None]`` have the same masks, and errors times ``rows²``. All
    are 1 where weights and inputs are ordinary. A column is 0 where the weights of an input that is always zero would
    overflow: ``G`` holds nothing there.

    Args:
        diagonal: of ``G``, ``(n,)``.
        separable: rows are independent; else they are scaled alike.
        d: ``(rows, n)``, what convexifies each row, if that has to be in range as well.
    """
    root = np.sqrt(np.maximum(diagonal, 0.0))
    sizes = np.array([float((np.abs(w) * root).max()) ** 2 for w in W])  # one by one: a layer in float64 is large
    if d is not None:
        sizes = np.maximum(sizes, np.abs(d).max(axis=1))
    rows = np.array([[scale_for(size)] for size in (sizes if separable else np.full(len(W), sizes.max()))])
    columns = np.array([1 / scale_for(size) for size in diagonal])
    dead = np.flatnonzero(diagonal <= 0)
    columns[dead[np.abs(W[:, dead] * rows).max(axis=0) > math.sqrt(ORDINARY)]] = 0.0
    return rows, columns


def block_size(problem: Problem) -> int:
    """Variables in each block."""
    return problem.n if problem.pattern.separable else problem.rows * problem.n


def blocks(
    problem: Problem, e: np.ndarray | None = None, own: Mapping[int, np.ndarray] | None = None
) -> Iterator[Block]:
    """The blocks in order of rows.

    Args:
        e: ``(n,)`` with ``G - diag(e) ⪰ 0``: the objective is then ``uᵀ(Q - D)u + dᵀu`` with ``d = w²∘e``, equal on
            masks (DESIGN section 1). None for ``uᵀQu``.
        own: for some rows of a separable pattern, their ``d (n,)`` in place of that; see ``convex_where_counts_hold``.
    """
    W = problem.W.astype(np.float64)
    G = problem.G if e is None else problem.G - np.diag(e)
    linear = np.zeros_like(W) if e is None else W**2 * e
    counts = problem.pattern.counts(problem.shape)
    if not problem.pattern.separable:
        Q = sp.csc_array(sp.block_diag([np.outer(w, w) * G for w in W]))
        yield Block(slice(0, problem.rows), Q, linear.ravel(), counts)
        return
    for row, (w, count) in enumerate(zip(W, counts.reshape(problem.rows, -1), strict=True)):
        if own is not None and row in own:
            yield convex_where_counts_hold(row, np.outer(w, w) * problem.G, own[row], count)
        else:
            yield Block(slice(row, row + 1), np.outer(w, w) * G, linear[row], count)


def convex_where_counts_hold(row: int, Q: np.ndarray, d: np.ndarray, counts: np.ndarray) -> Block:
    """The block of ``uᵀ(Q - D)u + dᵀu``, ``D = diag(d)``, for a ``d`` that need not make it convex everywhere.

    A row's own diagonal makes ``Q - D`` positive semidefinite on the vectors that sum to zero in each group, which is
    all that masks see (``solvers.bnb_diagonal``). So with ``P`` the projection on those and ``a`` the point of equal
    entries that has the counts, ``u = a + Pu`` and the program is ``uᵀP(Q - D)Pu + (d + 2P(Q - D)a)ᵀu + aᵀ(Q - D)a``:
    equal where the counts are right, and convex everywhere, without the large terms of a penalty.

    Args:
        Q: ``(n, n)``.
        d: ``(n,)``.
        counts: pruned count of each group, ``(groups,)``.
    """
    size = len(d) // len(counts)
    a = np.repeat(counts / size, size)

    def projected(A: np.ndarray) -> np.ndarray:  # its rows, or a vector
        groups = A.reshape(-1, len(counts), size)
        return (groups - groups.mean(axis=2, keepdims=True)).reshape(A.shape)

    Z = Q - np.diag(d)
    half = projected(projected(Z).T)
    return Block(slice(row, row + 1), (half + half.T) / 2, d + 2 * projected(Z @ a), counts, float(a @ Z @ a))


def project(pattern: Pattern, u: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """The nearest point of the pattern's polytope, float64 ``(rows, n)``, counts exact to rounding.

    ``clip(u - t, 0, 1)`` in each group, with ``t`` found by bisection (the capped simplex: Wang and Lu 2015). Groups
    inside [0, 1] whose sum is within ``tolerance`` of their count stay as they are.
    """
    x = pattern.groups(np.asarray(u, dtype=np.float64))
    counts = pattern.counts((u.shape[-2], u.shape[-1]))[:, None]
    off = np.abs(x.sum(axis=1, keepdims=True) - counts) > tolerance
    off |= ((x < 0) | (x > 1)).any(axis=1, keepdims=True)
    if not off.any():
        return x.reshape(u.shape)
    moved, wanted = x[off[:, 0]], counts[off[:, 0]]
    low, high = moved.min(axis=1, keepdims=True) - 1, moved.max(axis=1, keepdims=True)
    for _ in range(60):
        t = (low + high) / 2
        too_many = np.clip(moved - t, 0, 1).sum(axis=1, keepdims=True) > wanted
        low, high = np.where(too_many, t, low), np.where(too_many, high, t)
    x = x.copy()  # of a caller's float64 array it is a view
    x[off[:, 0]] = np.clip(moved - (low + high) / 2, 0, 1)
    return x.reshape(u.shape)
