"""Bounds by a tangent: kinds ``diagonal`` and ``rows``.

**Shared** (``diagonal``: ``e`` and ``u``). If ``A = G - Diag(e) ⪰ 0``, then for each row with weights ``w``, ``Q =
Diag(w) G Diag(w)``, ``c = 2w∘t`` (0 where the problem has no ``T``), ``d = w²∘e``, ``D = Diag(d)`` and *any* real
``u``, the convex ``h(v) = vᵀ(Q - D)v + (d + c)ᵀv`` lies above its tangent at ``u`` and equals the error on masks (but
for the row's ``offset``, which ``rounding.whole`` adds to every bound), so every mask costs at least

    -uᵀ(Q - D)u + min_v gᵀv,    g = 2(Q - D)u + d + c,

and the minimum over a pattern is the sum of the ``count`` smallest ``g`` of each group; of a transposable one it is a
linear programme, bounded by its dual (``rounding.least``).

**Rows of their own** (``rows``: besides ``e`` and ``u``, for each row in ``rows`` its own ``d``, ``rho`` and products,
of pairs, of triples and of fives). ``products`` shows that these, with multipliers ``≥ 0``, are nonnegative on masks,
and writes their sum as ``vᵀNv + lᵀv + k``. A mask has ``Σv = p`` in each group, so ``ρ(Σv - p)²`` is zero on masks.
Hence if ``Q - N - D + ρ Σ_g 1_g1_gᵀ ⪰ 0``, every mask of the row costs at least the tangent at ``u`` of the convex
``vᵀ(Q - N - D)v + (d + c - l)ᵀv - k + ρ Σ_g (Σv - p)²``. Where ``Σv = p`` that is

    -uᵀ(Q - N - D)u - k - ρ Σ_g (Σu - p)² + gᵀv,    g = 2(Q - N - D)u + d + c - l.

Rows that are not named are bounded by the shared ``e``.

**Any count.** The shared ``h`` knows no count, so its tangent is below the error of every mask. Where a block is one
group, a mask that prunes ``q`` of its weights has for *any* ``λ`` a sum ``Σ gv = λq + Σ (g - λ)v ≥ λq + Σ min(0, g -
λ)``: a line in ``q`` below the least error of every count. The ``p``-th smallest ``g`` makes it the bound above at the
block's own count ``p``. ``g - λ`` is a rounding, and twice as many are allowed for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.verify import products, rounding
from fwbench.verify.rounding import EPS, TINY, Refuted, Rounded, array


def bounds(problem: Problem, certificate: Certificate) -> list[float]:
    """What every mask costs at least, block by block (``rounding.block_counts``).

    Raises:
        Refuted: the message says why.
    """
    e, u = _shared(problem, certificate)
    found = shared_bounds(problem, u, e)
    if certificate.kind == "rows":
        if not problem.pattern.separable:
            raise Refuted(f"rows of their own need a pattern whose rows are independent, not {problem.pattern}")
        for row, bound in _own_bounds(problem, certificate, u):
            found[row] = bound
    return rounding.whole(problem, found)


def lines(problem: Problem, certificate: Certificate) -> list[tuple[float, float]]:
    """What every mask of each block costs at least, whatever its count: intercept and slope of a line in the count.

    Raises:
        Refuted: the message says why.
    """
    if certificate.kind != "diagonal":
        raise Refuted(f"a certificate of kind {certificate.kind} holds at its own counts alone")
    if not problem.pattern.grouped or len(problem.counts) != problem.blocks:
        raise Refuted(f"lines need a pattern with one count for each row or for the layer, not {problem.pattern}")
    e, u = _shared(problem, certificate)
    origin, low = _tangent(problem, u, e)
    g = low.reshape(problem.blocks, -1)
    last = np.clip(problem.counts - 1, 0, None)[:, None]
    slope = np.take_along_axis(np.sort(g, axis=1), last, axis=1)
    less = g - slope
    less = np.minimum(0.0, less - EPS * np.abs(less) - TINY)
    terms = [origin.reshape(problem.blocks, -1), less]
    if problem.offset is not None:
        terms.append(problem.offset.reshape(problem.blocks, -1))
    found = [rounding.lower_sum(block) for block in np.concatenate(terms, axis=1).tolist()]
    return list(zip(found, slope[:, 0].tolist(), strict=True))


def _shared(problem: Problem, certificate: Certificate) -> tuple[np.ndarray, np.ndarray]:
    """``e`` and ``u`` of a certificate whose shared diagonal is proved."""
    e = array(certificate, "e", (problem.n,), np.float64)
    u = array(certificate, "u", problem.shape, np.float32)
    room = 0 if certificate.kind == "diagonal" else 1  # a row's own tangent is best a little outside; it holds anywhere
    if u.min() < -room or u.max() > 1 + room:
        raise Refuted(f"u leaves [{-room}, {1 + room}]")
    if not rounding.proves_shared(problem.G, e):
        raise Refuted("G - diag(e) cannot be proved positive semidefinite")
    return e, u


def shared_bounds(problem: Problem, u: np.ndarray, e: np.ndarray) -> list[float]:
    """The bound of each block by the tangent at ``u (rows, n)`` float32, for ``e (n,)`` with ``G - Diag(e) ⪰ 0``."""
    origin, low = _tangent(problem, u, e)
    terms = np.concatenate([origin.reshape(problem.blocks, -1), rounding.least(problem, low)], axis=1)
    return [rounding.lower_sum(block) for block in terms.tolist()]


def _tangent(problem: Problem, u: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tangent of ``h`` at ``u``: terms of its value at the origin and its gradient, lowered, each ``(rows, n)``."""
    W, u = problem.W.astype(np.float64), u.astype(np.float64)
    S, c = rounding.product(W * u, Rounded(problem.G, np.abs(problem.G))), rounding.linear(problem)
    return rounding.tangent(W, S, u, W**2 * e, linear=c)


