"""Rounding by conditional expectation: a fractional point, pair by pair, to a mask with the exact counts.

Rounding each ``u_i`` up with chance ``u_i``, independently, has the mean error ``F(u) = uᵀQu + Σ Q_ii u_i(1 - u_i)``.
Moving ``t`` from ``u_j`` to ``u_i`` keeps the count and changes ``F`` by ``t(∂_iF - ∂_jF) - 2 Q_ij t²`` (a target's
linear term is the same in ``F``, and part of ``∂F`` alone). A move that is random with mean 0, to where one of the two
becomes integral (``t = h`` or ``-l``), changes its mean by ``-2 Q_ij h l``, and the better of both ends by no more:
pipage rounding (Ageev and Sviridenko, J. Comb. Optim. 8, 2004). That needs ``Q_ij ≥ 0``; here the choice of ``i``
stands in for it. As ``Q ⪰ 0``, of the ``m`` fractional weights of a group one has ``Q_ii + Σ_j Q_ij ≥ 0`` over the
others, thus a partner with ``Q_ij ≥ -Q_ii / (m - 1)``; as ``h l ≤ 1/4``, the pair with the least ``F`` raises it by at
most ``Q_ii / (2m - 2)``. With ``M`` fractional weights in each group, in all

    f(mask)  ≤  F(u) + ½ max_i Q_ii (1 + 1/2 + ... + 1/(M - 1))        for each group.
"""

from __future__ import annotations

import numba
import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.numerics.jit import njit
from fwbench.solvers.numerics.threads import numba_threads

NEAR = 1e-9  # a weight this close to 0 or 1 is there
SMALL_GROUP = 32  # up to this size all pairs of a row's groups are tried, and the best one moves first


def pipage(problem: Problem, u: np.ndarray, threads: int = 1) -> np.ndarray:
    """A mask, bool ``(rows, n)``, True = pruned, from ``u (rows, n)`` in the pattern's polytope; ``O(n²)`` a row.

    The result does not depend on ``threads``. Where rows share a count, pairs are of one row while it has two.
    """
    W, u = problem.W.astype(np.float64), np.array(u, np.float64)
    gradient = 2 * W * ((W * u) @ problem.G) + W**2 * problem.G.diagonal() * (1 - 2 * u)
    if problem.linear is not None:
        gradient += problem.linear
    with numba_threads(threads):
        _round_rows(W, problem.G, u, gradient, problem.group)
    if not problem.pattern.separable:
        _between_rows(u, gradient)
    return problem.pattern.prune(-u)  # what is left is rounding


@njit(parallel=True)
def _round_rows(W, G, u, gradient, size):
    """Move within each group of ``size`` until at most one of its weights is fractional."""
    for r in numba.prange(W.shape[0]):
        if size <= SMALL_GROUP:
            _round_small_groups(W[r], G, u[r], gradient[r], size)
        else:
            _round_row(W[r], G, u[r], gradient[r])


@njit
def _round_small_groups(w, G, u, g, size):
    """The best pair of all groups moves, again and again."""
    while True:
        first, second, move, least = -1, -1, 0.0, np.inf
        for i in range(u.size):
            if NEAR < u[i] < 1 - NEAR:
                for j in range(i + 1, (i // size + 1) * size):
                    if NEAR < u[j] < 1 - NEAR:
                        change, t = _better_end(w, G, u, g, i, j)
                        if change < least:
                            first, second, move, least = i, j, t, change
        if first < 0:
            return
        _move(w, G, u, g, first, second, move)


@njit
def _round_row(w, G, u, g):
    """Of the weights with ``Q_ii + Σ_j Q_ij ≥ 0`` the one nearest to 0 or 1 moves, with its best partner."""
    left = np.flatnonzero((u > NEAR) & (u < 1 - NEAR))
    total = np.zeros(u.size)
    for i in left:
        for j in left:
            total[i] += w[i] * w[j] * G[i, j]
    while left.size > 1:
        i, partner, move, least = _leader(u, total, left), -1, 0.0, np.inf
        for j in left:
            if j != i:
                change, t = _better_end(w, G, u, g, i, j)
                if change < least:
                    partner, move, least = j, t, change
        _move(w, G, u, g, i, partner, move)
        for k in (i, partner):
            if not NEAR < u[k] < 1 - NEAR:
                for j in left:
                    total[j] -= w[k] * w[j] * G[k, j]
        left = left[(u[left] > NEAR) & (u[left] < 1 - NEAR)]


@njit
def _leader(u, total, left):
    chosen, nearest = left[np.argmax(total[left])], np.inf  # nonnegative but for rounding
    for i in left:
        distance = min(u[i], 1 - u[i])
        if total[i] >= 0 and distance < nearest:
            chosen, nearest = i, distance
    return chosen


@njit
def _better_end(w, G, u, g, i, j):
    """Change of ``F`` and ``t`` where ``u_i + t``, ``u_j - t`` first becomes integral, in the better direction."""
    slope, q = g[i] - g[j], 2 * w[i] * w[j] * G[i, j]
    up, down = min(1 - u[i], u[j]), -min(u[i], 1 - u[j])
    gain, loss = up * (slope - q * up), down * (slope - q * down)
    return (gain, up) if gain <= loss else (loss, down)


@njit
def _move(w, G, u, g, i, j, t):
    """``u_i += t``, ``u_j -= t``; ``F`` is linear in each weight, so its own slope does not change."""
    own = g[i] + 2 * t * (-w[i] * w[j] * G[i, j]), g[j] + 2 * t * (w[i] * w[j] * G[i, j])
    x, y = 2 * t * w[i], 2 * t * w[j]
    into, out = G[i], G[j]
    for k in range(u.size):
        g[k] += w[k] * (x * into[k] - y * out[k])
    g[i], g[j] = own
    u[i] += t
    u[j] -= t


def _between_rows(u: np.ndarray, gradient: np.ndarray) -> None:
    """One fractional weight a row is left, and rows do not interact: from the costliest to the cheapest."""
    flat, g = u.ravel(), gradient.ravel()
    fractional = np.flatnonzero((flat > NEAR) & (flat < 1 - NEAR))
    left = fractional[np.argsort(g[fractional], kind="stable")].tolist()
    while len(left) > 1:
        i, j = left[0], left[-1]
        t = min(1 - flat[i], flat[j])
        flat[i], flat[j] = flat[i] + t, flat[j] - t
        left = [k for k in left if NEAR < flat[k] < 1 - NEAR]
