"""Quadratic corrections of an active set: the minimum over the affine hull of a row's atoms, as far as it is feasible.

QC-MNP of Halbey, Rakotomandimby, Besançon, Designolle and Pokutta (arXiv 2506.02635), after Wolfe's minimum-norm point
(Math. Programming 11, 1976): the affine minimiser from one linear system in the weights, a step towards it until the
first weight is gone, that atom dropped, and again, until the minimiser itself has nonnegative weights. All in float64,
on the free entries alone: those that the atoms do not share.

Atoms may be affinely dependent, and ``G`` ill-conditioned: the system gets a ridge at rounding level, and a full step
is repeated to take its effect away. Then the direction is the least change of the weights where several do.
"""

from __future__ import annotations

import numpy as np
import torch

from fwbench.solvers.frank_wolfe.active_set import Atoms, add_bits
from fwbench.solvers.numerics.jit import fast

RIDGE = 1e-13  # of the mean diagonal
REPEATS = 3  # full steps at the end


def correct(f, a: Atoms, G: torch.Tensor, n: int) -> None:
    """Move every unfinished row of the fields ``f`` to the minimum over the hull of its atoms, or near it.

    Args:
        f: ``loop_numba.Fields``; ``u`` and the sets change, everything that depends on ``u`` is stale after.
        G: ``(n, n)`` float64; a row of ``f`` is one or more rows of the layer side by side.
    """
    for r in range(len(f.u)):
        if f.done[r] == 0 and a.count[r] > 1:
            _correct_row(r, f, a, G, n)


def _correct_row(r: int, f, a: Atoms, G: torch.Tensor, n: int) -> None:
    count = int(a.count[r])
    weights = a.weights[r, :count].copy()
    w, d, c = f.W[r].astype(np.float64), f.d[r].astype(np.float64), f.c[r].astype(np.float64)
    M, slopes = np.zeros((count, count)), np.zeros(count)
    V = np.empty((count, n))  # of one layer row at a time: all of a layer's entries need not fit into memory
    for first in range(0, f.u.shape[1], n):
        part = slice(first, first + n)
        unpack(a.bits[r, :count], first, V)
        own_d, own_c = (x[part] if x.size else None for x in (d, c))
        _add_quadratic(V, weights, w[part], own_d, own_c, G, M, slopes)
    ridge, factor = RIDGE * float(M.diagonal().mean()), None
    if not ridge > 0:
        return
    M += M.diagonal().mean()  # nothing where the changes of the weights sum to zero; it makes M definite
    while factor is None:
        candidate, info = torch.linalg.cholesky_ex(torch.from_numpy(M + ridge * np.eye(count)), upper=True)
        factor = None if int(info) else candidate.contiguous().numpy()
        ridge *= 10
    minimum_norm_point(M, factor, slopes, weights)
    _write_back(r, f, a, weights)


def _add_quadratic(
    V: np.ndarray,
    weights: np.ndarray,
    w: np.ndarray,
    d: np.ndarray | None,
    c: np.ndarray | None,
    G: torch.Tensor,
    M: np.ndarray,
    slopes: np.ndarray,
) -> None:
    """Add one layer row's part of ``(a_i - u)ᵀ(Q - D)(a_j - u)`` to ``M``, of ``gᵀ(a_j - u)`` to ``slopes``."""
    u = weights @ V
    free = np.flatnonzero((V[0] != V).any(axis=0))
    index, scale = torch.from_numpy(free), torch.from_numpy(w[free])
    rows = G[index]
    H = rows[:, index] * scale * scale[:, None]
    g = 2 * scale * (rows @ torch.from_numpy(w * u))
    if d is not None:
        H.diagonal().sub_(torch.from_numpy(d[free]))
        g += torch.from_numpy(d[free] * (1 - 2 * u[free]))
    if c is not None:
        g += torch.from_numpy(c[free])
    A = torch.from_numpy(V[:, free] - u[free])
    M += (A @ H @ A.T).numpy()
    slopes += (A @ g).numpy()


