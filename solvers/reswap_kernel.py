"""1-swaps of one row, each judged by the error that is left after the kept weights are refitted, in numba.

With ``H = G + λI`` (``λ`` weighs the change of kept weights), ``C = H⁻¹``, ``P`` the pruned and ``S`` the kept
weights, the least error is ``w_Pᵀ B w_P - λ|w_P|²``, ``B = (C_PP)⁻¹``. Carried along are ``B``, ``Z = C_SP B``,
``y = B w_P``, the refitted weights ``r = w_S - Z w_P`` and ``σ = diag(C_SS - Z C_PS)``. Keeping ``a`` of ``P`` and
pruning ``j`` of ``S`` changes the error by

    -y_a² / B_aa + (r_j + Z_ja y_a / B_aa)² / (σ_j + Z_ja² / B_aa) + λ (w_a² - w_j²)

(both terms are those of optimal brain surgeon, Hassibi and Stork 1992, the second once ``a`` is kept), so every pair
costs a few operations, and a swap two rank-one updates of ``B`` and ``Z``.
"""

from __future__ import annotations

import numba
import numpy as np

from fwbench.solvers.swap_bounds import smallest

# Divisions that may raise are not vectorised
jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
RELATIVE_GAIN = 1e-9  # of a row's error: what gains less is rounding


@jit
def _changes(z, r, sigma, cost, group, y, inverse, gain, groups, values):  # type: ignore[no-untyped-def]
    """Into ``values``: the change of each exchange that prunes the kept weight whose line of ``Z`` is ``z``."""
    for a in range(z.size):
        rest = r + z[a] * (y[a] * inverse[a])
        change = gain[a] + rest * rest / (sigma + z[a] * z[a] * inverse[a]) - cost
        values[a] = change if groups[a] == group else 0.0


@jit
def _gains(w, P, y, inverse, penalty, gain):  # type: ignore[no-untyped-def]
    for a in range(P.size):
        gain[a] = penalty * w[P[a]] ** 2 - y[a] * y[a] * inverse[a]


@jit
def descend(w, C, B, Z, P, S, size, penalty, limit):  # type: ignore[no-untyped-def]
    """Best exchange after best exchange until none gains, all in place.

    Args:
        w: ``(n,)`` float64, the trained weights.
        C: ``(n, n)``, the inverse of ``H``.
        B: ``(p, p)``.
        Z: ``(s, p)``.
        P, S: the pruned and the kept weights, int64.
        size: neighbours within which weights may be exchanged, ``n`` for the whole row.
        penalty: ``λ``.
        limit: most exchanges.

    Returns:
        How many were made.
    """
    p, s = P.size, S.size
    y, inverse, gain, values = np.zeros(p), np.empty(p), np.empty(p), np.empty(p)
    r, sigma, best = np.empty(s), np.empty(s), np.empty(s)
    groups = P // size
    for a in range(p):
        for b in range(p):
            y[a] += B[a, b] * w[P[b]]
        inverse[a] = 1 / B[a, a]
    _gains(w, P, y, inverse, penalty, gain)
    error = 0.0
    for a in range(p):
        error += w[P[a]] * y[a] - penalty * w[P[a]] ** 2
    for i in range(s):
        r[i], sigma[i] = w[S[i]], C[S[i], S[i]]
        for a in range(p):
            r[i] -= Z[i, a] * w[P[a]]
            sigma[i] -= Z[i, a] * C[P[a], S[i]]
        _changes(Z[i], r[i], sigma[i], penalty * w[S[i]] ** 2, S[i] // size, y, inverse, gain, groups, values)
        best[i] = smallest(values)
    b, t, column = np.empty(p), np.empty(p), np.empty(p)
    swaps = 0
    while swaps < limit:
        out = np.argmin(best)
        if not best[out] < -RELATIVE_GAIN * abs(error):
            break
        _changes(Z[out], r[out], sigma[out], penalty * w[S[out]] ** 2, S[out] // size, y, inverse, gain, groups, values)
        a = np.argmin(values)
        kept, pruned, top, value = P[a], S[out], B[a, a], y[a] / B[a, a]
        error += values[a]
        # what the pruned weight's line would be once ``a`` is kept, and what it then costs
        share = Z[out, a] / top
        for k in range(p):
            b[k] = B[a, k]
            t[k] = Z[out, k] - share * b[k]
            column[k] = C[P[k], pruned]
        t[a] = column[a] = 0.0
        schur = sigma[out] + Z[out, a] * share
        rest = r[out] + Z[out, a] * value
        for k in range(p):
            y[k] -= value * b[k] + rest / schur * t[k]
            first, second = b[k] / top, t[k] / schur
            for m in range(p):
                B[k, m] += second * t[m] - first * b[m]
            B[k, a] = -second
        for k in range(p):
            B[a, k] = -t[k] / schur
        B[a, a] = 1 / schur
        y[a] = rest / schur
        P[a] = pruned  # of the same group as the weight before it
        for k in range(p):
            inverse[k] = 1 / B[k, k]
        _gains(w, P, y, inverse, penalty, gain)
        for i in range(s):
            if i == out:
                S[i], r[i], sigma[i] = kept, value, 1 / top
                for k in range(p):
                    Z[i, k] = -b[k] / top
            else:
                share = Z[i, a] / top
                r[i] += Z[i, a] * value
                sigma[i] += Z[i, a] * share
                for k in range(p):
                    Z[i, k] -= share * b[k]
            Z[i, a] = 0.0
            entry = C[S[i], pruned]
            for k in range(p):
                entry -= Z[i, k] * column[k]
            share = entry / schur
            for k in range(p):
                Z[i, k] -= share * t[k]
            Z[i, a] = share
            r[i] -= share * rest
            sigma[i] -= share * entry
            _changes(Z[i], r[i], sigma[i], penalty * w[S[i]] ** 2, S[i] // size, y, inverse, gain, groups, values)
            best[i] = smallest(values)
        swaps += 1
    return swaps
