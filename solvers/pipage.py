"""Rounding by conditional expectation: a fractional point, pair by pair, to a mask with the exact counts.

Rounding each ``u_i`` up with chance ``u_i``, independently, has the mean error ``F(u) = uᵀQu + Σ Q_ii u_i(1 - u_i)``.
Moving ``t`` from ``u_j`` to ``u_i`` keeps the count and changes ``F`` by ``t(∂_iF - ∂_jF) - 2 Q_ij t²``. A move that is
random with mean 0, to where one of the two becomes integral (``t = h`` or ``-l``), changes its mean by ``-2 Q_ij h l``,
and the better of both ends by no more: pipage rounding (Ageev and Sviridenko, J. Comb. Optim. 8, 2004). So
``F`` never rises by a pair with ``Q_ij ≥ 0``; by one with ``Q_ij < 0`` it rises by at most ``2 |Q_ij| h l``. Of all
partners that with the least ``F`` after the move is taken.
"""

from __future__ import annotations

import numba
import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.threads import numba_threads

NEAR = 1e-9  # a weight this close to 0 or 1 is there


def pipage(problem: Problem, u: np.ndarray, threads: int = 1) -> np.ndarray:
    """A mask, bool ``(rows, n)``, True = pruned, from ``u (rows, n)`` in the pattern's polytope; ``O(n²)`` a row."""
    W, u = problem.W.astype(np.float64), np.array(u, np.float64)
    gradient = 2 * W * ((W * u) @ problem.G) + W**2 * problem.G.diagonal() * (1 - 2 * u)
    with numba_threads(threads):
        _round_rows(W, problem.G, u, gradient, min(problem.pattern.group_size(problem.shape), problem.n))
    if not problem.pattern.separable:
        _between_rows(u, gradient)
    return problem.pattern.prune(-u)  # what is left is rounding


@numba.njit(cache=True, parallel=True)
def _round_rows(W, G, u, gradient, size):  # type: ignore[no-untyped-def]
    """Move within each group of ``size`` until at most one of its weights is fractional."""
    for r in numba.prange(W.shape[0]):
        for start in range(0, W.shape[1], size):
            _round_group(W[r], G, u[r], gradient[r], np.arange(start, start + size))


@numba.njit(cache=True)
def _round_group(w, G, u, g, members):  # type: ignore[no-untyped-def]
    fractional = np.array([i for i in members if NEAR < u[i] < 1 - NEAR])
    while fractional.size > 1:
        i = fractional[np.argmin(np.minimum(u[fractional], 1 - u[fractional]))]
        partner, move, least = -1, 0.0, np.inf
        for j in fractional:
            if j != i:
                q = w[i] * w[j] * G[i, j]
                for t in (min(1 - u[i], u[j]), -min(u[i], 1 - u[j])):
                    change = t * (g[i] - g[j]) - 2 * q * t * t
                    if change < least:
                        partner, move, least = j, t, change
        u[i] += move
        u[partner] -= move
        for k in fractional:
            g[k] += 2 * move * w[k] * (w[i] * G[i, k] - w[partner] * G[partner, k])
        g[i] -= 2 * move * w[i] ** 2 * G[i, i]
        g[partner] += 2 * move * w[partner] ** 2 * G[partner, partner]
        fractional = np.array([k for k in fractional if NEAR < u[k] < 1 - NEAR])


def _between_rows(u: np.ndarray, gradient: np.ndarray) -> None:
    """One fractional weight a row is left, and rows do not interact: from the costliest to the cheapest."""
    flat, g = u.ravel(), gradient.ravel()
    left = np.flatnonzero((flat > NEAR) & (flat < 1 - NEAR))
    left = list(left[np.argsort(g[left], kind="stable")])
    while len(left) > 1:
        i, j = left[0], left[-1]
        t = min(1 - flat[i], flat[j])
        flat[i], flat[j] = flat[i] + t, flat[j] - t
        left = [k for k in left if NEAR < flat[k] < 1 - NEAR]
