"""The numba kernel of ``swap`` for transposable N:M: exchanges of two rows and two columns, the best one first.

A mask that counts along rows and columns of blocks changes least by a cycle of four: of rows ``r`` and ``s`` and
columns ``i`` and ``j`` of a block, ``(r, i)`` and ``(s, j)`` are pruned, ``(r, j)`` and ``(s, i)`` kept, and afterwards
the other way round. Rows do not interact, so it changes the error by what two 1-swaps do, one in each row:

    (a_ri + b_si) + (b_rj + a_sj) - 2 (w_ri w_rj + w_si w_sj) G_ij,    a = Q_ii - g_i,  b = Q_ii + g_i  (see ``swap``).

Only the ``M`` rows of a band are tied, so bands descend side by side. Of each pair of rows the best exchange is
remembered until one of the two rows has moved.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from fwbench.solvers.local_search.swap_numba import ABSOLUTE_GAIN, RELATIVE_GAIN, _exchange, _products
from fwbench.solvers.numerics.jit import njit
from fwbench.solvers.numerics.threads import numba_threads

CHUNK_ROWS = 64  # at least so many rows between two looks at the clock


def descend(
    W: np.ndarray,
    G: np.ndarray,
    pruned: np.ndarray,
    size: int,
    limit: int,
    threads: int,
    expired: Callable[[], bool],
    linear: np.ndarray | None = None,
) -> tuple[int, int, str]:
    """Exchanges in ``pruned (rows, n)``, in place, until none lowers the error: a local optimum.

    Args:
        W: ``(rows, n)``; G: float64 ``(n, n)``; linear: ``c (rows, n)`` of the problem, None where it has none.
        size: M, rows and columns of a block.
        limit: most exchanges that a row takes part in.
        threads: the result does not depend on them.

    Returns:
        Number of exchanges, of pairs evaluated, and ``"deadline"`` if there was too little time.
    """
    W, G = W.astype(np.float64), np.ascontiguousarray(G)
    half = np.zeros_like(W) if linear is None else linear / 2
    swaps = evaluated = 0
    step = size * -(-CHUNK_ROWS // size)
    for first in range(0, len(W), step):
        if expired():
            return swaps, evaluated, "deadline"
        rows = slice(first, first + step)
        with numba_threads(threads):
            made, seen = _descend_bands(W[rows], G, half[rows], pruned[rows], size, limit)
        swaps, evaluated = swaps + made, evaluated + seen
    return swaps, evaluated, ""


@njit(parallel=True)
def _descend_bands(W, G, half, pruned, size, limit):
    bands = W.shape[0] // size
    swaps, evaluated = np.zeros(bands, np.int64), np.zeros(bands, np.int64)
    g = _products(W, G, pruned)
    for band in numba.prange(bands):
        rows = slice(band * size, (band + 1) * size)
        swaps[band], evaluated[band] = _descend(W[rows], G, half[rows], g[rows], pruned[rows], size, limit)
    return swaps.sum(), evaluated.sum()


@njit
def _descend(W, G, half, g, pruned, size, limit):
    """One band; ``g (M, n)`` is ``Qu``, and half of the linear term is added to it."""
    n = W.shape[1]
    a, b, made = np.empty((size, n)), np.empty((size, n)), np.zeros(size, np.int64)
    error = largest = 0.0
    for r in range(size):
        own = 0.0
        for j in range(n):
            own += g[r, j] if pruned[r, j] else 0.0
            largest = max(largest, W[r, j] * W[r, j] * G[j, j], 2 * abs(half[r, j]))
        error += max(own, 0.0)
        for j in range(n):
            g[r, j] += half[r, j]
            error += 2 * abs(half[r, j]) if pruned[r, j] else 0.0  # what rounding is measured by
        _costs(W[r], G, g[r], a[r], b[r])
    best, place = np.zeros((size, size)), np.zeros((size, size, 2), np.int64)  # of rows r and s: its change, i and j
    moved = np.ones(size, np.bool_)
    swaps = evaluated = 0
    while True:
        for r in range(size):
            for s in range(size):
                if r != s and (moved[r] or moved[s]):
                    best[r, s], place[r, s, 0], place[r, s, 1], seen = _best_of_rows(
                        W[r], W[s], G, a[r], b[r], a[s], b[s], pruned[r], pruned[s], size
                    )
                    evaluated += seen
        moved[:] = False
        change, first, second = -RELATIVE_GAIN * error - ABSOLUTE_GAIN * largest, -1, -1
        for r in range(size):
            for s in range(size):
                if best[r, s] < change and made[r] < limit and made[s] < limit:
                    change, first, second = best[r, s], r, s
        if first < 0:
            return swaps, evaluated
        i, j = place[first, second]
        _turn(W[first], G, g[first], pruned[first], i, j)
        _turn(W[second], G, g[second], pruned[second], j, i)
        for r in (first, second):
            moved[r], made[r] = True, made[r] + 1
            _costs(W[r], G, g[r], a[r], b[r])
        error = max(error + change, 0.0)
        swaps += 1


@njit
def _costs(w, G, g, a, b):
    """What keeping a weight again changes, and what pruning it does."""
    for j in range(w.size):
        q = w[j] * w[j] * G[j, j]
        a[j], b[j] = q - 2 * g[j], q + 2 * g[j]


@njit
def _turn(w, G, g, pruned, keeps, prunes):
    pruned[keeps], pruned[prunes] = False, True
    _exchange(w, g, w[prunes], G[prunes], w[keeps], G[keeps])


@njit
def _best_of_rows(w, v, G, a, b, c, d, pruned, other, size):
    """The best exchange of two rows: change, ``i``, ``j``, pairs tried. Row ``w`` keeps ``i`` again and prunes ``j``.

    ``a`` and ``b`` are the costs of row ``w``, ``c`` and ``d`` those of row ``v``.
    """
    best, best_i, best_j, tried = np.inf, 0, 0, 0
    for start in range(0, w.size, size):
        for i in range(start, start + size):
            if not pruned[i] or other[i]:
                continue
            left, wi, vi = a[i] + d[i], 2 * w[i], 2 * v[i]
            for j in range(start, start + size):
                if pruned[j] or not other[j]:
                    continue
                tried += 1
                change = left + (b[j] + c[j]) - (wi * w[j] + vi * v[j]) * G[i, j]
                if change < best:
                    best, best_i, best_j = change, i, j
    return best, best_i, best_j, tried
