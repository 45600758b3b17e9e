"""The checker of certificates: numpy and the problem alone, rounding errors accounted for.

It trusts no solver and no bound computed elsewhere. What it proves, and how:

**A lower bound** (kind ``diagonal``: ``e`` and ``u``). If ``A = G - diag(e) ⪰ 0``, then for each row with weights
``w``, ``d = w²∘e`` and *any* real ``u``, the convex ``h(v) = vᵀ(Q - D)v + dᵀv`` lies above its tangent at ``u`` and
equals the error on masks, so every mask costs at least ``-uᵀ(Q - D)u + min_v gᵀv`` with ``g = 2(Q - D)u + d``; the
minimum over a pattern is the sum of the ``count`` smallest ``g`` of each group.

1. *Positive semidefinite* (Rump, "Verification of positive definiteness", BIT 46, 2006; Higham, "Accuracy and
   Stability", thm. 10.3). If floating-point Cholesky of a symmetric ``B`` runs to completion, the computed factor has
   ``RᵀR = B + Δ`` with ``|Δ_ij| ≤ γ/(1-γ) sqrt(b_ii b_jj)``, ``γ = γ_{n+1} = (n+1)ε/(1-(n+1)ε)``, for any order of
   the sums, so ``‖Δ‖ ≤ γ/(1-γ) tr B`` and ``λmin(B) ≥ -γ/(1-γ) tr B``. We factor ``B = fl(A - s I)`` with ``s`` twice
   that plus the rounding of the diagonal, hence ``A ⪰ 0`` exactly.
2. *The bound.* ``w∘u`` is exact in float64, as both have 24 bits. A dot product of length n has an error of at most
   ``γ_n Σ|.||.|`` (Higham, eq. 3.5), which one more product with absolute values bounds; elementwise steps add a few
   ε. ``g`` is lowered by its error bound before the smallest are summed, and sums are exact (``math.fsum``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate

EPS = float(np.finfo(np.float64).eps)  # twice the unit roundoff, so every first-order bound below has a factor 2 spare


@dataclass(frozen=True)
class Verification:
    """``bound`` is proved, whatever the certificate claims; a refutation has its reason."""

    ok: bool
    bound: float = -math.inf
    reason: str = ""


class Refuted(Exception):
    """A certificate does not hold; the message says why."""


def check(problem: Problem, certificate: Certificate) -> Verification:
    """Replay a certificate.

    It is refused if it belongs to another problem, if its arrays are not what its kind needs, if ``G - diag(e)``
    cannot be proved positive semidefinite, or if it claims more than can be proved (relative 1e-6).
    """
    try:
        bound = _prove(problem, certificate)
    except Refuted as error:
        return Verification(False, reason=str(error))
    claim = certificate.bound
    if not (isinstance(claim, int | float) and math.isfinite(claim)):
        return Verification(False, reason=f"it claims a bound of {claim}")
    if claim > bound + 1e-6 * abs(bound) + 1e-9 * problem.total:
        return Verification(False, reason=f"it claims a bound of {claim:.9g}, only {bound:.9g} can be proved")
    return Verification(True, bound)


def _prove(problem: Problem, certificate: Certificate) -> float:
    if certificate.problem != problem.hash:
        raise Refuted("it belongs to another problem (hash differs)")
    if certificate.kind != "diagonal":
        raise Refuted(f"unknown kind of certificate {certificate.kind!r}")
    e = _array(certificate, "e", problem, [(problem.n,)], np.float64)
    u = _array(certificate, "u", problem, [problem.shape], np.float32)
    if u.min() < 0 or u.max() > 1:
        raise Refuted("u leaves [0, 1]")
    prove_psd(problem.G, e)
    return diagonal_bound(problem, u, e)


def _array(certificate: Certificate, name: str, problem: Problem, shapes: list[tuple], dtype: type) -> np.ndarray:
    array = certificate.arrays.get(name)
    if array is None:
        raise Refuted(f"it has no array {name!r}")
    if array.dtype != dtype or array.shape not in shapes:
        raise Refuted(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shapes[0]}")
    if not np.isfinite(array).all():
        raise Refuted(f"{name} has entries that are not finite")
    return array


def prove_psd(G: np.ndarray, e: np.ndarray) -> None:
    """Prove ``G - diag(e) ⪰ 0`` for symmetric ``G (n, n)`` and ``e (n,)``, float64 (point 1 above).

    Raises:
        Refuted: it could not be proved.
    """
    n = G.shape[0]
    diagonal = G.diagonal() - e
    if diagonal.min() < 0:
        raise Refuted("G - diag(e) has a negative diagonal entry")
    gamma = (n + 2) * EPS / (1 - (n + 2) * EPS)
    # 2ε max|.| covers the roundings of g_ii - e_i and of the shift; n² tiny covers underflow (Rump, thm. 2.3)
    rounding = 2 * EPS * float((np.abs(G.diagonal()) + np.abs(e)).max())
    shift = 2 * gamma / (1 - gamma) * float(diagonal.sum()) + rounding + n * n * float(np.finfo(np.float64).tiny)
    B = np.array(G)
    np.fill_diagonal(B, diagonal - shift)
    try:
        factor = np.linalg.cholesky(B)
    except np.linalg.LinAlgError:
        raise Refuted("G - diag(e) cannot be proved positive semidefinite") from None
    if not np.isfinite(factor).all():
        raise Refuted("G - diag(e) overflows")


def diagonal_bound(problem: Problem, u: np.ndarray, e: np.ndarray) -> float:
    """The bound at ``u (rows, n)`` float32 for ``e (n,)``, a rigorous lower value (point 2 above)."""
    n = problem.n
    gamma = (n + 2) * EPS
    w = problem.W.astype(np.float64)
    a = w * u.astype(np.float64)  # exact
    S = a @ problem.G
    S_error = gamma * (np.abs(a) @ np.abs(problem.G))
    d = w**2 * e  # w² exact (48 bits), one rounding
    du = d * u
    g = 2 * (w * S - du) + d
    g_error = 2 * np.abs(w) * S_error * (1 + gamma) + 8 * EPS * (2 * np.abs(w * S) + 2 * np.abs(du) + np.abs(d))
    # the tangent at the origin: -Σ (aᵢSᵢ - dᵢuᵢ²), each term lowered by its error
    origin = du * u - a * S
    origin -= np.abs(a) * S_error * (1 + gamma) + 4 * EPS * (np.abs(du) * u + np.abs(a * S))
    low = problem.pattern.groups(g - g_error)
    counts = problem.pattern.counts(problem.shape)
    if problem.pattern.separable:
        parts = np.sort(low, axis=1)
        chosen = np.where(np.arange(low.shape[1]) < counts[:, None], parts, 0.0).reshape(problem.rows, -1)
        rows = (max(0.0, _lowered(_exact_sum(o, c))) for o, c in zip(origin, chosen, strict=True))
        return max(0.0, _lowered(math.fsum(rows)))
    chosen = np.sort(low.ravel())[: int(counts[0])]
    return max(0.0, _lowered(_exact_sum(origin.ravel(), chosen)))


def _exact_sum(*parts: np.ndarray) -> float:
    return math.fsum(np.concatenate(parts).tolist())


def _lowered(value: float) -> float:
    """Below the exact sum that ``math.fsum`` rounded to ``value``."""
    return math.nextafter(value, -math.inf)
