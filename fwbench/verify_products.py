"""The products that a row's own proof brings: what each is, why it is nonnegative on masks, and their sum.

With multipliers ``m ≥ 0``, on masks ``v`` (0 or 1):

- of a pair ``i < j``, by kind: 0 ``2m v_i v_j``, 1 ``2m v_i (1 - v_j)``, 2 ``2m (1 - v_i) v_j``,
  3 ``2m (1 - v_i)(1 - v_j)``: products of nonnegative factors;
- of a triple ``i < j < k``, by its corner: 0 ``2m (1 - v_i - v_j - v_k + v_i v_j + v_i v_k + v_j v_k)``, which on masks
  is ``2m`` where all three are equal and else 0; 1 ``2m (v_i - v_i v_j - v_i v_k + v_j v_k)``, ``2m`` where ``v_i``
  differs from two that are equal; 2 and 3 the same of ``v_j`` and of ``v_k``. These are the triangle inequalities.

Their sum is ``vᵀNv + lᵀv + c``, and at least 0 on every mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.verify_tree import Refuted

TRIPLES = ("triple", "corner", "weight", "triple_start")  # arrays that a certificate may lack, all or none
SIGNS = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])  # [corner]: of the pairs ij, ik, jk


@dataclass(frozen=True)
class Products:
    """``vᵀNv + lᵀv + c ≥ 0`` on masks; ``absolute`` is N with every product taken positive."""

    matrix: np.ndarray  # N (n, n)
    absolute: np.ndarray  # (n, n)
    linear: np.ndarray  # l (n,)
    linear_absolute: np.ndarray  # (n,)
    constant: float  # c, rounded up
    count: int  # terms in all of l
    terms: int  # products in an entry of N, at most


@dataclass(frozen=True)
class OwnProof:
    """What one row brings: ``d (n,)``, ``rho``, and products: of pairs ``i n + j`` and of triples ``(i, j, k)``."""

    d: np.ndarray
    rho: float
    pair: np.ndarray
    kind: np.ndarray
    multiplier: np.ndarray
    triple: np.ndarray  # (triples, 3)
    corner: np.ndarray
    weight: np.ndarray  # of the triples, their multipliers


def array(certificate: Certificate, name: str, shape: tuple[int | None, ...], dtype: type) -> np.ndarray:
    """An array of the certificate, if it is what it has to be; None in ``shape`` stands for any length.

    Raises:
        Refuted: it is missing or something else, or an entry is not finite.
    """
    found = certificate.arrays.get(name)
    if not isinstance(found, np.ndarray):
        raise Refuted(f"it has no array {name!r}")
    fits = len(found.shape) == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
    if found.dtype != dtype or not fits:
        raise Refuted(f"{name} is {found.dtype} {found.shape}, not {np.dtype(dtype)} {shape}")
    if not np.isfinite(found).all():
        raise Refuted(f"{name} has entries that are not finite")
    return found


def own_proofs(problem: Problem, certificate: Certificate) -> Iterator[tuple[int, OwnProof]]:
    """The own proofs of a ``rows`` certificate, as its arrays (sorted rows, row pointers) hold them.

    Raises:
        Refuted: the arrays are not such.
    """
    n = problem.n
    rows = array(certificate, "rows", (None,), np.int64)
    d = array(certificate, "d", (rows.size, n), np.float64)
    rho = array(certificate, "rho", (rows.size,), np.float64)
    start = array(certificate, "start", (rows.size + 1,), np.int64)
    pair = array(certificate, "pair", (None,), np.int64)
    kind = array(certificate, "kind", (pair.size,), np.uint8)
    multiplier = array(certificate, "multiplier", (pair.size,), np.float32)
    if rows.size and (rows[0] < 0 or rows[-1] >= problem.rows or (np.diff(rows) <= 0).any()):
        raise Refuted(f"rows are not ascending numbers in 0..{problem.rows - 1}")
    if start[0] != 0 or start[-1] != pair.size or (np.diff(start) < 0).any():
        raise Refuted("start does not divide the products among the rows")
    if (rho < 0).any():
        raise Refuted("rho is negative")
    if (multiplier < 0).any():
        raise Refuted("a product has a negative multiplier")
    if pair.size and (pair.min() < 0 or (pair // n >= pair % n).any() or pair.max() >= n * n or kind.max() > 3):
        raise Refuted("a product is not of two weights i < j and of a kind 0..3")
    triple, corner, weight, triple_start = _triples(certificate, n, rows.size)
    for k, row in enumerate(rows.tolist()):
        part = slice(start[k], start[k + 1])
        if (np.diff(pair[part] * 4 + kind[part]) <= 0).any():
            raise Refuted(f"the products of row {row} are not ascending: one may be there twice")
        own = slice(triple_start[k], triple_start[k + 1])
        products = (pair[part], kind[part], multiplier[part], triple[own], corner[own], weight[own])
        yield row, OwnProof(d[k], float(rho[k]), *products)


def _triples(certificate: Certificate, n: int, rows: int) -> tuple[np.ndarray, ...]:
    """Triples, corners, multipliers and row pointers. A triple may be there twice: it is a sum all the same."""
    if not any(name in certificate.arrays for name in TRIPLES):
        return np.zeros((0, 3), np.int64), np.zeros(0, np.uint8), np.zeros(0, np.float32), np.zeros(rows + 1, np.int64)
    triple = array(certificate, "triple", (None, 3), np.uint16).astype(np.int64)
    corner = array(certificate, "corner", (len(triple),), np.uint8)
    weight = array(certificate, "weight", (len(triple),), np.float32)
    start = array(certificate, "triple_start", (rows + 1,), np.int64)
    if start[0] != 0 or start[-1] != len(triple) or (np.diff(start) < 0).any():
        raise Refuted("triple_start does not divide the triples among the rows")
    if (weight < 0).any():
        raise Refuted("a triple has a negative multiplier")
    if len(triple) and ((np.diff(triple, axis=1) <= 0).any() or triple.max() >= n or corner.max() > 3):
        raise Refuted("a triple is not of three weights i < j < k with a corner 0..3")
    return triple, corner, weight, start


def products(proof: OwnProof, n: int) -> Products:
    """The sum of a proof's products."""
    m = proof.multiplier.astype(np.float64)
    i, j = np.divmod(proof.pair, n)
    weight, corner = proof.weight.astype(np.float64), proof.corner.astype(np.int64)
    a, b, c = proof.triple.T
    sign = np.where((proof.kind == 0) | (proof.kind == 3), 1.0, -1.0)
    place = np.concatenate([proof.pair, a * n + b, a * n + c, b * n + c])
    signed = np.concatenate([sign * m, *(weight * SIGNS[corner].T)])
    matrices = [np.bincount(place, values, n * n).reshape(n, n) for values in (signed, np.abs(signed))]
    of_i, of_j = np.choose(proof.kind, (0, 2, 0, -2)) * m, np.choose(proof.kind, (0, 0, 2, -2)) * m
    of_corner = np.where(corner == [[1], [2], [3]], 2 * weight, 0.0) - np.where(corner == 0, 2 * weight, 0.0)
    place_linear, linear = np.concatenate([i, j, a, b, c]), np.concatenate([of_i, of_j, *of_corner])
    constants = [*(2 * m[proof.kind == 3]).tolist(), *(2 * weight[corner == 0]).tolist()]
    return Products(
        matrices[0] + matrices[0].T,
        matrices[1] + matrices[1].T,
        np.bincount(place_linear, linear, n),
        np.bincount(place_linear, np.abs(linear), n),
        math.nextafter(math.fsum(constants), math.inf) if constants else 0.0,
        len(place_linear),
        int(np.bincount(place, minlength=1).max()) if place.size else 0,
    )
