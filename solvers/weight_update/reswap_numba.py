"""1-swaps of some weights of one row, each judged by the error left after the kept weights are refitted, in numba.

The weights in question lie first to last: ``j`` kept ones, then the pruned ones; those that are kept in any case have
been eliminated. Of their least squares, ``D`` the second moments and ``d`` the correlations with the target, a tableau
is held as the sweep operator leaves it (Beale, Kendall and Mann 1967):

    [ -D_JJ⁻¹       D_JJ⁻¹ D_JA               r_J          ]
    [  D_AJ D_JJ⁻¹  D_AA - D_AJ D_JJ⁻¹ D_JA   y_A          ]
    [  r_Jᵀ         y_Aᵀ                      less than dᵀd]

``r`` are the refitted weights, ``y`` what pruned weights would still explain, and the two diagonals their variances.
Keeping ``a`` and pruning ``i`` changes the error by

    -y_a² / M_aa - (r_i - M_ia y_a / M_aa)² / (M_ii - M_ia² / M_aa) + λ (w_a² - w_i²)

(both quotients are those of optimal brain surgeon, Hassibi and Stork 1992, the second once ``a`` is kept), so every
pair costs a few operations, and an exchange, two sweeps, adds a matrix of rank two.
"""

from __future__ import annotations

import numpy as np

from fwbench.solvers.numerics.extremes import smallest
from fwbench.solvers.numerics.jit import njit

# Divisions that may raise are not vectorised
jit = njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
RELATIVE_GAIN = 1e-9  # of a row's error: what gains less is rounding


@jit
def submatrix(C, rows, columns):
    """``C`` at some rows and columns, faster than by indexing with arrays."""
    found = np.empty((rows.size, columns.size), C.dtype)
    for i in range(rows.size):
        line = C[rows[i]]
        for k in range(columns.size):
            found[i, k] = line[columns[k]]
    return found


@jit
def lower(C, chosen):
    """The lower triangle of ``C`` at some rows and the same columns; above it lies anything."""
    found = np.empty((chosen.size, chosen.size), C.dtype)
    for i in range(chosen.size):
        line = C[chosen[i]]
        for k in range(i + 1):
            found[i, k] = line[chosen[k]]
    return found


@jit
def _changes(line, own, r, cost, y, inverse, gain, values):
    """Into ``values``: the change of each exchange that prunes a kept weight, given its ``line`` of the tableau."""
    for a in range(values.size):
        rest = r - line[a] * (y[a] * inverse[a])
        values[a] = gain[a] - rest * rest / (own - line[a] * line[a] * inverse[a]) - cost


@jit
def _best(M, kept, cost, first, last, y, inverse, gain, values):
    """The least change of all exchanges, and the places of its pair."""
    least, i, a, d = 0.0, 0, 0, M.shape[0] - 1
    for x in range(kept):
        f, t = first[x], last[x]
        if f < t:
            mine = values[f:t]
            _changes(M[x, kept + f : kept + t], M[x, x], M[x, d], cost[x], y[f:t], inverse[f:t], gain[f:t], mine)
            found = smallest(mine)
            if found < least:
                least, i, a = found, x, f + np.argmin(mine)
    return least, i, kept + a


@jit
def _exchange(M, i, a, p, q):
    """Sweep on ``a``, sweep back on ``i``, and let them change places; ``p`` and ``q`` are scratch."""
    top, one = M[a, a], M.dtype.type(1)
    through = M[i, a] / top
    for k in range(p.size):
        p[k] = M[a, k]
        q[k] = M[i, k] - through * p[k]
    q[a] = through
    bottom = q[i]
    for x in range(p.size):
        line, left, right = M[x], p[x] / top, q[x] / bottom
        for k in range(p.size):
            line[k] -= left * p[k] + right * q[k]
    for k in range(p.size):
        line_in, line_out = p[k] / top - q[k] * through / bottom, -q[k] / bottom
        M[i, k] = M[k, i] = line_in
        M[a, k] = M[k, a] = line_out
    M[i, i], M[a, a] = -one / top - through * through / bottom, -one / bottom
    M[i, a] = M[a, i] = -through / bottom


@jit
def descend(M, kept, cost, first, last, order, error, least, limit):
    """Make the best exchange until none gains.

    Args:
        M: ``(m + 1, m + 1)``, the tableau; in place.
        kept: how many of the ``m`` weights, the first ones, are kept.
        cost: ``(m,)``, ``λ w²`` of each; in place.
        first, last: ``(kept,)``, for each kept weight the pruned ones it may be exchanged with: those of its group.
        order: ``(m,)``, exchanged like the weights; in place.
        error: of the row.
        least: part of it below which a gain is rounding.
        limit: most exchanges.

    Returns:
        How many were made, and how much less the error is; no more once what is carried of the error is down to
        rounding, as where rows cancel.
    """
    m, swaps, before = M.shape[0] - 1, 0, error
    y, inverse, gain = np.empty(m - kept, M.dtype), np.empty(m - kept, M.dtype), np.empty(m - kept, M.dtype)
    values, p, q = np.empty(m - kept, M.dtype), np.empty(m + 1, M.dtype), np.empty(m + 1, M.dtype)
    while error > 0 and swaps < limit:
        for k in range(m - kept):
            y[k], inverse[k] = M[m, kept + k], 1 / M[kept + k, kept + k]
            gain[k] = cost[kept + k] - y[k] * y[k] * inverse[k]
        change, i, a = _best(M, kept, cost, first, last, y, inverse, gain, values)
        if not change < -least * error:
            break
        _exchange(M, i, a, p, q)
        cost[i], cost[a] = cost[a], cost[i]
        order[i], order[a] = order[a], order[i]
        error += change
        swaps += 1
    return swaps, before - error
