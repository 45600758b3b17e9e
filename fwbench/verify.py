"""The checker of certificates: numpy and the problem alone, rounding errors accounted for.

It trusts no solver and no bound computed elsewhere. What it proves, and how:

**A lower bound** (kind ``diagonal``: ``e`` and ``u``). If ``A = G - diag(e) ⪰ 0``, then for each row with weights
``w``, ``d = w²∘e`` and *any* real ``u``, the convex ``h(v) = vᵀ(Q - D)v + dᵀv`` lies above its tangent at ``u`` and
equals the error on masks, so every mask costs at least ``-uᵀ(Q - D)u + min_v gᵀv`` with ``g = 2(Q - D)u + d``; the
minimum over a pattern is the sum of the ``count`` smallest ``g`` of each group.

**A lower bound with rows of their own** (kind ``rows``: besides ``e`` and ``u``, for each row in ``rows`` its own
``d``, ``rho`` and products, of pairs and of triples). ``verify_products`` shows that these, with multipliers ``≥ 0``,
are nonnegative on masks, and writes their sum as ``vᵀNv + lᵀv + c``. A mask has ``Σv = p`` in each group, so
``ρ(Σv - p)²`` is zero on masks. Hence if ``A = Q - N - D + ρ Σ_g 1_g1_gᵀ ⪰ 0``, every mask of the row costs at least
the tangent at ``u`` of the convex ``vᵀ(Q - N - D)v + (d - l)ᵀv - c + ρ Σ_g (Σv - p)²``, which at a point ``v`` of the
polytope is ``-uᵀ(Q - N - D)u - c - ρ Σ_g (Σu - p)² + gᵀv`` with ``g = 2(Q - N - D)u + d - l``. Rows that are not named
are bounded by the shared ``e``.

1. *Positive semidefinite* (Rump, "Verification of positive definiteness", BIT 46, 2006; Higham, "Accuracy and
   Stability", thm. 10.3). If floating-point Cholesky of a symmetric ``B`` runs to completion, the computed factor has
   ``RᵀR = B + Δ`` with ``|Δ_ij| ≤ γ/(1-γ) sqrt(b_ii b_jj)``, ``γ = γ_{n+1} = (n+1)ε/(1-(n+1)ε)``, for any order of
   the sums, so ``‖Δ‖ ≤ γ/(1-γ) tr B`` and ``λmin(B) ≥ -γ/(1-γ) tr B``. We factor ``B = fl(A - s I)`` with ``s`` twice
   that plus the rounding of the diagonal, hence ``A ⪰ 0`` exactly. For a row, ``w_i w_j`` is exact (48 bits), its
   product with ``G_ij``, adding ``ρ`` and ``d_i`` and ``N`` are some eight roundings, and the sum of ``k`` products
   for an entry of ``N`` is ``k`` more of no more than ``|N|``, all products taken positive. So the computed ``A`` is
   off by at most ``8ε(|Q| + |N| + ρ + |D|) + kε|N|`` entry by entry; the Frobenius norm of that bounds its effect on
   any eigenvalue, and is added to ``s``.
2. *The bound.* ``w∘u`` is exact in float64, as both have 24 bits. A dot product of length n has an error of at most
   ``γ_n Σ|.||.|`` (Higham, eq. 3.5), which one more product with absolute values bounds; elementwise steps add a few
   ε. ``g`` is lowered by its error bound before the smallest are summed, and sums are exact (``math.fsum``). ``ρ``
   needs no more care: its term is ``-ρ(Σu - p)²``, with ``Σu`` summed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.verify_products import OwnProof, Products, array, own_proofs, products
from fwbench.verify_tree import Refuted, prove_tree, unscaled

EPS = float(np.finfo(np.float64).eps)  # twice the unit roundoff, so every first-order bound below has a factor 2 spare


@dataclass(frozen=True)
class Verification:
    """``bound`` is proved, whatever the certificate claims; a refutation has its reason.

    ``rows`` are the bounds of each row, of which ``bound`` is the sum, where the certificate proves such.
    """

    ok: bool
    bound: float = -math.inf
    reason: str = ""
    rows: tuple[float, ...] = field(default=(), repr=False, compare=False)


def check(problem: Problem, certificate: Certificate) -> Verification:
    """Replay a certificate.

    It is refused if it belongs to another problem, if its arrays are not what its kind needs, if ``G - diag(e)``
    cannot be proved positive semidefinite, or if it claims more than can be proved (by a relative 1e-6, and by more
    than float64 may round off).
    """
    try:
        bound, rows = _prove(problem, certificate)
    except Refuted as error:
        return Verification(False, reason=str(error))
    claim = certificate.bound
    if not (isinstance(claim, int | float) and math.isfinite(claim)):
        return Verification(False, reason=f"it claims a bound of {claim}")
    if claim > bound + 1e-6 * abs(bound) + 1e-9 * problem.total and claim > bound + problem.rounding():
        return Verification(False, reason=f"it claims a bound of {claim:.9g}, only {bound:.9g} can be proved")
    return Verification(True, bound, rows=tuple(rows))


def _prove(problem: Problem, certificate: Certificate) -> tuple[float, list[float]]:
    """The bound that the certificate proves, and those of the rows where it proves them one by one."""
    if certificate.problem != problem.hash:
        raise Refuted("it belongs to another problem (hash differs)")
    if certificate.kind == "tree":
        return prove_tree(problem, certificate), []
    if certificate.kind not in ("diagonal", "rows"):
        raise Refuted(f"unknown kind of certificate {certificate.kind!r}")
    e = array(certificate, "e", (problem.n,), np.float64)
    u = array(certificate, "u", problem.shape, np.float32)
    room = 0 if certificate.kind == "diagonal" else 1  # a row's own tangent is best a little outside; it holds anywhere
    if u.min() < -room or u.max() > 1 + room:
        raise Refuted(f"u leaves [{-room}, {1 + room}]")
    if certificate.kind == "rows" and not problem.pattern.separable:
        raise Refuted(f"rows of their own need a pattern whose rows are independent, not {problem.pattern}")
    prove_psd(problem.G, e)
    if not problem.pattern.separable:
        return diagonal_bound(problem, u, e), []
    bounds = diagonal_rows(problem, u, e)
    if certificate.kind == "rows":
        for row, proof in own_proofs(problem, certificate):
            bounds[row] = own_bound(problem, row, u[row], proof)
    return total(bounds), bounds


def prove_psd(G: np.ndarray, e: np.ndarray) -> None:
    """Prove ``G - diag(e) ⪰ 0`` for symmetric ``G (n, n)`` and ``e (n,)``, float64 (point 1 above).

    Raises:
        Refuted: it could not be proved.
    """
    # 2ε max|.| covers the roundings of g_ii - e_i and of the shift
    rounding = 2 * EPS * float((np.abs(G.diagonal()) + np.abs(e)).max())
    A = np.array(G)
    np.fill_diagonal(A, G.diagonal() - e)
    _prove_positive(A, rounding, "G - diag(e)")


def _prove_positive(A: np.ndarray, rounding: float, name: str) -> None:
    """Prove that a symmetric matrix, known to within ``rounding`` in norm, is ⪰ 0. ``A`` is written to."""
    n, diagonal = A.shape[0], A.diagonal().copy()
    if not diagonal.min() >= 0:
        raise Refuted(f"{name} has a negative diagonal entry")
    gamma = (n + 2) * EPS / (1 - (n + 2) * EPS)
    # n² tiny covers underflow (Rump, thm. 2.3)
    shift = 2 * gamma / (1 - gamma) * float(diagonal.sum()) + rounding + n * n * float(np.finfo(np.float64).tiny)
    np.fill_diagonal(A, diagonal - shift)
    try:
        factor = np.linalg.cholesky(A)
    except np.linalg.LinAlgError:
        raise Refuted(f"{name} cannot be proved positive semidefinite") from None
    if not np.isfinite(factor).all():
        raise Refuted(f"{name} overflows")


def diagonal_bound(problem: Problem, u: np.ndarray, e: np.ndarray) -> float:
    """The bound at ``u (rows, n)`` float32 for ``e (n,)``, a rigorous lower value (point 2 above)."""
    if problem.pattern.separable:
        return total(diagonal_rows(problem, u, e))
    origin, low = _tangent(problem.W, problem.G, u, problem.W.astype(np.float64) ** 2 * e)
    chosen = np.sort(low.ravel())[: int(problem.pattern.counts(problem.shape)[0])]
    return max(0.0, _lowered(_exact_sum(origin.ravel(), chosen)))


def diagonal_rows(problem: Problem, u: np.ndarray, e: np.ndarray) -> list[float]:
    """The same for each row of a pattern whose rows are independent."""
    origin, low = _tangent(problem.W, problem.G, u, problem.W.astype(np.float64) ** 2 * e)
    least = _least(problem, low, problem.pattern.counts(problem.shape))
    return [max(0.0, _lowered(_exact_sum(o, c))) for o, c in zip(origin, least.reshape(problem.rows, -1), strict=True)]


def _tangent(
    W: np.ndarray, G: np.ndarray, u: np.ndarray, d: np.ndarray, N: Products | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The tangent at ``u`` of rows ``W (rows, n)`` without its constants, each number lowered by its error.

    Returns:
        Terms ``(rows, n)`` that sum to its value at the origin, and its gradient ``(rows, n)``. ``d (rows, n)`` may
        itself be off by a relative ε.
    """
    gamma = (G.shape[0] + 2) * EPS
    w, u = W.astype(np.float64), u.astype(np.float64)
    a = w * u  # exact
    S = a @ G
    S_error = gamma * (np.abs(a) @ np.abs(G))
    du = d * u
    g = 2 * (w * S - du) + d
    g_error = 2 * np.abs(w) * S_error * (1 + gamma) + 8 * EPS * (2 * np.abs(w * S) + 2 * np.abs(du) + np.abs(d))
    # the tangent at the origin: -Σ (aᵢSᵢ - dᵢuᵢ²)
    origin = du * u - a * S
    origin_error = np.abs(a) * S_error * (1 + gamma) + 4 * EPS * (np.abs(du * u) + np.abs(a * S))
    if N is not None:
        Nu, N_error = u @ N.matrix, (gamma + (N.terms + 4) * EPS) * (np.abs(u) @ N.absolute)
        linear_error = (N.count + 2) * EPS * N.linear_absolute
        g_error += 2 * N_error + linear_error + 8 * EPS * (np.abs(g) + 2 * np.abs(Nu) + np.abs(N.linear))
        g -= 2 * Nu + N.linear
        origin_error += N_error * np.abs(u) + 4 * EPS * (np.abs(origin) + np.abs(Nu * u))
        origin += Nu * u
    return origin - origin_error, g - g_error


