"""Convexification by one diagonal ``e`` for all rows, ``G - diag(e) ⪰ 0``: the one that lifts the relaxation most.

``h(u) = f(u) + Σ w²e u(1 - u)`` equals the error on masks and exceeds it between them, so its minimiser bounds better
and lies nearer to a mask.

The interior point is that of ``maxcut`` for a program with ``y ≥ 0`` besides, whose slack enters the Schur complement,
the directions, the gap and both lengths: nothing but the formulas' pattern is common, so it stands by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fwbench import bounds
from fwbench.problem import Problem

MAX_STEPS = 60
FLOOR = 1e-6  # of the largest weight: below it a weight is raised, so that every coordinate stays well posed


def shared_e(problem: Problem, u: np.ndarray, *, tolerance: float = 1e-3, device: str = "cpu") -> np.ndarray:
    """The ``e (n,)``, shared by all rows, that lifts the lower bound most to first order at ``u (rows, n)``.

    Weighted minimum trace factor analysis: maximise ``cᵀe`` subject to ``G - diag(e) ⪰ 0`` and ``e ≥ 0``, with
    ``c = bounds.slope(problem, u)`` (Shapiro 1982 for the unweighted problem; docs/mathematics.md, "A shared
    diagonal", for the weights). The result is safe: the checker's Cholesky proves ``G - diag(e) ⪰ 0``.

    Raises:
        ValueError: ``G`` is not positive semidefinite.
    """
    return bounds.safe(problem.G, maximise_diagonal(problem.G, bounds.slope(problem, u), tolerance, device))


def maximise_diagonal(G: np.ndarray, c: np.ndarray, tolerance: float = 1e-3, device: str = "cpu") -> np.ndarray:
    """Maximise ``cᵀe`` over ``e ≥ 0``, ``G - diag(e) ⪰ 0``, float64.

    With ``y = c∘e`` and ``C = G∘sqrt(c cᵀ)`` this is ``max Σy``, ``C - diag(y) ⪰ 0``, ``y ≥ 0``, the dual of
    ``min ⟨C, X⟩``, ``diag X ≥ 1``, ``X ⪰ 0``, solved by the primal-dual interior point of Helmberg, Rendl, Vanderbei
    and Wolkowicz (SIAM J. Optim. 6, 1996) with Mehrotra's predictor and corrector.

    Args:
        G: ``(n, n)``, positive semidefinite to rounding.
        c: ``(n,)``, nonnegative weights.
        tolerance: stop when the duality gap is below this part of ``cᵀe``.

    Returns:
        ``e (n,)``, nonnegative but for a shift at rounding level.

    Raises:
        ValueError: ``G`` is not positive semidefinite.
    """
    scale = float(G.diagonal().mean())
    if scale <= 0 or not np.any(c > 0):
        return np.zeros(len(c))
    shift = max(1e-10 * scale, 8 * bounds.margin(G))  # keeps an interior when G is singular
    root = np.sqrt(np.maximum(c / c.max(), FLOOR))
    C = torch.tensor((G + shift * np.eye(len(c))) / scale * root * root[:, None], device=device)
    y = _interior_point(C, tolerance).cpu().numpy()
    return scale * y / root**2 - shift


@dataclass
class _Iterate:
    X: torch.Tensor  # (n, n)
    y: torch.Tensor  # (n,)
    s: torch.Tensor  # (n,) slack of diag X ≥ 1


def _interior_point(C: torch.Tensor, tolerance: float) -> torch.Tensor:
    n = C.shape[0]
    try:
        inverse = _inverse(C)
    except torch.linalg.LinAlgError:
        raise ValueError("G is not positive semidefinite") from None
    spread = inverse.diagonal().sqrt()
    # diag(y) ⪯ C if no eigenvalue of the inverse scaled to unit diagonal exceeds 1/t for y = t / diag(inverse)
    y = 0.5 / float(torch.linalg.eigvalsh(inverse / spread / spread[:, None])[-1]) / inverse.diagonal()
    inverse = _inverse(C - torch.diag(y))
    mu = float(y.mean())
    point = _Iterate(mu * inverse, y, mu / y)
    for _ in range(MAX_STEPS):
        Z = C - torch.diag(point.y)
        gap = float((point.X * Z).sum() + point.s @ point.y)
        feasible = float((point.X.diagonal() - point.s - 1).abs().max()) < 1e-6
        if feasible and gap <= tolerance * float(point.y.sum()):
            break
        try:
            point = _step(point, Z, gap / (2 * n))
        except torch.linalg.LinAlgError:
            break  # rounding ends it at the wall of an ill-conditioned G: y is feasible and nearly the best
    return point.y


def _step(point: _Iterate, Z: torch.Tensor, mu: float) -> _Iterate:
    """Predictor, corrector, and a step that keeps X, Z, y and s positive; Z is linear in y, so it stays exact."""
    X, y, s = point.X, point.y, point.s
    inverse = _inverse(Z)
    factor = torch.linalg.cholesky(inverse * X + torch.diag(s / y))

    def direction(
        target: float, second: torch.Tensor | None, second_s: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Newton direction to ``XZ = target I``, ``sy = target``; ``second`` are the predictor's products."""
        constant = target * inverse if second is None else target * inverse + second
        right = 1 + (target - second_s) / y - constant.diagonal()
        dy = torch.cholesky_solve(right[:, None], factor)[:, 0]
        dX = constant + (X * dy) @ inverse - X
        return (dX + dX.T) / 2, dy, (target - second_s - s * dy) / y - s

    dX, dy, ds = direction(0.0, None, 0.0)
    a, b = _reach(point, Z, dX, dy, ds)
    ahead = float(((X + a * dX) * (Z - b * torch.diag(dy))).sum() + (s + a * ds) @ (y + b * dy)) / (2 * y.numel())
    target = mu * min(1.0, max(ahead / mu, 0.0) ** 2 + 1e-3)
    dX, dy, ds = direction(target, (dX * dy) @ inverse, ds * dy)
    a, b = _reach(point, Z, dX, dy, ds)
    return _Iterate(X + a * dX, y + b * dy, s + a * ds)


def _reach(
    point: _Iterate, Z: torch.Tensor, dX: torch.Tensor, dy: torch.Tensor, ds: torch.Tensor
) -> tuple[float, float]:
    """Primal and dual step lengths that stay well inside."""
    primal = _backtrack(point.X, dX, _to_wall(point.s, ds))
    return primal, _backtrack(Z, -torch.diag(dy), _to_wall(point.y, dy))


def _to_wall(x: torch.Tensor, dx: torch.Tensor) -> float:
    return min(1.0, 0.95 / max(float((-dx / x).max()), 1e-30))


def _backtrack(M: torch.Tensor, dM: torch.Tensor, length: float) -> float:
    while length > 1e-8:
        if int(torch.linalg.cholesky_ex(M + length * dM).info) == 0:
            return length if length == 1.0 else 0.95 * length
        length *= 0.8
    return 0.0


def _inverse(A: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(A))
