"""The products that a row's own proof brings: why each is nonnegative on masks, and their sum.

All are of one kind. For some weights with signs ``b = ±1`` put ``s = Σ b v``, a whole number on masks ``v`` (0 or 1).
With an odd ``t`` and a multiplier ``m ≥ 0``

    m (s - (t - 1)/2)(s - (t + 1)/2)  =  m (Σ (1 - t b) v + 2 Σ_pairs b b' v v' + (t² - 1)/4)   on masks, as v² = v,

is a product of two whole numbers that follow each other, so at least 0. A certificate holds

- of pairs ``i < j``, by kind: ``2m`` times 0 ``v_i v_j``, 1 ``v_i (1 - v_j)``, 2 ``(1 - v_i) v_j``,
  3 ``(1 - v_i)(1 - v_j)`` (McCormick's);
- of triples ``i < j < k``, by corner: ``2m`` where 0 all three are equal, 1 ``v_i``, 2 ``v_j``, 3 ``v_k`` is unlike two
  that are equal, else 0 (the triangle inequalities);
- of fives, by signs, with ``t = Σ b``: ``2m`` times the above (the pentagonal inequalities).

Their sum is ``vᵀNv + lᵀv + c``, and at least 0 on every mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fwbench.result import Certificate
from fwbench.verify.rounding import EPS, Near, Refuted, Rounded, array

PAIRS = ("pair", "kind", "multiplier", "start")  # arrays of a certificate: weights, which product, m, row pointers
TRIPLES = ("triple", "corner", "weight", "triple_start")  # it may lack these, all or none
FIVES = ("five", "sign", "share", "five_start")  # the same
PAIR_SIGNS, PAIR_ODD = np.array([[1, 1], [1, -1], [1, -1], [1, 1]]), np.array([1, -1, 1, 3])  # b and t by kind
CORNERS = np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]])  # b by corner; t is its sum


class Listed(NamedTuple):
    """One row's products as its certificate lists them."""

    pair: np.ndarray  # (pairs,) i n + j
    kind: np.ndarray
    multiplier: np.ndarray
    triple: np.ndarray  # (triples, 3)
    corner: np.ndarray
    weight: np.ndarray  # of the triples, their multipliers
    five: np.ndarray  # (fives, 5)
    sign: np.ndarray  # (fives,): bit a - 1 is set where b of the a-th weight is -1; the first has 1
    share: np.ndarray  # of the fives, their multipliers


class Products(NamedTuple):
    """``vᵀNv + lᵀv + c ≥ 0`` on masks."""

    N: Rounded  # (n, n)
    linear: Near  # l (n,)
    constant: float  # c, rounded up


def listed(certificate: Certificate, rows: list[int], n: int) -> Iterator[Listed]:
    """The products of each of the certificate's rows.

    Raises:
        Refuted: its arrays are not such.
    """
    code = array(certificate, "pair", (None,), np.int64)
    pairs = _family(certificate, PAIRS, n, len(rows), np.stack(np.divmod(code, n), axis=1), 3)
    cuts = []
    for names, size, kinds in ((TRIPLES, 3, 3), (FIVES, 5, 15)):
        if any(name in certificate.arrays for name in names):
            of = array(certificate, names[0], (None, size), np.uint16).astype(np.int64)
            cuts.append((of, *_family(certificate, names, n, len(rows), of, kinds)))
        else:
            none = np.zeros(0, np.uint8), np.zeros(0, np.float32), np.zeros(len(rows) + 1, np.int64)
            cuts.append((np.zeros((0, size), np.int64), *none))
    for k, row in enumerate(rows):
        parts = [a[start[k] : start[k + 1]] for *arrays, start in ((code, *pairs), *cuts) for a in arrays]
        if (np.diff(parts[0] * 4 + parts[1]) <= 0).any():
            raise Refuted(f"the products of row {row} are not ascending: one may be there twice")
        yield Listed(*parts)


def _family(
    certificate: Certificate, names: tuple[str, ...], n: int, rows: int, of: np.ndarray, kinds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which products those of the weights ``of (k, size)`` are, their multipliers, and row pointers."""
    name, kind_name, multiplier_name, start_name = names
    kind = array(certificate, kind_name, (len(of),), np.uint8)
    multiplier = array(certificate, multiplier_name, (len(of),), np.float32)
    start = array(certificate, start_name, (rows + 1,), np.int64)
    if start[0] != 0 or start[-1] != len(of) or (np.diff(start) < 0).any():
        raise Refuted(f"{start_name} does not divide the {name}s among the rows")
    if (multiplier < 0).any():
        raise Refuted(f"a {name} has a negative multiplier")
    if len(of) and (of.min() < 0 or of.max() >= n or (np.diff(of, axis=1) <= 0).any() or kind.max() > kinds):
        raise Refuted(f"a {name} is not of {of.shape[1]} ascending weights with a {kind_name} 0..{kinds}")
    return kind, multiplier, start


def signs_of(sign: np.ndarray) -> np.ndarray:
    """``b (fives, 5)`` of the bits of ``sign (fives,)``."""
    return 1 - 2 * ((sign.astype(np.int64)[:, None] << 1 >> np.arange(5)) & 1)


def summed(own: Listed, n: int) -> Products:
    """The sum of a row's products."""
    pairs, corners, signs = np.stack(np.divmod(own.pair, n), axis=1), CORNERS[own.corner], signs_of(own.sign)
    families = (
        _coefficients(pairs, PAIR_SIGNS[own.kind], PAIR_ODD[own.kind], own.multiplier.astype(np.float64), n),
        _coefficients(own.triple.astype(np.int64), corners, corners.sum(axis=1), own.weight.astype(np.float64), n),
        _coefficients(own.five.astype(np.int64), signs, signs.sum(axis=1), 2 * own.share.astype(np.float64), n),
    )
    place, entries, place_linear, linear, constants = (np.concatenate(part) for part in zip(*families, strict=True))
    N, absolute = (np.bincount(place, part, n * n).reshape(n, n) for part in (entries, np.abs(entries)))
    sums, size = (np.bincount(place_linear, part, n) for part in (linear, np.abs(linear)))
    constant = math.fsum(constants.tolist())
    return Products(
        Rounded(N + N.T, absolute + absolute.T, int(np.bincount(place).max(initial=0))),
        (sums, (len(linear) + 2) * EPS * size),
        math.nextafter(constant, math.inf) if constant else 0.0,
    )


def _coefficients(of: np.ndarray, b: np.ndarray, t: np.ndarray, m: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """Places and entries of N above its diagonal, those of l, and constants, by sets of weights ``of (k, size)``.

    Each is a multiplier of 24 bits times a small whole number, so exact: their sums alone are rounded.
    """
    first, second = np.triu_indices(of.shape[1], 1)
    place, entries = of[:, first] * n + of[:, second], b[:, first] * b[:, second]
    linear = 1 - t[:, None] * b
    return place.T.ravel(), (m * entries.T).ravel(), of.T.ravel(), (m * linear.T).ravel(), m * ((t**2 - 1) // 4)
