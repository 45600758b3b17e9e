"""The oracle of Frank-Wolfe in numba: the vertex that prunes the smallest entries of each group, by counting.

A threshold found from the last one's takes a few passes over a row that is in cache; sorting would take more.
"""

from __future__ import annotations

import numpy as np

from fwbench.solvers.numerics.jit import BLOCK, fast

THRESHOLD, SPACING = 0, 1  # of a guess
SEARCH_PASSES = 12  # counting passes before the threshold search tightens its bracket to data values


@fast
def count_upto(x, t):
    """How many ``x`` are at most ``t``."""
    total = 0
    one, zero = np.float32(1), np.float32(0)
    for start in range(0, x.size, BLOCK):
        part = x[start : min(start + BLOCK, x.size)]
        count = zero
        for i in range(part.size):
            count += one if part[i] <= t else zero
        total += int(count)
    return total


@fast
def _first_guess(x, k):
    """A threshold for the ``k`` smallest and the distance between neighbours there, as of a flat distribution."""
    finite, mean, square = 0, 0.0, 0.0
    for i in range(x.size):
        if np.isfinite(x[i]):
            finite += 1
            mean += x[i]
    mean /= max(finite, 1)
    for i in range(x.size):
        if np.isfinite(x[i]):
            square += (x[i] - mean) ** 2
    return mean, 3 * np.sqrt(square / max(finite, 1)) / max(finite, 1)


@fast
def threshold(x, k, guess):
    """Threshold of the ``k`` smallest of ``x``, ``0 < k < len(x)``, by counting.

    Args:
        guess: ``(2,)`` float64, the THRESHOLD and the SPACING of its neighbours last time (NaN for none); updated.

    Returns:
        ``t`` and ``left``: the ``k`` smallest are all ``x ≤ t`` if ``left`` is negative, otherwise all ``x < t`` and
        the first ``left`` of those equal to ``t``.
    """
    kind = x.dtype.type
    biggest = np.finfo(x.dtype).max
    if np.isnan(guess[THRESHOLD]):
        guess[THRESHOLD], guess[SPACING] = _first_guess(x, k)
    lo, hi, below, above = -np.inf, np.inf, 0, x.size  # count(lo) = below < k < above = count(hi)
    t, reach, passes = guess[THRESHOLD], max(guess[SPACING], 0.0), 0
    while True:
        probe = kind(min(max(t, -biggest), biggest))  # a variable of x's own type: comparisons of mixed types are slow
        count = count_upto(x, probe)
        passes += 1
        if count == k:
            guess[THRESHOLD] = probe
            return probe, -1
        if count < k:
            if probe == biggest:
                return kind(np.inf), k - count
            lo, below = float(probe), count
        else:
            if probe == -biggest:
                return kind(-np.inf), k
            hi, above = float(probe), count
        if passes % SEARCH_PASSES == 0:
            hi, above, less = _tighten(x, lo, hi)
            if less <= k:
                guess[THRESHOLD] = min(max(hi, -biggest), biggest)
                return kind(hi), k - less
            hi, above = np.nextafter(kind(hi), kind(-np.inf)), less
        if hi - lo < np.inf and above - below >= 16:  # wide enough to tell the density
            guess[SPACING] = (hi - lo) / (above - below)
        t = _next_probe(lo, hi, below, above, k, float(probe), reach, passes)
        if not lo < kind(t) < hi:
            t = lo + (hi - lo) / 2
            if not lo < kind(t) < hi:  # neighbours: all that lies between is equal to hi
                guess[THRESHOLD] = hi
                return kind(hi), k - below
        reach *= 2


@fast
def _next_probe(lo, hi, below, above, k, t, reach, passes):
    """Between two finite ends by interpolation, every third time by bisection; else outwards, ever farther."""
    if lo > -np.inf and hi < np.inf:
        part = 0.5 if passes % 3 == 0 else (k - below) / (above - below)
        return lo + (hi - lo) * part
    if lo > -np.inf:
        return lo + max(1.2 * (k - below) * reach, 1e-6 * abs(lo), 1e-30)
    return hi - max(1.2 * (above - k) * reach, 1e-6 * abs(hi), 1e-30)


@fast
def _tighten(x, lo, hi):
    """The largest ``x`` in (lo, hi], how many are at most it, and how many are less."""
    top = lo
    for i in range(x.size):
        if top < x[i] <= hi:
            top = x[i]
    upto, less = 0, 0
    for i in range(x.size):
        upto += x[i] <= top
        less += x[i] < top
    return top, upto, less


@fast
def oracle(x, counts, guess, v, scratch):
    """Mark in ``v`` (0 or 1) the ``counts[group]`` smallest of each group of ``x``, ties to the lower index.

    ``scratch`` holds ``2 len(x)`` entries like ``x``.
    """
    groups, n = counts.size, x.size
    one, zero = x.dtype.type(1), x.dtype.type(0)
    if groups > 1:
        _oracle_of_groups(x, counts, v, scratch)
        return
    k = counts[0]
    if k == 0 or k == n:
        v[:] = one if k > 0 else zero
        return
    t, left = threshold(x, k, guess)
    if left < 0:
        _mark(x, t, v)
        return
    for i in range(n):
        take = x[i] < t
        if not take and left > 0 and x[i] == t:
            take = True
            left -= 1
        v[i] = one if take else zero


@fast
def _mark(x, t, v):
    one, zero = x.dtype.type(1), x.dtype.type(0)
    for i in range(x.size):
        v[i] = one if x[i] <= t else zero


@fast
def _oracle_of_groups(x, counts, v, scratch):
    """By ranks: all groups side by side, so that comparisons run over contiguous memory."""
    groups = counts.size
    size = x.size // groups
    entries, rank = scratch[: x.size], scratch[x.size : x.size + groups]
    one, zero = x.dtype.type(1), x.dtype.type(0)
    for i in range(size):
        line = entries[i * groups : (i + 1) * groups]
        for g in range(groups):
            line[g] = x[g * size + i]
    for i in range(size):
        mine = entries[i * groups : (i + 1) * groups]
        rank[:] = zero
        for j in range(size):
            other = entries[j * groups : (j + 1) * groups]
            if j < i:
                for g in range(groups):
                    rank[g] += one if other[g] <= mine[g] else zero
            elif j > i:
                for g in range(groups):
                    rank[g] += one if other[g] < mine[g] else zero
        for g in range(groups):
            v[g * size + i] = one if rank[g] < counts[g] else zero
