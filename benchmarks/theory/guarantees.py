"""What can be promised of one row's relaxation and of its roundings, from sizes, eigenvalues and the relaxed point.

``f(u) = uᵀQu`` with ``Q ⪰ 0`` is minimised over ``0 ≤ u ≤ 1``, ``Σ u = r``, of ``n = r + k`` weights; ``λ`` is the
largest eigenvalue of ``Q``, ``κ`` its condition. Derived here, but for pipage rounding's (``solvers/rounding/pipage``):

- :func:`nearest`: with ``û`` the ``r`` largest of ``u``, ``|û - u|² = |u|² + r - 2 Σ_û u``. Of the masks ``û`` has the
  largest sum, and ``u`` is a mean of masks, so ``|u|² ≤ Σ_û u``; the ``r`` largest of ``n`` have at least the mean's
  sum, ``Σ_û u ≥ r²/n``. Hence ``|û - u|² ≤ r - r²/n = rk/n``, and as ``√f`` is a seminorm,
  ``√f(û) ≤ √f(u) + √(λ r k / n)``.
- :func:`spread`: let a random mask have the means ``u``, always the count ``r``, and no pair that is positively
  correlated. Then its covariance is the Laplacian of a graph whose degrees are ``u_i (1 - u_i)``, thus at most twice
  their diagonal matrix, and ``E f = f(u) + ⟨Q, Cov⟩ ≤ f(u) + 2 Σ Q_ii u_i (1 - u_i)``. :func:`pivotal` draws so.
- :func:`ratio`: the best mask is no worse than that mean, ``f(u) ≥ λ |u|² / κ``, ``Σ u_i (1 - u_i) = r - |u|²`` and
  ``|u|² ≥ r²/n``; hence ``min over masks f ≤ (1 + 2 κ k / r) f(u)``. For ``n = 2`` and one weight of each it is at most
  twice the truth (:func:`parity`), so without the condition there is no such ratio.
- :func:`wanda`: scaled to a diagonal of ones, ``Q`` has the eigenvalues of the inputs' correlations, whatever the
  weights; between the least and the largest of them, times ``Σ Q_ii`` over what is pruned, lies the error of any mask,
  and Wanda's mask has the least such sum.
"""

from __future__ import annotations

import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.rounding.pipage import NEAR


def quadratic(problem: Problem) -> np.ndarray:
    """``Q (n, n)`` of a problem of one row."""
    w = problem.W[0].astype(np.float64)
    return problem.G * w * w[:, None]


def nearest(Q: np.ndarray, pruned: int, relaxed: float) -> float:
    """Excess over ``relaxed``, the value of a point of the polytope, of the mask that prunes its largest."""
    n = len(Q)
    far = float(np.linalg.eigvalsh(Q)[-1]) * pruned * (n - pruned) / n
    return far + 2 * float(np.sqrt(max(relaxed, 0.0) * far))  # below 0 by rounding alone


def spread(Q: np.ndarray, u: np.ndarray) -> float:
    """Excess over ``f(u)`` of the mean of masks drawn with fixed count, no two weights positively correlated."""
    return 2 * float((Q.diagonal() * u * (1 - u)).sum())


def blind_spread(Q: np.ndarray, pruned: int) -> float:
    """The most that :func:`spread` can be before anything is solved: ``Σ u_i (1 - u_i) ≤ rk/n``, each at most ¼."""
    n, diagonal = len(Q), Q.diagonal()
    return float(min(diagonal.sum() / 2, 2 * diagonal.max() * pruned * (n - pruned) / n))


def expectation(Q: np.ndarray, u: np.ndarray) -> float:
    """Excess over ``f(u)`` of ``round(method=expectation)``, from its own proof."""
    fractional = (u > NEAR) & (u < 1 - NEAR)
    largest = Q.diagonal()[fractional].max(initial=0.0)
    harmonic = (1 / np.arange(1, max(fractional.sum(), 1))).sum()
    return spread(Q, u) / 2 + float(largest * harmonic) / 2


def ratio(condition: float, n: int, pruned: int) -> float:
    """The most that the least error of a mask can be, as a multiple of the relaxation's."""
    return 1 + 2 * condition * (n - pruned) / pruned


def wanda(G: np.ndarray) -> float:
    """The most that Wanda's error can be, as a multiple of the least: the condition of the inputs' correlations."""
    live = np.flatnonzero(G.diagonal() > 0)  # of the others no mask is any worse
    root = np.sqrt(G.diagonal()[live])
    return condition(G[np.ix_(live, live)] / np.outer(root, root))


def condition(Q: np.ndarray) -> float:
    """Of a symmetric matrix, 1 where it is empty; infinite where rounding leaves nothing of the smallest eigenvalue."""
    if not len(Q):
        return 1.0
    values = np.linalg.eigvalsh(Q)
    return float(values[-1] / values[0]) if values[0] > len(Q) * np.finfo(float).eps * values[-1] else float("inf")


def pivotal(u: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Masks, bool ``(samples, n)``, that prune each weight with chance ``u (n,)``, all with the count ``Σ u``.

    Weight after weight meets the one left over from before: one of the two becomes 0 or 1, the other keeps their rest
    (Deville and Tillé, Biometrika 85, 1998). Every meeting makes the two's correlation negative, and none positive.
    """
    drawn, every = np.zeros((samples, len(u)), dtype=bool), np.arange(samples)
    left, rest = np.zeros(samples, dtype=np.int64), float(u[0])  # which weight is left over, and its chance
    for j in range(1, len(u)):
        both, dice = rest + float(u[j]), rng.random(samples)
        if both <= 1:  # one of them is kept, the other has both chances
            left = np.where(dice * both < u[j], j, left)
            rest = both
        else:  # one of them is pruned, the other has what is more than 1
            first = dice * (2 - both) < 1 - u[j]
            drawn[every, np.where(first, left, j)] = True
            left = np.where(first, j, left)
            rest = both - 1
    drawn[every, left] |= rest > 0.5  # the whole sum is a whole number, but for rounding
    return drawn


def parity(n: int, pruned: int, delta: float) -> tuple[np.ndarray, float, float]:
    """``Q = vvᵀ + δI`` with ``v`` half 1 and half -1 and an odd count: its best mask's error, and the relaxation's.

    An odd number of ones of either sign does not cancel, so every mask has ``(vᵀu)² ≥ 1``; ``u = r/n`` has 0.

    Raises:
        ValueError: ``n`` is odd, or ``pruned`` even or not within it.
    """
    if n % 2 or not pruned % 2 or not 0 < pruned < n:
        raise ValueError(f"parity: n must be even and the count odd and less, got {n} and {pruned}")
    v = np.resize([1.0, -1.0], n)
    return np.outer(v, v) + delta * np.eye(n), 1 + delta * pruned, delta * pruned**2 / n
