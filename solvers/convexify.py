"""Convexification: the diagonal ``e`` with ``G - diag(e) ⪰ 0`` that lifts the relaxation most (DESIGN section 1).

``h(u) = f(u) + Σ w²e u(1 - u)`` equals the error on masks and exceeds it between them, so its minimiser bounds better
and lies nearer to a mask.
"""

from __future__ import annotations

import numpy as np
import torch

from fwbench import bounds
from fwbench.problem import Problem


def shared_e(problem: Problem, u: np.ndarray, *, tolerance: float = 1e-3, device: str = "cpu") -> np.ndarray:
    """The ``e (n,)``, shared by all rows, that lifts the lower bound most to first order at ``u (rows, n)``.

    Weighted minimum trace factor analysis: maximise ``cᵀe`` subject to ``G - diag(e) ⪰ 0`` and ``e ≥ 0``, with
    ``c = bounds.slope(problem, u)`` (Shapiro 1982 for the unweighted problem; DESIGN section 1 for the weights).
    The result is safe: the checker's Cholesky proves ``G - diag(e) ⪰ 0``.

    Raises:
        ValueError: ``G`` is not positive semidefinite.
    """
    slope = bounds.slope(problem, u)
    e = maximise_diagonal(problem.G, slope, tolerance=tolerance, device=device)
    return bounds.safe(problem.G, e)


def maximise_diagonal(G: np.ndarray, c: np.ndarray, *, tolerance: float = 1e-3, device: str = "cpu") -> np.ndarray:
    """Maximise ``cᵀe`` over ``e ≥ 0``, ``G - diag(e) ⪰ 0`` by a log-barrier Newton method, float64.

    Args:
        G: ``(n, n)``, positive semidefinite to rounding.
        c: ``(n,)``, nonnegative weights.
        tolerance: stop when the duality gap ``2nμ`` is below this part of ``cᵀe``.

    Returns:
        ``e (n,)``, nonnegative but for a shift at rounding level.
    """
    n = G.shape[0]
    scale = float(G.diagonal().mean())
    if scale <= 0 or not np.any(c > 0):
        return np.zeros(n)
    shift = max(1e-10 * scale, 8 * bounds.margin(G))  # keeps an interior when G is singular
    A = torch.as_tensor(G / scale, device=device) + (shift / scale) * torch.eye(n, dtype=torch.float64, device=device)
    weight = torch.tensor(np.maximum(c / c.max(), 1e-9), device=device)
    # start at half of a lower bound of the smallest eigenvalue: the inverse's trace bounds its reciprocal
    start = 0.5 / float(_inverse(A).diagonal().sum())
    e = torch.full((n,), start, dtype=torch.float64, device=device)
    mu = float(weight @ e) / n
    for _ in range(100):
        for _ in range(12):
            e, decrement = _newton_step(A, weight, e, mu)
            if decrement < 0.3:
                break
        if 2 * n * mu <= tolerance * float(weight @ e):
            break
        mu /= 6
    return scale * e.cpu().numpy() - shift


def _newton_step(A: torch.Tensor, weight: torch.Tensor, e: torch.Tensor, mu: float) -> tuple[torch.Tensor, float]:
    """One damped Newton step for ``cᵀe/μ + log det(A - diag e) + Σ log e``; the new point and the decrement."""
    inverse = _inverse(A - torch.diag(e))
    gradient = weight / mu - inverse.diagonal() + 1 / e
    hessian = inverse.square_()
    hessian.diagonal().add_(e**-2)
    step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(hessian))[:, 0]
    decrement = float(gradient @ step) ** 0.5
    length = 1.0 if decrement < 0.25 else 1 / (1 + decrement)  # self-concordant: stays inside (Nesterov 2004, 4.1.4)
    longer = min(1.0, 4 * length)
    while longer > length:
        trial = e + longer * step
        if bool((trial > 0).all()) and int(torch.linalg.cholesky_ex(A - torch.diag(trial)).info) == 0:
            # staying inside is not enough: keep some distance to the wall, or the next steps creep along it
            return e + (0.9 * longer if longer < 1 else 1.0) * step, decrement
        longer /= 2
    return e + length * step, decrement


def _inverse(A: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(A))
