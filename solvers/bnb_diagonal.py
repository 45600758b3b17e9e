"""The diagonal ``d`` that lifts the relaxation of one subtree most: a max-cut semidefinite program (``bnb``).

With ``x = 2u - 1`` and a border, ``uᵀQu + bᵀu`` over masks with ``need[g]`` ones in each group is ``x̂ᵀCx̂``; adding
``ρ(z_gᵀx̂)²`` with ``z_g = (size - 2 need, 1, ..., 1)`` changes no value. The dual of ``min ⟨C, X⟩, diag X = 1, X ⪰
0`` is ``max Σy, C - Diag(y) ⪰ 0``, and ``d = 4y`` makes ``Q - Diag(d) + ρ' Σ 1_g1_gᵀ ⪰ 0`` (Shor's relaxation with
the count's products; Billionnet, Elloumi, Plateau 2009). Primal-dual interior point of Helmberg, Rendl, Vanderbei and
Wolkowicz (SIAM J. Optim. 6, 1996), Mehrotra's predictor and corrector, ended as soon as more would not change the
search.
"""

from __future__ import annotations

import numpy as np

MAX_STEPS = 40
PENALTY = 4.0  # ρ in mean diagonals of Q
PART = 0.005  # of the distance between bound and incumbent: a gap this small ends the iteration


def best_diagonal(
    Q: np.ndarray, b: np.ndarray, start: np.ndarray, need: np.ndarray, rho: float, target: float
) -> np.ndarray:
    """Diagonal ``d (r,)`` with ``Q - Diag(d) + rho Σ 1_g1_gᵀ ⪰ 0`` to rounding.

    Args:
        Q: ``(r, r)``; b: ``(r,)``.
        start: group ``g`` is ``start[g]:start[g + 1]``.
        target: the iteration ends when the bound exceeds it.
    """
    r = b.size
    C = np.empty((r + 1, r + 1))
    sums = Q.sum(axis=1)
    C[1:, 1:] = Q / 4
    C[0, 1:] = C[1:, 0] = (sums + b) / 4
    C[0, 0] = sums.sum() / 4 + b.sum() / 2
    for group in range(len(need)):
        z = np.zeros(r + 1)
        z[0] = start[group + 1] - start[group] - 2 * need[group]
        z[1 + start[group] : 1 + start[group + 1]] = 1
        C += rho / 4 * np.outer(z, z)
    return 4 * interior_point((C + C.T) / 2, target)[1:]


def interior_point(C: np.ndarray, target: float) -> np.ndarray:
    """Maximise ``Σy`` subject to ``C - Diag(y) ⪰ 0``; every iterate satisfies it to rounding."""
    n = len(C)
    off = C - np.diag(C.diagonal())
    norm = max(float(np.abs(np.linalg.eigvalsh(off)[[0, -1]]).max()), 1e-3 * float(np.abs(C).max()), 1e-300)
    y = C.diagonal() - 2 * norm
    X = np.eye(n)
    for _ in range(MAX_STEPS):
        Z = C - np.diag(y)
        dual = float(y.sum())
        gap = float((X * Z).sum())
        if dual >= target or gap <= PART * max(target - dual - gap, 0.05 * (target - dual)):
            break
        try:
            inverse = np.linalg.inv(Z)
            inverse = (inverse + inverse.T) / 2
            factor = np.linalg.inv(inverse * X)
        except np.linalg.LinAlgError:  # at the wall: y is as good as it gets
            break
        mu = gap / n
        dy = factor.sum(axis=1)  # aims at 0: the predictor
        dX = (inverse * dy) @ X - X
        dX = (dX + dX.T) / 2
        a, c = _reach(X, dX), _reach(Z, -np.diag(dy))
        ahead = float(((X + a * dX) * (Z - c * np.diag(dy))).sum()) / n
        aim = mu * min(1.0, max(ahead / mu, 0.0) ** 2 + 1e-3)
        second = (inverse * dy) @ dX
        second = (second + second.T) / 2
        dy = factor @ (1 - aim * inverse.diagonal() - second.diagonal())
        dX = aim * inverse - X + (inverse * dy) @ X + second
        dX = (dX + dX.T) / 2
        a, c = _reach(X, dX), _reach(Z, -np.diag(dy))
        if max(a, c) < 1e-6:
            break
        X, y = X + a * dX, y + c * dy
    return y


def _reach(M: np.ndarray, dM: np.ndarray) -> float:
    """A step that keeps ``M + step dM`` positive definite."""
    length = 1.0
    while length > 1e-8:
        try:
            np.linalg.cholesky(M + length * dM)
        except np.linalg.LinAlgError:
            length *= 0.8
        else:
            return length if length == 1.0 else 0.95 * length
    return 0.0
