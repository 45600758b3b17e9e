"""The numba kernel of ``swap``: exact best 1-swaps, looked for only where a bound lets them win.

With ``c_i = |w_i|`` times the largest ``|G_ij| / sqrt(G_jj)`` and the Wanda score ``s_j = |w_j| sqrt(G_jj)``, every
kept ``j`` has ``Q_ij ≤ c_i s_j``. So a pruned ``i`` gains at best ``a_i + φ(c_i)`` with ``φ(c) = min_j b_j - 2c s_j``,
which is concave: chords between a few values of ``c`` lie below it. A line of ``G`` is scanned only if this bound beats
the best exchange so far, and that in float32 from below (``screens``); what may win is computed in float64. The
result is the exhaustive search's, ties included (lowest pruned index, then lowest kept index).
With ``gain_fraction`` below 1, a line is scanned only if it may gain ``1/gain_fraction`` times as much as the best
exchange so far.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numba
import numpy as np

from fwbench.solvers.local_search import screens
from fwbench.solvers.numerics.jit import njit
from fwbench.solvers.numerics.threads import numba_threads

# A gain below this part of the row's error is rounding, not improvement: float64 products of length n
RELATIVE_GAIN = 1e-11
ABSOLUTE_GAIN = 1e-15  # the same in units of the largest entry of Q, c: of a row without error every gain is rounding
RECENT = 8  # pairs remembered from one search to the next
PRUNED, KEPT = 0, 1  # of such a pair
BLOCK_ROWS, BLOCK_COLUMNS = 8, 512  # of the first products: what the nearest cache holds
CHUNK_ROWS = 64  # rows between two looks at the clock
SMALL_ROW = 32  # up to this size all pairs of a row are tried, as they are of groups within a row


class Descent:
    """Rows of a layer under descent; holds what is shared by all calls.

    Args:
        W: float32 ``(rows, n)``.
        G: float64 ``(n, n)``.
        group: neighbours within which a row's weights may be exchanged; ``n`` for the whole row.
        threads: numba threads; the result does not depend on them.
        linear: ``c (rows, n)`` float64 of the problem, None where it has none.
        gain_fraction: of the largest gain, in (0, 1], with which an exchange is taken; 1 for the best. Groups within
            a row, and rows of up to ``SMALL_ROW`` weights, are searched whole: there it is always the best.
    """

    def __init__(
        self,
        W: np.ndarray,
        G: np.ndarray,
        group: int,
        threads: int,
        gain_fraction: float = 1.0,
        linear: np.ndarray | None = None,
    ) -> None:
        self.W = W.astype(np.float64)
        self.half = np.zeros((len(W), 0)) if linear is None else linear / 2
        self.G = np.ascontiguousarray(G)
        self.group = group
        self.threads = threads
        self.gain_fraction = gain_fraction
        self.made = np.zeros(len(W), np.int64)  # swaps of each row so far; an exchange of two rows is one of each

    @cached_property
    def gram(self) -> screens.Gram:
        """What bounds need of ``G``, when a descent first asks."""
        return screens.gram_of(self.G)

    def descend(self, pruned: np.ndarray, rows: slice, limit: int) -> tuple[int, int]:
        """Best 1-swaps in each row of ``pruned (rows, n)``, in place; numbers of swaps and of pairs evaluated.

        A row stops when it has made ``limit`` of them, all calls together.
        """
        shared = (self.group, self.gram, self.gain_fraction)
        with numba_threads(self.threads):
            left = limit - self.made[rows]
            swaps, evaluated = _descend_rows(self.W[rows], self.G, self.half[rows], pruned[rows], *shared, left)
        self.made[rows] += swaps
        return int(swaps.sum()), evaluated

    def descend_all(self, pruned: np.ndarray, limit: int, expired: Callable[[], bool]) -> tuple[int, int, str]:
        """``descend`` on all rows, some after the other while there is time; ``"deadline"`` if there was too little."""
        swaps = evaluated = 0
        for first in range(0, len(pruned), CHUNK_ROWS):
            if expired():
                return swaps, evaluated, "deadline"
            done, seen = self.descend(pruned, slice(first, first + CHUNK_ROWS), limit)
            swaps, evaluated = swaps + done, evaluated + seen
        return swaps, evaluated, ""

    def exchange(self, pruned: np.ndarray, limit: int, expired: Callable[[], bool]) -> tuple[int, int, str]:
        """Swaps between rows as well, until none is left: for a count over the whole layer, in place.

        Rows do not interact, so the best exchange between two rows is the smallest ``a`` of one with the smallest
        ``b`` of another; after each, both rows descend again.
        """
        u = pruned.astype(np.float64)
        half = self.half if self.half.size else np.zeros_like(self.W)
        products = self.W * ((self.W * u) @ self.G) + half
        diagonal = self.W**2 * self.G.diagonal()
        largest = max(diagonal.max(), 2 * np.abs(half).max())
        best_a, at_a, best_b, at_b = (np.empty(len(pruned), dtype) for dtype in (float, int, float, int))
        errors = ((products + half) * u).sum(axis=1)

        def refresh(row: int) -> None:
            if row >= 0:
                u[row] = pruned[row]
                products[row] = self.W[row] * ((self.W[row] * u[row]) @ self.G) + half[row]
                errors[row] = (products[row] + half[row]) @ u[row]
            a = np.where(pruned[row], diagonal[row] - 2 * products[row], np.inf)
            b = np.where(pruned[row], np.inf, diagonal[row] + 2 * products[row])
            at_a[row], at_b[row] = a.argmin(), b.argmin()
            open_to_more = self.made[row] < limit
            best_a[row], best_b[row] = (a[at_a[row]], b[at_b[row]]) if open_to_more else (np.inf, np.inf)

        for row in range(len(pruned)):
            refresh(row)
        swaps = evaluated = 0
        while True:
            if expired():
                return swaps, evaluated, "deadline"
            frees, takes = _best_two_rows(best_a, best_b)
            evaluated += len(pruned)
            if (
                frees < 0
                or not best_a[frees] + best_b[takes] < -RELATIVE_GAIN * max(errors.sum(), 0.0) - ABSOLUTE_GAIN * largest
            ):
                break
            pruned[frees, at_a[frees]], pruned[takes, at_b[takes]] = False, True
            swaps += 1
            self.made[[frees, takes]] += 1
            for row in (frees, takes):
                done, seen = self.descend(pruned, slice(row, row + 1), limit)
                swaps, evaluated = swaps + done, evaluated + seen
                refresh(row)
        return swaps, evaluated, ""


def _best_two_rows(best_a: np.ndarray, best_b: np.ndarray) -> tuple[int, int]:
    """Different rows with the least ``a`` of one plus ``b`` of the other; (-1, -1) if there is one row only."""
    if len(best_a) < 2:
        return -1, -1
    a, b = np.argsort(best_a, kind="stable")[:2], np.argsort(best_b, kind="stable")[:2]
    pairs = [(best_a[i] + best_b[j], int(i), int(j)) for i in a for j in b if i != j]
    return min(pairs)[1:]


@njit(parallel=True)
def _descend_rows(W, G, half, pruned, group, gram, gain_fraction, limit):
    rows = W.shape[0]
    swaps = np.zeros(rows, np.int64)
    evaluated = np.zeros(rows, np.int64)
    g = _products(W, G, pruned)
    for r in numba.prange(rows):
        swaps[r], evaluated[r] = _descend(W[r], G, half[r], g[r], pruned[r], group, gram, gain_fraction, limit[r])
    return swaps, evaluated.sum()


@njit
def _descend(w, G, half, g, pruned, group, gram, gain_fraction, limit):
    """``g`` is ``Qu``, and half of the linear term is added to it: ``q - 2g`` and ``q + 2g`` then hold its part too."""
    n = w.size
    q = np.empty(n)  # diagonal of Q
    error = 0.0
    for j in range(n):
        q[j] = w[j] * w[j] * G[j, j]
        if pruned[j]:
            error += g[j]
    error = max(error, 0.0)
    largest = q.max()
    row = screens.row_of(w, gram)
    by_pairs = group < n or n <= SMALL_ROW
    for j in range(half.size):
        g[j] += half[j]
        if pruned[j]:
            error += 2 * abs(half[j])  # what rounding is measured by
        largest = max(largest, 2 * abs(half[j]))
        by_pairs = by_pairs or not abs(half[j]) < screens.MOST * row.unit
    a = np.empty(n)  # change when i is kept again, infinite if it is kept
    b = np.empty(n)  # change when j is pruned, infinite if it is pruned
    no_a = np.where(pruned, 0.0, np.inf)  # added instead of chosen: branches on a mask are mispredicted
    no_b = np.where(pruned, np.inf, 0.0)
    recent = np.full((RECENT, 2), -1)  # pairs that were the best for a while: likely to be so again
    candidates = np.empty(n + 1, np.int64)
    swaps = 0
    evaluated = 0
    while swaps < limit:
        least = -RELATIVE_GAIN * error - ABSOLUTE_GAIN * largest
        if by_pairs:
            _changes(q, g, no_a, no_b, a, b)
            best, i, j, seen = _best_in_groups(w, G, a, b, group, least)
        else:
            slack = 1e-12 * error + 1e-14 * largest  # what rounding may hide
            best, i, j, seen = _best_in_row(
                w, G, q, g, no_a, no_b, row, gram.lines, recent, candidates, least, slack, gain_fraction
            )
        evaluated += seen
        if i < 0:
            break
        pruned[i], pruned[j] = False, True
        no_a[i], no_b[i], no_a[j], no_b[j] = np.inf, 0.0, 0.0, np.inf
        _exchange(w, g, w[j], G[j], w[i], G[i])
        error = max(error + best, 0.0)  # below 0 by rounding, it would let exchanges that gain nothing go on for ever
        swaps += 1
    return swaps, evaluated


@njit
def _changes(q, g, no_a, no_b, a, b):
    for t in range(q.size):
        a[t] = q[t] - 2 * g[t] + no_a[t]
        b[t] = q[t] + 2 * g[t] + no_b[t]


@njit(parallel=True)
def _products(W, G, pruned):
    """``Qu`` of each row, added in the order of the weights; a line of ``G`` serves several rows."""
    rows, n = W.shape
    g = np.zeros((rows, n))
    blocks = -(-rows // BLOCK_ROWS)
    for block in numba.prange(blocks):
        first, last = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, rows)
        for left in range(0, n, BLOCK_COLUMNS):
            right = min(left + BLOCK_COLUMNS, n)
            for i in range(n):
                line = G[i, left:right]
                for r in range(first, last):
                    if pruned[r, i]:
                        _add(g[r, left:right], W[r, i], line)
        for r in range(first, last):
            for j in range(n):
                g[r, j] *= W[r, j]
    return g


@njit(fastmath={"contract"})
def _add(g, x, line):
    for t in range(g.size):
        g[t] += x * line[t]


@njit(fastmath={"contract"})
def _exchange(w, g, w_in, line_in, w_out, line_out):
    for t in range(w.size):
        g[t] += w[t] * (w_in * line_in[t] - w_out * line_out[t])


@njit
def _best_in_groups(w, G, a, b, group, best):
    """Best exchange within a group that beats ``best``: (change, pruned index, kept index, pairs tried)."""
    best_i = -1
    best_j = -1
    evaluated = 0
    for i in range(w.size):
        if a[i] == np.inf:
            continue
        start = (i // group) * group
        for j in range(start, min(start + group, w.size)):
            if b[j] < np.inf:
                evaluated += 1
                change = a[i] + (b[j] - 2 * w[i] * w[j] * G[i, j])
                if change < best:
                    best, best_i, best_j = change, i, j
    return best, best_i, best_j, evaluated


@njit
def _best_in_row(w, G, q, g, no_a, no_b, row, lines, recent, candidates, best, slack, gain_fraction):
    """Best exchange in the row that beats ``best``, or a fraction of it: (change, pruned, kept index, pairs tried)."""
    n = w.size
    found = best, -1, -1
    for i, j in recent:
        if i >= 0 and no_a[i] + no_b[j] == 0:
            found = _better(found, i, j, w, G, q, g)
    screens.screen(row, q, g, no_a, no_b)
    candidates[0] = screens.most_promising(row)  # it prunes the rest
    count = 1
    level = screens.from_above(row, found[0] + slack)
    for i in range(n):
        candidates[count] = i
        count += row.bound[i] <= level
    evaluated = RECENT
    oldest = 0
    for x in range(count):
        i = candidates[x]
        part = gain_fraction if found[1] >= 0 else 1.0
        if row.bound[i] > screens.from_above(row, found[0] / part + slack) or (x > 0 and i == candidates[0]):
            continue
        evaluated += n
        left = q[i] - 2 * g[i] - slack  # of the change, by i alone
        if screens.may_reach(row, lines[i], i, screens.from_above(row, found[0] - left)):
            found = _better(found, i, screens.best_partner(row, lines[i], i), w, G, q, g)
            level = screens.from_above(row, found[0] - left)
            if screens.count_upto(row.values, level) > 1:
                for j in range(n):
                    if row.values[j] <= level:
                        found = _better(found, i, j, w, G, q, g)
        if found[1] == i:
            recent[oldest % RECENT, PRUNED], recent[oldest % RECENT, KEPT] = i, found[2]
            oldest += 1
    return found[0], found[1], found[2], evaluated


@njit
def _better(found, i, j, w, G, q, g):
    """``found`` (change, pruned, kept index), or the exchange of ``i`` and ``j`` if that is better."""
    best, best_i, best_j = found
    change = q[i] - 2 * g[i] + (q[j] + 2 * g[j] - 2 * w[i] * w[j] * G[i, j])
    if change < best or (change == best and best_i >= 0 and (i < best_i or (i == best_i and j < best_j))):
        return change, i, j
    return found
