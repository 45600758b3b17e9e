"""Vector loops of the swap kernel: lower bounds of what each pruned weight can gain, and scans of one line of ``G``.

The bound is ``a_i + φ(c_i)``, ``φ(c) = min_j b_j - 2c s_j`` (see ``swap_kernel``). Every loop here is written so that
compilers vectorise it: no branches, no minimum of floats.
"""

from __future__ import annotations

import numpy as np

from fwbench.solvers.jit import njit

KNOTS = 6  # values of c at which φ is computed
FAST = {"contract", "nnan", "nsz"}  # not infinities: they mark what cannot move
MOST = np.int64(0x7FFFFFFFFFFFFFFF)


@njit
def masked(near, no_a, values):  # type: ignore[no-untyped-def]
    for i in range(near.size):
        values[i] = max(near[i] - no_a[i], 0.0)


@njit
def largest(values):  # type: ignore[no-untyped-def]
    """Of numbers that are at least 0, whose bits are ordered as they are; see :func:`smallest`."""
    bits = values.view(np.int64)
    top = np.int64(0)
    for i in range(bits.size):
        top = max(top, bits[i])
    return np.array([top]).view(np.float64)[0]


@njit
def smallest(values):  # type: ignore[no-untyped-def]
    """The least value by its bits: compilers vectorise the minimum of integers, and not that of floats."""
    bits = values.view(np.int64)
    low = MOST
    for i in range(bits.size):
        x = bits[i] ^ ((bits[i] >> 63) & MOST)  # ordered as the floats are
        low = x if x < low else low
    return np.array([low ^ ((low >> 63) & MOST)]).view(np.float64)[0]


@njit(fastmath=FAST)
def tilted(b, score, twice, values):  # type: ignore[no-untyped-def]
    for j in range(b.size):
        values[j] = b[j] - twice * score[j]


@njit
def chords(b, score, top, values):  # type: ignore[no-untyped-def]
    """Lines (value at 0, slope) through ``φ`` at ``KNOTS`` values of ``c`` from 0 to ``top``."""
    lines = np.zeros((KNOTS - 1, 2))
    width = top / (KNOTS - 1)
    left = 0.0
    for k in range(KNOTS):
        tilted(b, score, 2 * width * k, values)
        right = smallest(values)
        if k:
            slope = (right - left) / width if width > 0 else 0.0
            lines[k - 1, 0], lines[k - 1, 1] = left - slope * (width * (k - 1)), slope
        left = right
    return lines


@njit
def chord(lines, c):  # type: ignore[no-untyped-def]
    """A lower bound of ``φ(c)``: as it is concave, the least of all chords is the one around ``c``."""
    low = np.inf
    for k in range(KNOTS - 1):
        low = min(low, lines[k, 0] + lines[k, 1] * c)
    return low


@njit(fastmath=FAST)
def bounds(a, c, lines, bound):  # type: ignore[no-untyped-def]
    """``bound = a + φ(c)``, from below."""
    for i in range(a.size):
        low = lines[0, 0] + lines[0, 1] * c[i]
        for k in range(1, KNOTS - 1):
            value = lines[k, 0] + lines[k, 1] * c[i]
            low = value if value < low else low
        bound[i] = a[i] + low


@njit(fastmath=FAST)
def any_reaches(w, line, b, twice, level):  # type: ignore[no-untyped-def]
    """Whether some ``b_j - 2Q_ij`` is at most ``level``: a sum of comparisons is the fastest scan there is."""
    count = 0
    for j in range(w.size):
        count += b[j] - twice * w[j] * line[j] <= level
    return count > 0


@njit
def gains(w, line, b, twice, values):  # type: ignore[no-untyped-def]
    """Fill ``values`` with ``b_j - 2Q_ij``; the least."""
    for j in range(w.size):
        values[j] = b[j] - twice * w[j] * line[j]
    return smallest(values)
