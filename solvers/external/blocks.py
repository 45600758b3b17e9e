"""A layer as the independent quadratic problems that general-purpose solvers take, one after another.

A block is ``min uᵀQu + cᵀu + constant`` over ``0 ≤ u ≤ 1`` with an exact sum over each of its groups: one row of the
layer, or the whole layer where the pattern does not separate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from fwbench.problem import Problem


@dataclass(frozen=True)
class QuadraticBlock:
    """One independent problem of ``m`` variables (row-major where it spans rows)."""

    rows: slice  # rows of the layer
    Q: np.ndarray | sp.csc_array  # (m, m), dense for one row, block diagonal for a layer
    c: np.ndarray  # (m,)
    counts: np.ndarray  # pruned count of each group, (groups,)
    constant: float = 0.0  # to add to the objective

    @property
    def size(self) -> int:
        return self.c.size

    @property
    def choice(self) -> bool:
        """Whether there is more than one mask."""
        return bool(((self.counts > 0) & (self.counts < self.size // self.counts.size)).any())

    def sums(self) -> sp.csc_array:
        """The matrix of group sums, ``(groups, m)``: ``sums() @ u == counts``."""
        groups = self.counts.size
        return sp.csc_array(sp.kron(sp.eye_array(groups), np.ones((1, self.size // groups))))


def blocks(
    problem: Problem, e: np.ndarray | None = None, own: Mapping[int, np.ndarray] | None = None
) -> Iterator[QuadraticBlock]:
    """The blocks in order of rows.

    Args:
        e: ``(n,)`` with ``G - diag(e) ⪰ 0``: the objective is then ``uᵀ(Q - D)u + dᵀu`` with ``d = w²∘e``, equal on
            masks (docs/mathematics.md, "The certified bound"). None for ``uᵀQu``. Both besides what the problem's
            target adds, its linear term and its rows' offsets.
        own: for some rows of a separable pattern, their ``d (n,)`` in place of that; see ``convex_where_counts_hold``.
    """
    W = problem.W.astype(np.float64)
    G = problem.G if e is None else problem.G - np.diag(e)
    linear = np.zeros_like(W) if e is None else W**2 * e
    own_linear, offset = np.zeros_like(W), np.zeros(problem.rows)
    if problem.linear is not None and problem.offset is not None:
        own_linear, offset = problem.linear, problem.offset
    linear += own_linear
    counts = problem.counts
    if not problem.pattern.separable:
        Q = sp.csc_array(sp.block_diag([np.outer(w, w) * G for w in W]))
        yield QuadraticBlock(slice(0, problem.rows), Q, linear.ravel(), counts, float(offset.sum()))
        return
    for row, (w, count) in enumerate(zip(W, counts.reshape(problem.rows, -1), strict=True)):
        if own is not None and row in own:
            block = convex_where_counts_hold(row, np.outer(w, w) * problem.G, own[row], count)
            yield replace(block, c=block.c + own_linear[row], constant=block.constant + float(offset[row]))
        else:
            yield QuadraticBlock(slice(row, row + 1), np.outer(w, w) * G, linear[row], count, float(offset[row]))


def convex_where_counts_hold(row: int, Q: np.ndarray, d: np.ndarray, counts: np.ndarray) -> QuadraticBlock:
    """The block of ``uᵀ(Q - D)u + dᵀu``, ``D = diag(d)``, for a ``d`` that need not make it convex everywhere.

    A row's own diagonal makes ``Q - D`` positive semidefinite on the vectors that sum to zero in each group, which is
    all that masks see (``semidefinite.search_diagonal``). So with ``P`` the projection on those and ``a`` the point of
    equal entries that has the counts, ``u = a + Pu`` and the program is
    ``uᵀP(Q - D)Pu + (d + 2P(Q - D)a)ᵀu + aᵀ(Q - D)a``: equal where the counts are right, and convex everywhere,
    without the large terms of a penalty.

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
    return QuadraticBlock(slice(row, row + 1), (half + half.T) / 2, d + 2 * projected(Z @ a), counts, float(a @ Z @ a))
