"""1-swaps of one row, each judged by the error that is left after the kept weights are refitted, in numba.

With ``H = G + λI`` (``λ`` weighs the change of kept weights), ``C = H⁻¹``, ``P`` the pruned and ``S`` the kept
weights, the least error is ``w_Pᵀ B w_P - λ|w_P|²``, ``B = (C_PP)⁻¹``. Carried along are ``B``, ``Z = C_SP B``,
``y = B w_P``, the refitted weights ``r = w_S - Z w_P`` and ``σ = diag(C_SS - Z C_PS)``. Keeping ``a`` of ``P`` and
pruning ``j`` of ``S`` changes the error by

    -y_a² / B_aa + (r_j + Z_ja y_a / B_aa)² / (σ_j + Z_ja² / B_aa) + λ (w_a² - w_j²)

(both terms are those of optimal brain surgeon, Hassibi and Stork 1992, the second once ``a`` is kept), so every pair
costs a few operations, and a swap adds matrices of rank two to ``B`` and ``Z``:

    B + t tᵀ / σ' - b bᵀ / B_aa,    Z - u bᵀ - v tᵀ

Both are left as they are and the vectors kept: what a swap reads of them, a row and a column, is brought up to date for
itself, and so are the pairs of the ``BLOCK`` rows and columns that looked best. Only when none of those gains any more
are the vectors added to ``Z``, all at once, and every pair looked at again: a few times a row, and at the end.
"""

from __future__ import annotations

import numba
import numpy as np

from fwbench.solvers.swap_bounds import smallest

# Divisions that may raise are not vectorised
jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
RELATIVE_GAIN = 1e-9  # of a row's error: what gains less is rounding
BLOCK = 64  # rows and columns whose pairs are tried between two looks at all of them
HELD = 48  # swaps whose vectors are kept before they are added


@jit
def submatrix(C, rows, columns):  # type: ignore[no-untyped-def]
    """``C`` at some rows and columns: a third of the time of an indexing by arrays."""
    found = np.empty((rows.size, columns.size), C.dtype)
    for i in range(rows.size):
        for k in range(columns.size):
            found[i, k] = C[rows[i], columns[k]]
    return found


@jit
def _changes(z, r, sigma, cost, group, y, inverse, gain, groups, values):  # type: ignore[no-untyped-def]
    """Into ``values``: the change of each exchange that prunes the kept weight whose line of ``Z`` is ``z``."""
    for a in range(z.size):
        rest = r + z[a] * (y[a] * inverse[a])
        change = gain[a] + rest * rest / (sigma + z[a] * z[a] * inverse[a]) - cost
        values[a] = change if groups[a] == group else 0.0


@jit
def _add(line, mine, lines):  # type: ignore[no-untyped-def]
    """Subtract from ``line`` the sum of ``lines``, each times its entry of ``mine``."""
    for q in range(len(mine)):
        factor, other = mine[q], lines[q]
        for k in range(line.size):
            line[k] -= factor * other[k]


@jit
def _look(Z, u, b, v, t, r, sigma, cost, groups, kept_groups, y, inverse, gain):  # type: ignore[no-untyped-def]
    """Add what is held to ``Z``, and look at all pairs: the least change of each row and of each column."""
    s, p = Z.shape
    rows, columns, values = np.empty(s), np.zeros(p), np.empty(p)
    for i in range(s):
        _add(Z[i], u[:, i], b)
        _add(Z[i], v[:, i], t)
        _changes(Z[i], r[i], sigma[i], cost[i], kept_groups[i], y, inverse, gain, groups, values)
        rows[i] = smallest(values)
        for a in range(p):
            columns[a] = min(columns[a], values[a])
    return rows, columns


@jit
def _best(part, lines, columns, r, sigma, cost, groups, kept_groups, y, inverse, gain):  # type: ignore[no-untyped-def]
    """The least change among the pairs of ``lines`` and ``columns``, and their places in these."""
    values, least, i, a = np.empty(columns.size), 0.0, 0, 0
    y, inverse, gain, groups = y[columns], inverse[columns], gain[columns], groups[columns]
    for x in range(lines.size):
        j = lines[x]
        _changes(part[x], r[j], sigma[j], cost[j], kept_groups[j], y, inverse, gain, groups, values)
        found = smallest(values)
        if found < least:
            least, i, a = found, x, np.argmin(values)
    return least, i, a


