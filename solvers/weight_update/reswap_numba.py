"""1-swaps of one row, each judged by the error that is left after the kept weights are refitted, in numba.

With ``H = G + λI`` (``λ`` weighs the change of kept weights), ``C = H⁻¹``, ``P`` the pruned and ``S`` the kept
weights, the least error is ``w_Pᵀ B w_P - λ|w_P|²``, ``B = (C_PP)⁻¹``. Carried along are ``B``, ``Z = C_SP B``,
``y = B w_P``, the refitted weights ``r = w_S - Z w_P`` and ``σ = diag(C_SS - Z C_PS)``. Keeping ``a`` of ``P`` and
pruning ``j`` of ``S`` changes the error by

    -y_a² / B_aa + (r_j + Z_ja y_a / B_aa)² / (σ_j + Z_ja² / B_aa) + λ (w_a² - w_j²)

(both terms are those of optimal brain surgeon, Hassibi and Stork 1992, the second once ``a`` is kept), so every pair
costs a few operations, and a swap adds matrices of rank two:

    B - b bᵀ / B_aa + t tᵀ / σ',    Z - u bᵀ - v tᵀ

Both are left as they are and the vectors held: what a swap reads of them, two rows and a column, is brought up to date
for itself, and so are the pairs of the ``BLOCK`` rows and columns that looked best. Only when none of those gains any
more are the vectors subtracted from ``Z``, all at once, and every pair looked at again: a few times a row, and at the
end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fwbench.solvers.numerics.extremes import smallest
from fwbench.solvers.numerics.jit import njit

# Divisions that may raise are not vectorised
jit = njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
RELATIVE_GAIN = 1e-9  # of a row's error: what gains less is rounding
BLOCK = 64  # rows and columns whose pairs are tried between two looks at all of them
HELD = 48  # swaps whose vectors are held at most


class Pruned(NamedTuple):
    """What is known of the pruned weights, ``(p,)`` each."""

    column: np.ndarray
    group: np.ndarray
    y: np.ndarray
    diagonal: np.ndarray  # of B
    inverse: np.ndarray  # of that
    gain: np.ndarray  # the change of the error by keeping it


class Kept(NamedTuple):
    """What is known of the kept weights, ``(s,)`` each."""

    column: np.ndarray
    group: np.ndarray
    r: np.ndarray
    sigma: np.ndarray
    cost: np.ndarray  # λ w²


class Held(NamedTuple):
    """Of each swap the vectors by which ``B`` and ``Z`` differ from what is stored."""

    u: np.ndarray  # (HELD, s)
    v: np.ndarray
    b: np.ndarray  # (HELD, p)
    t: np.ndarray
    b_scaled: np.ndarray
    t_scaled: np.ndarray


@jit
def submatrix(C, rows, columns):
    """``C`` at some rows and columns, faster than by indexing with arrays."""
    found = np.empty((rows.size, columns.size), C.dtype)
    for i in range(rows.size):
        for k in range(columns.size):
            found[i, k] = C[rows[i], columns[k]]
    return found


@jit
def _changes(z, j, kept, group, y, inverse, gain, values):
    """Into ``values``: the change of each exchange that prunes the kept weight ``j``, whose line of ``Z`` is ``z``."""
    r, sigma, cost, own = kept.r[j], kept.sigma[j], kept.cost[j], kept.group[j]
    for a in range(z.size):
        rest = r + z[a] * (y[a] * inverse[a])
        change = gain[a] + rest * rest / (sigma + z[a] * z[a] * inverse[a]) - cost
        values[a] = change if group[a] == own else 0.0


@jit
def _subtract(line, place, mine, lines, start, stop):
    """From ``line`` the ``lines`` from ``start`` to ``stop``, each times its entry of ``mine`` at ``place``."""
    for q in range(start, stop):
        factor = mine[q, place]
        for k in range(line.size):
            line[k] -= factor * lines[q, k]


@jit
def _look(Z, pruned, kept, held, start, stop):
    """Subtract what is held from ``Z`` and look at all pairs: the least change of each row and of each column."""
    s, p = Z.shape
    rows, columns, values = np.empty(s), np.zeros(p), np.empty(p)
    for i in range(s):
        _subtract(Z[i], i, held.u, held.b, start, stop)
        _subtract(Z[i], i, held.v, held.t, start, stop)
        _changes(Z[i], i, kept, pruned.group, pruned.y, pruned.inverse, pruned.gain, values)
        rows[i] = smallest(values)
        for a in range(p):
            columns[a] = min(columns[a], values[a])
    return rows, columns


@jit
def _best(part, rows, columns, pruned, kept):
    """The least change among the pairs of some rows and columns of ``Z``, and the places of its pair."""
    values, least, i, a = np.empty(columns.size), 0.0, 0, 0
    group, y, inverse = pruned.group[columns], pruned.y[columns], pruned.inverse[columns]
    gain = pruned.gain[columns]
    for x in range(rows.size):
        _changes(part[x], rows[x], kept, group, y, inverse, gain, values)
        found = smallest(values)
        if found < least:
            least, i, a = found, rows[x], columns[np.argmin(values)]
    return least, i, a


@jit
def _exchange(w, C, B, Z, pruned, kept, held, start, count, out, a, penalty):
    """Prune the kept weight at ``out``, keep the pruned one at ``a``: all but ``B`` and ``Z`` anew, as swap ``count``.

    ``Z`` is short of the swaps from ``start`` on, ``B`` of all.
    """
    enters, leaves, top = pruned.column[a], kept.column[out], pruned.diagonal[a]
    value = pruned.y[a] / top
    b, t, u, v = held.b[count], held.t[count], held.u[count], held.v[count]
    b[:], t[:], u[:] = B[a], Z[out], Z[:, a]
    _subtract(b, a, held.b_scaled, held.b, 0, count)
    _subtract(b, a, held.t_scaled, held.t, 0, count)
    _subtract(t, out, held.u, held.b, start, count)
    _subtract(t, out, held.v, held.t, start, count)
    _subtract(u, a, held.b, held.u, start, count)
    _subtract(u, a, held.t, held.v, start, count)
    # The line of what leaves once ``a`` is kept, and what it then costs
    share = t[a] / top
    schur, rest = kept.sigma[out] + t[a] * share, kept.r[out] + t[a] * value
    for k in range(t.size):
        t[k] -= share * b[k]
    t[a] = -1.0
    # C between the kept weights and what leaves, less Z times its C with the pruned ones: σ's column
    beside = submatrix(C, np.array([leaves]), pruned.column)[0]
    beside[a] = 0.0
    for i in range(v.size):
        total = 0.0
        for k in range(beside.size):
            total += Z[i, k] * beside[k]
        v[i] = C[leaves, kept.column[i]] - total
    for q in range(start, count):
        first, second = held.b[q] @ beside, held.t[q] @ beside
        for i in range(v.size):
            v[i] += first * held.u[q, i] + second * held.v[q, i]
    through = b @ beside
    for i in range(v.size):
        kept.r[i] += u[i] * value
        u[i] /= top
        kept.sigma[i] += u[i] * u[i] * top
        v[i] += u[i] * through
    kept.column[out], kept.r[out], kept.sigma[out] = enters, value, 1 / top
    kept.cost[out] = penalty * w[enters] ** 2
    v[out] = C[leaves, enters] + through / top
    for i in range(v.size):
        kept.sigma[i] -= v[i] * v[i] / schur
        v[i] /= schur
        kept.r[i] -= v[i] * rest
    u[out] += 1 / top  # its line is replaced by that of what enters
    v[out] += 1
    pruned.column[a] = leaves  # of the same group as what enters
    for k in range(b.size):
        held.b_scaled[count, k], held.t_scaled[count, k] = b[k] / top, -t[k] / schur
        pruned.y[k] -= value * b[k] + rest / schur * t[k]
        pruned.diagonal[k] += t[k] * t[k] / schur - b[k] * b[k] / top
    pruned.y[a], pruned.diagonal[a] = rest / schur, 1 / schur
    _gains(w, pruned, penalty)


@jit
def _gains(w, pruned, penalty):
    for k in range(pruned.y.size):
        pruned.inverse[k] = 1 / pruned.diagonal[k]
        pruned.gain[k] = penalty * w[pruned.column[k]] ** 2 - pruned.y[k] * pruned.y[k] * pruned.inverse[k]


@jit
def _begin(w, C, B, Z, across, P, S, size, penalty):
    """What is carried along, and the error."""
    p, s = P.size, S.size
    pruned = Pruned(P, P // size, np.zeros(p), np.empty(p), np.empty(p), np.empty(p))
    kept = Kept(S, S // size, np.empty(s), np.empty(s), np.empty(s))
    held = Held(
        np.empty((HELD, s)),
        np.empty((HELD, s)),
        np.empty((HELD, p)),
        np.empty((HELD, p)),
        np.empty((HELD, p)),
        np.empty((HELD, p)),
    )
    error = 0.0
    for a in range(p):
        pruned.diagonal[a] = B[a, a]
        for c in range(p):
            pruned.y[a] += B[a, c] * w[P[c]]
        error += w[P[a]] * pruned.y[a] - penalty * w[P[a]] ** 2
    for i in range(s):
        kept.r[i], kept.sigma[i], kept.cost[i] = w[S[i]], C[S[i], S[i]], penalty * w[S[i]] ** 2
        for a in range(p):
            kept.r[i] -= Z[i, a] * w[P[a]]
            kept.sigma[i] -= Z[i, a] * across[i, a]
    _gains(w, pruned, penalty)
    return pruned, kept, held, error


@jit
def descend(w, C, B, Z, across, P, S, size, penalty, limit):
    """Exchange after exchange, the best of those looked at, until none of all gains; ``P`` and ``S`` in place.

    Args:
        w: ``(n,)`` float64, the trained weights.
        C: ``(n, n)``, the inverse of ``H``.
        B: ``(p, p)``, used up.
        Z: ``(s, p)``, used up.
        across: ``(s, p)``, ``C_SP`` at the start.
        P, S: the pruned and the kept weights, int64.
        size: neighbours within which weights may be exchanged, ``n`` for the whole row.
        penalty: ``λ``.
        limit: most exchanges.

    Returns:
        How many were made; no more once what is carried of the error is down to rounding, as where rows cancel.
    """
    pruned, kept, held, error = _begin(w, C, B, Z, across, P, S, size, penalty)
    swaps, start, count = 0, 0, 0  # Z is short of the held swaps from ``start`` to ``count``, B of all
    while error > 0 and swaps < limit:
        rows, columns = _look(Z, pruned, kept, held, start, count)
        if count == HELD:
            for a in range(P.size):
                _subtract(B[a], a, held.b_scaled, held.b, 0, count)
                _subtract(B[a], a, held.t_scaled, held.t, 0, count)
            count = 0
        start = count
        least = -RELATIVE_GAIN * error
        if not smallest(rows) < least:
            break
        lines, across = np.argsort(rows)[:BLOCK], np.argsort(columns)[:BLOCK]
        part = submatrix(Z, lines, across)
        while error > 0 and swaps < limit and count < HELD:
            change, out, a = _best(part, lines, across, pruned, kept)
            if not change < least:
                break
            _exchange(w, C, B, Z, pruned, kept, held, start, count, out, a, penalty)
            for x in range(lines.size):
                for c in range(across.size):
                    part[x, c] -= held.u[count, lines[x]] * held.b[count, across[c]]
                    part[x, c] -= held.v[count, lines[x]] * held.t[count, across[c]]
            error += change
            count += 1
            swaps += 1
    return swaps