def _own_bounds(problem: Problem, certificate: Certificate, u: np.ndarray) -> Iterator[tuple[int, float]]:
    """The rows with proofs of their own, and what these prove."""
    rows = array(certificate, "rows", (None,), np.int64)
    d = array(certificate, "d", (rows.size, problem.n), np.float64)
    rho = array(certificate, "rho", (rows.size,), np.float64)
    if rows.size and (rows[0] < 0 or rows[-1] >= problem.rows or (np.diff(rows) <= 0).any()):
        raise Refuted(f"rows are not ascending numbers in 0..{problem.rows - 1}")
    if (rho < 0).any():
        raise Refuted("rho is negative")
    listed = products.listed(certificate, rows.tolist(), problem.n)
    scales = rounding.scales(certificate, rows.size)
    for row, own_d, own_rho, own, scale in zip(rows.tolist(), d, rho.tolist(), listed, scales, strict=True):
        bound = own_bound(problem, row, u[row], own_d, own_rho, products.summed(own, problem.n), scale)
        yield row, rounding.unscaled(bound, scale)


def own_bound(
    problem: Problem, row: int, u: np.ndarray, d: np.ndarray, rho: float, own: products.Products, scale: float = 1.0
) -> float:
    """The bound of one row, its weights times ``scale``, by the tangent at ``u (n,)`` float32, with its own ``d (n,)``,
    ``rho`` and products.

    Raises:
        Refuted: its matrix cannot be proved positive semidefinite.
    """
    counts = rounding.block_counts(problem)[row]
    size = problem.n // len(counts)
    Q = rounding.block_matrix(problem, row, scale)
    if not rounding.proves_convex(Q, d, rho, np.arange(problem.n) // size, own.N):
        raise Refuted(f"the matrix of row {row} cannot be proved positive semidefinite")
    w, u = problem.W[row].astype(np.float64) * scale, u.astype(np.float64)
    S = rounding.product(w * u, Rounded(problem.G, np.abs(problem.G)))
    c = rounding.linear(problem, row, scale)
    origin, low = rounding.tangent(w, S, u, d, rounding.product(u, own.N), own.linear, c)
    terms = [*origin.tolist(), *rounding.smallest(low.reshape(-1, size), counts).ravel().tolist(), -own.constant]
    for part, count in zip(u.reshape(-1, size).tolist(), counts.tolist(), strict=True):
        off = abs(math.fsum([*part, -count])) * (1 + EPS)
        terms.append(-rho * off * off * (1 + 4 * EPS))
    return rounding.lower_sum(terms)