@jit
def descend(w, C, B, Z, P, S, size, penalty, limit):  # type: ignore[no-untyped-def]
    """Exchange after exchange, the best of those looked at, until none of all gains; ``P`` and ``S`` in place.

    Args:
        w: ``(n,)`` float64, the trained weights.
        C: ``(n, n)``, the inverse of ``H``.
        B: ``(p, p)``, used up.
        Z: ``(s, p)``, used up.
        P, S: the pruned and the kept weights, int64.
        size: neighbours within which weights may be exchanged, ``n`` for the whole row.
        penalty: ``λ``.
        limit: most exchanges.

    Returns:
        How many were made.
    """
    p, s = P.size, S.size
    y, diagonal, cost = np.zeros(p), np.empty(p), penalty * w[S] ** 2
    r, sigma, groups, kept_groups = w[S], np.empty(s), P // size, S // size
    for a in range(p):
        diagonal[a] = B[a, a]
        for c in range(p):
            y[a] += B[a, c] * w[P[c]]
    error = 0.0
    for a in range(p):
        error += w[P[a]] * y[a] - penalty * w[P[a]] ** 2
    for i in range(s):
        sigma[i] = C[S[i], S[i]]
        for a in range(p):
            r[i] -= Z[i, a] * w[P[a]]
            sigma[i] -= Z[i, a] * C[S[i], P[a]]
    inverse = 1 / diagonal
    gain = penalty * w[P] ** 2 - y * y * inverse
    # of the swaps that are held: Z is short of those from ``start`` on, B of all
    u, v, b, t, first, second = _held(s, p)
    swaps, held, start = 0, 0, 0
    while swaps < limit:
        if held == HELD:
            for a in range(p):
                _add(B[a], first[:, a], b)
                _add(B[a], second[:, a], t)
        new = slice(start, held)
        rows, columns = _look(Z, u[new], b[new], v[new], t[new], r, sigma, cost, groups, kept_groups, y, inverse, gain)
        if held == HELD:
            held = 0
        start = held
        bar = -RELATIVE_GAIN * abs(error)
        if not smallest(rows) < bar:
            break
        lines, across = np.argsort(rows)[:BLOCK], np.argsort(columns)[:BLOCK]
        part = submatrix(Z, lines, across)
        while swaps < limit and held < HELD:
            change, x, c = _best(part, lines, across, r, sigma, cost, groups, kept_groups, y, inverse, gain)
            if not change < bar:
                break
            out, a, old = lines[x], across[c], slice(start, held)
            kept, pruned, top, value = P[a], S[out], diagonal[a], y[a] / diagonal[a]
            line, column, beside = Z[out].copy(), Z[:, a].copy(), B[a].copy()
            _add(line, u[old, out], b[old])
            _add(line, v[old, out], t[old])
            _add(column, b[old, a], u[old])
            _add(column, t[old, a], v[old])
            _add(beside, first[:held, a], b[:held])
            _add(beside, second[:held, a], t[:held])
            # the pruned weight's line once ``a`` is kept, and what it then costs
            share = line[a] / top
            schur, rest = sigma[out] + line[a] * share, r[out] + line[a] * value
            line -= share * beside
            line[a] = -1.0
            among = submatrix(C, np.array([pruned]), P)[0]
            among[a] = 0.0
            entry = _entries(Z, u[old], b[old], v[old], t[old], among)
            across_b = beside @ among
            for i in range(s):
                share = column[i] / top
                r[i] += column[i] * value
                sigma[i] += column[i] * share
                entry[i] = C[pruned, S[i]] - entry[i] + share * across_b
                u[held, i] = share
            S[out], r[out], sigma[out], cost[out] = kept, value, 1 / top, penalty * w[kept] ** 2
            entry[out] = C[pruned, kept] + across_b / top
            for i in range(s):
                v[held, i] = entry[i] / schur
                r[i] -= v[held, i] * rest
                sigma[i] -= v[held, i] * entry[i]
            u[held, out] += 1 / top
            v[held, out] += 1
            b[held], t[held] = beside, line
            first[held], second[held] = beside / top, line / -schur
            for x in range(lines.size):
                for c in range(across.size):
                    part[x, c] -= u[held, lines[x]] * beside[across[c]] + v[held, lines[x]] * line[across[c]]
            P[a] = pruned  # of the same group as the weight before it
            for k in range(p):
                y[k] -= value * beside[k] + rest / schur * line[k]
                diagonal[k] -= first[held, k] * beside[k] + second[held, k] * line[k]
            y[a], diagonal[a] = rest / schur, 1 / schur
            inverse = 1 / diagonal
            gain = penalty * w[P] ** 2 - y * y * inverse
            error += change
            held += 1
            swaps += 1
    return swaps


@jit
def _held(s, p):  # type: ignore[no-untyped-def]
    """Empty vectors of the held swaps: two of kept weights, four of pruned ones."""
    return (
        np.empty((HELD, s)),
        np.empty((HELD, s)),
        np.empty((HELD, p)),
        np.empty((HELD, p)),
        np.empty((HELD, p)),
        np.empty((HELD, p)),
    )


@jit
def _entries(Z, u, b, v, t, among):  # type: ignore[no-untyped-def]
    """``Z`` as it is now, times a vector."""
    found = np.empty(len(Z))
    for i in range(len(Z)):
        line, total = Z[i], 0.0
        for k in range(among.size):
            total += line[k] * among[k]
        found[i] = total
    for q in range(len(u)):
        _add(found, np.array([b[q] @ among, t[q] @ among]), np.stack((u[q], v[q])))
    return found
