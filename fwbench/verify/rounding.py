"""Rounding: what floating point proves of real numbers. Every bound of an error in this package is derived here.

``ε = EPS = 2⁻⁵²``. An operation is off by at most ``ε/2`` of its result, a *rounding*, or by ``2⁻¹⁰⁷⁵`` where that
underflows. Roundings are counted below, and at least 4/3 as many are allowed for (twice as many but in values of
tangents): the rest pays for terms of second order and for the rounding of the error bounds themselves. Fewer than
``2⁵³`` operations underflow by less than ``TINY = 2⁻¹⁰²²`` together.

1. *Positive semidefinite* (Rump, "Verification of positive definiteness", BIT 46, 2006; Higham, "Accuracy and Stability
   of Numerical Algorithms", thm. 10.3). If Cholesky of a symmetric ``B (r, r)`` runs to completion in floating point,
   its factor has ``RᵀR = B + Δ`` with ``|Δ_ij| ≤ δ sqrt(b_ii b_jj)``, for any order of the sums, so ``‖Δ‖ ≤ δ tr B``
   and ``λmin(B) ≥ -δ tr B``, where ``δ = γ/(1-γ)``, ``γ = k/(1-k)``, ``k = (r + 1) ε/2``. What is factorised is ``A -
   sI`` with ``s`` no less than four times ``δ tr A`` (which pays for the rounding of the shifted diagonal too), an
   ``error`` to within which ``A`` is known in norm, and ``r² TINY`` for underflow (Rump, thm. 2.3). So ``A ⪰ 0`` holds.
   An entry of ``Q - N - Diag(d) + ρ 11ᵀ``: ``w_i w_j`` is exact (24 bits each), its product with ``G_ij``, adding ``ρ``
   and subtracting ``N_ij`` and ``d_i`` are 4 roundings of numbers no larger than ``|Q| + ρ + |N| + |d|``, and ``N_ij``
   is a sum. The Frobenius norm of twice that bounds the effect on any eigenvalue.
2. *Products and sums.* A product ``xA`` of length ``n`` is off by at most ``n`` roundings of ``|x||A|``, in any order
   (Higham, eq. 3.5), and by those of ``A``; a sum of ``k`` numbers by ``k`` of the sum of their absolute values.
   ``math.fsum`` rounds the exact sum once, so the next lower number is below it.
3. *Linear terms.* ``c = 2w∘t`` of a problem's ``T`` is rounded once (``2w`` is exact, 24 bits).
4. *Tangents.* A summand of the gradient takes at most 7 roundings (``2du``: of ``d``, the product, ``- 2du``, ``+ d``,
   ``- (2Nu + l)``, ``+ c``, ``- error``), and 16 are allowed for; one of the value at most 6, and 8 are.
5. *Transposable blocks.* A mask with ``p`` in each row and column of a block has for *any* ``a`` and ``b`` a sum ``Σ gv
   = p(Σa + Σb) + Σ (g - a - b) v ≥ p(Σa + Σb) + Σ min(0, g - a - b)``: whoever finds them is not trusted. ``s = a + b``
   and ``g - s`` are a rounding each, ``pa`` another, and twice as many are allowed for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fwbench.patterns import Transposable, transport
from fwbench.problem import Problem
from fwbench.result import Certificate

EPS = float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)
FARTHEST = 255  # the largest exponent in a scale: weights of float32 times it stay far from overflow when squared
Near = tuple[np.ndarray | float, np.ndarray | float]  # computed, and how far it may be off


class Refuted(Exception):
    """A certificate does not hold; the message says why."""


class Rounded(NamedTuple):
    """A matrix whose entries are off by at most ``off`` roundings of ``absolute``, its absolute values or more."""

    matrix: np.ndarray
    absolute: np.ndarray
    off: int = 0


def array(certificate: Certificate, name: str, shape: tuple[int | None, ...], dtype: type) -> np.ndarray:
    """An array of the certificate; None in ``shape`` stands for any length.

    Raises:
        Refuted: it is missing or something else, or an entry is not finite.
    """
    found = certificate.arrays.get(name)
    if not isinstance(found, np.ndarray):
        raise Refuted(f"it has no array {name!r}")
    fits = len(found.shape) == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
    if found.dtype != dtype or not fits:
        wanted = str(shape).replace("None", "any")
        raise Refuted(f"{name} is {found.dtype} {found.shape}, not {np.dtype(dtype)} {wanted}")
    if not np.isfinite(found).all():
        raise Refuted(f"{name} has entries that are not finite")
    return found


def block_counts(problem: Problem) -> np.ndarray:
    """Pruned count of each group ``(blocks, groups)``; a block is a row, or the rows that the pattern ties together."""
    return problem.counts.reshape(problem.blocks, -1)


def scales(certificate: Certificate, count: int) -> list[float]:
    """What the weights of each row (block) are multiplied by before its own numbers hold: ones where none are said.

    Powers of two, so that nothing is rounded: in the units of float32 a row may be too small or too large.

    Raises:
        Refuted: the array ``scale`` is something else.
    """
    if "scale" not in certificate.arrays:
        return [1.0] * count
    found = array(certificate, "scale", (count,), np.float64)
    mantissa, exponent = np.frexp(found)
    if (mantissa != 0.5).any() or (np.abs(exponent - 1) > FARTHEST).any():
        raise Refuted("scale has an entry that is no power of two, or too far from 1")
    return found.tolist()


def unscaled(bound: float, scale: float) -> float:
    """The bound of a row (block) from that of its weights times ``scale``, a rigorous lower value."""
    return bound if scale == 1 else math.nextafter(bound / scale / scale, -math.inf)


def whole(problem: Problem, bounds: Sequence[float]) -> list[float]:
    """The bounds of all blocks and what the problem adds: its rows' ``offset``, or that no square is below 0."""
    if problem.offset is None:
        return [max(0.0, bound) for bound in bounds]
    offsets = problem.offset.reshape(len(bounds), -1).tolist()
    return [lower_sum([bound, *own]) for bound, own in zip(bounds, offsets, strict=True)]


