"""The products that a row's own proof brings: what each is, why it is nonnegative on masks, and their sum.

With multipliers ``m ≥ 0``, on masks ``v`` (0 or 1):

- of a pair ``i < j``, by kind: 0 ``2m v_i v_j``, 1 ``2m v_i (1 - v_j)``, 2 ``2m (1 - v_i) v_j``,
  3 ``2m (1 - v_i)(1 - v_j)``: products of nonnegative factors;
- of a triple ``i < j < k``, by its corner: 0 ``2m (1 - v_i - v_j - v_k + v_i v_j + v_i v_k + v_j v_k)``, which on masks
  is ``2m`` where all three are equal and else 0; 1 ``2m (v_i - v_i v_j - v_i v_k + v_j v_k)``, ``2m`` where ``v_i``
  differs from two that are equal; 2 and 3 the same of ``v_j`` and of ``v_k``. These are the triangle inequalities;
- of five weights with signs ``b = ±1``: ``2m (s - (β - 1)/2)(s - (β + 1)/2)``, ``s = Σ b v`` and ``β = Σ b``, which is
  odd: a product of two whole numbers that follow each other. With ``v² = v`` it is ``2m (Σ (1 - βb) v + 2 Σ b b' v v' +
  (β² - 1)/4)``. These are the pentagonal inequalities.

Their sum is ``vᵀNv + lᵀv + c``, and at least 0 on every mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.verify_tree import Refuted, scales

TRIPLES = ("triple", "corner", "weight", "triple_start")  # arrays that a certificate may lack, all or none
FIVES = ("five", "sign", "share", "five_start")  # the same
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
    """What one row brings: ``d (n,)``, ``rho``, and products of pairs ``i n + j``, of triples and of fives."""

    d: np.ndarray
    rho: float
    pair: np.ndarray
    kind: np.ndarray
    multiplier: np.ndarray
    triple: np.ndarray  # (triples, 3)
    corner: np.ndarray
    weight: np.ndarray  # of the triples, their multipliers
    five: np.ndarray  # (fives, 5)
    sign: np.ndarray  # (fives,): bit a - 1 is set where b of the a-th weight is -1; the first has 1
    share: np.ndarray  # of the fives, their multipliers
    scale: float = 1.0  # all numbers are of the row's weights times this power of two


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
    triple, corner, weight, triple_start = _cuts(certificate, TRIPLES, n, rows.size, 3, 3)
    five, sign, share, five_start = _cuts(certificate, FIVES, n, rows.size, 5, 15)
    scale = scales(certificate, rows.size)
    for k, row in enumerate(rows.tolist()):
        part = slice(start[k], start[k + 1])
        if (np.diff(pair[part] * 4 + kind[part]) <= 0).any():
            raise Refuted(f"the products of row {row} are not ascending: one may be there twice")
        own = slice(triple_start[k], triple_start[k + 1])
        other = slice(five_start[k], five_start[k + 1])
        products = (pair[part], kind[part], multiplier[part], triple[own], corner[own], weight[own])
        yield row, OwnProof(d[k], float(rho[k]), *products, five[other], sign[other], share[other], scale[k])


def _cuts(
    certificate: Certificate, names: tuple[str, ...], n: int, rows: int, size: int, kinds: int
) -> tuple[np.ndarray, ...]:
    """Sets of ``size`` weights, kinds, multipliers, row pointers. One may be there twice: it is a sum all the same."""
    name, kind_name, multiplier_name, start_name = names
    if not any(name in certificate.arrays for name in names):
        nothing = np.zeros((0, size), np.int64), np.zeros(0, np.uint8), np.zeros(0, np.float32)
        return (*nothing, np.zeros(rows + 1, np.int64))
    of = array(certificate, name, (None, size), np.uint16).astype(np.int64)
    kind = array(certificate, kind_name, (len(of),), np.uint8)
    multiplier = array(certificate, multiplier_name, (len(of),), np.float32)
    start = array(certificate, start_name, (rows + 1,), np.int64)
    if start[0] != 0 or start[-1] != len(of) or (np.diff(start) < 0).any():
        raise Refuted(f"{start_name} does not divide the {name}s among the rows")
    if (multiplier < 0).any():
        raise Refuted(f"a {name} has a negative multiplier")
    if len(of) and ((np.diff(of, axis=1) <= 0).any() or of.max() >= n or kind.max() > kinds):
        raise Refuted(f"a {name} is not of {size} ascending weights with a {kind_name} 0..{kinds}")
    return of, kind, multiplier, start


def signs_of(sign: np.ndarray) -> np.ndarray:
    """``b (fives, 5)`` of the bits of ``sign (fives,)``."""
    return 1 - 2 * ((sign.astype(np.int64)[:, None] << 1 >> np.arange(5)) & 1)


def products(proof: OwnProof, n: int) -> Products:
    """The sum of a proof's products."""
    m = proof.multiplier.astype(np.float64)
    i, j = np.divmod(proof.pair, n)
    weight, corner = proof.weight.astype(np.float64), proof.corner.astype(np.int64)
    a, b, c = proof.triple.T
    sign = np.where((proof.kind == 0) | (proof.kind == 3), 1.0, -1.0)
    share, signs = proof.share.astype(np.float64), signs_of(proof.sign)
    beta = signs.sum(axis=1)
    first, second = np.triu_indices(5, 1)
    of_five = 2 * share * (signs[:, first] * signs[:, second]).T  # (10, fives)
    place_five = (proof.five[:, first] * n + proof.five[:, second]).T
    place = np.concatenate([proof.pair, a * n + b, a * n + c, b * n + c, *place_five])
    signed = np.concatenate([sign * m, *(weight * SIGNS[corner].T), *of_five])
    matrices = [np.bincount(place, values, n * n).reshape(n, n) for values in (signed, np.abs(signed))]
    of_i, of_j = np.choose(proof.kind, (0, 2, 0, -2)) * m, np.choose(proof.kind, (0, 0, 2, -2)) * m
    of_corner = np.where(corner == [[1], [2], [3]], 2 * weight, 0.0) - np.where(corner == 0, 2 * weight, 0.0)
    place_linear = np.concatenate([i, j, a, b, c, *proof.five.T])
    linear = np.concatenate([of_i, of_j, *of_corner, *(2 * share * (1 - beta[:, None] * signs).T)])
    constants = [*(2 * m[proof.kind == 3]).tolist(), *(2 * weight[corner == 0]).tolist()]
    constants += (share * ((beta**2 - 1) // 2)).tolist()
    return Products(
        matrices[0] + matrices[0].T,
        matrices[1] + matrices[1].T,
        np.bincount(place_linear, linear, n),
        np.bincount(place_linear, np.abs(linear), n),
        math.nextafter(math.fsum(constants), math.inf) if constants else 0.0,
        len(place_linear),
        int(np.bincount(place, minlength=1).max()) if place.size else 0,
    )
