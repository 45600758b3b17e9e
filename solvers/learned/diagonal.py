"""A shared convexifying diagonal ``e`` in one forward pass: an input-convex network on features of each input.

With ``τ_i = 1 / (G⁻¹)_ii``, what of input ``i`` the others do not explain, and ``H = G⁻¹`` scaled to unit diagonal,
``G - diag(τ∘v) ⪰ 0`` if and only if ``λmax(√v H √v) ≤ 1``. The net says ``v`` but for its scale, which is the inverse
of that eigenvalue; ``bounds.safe`` lowers the result until the checker's Cholesky proves it.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from fwbench import bounds
from fwbench.problem import Problem
from fwbench.solvers.learned import weights

LEAST = 1e-6  # below this part of the mean a feature's number counts as this part


def learned_e(problem: Problem, u: np.ndarray) -> np.ndarray:
    """An ``e (n,)`` with ``G - diag(e) ⪰ 0``, which the checker's Cholesky proves, for the relaxed ``u (rows, n)``.

    Raises:
        ValueError: ``G`` is not positive semidefinite.
    """
    c = bounds.slope(problem, u)
    if not c.any() or not problem.G.any():
        return bounds.safe(problem.G)
    return _said(problem.G, *alone(problem.G), c)


def learned_rows(problem: Problem, u: np.ndarray) -> np.ndarray:
    """A row's own of the same kind, ``(rows, n)``: the net sees the row's slope, the inverse is that of all.

    Raises:
        ValueError: ``G`` is not positive semidefinite.
    """
    none = bounds.safe(problem.G)
    if not problem.G.any():
        return np.tile(none, (problem.rows, 1))
    tau, H = alone(problem.G)
    slopes = [bounds.slope(problem.part([row]), u[row : row + 1]) for row in range(problem.rows)]
    return np.stack([_said(problem.G, tau, H, c) if c.any() else none for c in slopes])


def _said(G: np.ndarray, tau: np.ndarray, H: np.ndarray, c: np.ndarray) -> np.ndarray:
    """What the net says for the slope ``c (n,)``, brought to the border of what is safe."""
    v = weights.input_convex(weights.load("diagonal"), features(G, tau, H, c))
    return bounds.safe(G, tau * v / top(H, v))


def inverse_e(problem: Problem) -> np.ndarray:
    """The same without a net, ``v = 1``, for any point; better than it for inputs many times those it was trained on.

    Raises:
        ValueError: ``G`` is not positive semidefinite.
    """
    if not problem.G.any():
        return bounds.safe(problem.G)
    tau, H = alone(problem.G)
    return bounds.safe(problem.G, tau / top(H, np.ones(problem.n)))


def alone(G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``τ (n,)`` and ``H (n, n)``; where ``G`` is singular, of ``G`` and a rounding error's worth of its diagonal.

    Raises:
        ValueError: ``G`` is not positive semidefinite.
    """
    n = len(G)
    shift = max(1e-10 * float(G.diagonal().mean()), 8 * bounds.margin(G))
    try:
        factor = scipy.linalg.cho_factor(G + shift * np.eye(n), lower=True)
    except np.linalg.LinAlgError:
        raise ValueError("G is not positive semidefinite") from None
    inverse = scipy.linalg.cho_solve(factor, np.eye(n))
    tau = 1 / inverse.diagonal()
    root = np.sqrt(tau)
    return tau, inverse * root * root[:, None]


def features(G: np.ndarray, tau: np.ndarray, H: np.ndarray, c: np.ndarray) -> np.ndarray:
    """What the net sees of each input, ``(n, 5)``: logarithms of ratios, so that no unit matters.

    Args:
        c: ``(n,)``, how fast the bound grows with each ``e_i``.
    """
    worth = relative(c * tau)
    squares = H * H
    numbers = (
        relative(G.diagonal()) / relative(tau),
        worth,
        squares.sum(axis=1),
        squares @ worth / worth,
        np.abs(H) @ np.sqrt(worth) / np.sqrt(worth),
    )
    return np.log(np.stack(numbers, axis=1))


def relative(x: np.ndarray) -> np.ndarray:
    """``x`` by its mean, at least ``LEAST``."""
    return np.maximum(x / x.mean(), LEAST)


def top(H: np.ndarray, v: np.ndarray) -> float:
    """``λmax(√v H √v)``."""
    root = np.sqrt(v)
    last = len(v) - 1
    return float(scipy.linalg.eigh(H * root * root[:, None], eigvals_only=True, subset_by_index=(last, last))[0])