def linear(problem: Problem, block: int | None = None, scale: float = 1.0) -> Near:
    """``c = 2w∘t`` of a block ``(m,)``, its weights times ``scale``, or of the layer; 0 without a ``T`` (point 3)."""
    if problem.T is None:
        return 0.0, 0.0
    w, t = problem.W.astype(np.float64), problem.T
    if block is not None:
        w, t = (array.reshape(len(block_counts(problem)), -1)[block] * scale for array in (w, t))
    c = 2 * w * t
    return c, EPS * np.abs(c) + TINY


def block_matrix(problem: Problem, block: int, scale: float = 1.0) -> np.ndarray:
    """``Q (m, m)`` of a block, its weights times ``scale``; 0 between rows; each entry is exact but rounded once."""
    w = problem.W.astype(np.float64).reshape(len(block_counts(problem)), -1)[block] * scale
    rows = len(w) // problem.n
    return (w[:, None] * w) * (problem.G if rows == 1 else np.kron(np.eye(rows), problem.G))


def proves_positive(A: np.ndarray, error: float) -> bool:
    """Whether a symmetric ``A (r, r)``, known to within ``error`` in norm, is proved ⪰ 0 (point 1). A is written to."""
    r, diagonal = len(A), A.diagonal().copy()
    if not diagonal.min(initial=0.0) >= 0:
        return False
    gamma = (r + 2) * EPS / (1 - (r + 2) * EPS)
    shift = 2 * gamma / (1 - gamma) * float(diagonal.sum()) + error + r * r * TINY
    np.fill_diagonal(A, diagonal - shift)
    try:
        return bool(np.isfinite(np.linalg.cholesky(A)).all())
    except np.linalg.LinAlgError:
        return False


def proves_shared(G: np.ndarray, e: np.ndarray) -> bool:
    """Whether ``G - Diag(e) ⪰ 0`` is proved, for ``G (n, n)`` and ``e (n,)``. Only its diagonal is rounded."""
    A = np.array(G)
    np.fill_diagonal(A, G.diagonal() - e)
    return proves_positive(A, 2 * EPS * float((np.abs(G.diagonal()) + np.abs(e)).max()))


