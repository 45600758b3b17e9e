"""Screens of the swap kernel, in float32: what each pruned weight can gain at best, and which lines of ``G`` hold it.

The bound is ``a_i + φ(c_i)``, ``φ(c) = min_j b_j - 2c s_j`` (see ``swap_numba``). Everything errs on the safe side:
numbers are in units of the row's largest ``w²G``, and ``a`` and ``b`` are lowered by more than float32 may round off
of them and of ``2Q_ij ≤ 2c_i s_j``. What a screen lets through is computed in float64. Every loop is written so that
compilers vectorise it: no branches, no minimum of floats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fwbench.solvers.numerics.extremes import largest_of_positive, smallest
from fwbench.solvers.numerics.jit import njit

KNOTS = 6  # values of c at which φ is computed
LEVEL, SLOPE = 0, 1  # of a chord: its value at 0, and its slope
FAST = {"contract", "nnan", "nsz"}  # not infinities: they mark what cannot move
MOST = 1e30  # of a linear term in a row's units: beyond, float32 would overflow
ROUNDING = 1e-6  # relative; some four times what a handful of operations in float32 may come to


class Gram(NamedTuple):
    """What all rows share, in units of the largest entry of ``G``."""

    unit: float
    lines: np.ndarray  # float32 (n, n)
    strongest: np.ndarray  # of each weight the largest |G_ij| / sqrt(G_jj) of another, (n,)
    root: np.ndarray  # sqrt(G_jj), (n,)


class Row(NamedTuple):
    """One row's numbers, in units of its largest ``w²G``; all but ``unit`` are float32 ``(n,)``."""

    unit: float
    w: np.ndarray
    coupling: np.ndarray  # c_i: Q_ij ≤ c_i s_j
    score: np.ndarray  # s_j
    a: np.ndarray  # from below, as of the last screening
    b: np.ndarray
    bound: np.ndarray  # a + φ(c), from below
    values: np.ndarray  # scratch


@njit
def gram_of(G):
    n = G.shape[0]
    unit = max(np.abs(G).max(), np.finfo(np.float64).tiny)
    root = np.sqrt(np.maximum(np.diag(G), 0.0))
    inverse = np.zeros(n)
    for j in range(n):
        if root[j] > 0:
            inverse[j] = 1 / root[j]
    lines, strongest = np.empty((n, n), np.float32), np.empty(n)
    for i in range(n):
        strongest[i] = 0.0
        for j in range(n):
            lines[i, j] = G[i, j] / unit
            if j != i:
                strongest[i] = max(strongest[i], abs(G[i, j]) * inverse[j])
    return Gram(unit, lines, strongest / np.sqrt(unit), root / np.sqrt(unit))


@njit
def row_of(w, gram):
    kind, n = np.float32, w.size
    size = np.abs(w).max()
    x = w / size if size > 0 else w
    coupling, score = np.abs(x) * gram.strongest * (1 + ROUNDING), np.abs(x) * gram.root
    a, b, bound, values = np.empty(n, kind), np.empty(n, kind), np.empty(n, kind), np.empty(n, kind)
    unit = max(gram.unit * size * size, np.finfo(np.float64).tiny)
    return Row(unit, x.astype(kind), coupling.astype(kind), score.astype(kind), a, b, bound, values)


@njit
def screen(row, q, g, no_a, no_b):
    """Fill in ``a``, ``b`` and ``bound``; ``no_a`` is infinite of what is kept, ``no_b`` of what is pruned, else 0."""
    _masked(row.coupling, no_a, row.values)
    reach = largest_of_positive(row.values)
    _lowered(q, g, no_a, no_b, row.score, reach, 1 / row.unit, row.a, row.b)
    _bounds(row.a, row.coupling, _chords(row.b, row.score, reach, row.values), row.bound)


@njit
def most_promising(row):
    """The weight that would gain most by itself."""
    return _index_of(row.a, smallest(row.a))


@njit
def from_above(row, value):
    """``value`` in the row's units, from above."""
    x = value / row.unit
    return np.float32(x + ROUNDING * abs(x))


@njit
def may_reach(row, line, i, level):
    """Whether some ``b_j - 2Q_ij`` may be at most ``level``."""
    return _any_reaches(row.w, line, row.b, row.w[i] + row.w[i], level)


@njit
def best_partner(row, line, i):
    """Where ``b_j - 2Q_ij``, left in ``values``, is the least."""
    _gains(row.w, line, row.b, row.w[i] + row.w[i], row.values)
    return _index_of(row.values, smallest(row.values))


@njit
def count_upto(values, level):
    """The number of values that are at most ``level``."""
    count = np.int32(0)
    for j in range(values.size):
        count += np.int32(values[j] <= level)
    return count


@njit
def _masked(coupling, no_a, values):
    for i in range(coupling.size):
        values[i] = max(coupling[i] - no_a[i], 0.0)


@njit(fastmath=FAST)
def _lowered(q, g, no_a, no_b, score, reach, per_unit, a, b):
    for t in range(q.size):
        size = (q[t] + 2 * abs(g[t])) * per_unit
        a[t] = (q[t] - 2 * g[t]) * per_unit - ROUNDING * size + no_a[t]
        b[t] = (q[t] + 2 * g[t]) * per_unit - ROUNDING * (size + 2 * reach * score[t]) + no_b[t]


@njit
def _chords(b, score, top, values):
    """Chords (LEVEL, SLOPE) of ``φ`` between ``KNOTS`` values of ``c`` from 0 to ``top``.

    As ``φ`` is concave, the least of all of them is the one around ``c``, and below ``φ(c)``.
    """
    chords = np.zeros((KNOTS - 1, 2), np.float32)
    width = np.float64(top) / (KNOTS - 1)
    left = first = 0.0
    for k in range(KNOTS):
        _tilted(b, score, np.float32(2 * width * k), values)
        right = np.float64(smallest(values))
        if k:
            slope = (right - left) / width if width > 0 else 0.0
            chords[k - 1, LEVEL], chords[k - 1, SLOPE] = left - slope * (width * (k - 1)), slope
        else:
            first = right
        left = right
    chords[:, LEVEL] -= np.float32(KNOTS * ROUNDING * (abs(first) + abs(left)))
    return chords


@njit(fastmath=FAST)
def _tilted(b, score, twice, values):
    for j in range(b.size):
        values[j] = b[j] - twice * score[j]


@njit(fastmath=FAST)
def _bounds(a, c, chords, bound):
    for i in range(a.size):
        low = chords[0, LEVEL] + chords[0, SLOPE] * c[i]
        for k in range(1, KNOTS - 1):
            value = chords[k, LEVEL] + chords[k, SLOPE] * c[i]
            low = value if value < low else low
        bound[i] = a[i] + low


@njit(fastmath=FAST)
def _any_reaches(w, line, b, twice, level):
    """A sum of comparisons is the fastest scan there is."""
    count = np.int32(0)
    for j in range(w.size):
        count += np.int32(b[j] - twice * w[j] * line[j] <= level)
    return count > 0


@njit(fastmath=FAST)
def _gains(w, line, b, twice, values):
    for j in range(w.size):
        values[j] = b[j] - twice * w[j] * line[j]


@njit
def _index_of(values, value):
    """The last place of a value that is there."""
    at = np.int32(0)
    for j in range(values.size):
        at = max(at, np.int32(j) if values[j] == value else np.int32(0))
    return np.int64(at)