@fast
def unpack(bits, first, V):
    """Rows of zeros and ones from packed vertices: their entries from ``first`` on, as many as ``V`` has columns."""
    width, last = bits.shape[1], first + V.shape[1]
    for b in range(first // width, (last - 1) // width + 1):
        low, high = max(first, b * width), min(last, (b + 1) * width)
        for j in range(V.shape[0]):
            for i in range(low, high):
                V[j, i - first] = (bits[j, i - b * width] >> b) & 1


@fast
def minimum_norm_point(M, R, slopes, weights):
    """Minimise ``(x - weights)ᵀM(x - weights) + slopesᵀ(x - weights)`` over the hull, dropping atoms; in place.

    Args:
        M: ``(k, k)``, definite where the entries sum to zero.
        R: ``(k, k)`` upper factor of ``M`` and a ridge; destroyed.
        slopes: ``(k,)``; destroyed.
        weights: ``(k,)``, sum 1; what is dropped ends at zero.
    """
    k = weights.size
    index = np.arange(k)  # of the atoms still in
    ones, right, change = np.empty(k), np.empty(k), np.empty(k)
    repeats = 0
    while k > 1 and repeats < REPEATS:
        for i in range(k):
            ones[i], right[i] = 1.0, slopes[index[i]]
        _solve(R, k, ones)
        _solve(R, k, right)
        level = right[:k].sum() / ones[:k].sum()
        decrease, most, hit = 0.0, 1.0, -1
        for i in range(k):
            change[i] = (level * ones[i] - right[i]) / 2
            decrease -= slopes[index[i]] * change[i]
            if weights[index[i]] + most * change[i] < 0:
                most, hit = -weights[index[i]] / change[i], i
        if not decrease > 0:
            return
        for i in range(k):
            weights[index[i]] = max(weights[index[i]] + most * change[i], 0.0)
        for i in range(weights.size):
            for j in range(k):
                slopes[i] += 2 * most * M[i, index[j]] * change[j]
        if hit < 0:
            repeats += 1
            continue
        weights[index[hit]] = 0.0
        _remove(R, k, hit)
        for i in range(hit, k - 1):
            index[i] = index[i + 1]
        k -= 1


@fast
def _solve(R, k, x):
    """``x ← (RᵀR)⁻¹ x`` for the leading ``k`` of an upper triangle."""
    for i in range(k):
        row = R[i]
        x[i] /= row[i]
        value = x[i]
        for j in range(i + 1, k):
            x[j] -= row[j] * value
    for i in range(k - 1, -1, -1):
        row, total = R[i], 0.0
        for j in range(i + 1, k):
            total += row[j] * x[j]
        x[i] = (x[i] - total) / row[i]


@fast
def _remove(R, k, at):
    """Take a row and column out of the factored matrix: close the gap, rotate what sticks out below the diagonal."""
    for i in range(k):
        row = R[i]
        for j in range(max(at, i - 1), k - 1):
            row[j] = row[j + 1]
    for i in range(at, k - 1):
        upper, lower = R[i], R[i + 1]
        a, b = upper[i], lower[i]
        size = np.hypot(a, b)
        c, s = a / size, b / size
        for j in range(i, k - 1):
            x, y = upper[j], lower[j]
            upper[j] = c * x + s * y
            lower[j] = c * y - s * x


def _write_back(r: int, f, a: Atoms, weights: np.ndarray) -> None:
    """Keep the atoms that have weight; ``u`` is what they sum to, in float64 before it is rounded."""
    kept = np.flatnonzero(weights > 1e-14)
    count = len(kept)
    a.bits[r, :count], a.keys[r, :count] = a.bits[r, kept], a.keys[r, kept]
    a.weights[r, :count] = weights[kept] / weights[kept].sum()
    a.weights[r, count:] = 0.0
    a.count[r] = count
    u = np.zeros(f.u.shape[1])
    sum_up(a.bits[r, :count], a.weights[r, :count], u)
    f.u[r] = np.clip(u, 0, 1)


@fast
def sum_up(bits, weights, u):
    for j in range(weights.size):
        add_bits(bits[j], weights[j], u)