def proves_convex(Q: np.ndarray, d: np.ndarray, rho: float, group: np.ndarray, N: Rounded | None = None) -> bool:
    """Whether ``Q - N - Diag(d) + rho Σ_g 1_g1_gᵀ ⪰ 0`` is proved (point 1).

    Args:
        Q: ``(r, r)``, from :func:`block_matrix`; d: ``(r,)``.
        group: ``(r,)``, that of each variable.
    """
    together = np.where(group[:, None] == group, rho, 0.0)
    A, size, error = Q + together, np.abs(Q) + together, 0.0
    if N is not None:
        A, size, error = A - N.matrix, size + N.absolute, N.off * EPS * float(np.linalg.norm(N.absolute))
    np.fill_diagonal(A, A.diagonal() - d)
    np.fill_diagonal(size, size.diagonal() + np.abs(d))
    return proves_positive(A, 4 * EPS * float(np.linalg.norm(size)) + error)


def product(x: np.ndarray, A: Rounded) -> Near:
    """``xA`` for an exact ``x (..., n)``, and its error, entry by entry (point 2)."""
    return x @ A.matrix, (len(A.matrix) + A.off + 2) * EPS * (np.abs(x) @ A.absolute) + TINY


def tangent(
    w: np.ndarray | float,
    S: Near,
    u: np.ndarray,
    d: np.ndarray,
    N: Near = (0.0, 0.0),
    lessened: Near = (0.0, 0.0),
    linear: Near = (0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray]:
    """The tangent at ``u`` of ``vᵀ(Q - N - Diag(d))v + (d + c - l)ᵀv``, each number lowered by its error (point 4).

    Args:
        w, S: ``Qu = w∘S``; ``w``, ``u (..., n)`` and ``w∘u`` are exact (24 bits each).
        d: exact, or rounded once.
        N, lessened, linear: ``Nu``, ``l`` and ``c``.

    Returns:
        Terms that sum to its value at the origin, ``-uᵀ(Q - N - Diag(d))u``, and its gradient.
    """
    (s, s_error), (Nu, Nu_error), (b, b_error), (c, c_error) = S, N, lessened, linear
    a, P, du = w * u, w * s, d * u
    g = 2 * (P - du) + d - (2 * Nu + b) + c
    size = 2 * np.abs(P) + 2 * np.abs(du) + np.abs(d) + 2 * np.abs(Nu) + np.abs(b) + np.abs(c)
    g_error = 2 * np.abs(w) * s_error + 2 * Nu_error + b_error + c_error + 8 * EPS * size + TINY
    origin = du * u - a * s + Nu * u
    size = np.abs(du * u) + np.abs(a * s) + np.abs(Nu * u)
    origin_error = np.abs(a) * s_error + np.abs(u) * Nu_error + 4 * EPS * size + TINY
    return origin - origin_error, g - g_error


def smallest(low: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The ``counts (..., groups)`` smallest of each group of ``low (..., groups, size)``, then zeros."""
    return np.where(np.arange(low.shape[-1]) < counts[..., None], np.sort(low, axis=-1), 0.0)


def least(problem: Problem, low: np.ndarray) -> np.ndarray:
    """Terms ``(blocks, m)`` whose sums are at most those of ``low (rows, n)`` over any mask of the block (point 5)."""
    pattern = problem.pattern
    if not isinstance(pattern, Transposable):
        return smallest(pattern.groups(low), problem.counts).reshape(problem.blocks, -1)
    count, squares = pattern.of - pattern.kept, pattern.blocks(low)
    _, a, b = transport.solved(squares, count)
    s = a[:, :, None] + b[:, None, :]
    less = squares - s
    less = np.minimum(0.0, less - EPS * (np.abs(s) + np.abs(less)) - TINY)
    sums = count * np.concatenate([a, b], axis=1)
    terms = np.concatenate([less.reshape(len(less), -1), sums - EPS * np.abs(sums) - TINY], axis=1)
    return terms.reshape(problem.blocks, -1)


def lower_sums(terms: np.ndarray, start: np.ndarray | float = 0.0) -> np.ndarray:
    """Below the exact sums of ``start (lines,)`` and each line of ``terms (lines, m)`` (point 2).

    Raises:
        Refuted: one overflows.
    """
    size = np.abs(start) + np.abs(terms).sum(axis=1)
    found = start + terms.sum(axis=1) - ((terms.shape[1] + 3) * EPS * size + TINY)
    if not np.isfinite(found).all():
        raise Refuted("a bound overflows")
    return found


def lower_sum(terms: Iterable[float]) -> float:
    """The same of one line, as close as can be, but slower."""
    try:
        found = math.nextafter(math.fsum(terms), -math.inf)
    except (OverflowError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise Refuted("a bound overflows")
    return found