def _least(problem: Problem, low: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The ``counts`` smallest of each group of ``low (rows, n)``, and zeros in the place of the others."""
    parts = np.sort(problem.pattern.groups(low), axis=1)
    return np.where(np.arange(parts.shape[1]) < counts[:, None], parts, 0.0)


def own_bound(problem: Problem, row: int, u: np.ndarray, proof: OwnProof) -> float:
    """The bound of one row at ``u (n,)`` by its own proof, a rigorous lower value.

    Raises:
        Refuted: its matrix could not be proved positive semidefinite.
    """
    N = products(proof, problem.n)
    size = problem.pattern.group_size(problem.shape)
    counts = problem.pattern.counts(problem.shape).reshape(problem.rows, -1)[row]
    w = problem.W[row].astype(np.float64) * proof.scale
    Q = (w[:, None] * w) * problem.G
    in_group = np.kron(np.eye(len(counts)), np.full((size, size), proof.rho))
    spread = np.abs(Q) + N.absolute + in_group + np.diag(np.abs(proof.d))
    rounding = 9 * EPS * float(np.linalg.norm(spread)) + N.terms * EPS * float(np.linalg.norm(N.absolute))
    _prove_positive(Q + in_group - N.matrix - np.diag(proof.d), rounding, f"the matrix of row {row}")
    origin, low = _tangent(w[None], problem.G, u[None], proof.d[None], N)
    constants = [-N.constant]
    for part, count in zip(u.reshape(-1, size).tolist(), counts.tolist(), strict=True):
        off = abs(math.fsum([*part, -count])) * (1 + EPS)
        constants.append(-proof.rho * off * off * (1 + 4 * EPS))
    bound = _lowered(_exact_sum(origin[0], np.array(constants), _least(problem, low, counts).ravel()))
    return max(0.0, unscaled(bound, proof.scale))


def total(rows: Iterable[float]) -> float:
    """A rigorous lower value of the sum of rows' bounds."""
    return max(0.0, _lowered(math.fsum(rows)))


def _exact_sum(*parts: np.ndarray) -> float:
    return math.fsum(np.concatenate(parts).tolist())


def _lowered(value: float) -> float:
    """Below the exact sum that ``math.fsum`` rounded to ``value``."""
    return math.nextafter(value, -math.inf)
