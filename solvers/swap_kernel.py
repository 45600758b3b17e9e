"""The numba kernel of ``swap``: exact best 1-swaps, looked for only where a bound lets them win.

With ``c_i = |w_i|`` times the largest ``|G_ij| / sqrt(G_jj)`` outside the few partners that ``i`` correlates with
most, and the Wanda score ``s_j = |w_j| sqrt(G_jj)``, every other kept ``j`` has ``Q_ij ≤ c_i s_j``. So a pruned ``i``
gains at best ``a_i + φ(c_i)`` with ``φ(c) = min_j b_j - 2c s_j``, which is concave: chords between a few values of
``c`` lie below it. The partners are tried one by one, everything else is scanned only if this bound beats the best
exchange so far. The result is the exhaustive search's, ties included (lowest pruned index, then lowest kept index).
With ``enough`` below 1, a line is scanned only if it may gain ``1/enough`` times as much as the best exchange so far.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numba
import numpy as np

from fwbench.solvers import swap_bounds as bounding
from fwbench.solvers.jit import njit
from fwbench.solvers.threads import numba_threads

# A gain below this part of the row's error is rounding, not improvement: float64 products of length n
RELATIVE_GAIN = 1e-11
ABSOLUTE_GAIN = 1e-15  # the same in units of the largest entry of Q: of a row without error every gain is rounding
PARTNERS = 16  # of each weight, tried one by one; more pays only where whole heads correlate
RECENT = 8  # pairs remembered from one search to the next
BLOCK_ROWS, BLOCK_COLUMNS = 8, 512  # of the first products: what the nearest cache holds
CHUNK_ROWS = 64  # rows between two looks at the clock
SMALL_ROW = 32  # up to this size all pairs of a row are tried, as they are of groups within a row


class Rows:
    """Rows of a layer under descent; holds what is shared by all calls.

    Args:
        W: float32 ``(rows, n)``.
        G: float64 ``(n, n)``.
        group: neighbours within which a row's weights may be exchanged; ``n`` for the whole row.
        threads: numba threads; the result does not depend on them.
        enough: part of the largest gain, in (0, 1], with which an exchange is taken; 1 for the best. Groups within a
            row, and rows of up to ``SMALL_ROW`` weights, are searched whole: there it is always the best.
    """

    def __init__(self, W: np.ndarray, G: np.ndarray, group: int, threads: int, enough: float = 1.0) -> None:
        self.W = W.astype(np.float64)
        self.G = np.ascontiguousarray(G)
        self.group = group
        self.threads = threads
        self.enough = enough

    @cached_property
    def partners(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What ``_partners`` finds, when a descent first asks."""
        return _partners(self.G, PARTNERS)

    def descend(self, pruned: np.ndarray, rows: slice, limit: int) -> tuple[int, int]:
        """Best 1-swaps in each row of ``pruned (rows, n)``, in place; numbers of swaps and of pairs evaluated."""
        shared = (self.group, *self.partners, self.enough)
        with numba_threads(self.threads):
            return _descend_rows(self.W[rows], self.G, pruned[rows], *shared, limit)

    def descend_all(self, pruned: np.ndarray, limit: int, expired: Callable[[], bool]) -> tuple[int, int, str]:
        """``descend`` on all rows, some after the other while there is time; ``"deadline"`` if there was too little."""
        swaps = looked = 0
        for first in range(0, len(pruned), CHUNK_ROWS):
            if expired():
                return swaps, looked, "deadline"
            done, seen = self.descend(pruned, slice(first, first + CHUNK_ROWS), limit)
            swaps, looked = swaps + done, looked + seen
        return swaps, looked, ""

    def exchange(self, pruned: np.ndarray, limit: int, expired: Callable[[], bool]) -> tuple[int, int, str]:
        """Swaps between rows as well, until none is left: for a count over the whole layer, in place.

        Rows do not interact, so the best exchange between two rows is the smallest ``a`` of one with the smallest
        ``b`` of another; after each, both rows descend again.
        """
        u = pruned.astype(np.float64)
        products = self.W * ((self.W * u) @ self.G)
        diagonal = self.W**2 * self.G.diagonal()
        best_a, at_a, best_b, at_b = (np.empty(len(pruned), dtype) for dtype in (float, int, float, int))
        errors = (products * u).sum(axis=1)

        def refresh(row: int) -> None:
            if row >= 0:
                u[row] = pruned[row]
                products[row] = self.W[row] * ((self.W[row] * u[row]) @ self.G)
                errors[row] = products[row] @ u[row]
            a = np.where(pruned[row], diagonal[row] - 2 * products[row], np.inf)
            b = np.where(pruned[row], np.inf, diagonal[row] + 2 * products[row])
            at_a[row], at_b[row] = a.argmin(), b.argmin()
            best_a[row], best_b[row] = a[at_a[row]], b[at_b[row]]

        for row in range(len(pruned)):
            refresh(row)
        swaps = looked = 0
        while swaps < limit:
            if expired():
                return swaps, looked, "deadline"
            frees, takes = _best_two_rows(best_a, best_b)
            looked += len(pruned)
            if (
                frees < 0
                or not best_a[frees] + best_b[takes]
                < -RELATIVE_GAIN * max(errors.sum(), 0.0) - ABSOLUTE_GAIN * diagonal.max()
            ):
                break
            pruned[frees, at_a[frees]], pruned[takes, at_b[takes]] = False, True
            swaps += 1
            for row in (frees, takes):
                done, seen = self.descend(pruned, slice(row, row + 1), limit)
                swaps, looked = swaps + done, looked + seen
                refresh(row)
        return swaps, looked, ""


def _best_two_rows(best_a: np.ndarray, best_b: np.ndarray) -> tuple[int, int]:
    """Different rows with the least ``a`` of one plus ``b`` of the other; (-1, -1) if there is one row only."""
    if len(best_a) < 2:
        return -1, -1
    a, b = np.argsort(best_a, kind="stable")[:2], np.argsort(best_b, kind="stable")[:2]
    pairs = [(best_a[i] + best_b[j], int(i), int(j)) for i in a for j in b if i != j]
    return min(pairs)[1:]


@njit
def _partners(G, count):  # type: ignore[no-untyped-def]
    """Of each weight: the ``count`` others with the largest ``|G_ij| / sqrt(G_jj)``, the largest, that of the rest."""
    n = G.shape[0]
    count = min(count, n - 1)
    inverse = np.zeros(n)
    for j in range(n):
        if G[j, j] > 0:
            inverse[j] = 1 / np.sqrt(G[j, j])
    partners = np.empty((n, count), np.int64)
    strongest, rest = np.zeros(n), np.zeros(n)
    top = np.empty(count + 1)  # the largest so far, largest first; the last is that of the rest
    at = np.empty(count + 1, np.int64)
    for i in range(n):
        top[:] = -1.0
        line = G[i]
        for j in range(n):
            strength = abs(line[j]) * inverse[j]
            if strength <= top[count] or j == i:
                continue
            k = count
            while k > 0 and top[k - 1] < strength:
                top[k], at[k] = top[k - 1], at[k - 1]
                k -= 1
            top[k], at[k] = strength, j
        partners[i] = at[:count]
        strongest[i], rest[i] = max(top[0], 0.0), max(top[count], 0.0)
    return partners, strongest, rest


@njit(parallel=True)
def _descend_rows(W, G, pruned, group, partners, strongest, rest, enough, limit):  # type: ignore[no-untyped-def]
    rows = W.shape[0]
    swaps = np.zeros(rows, np.int64)
    looked = np.zeros(rows, np.int64)
    g = _products(W, G, pruned)
    for r in numba.prange(rows):
        swaps[r], looked[r] = _descend(W[r], G, g[r], pruned[r], group, partners, strongest, rest, enough, limit)
    return swaps.sum(), looked.sum()


@njit
def _descend(w, G, g, pruned, group, partners, strongest, rest, enough, limit):  # type: ignore[no-untyped-def]
    n = w.size
    q = np.empty(n)  # diagonal of Q
    error = 0.0
    for j in range(n):
        q[j] = w[j] * w[j] * G[j, j]
        if pruned[j]:
            error += g[j]
    error = max(error, 0.0)
    a = np.empty(n)  # change when i is kept again, infinite if it is kept
    b = np.empty(n)  # change when j is pruned, infinite if it is pruned
    no_a = np.where(pruned, 0.0, np.inf)  # added instead of chosen: branches on a mask are mispredicted
    no_b = np.where(pruned, np.inf, 0.0)
    largest = q.max()
    score = np.sqrt(q)
    near = np.abs(w) * strongest
    far = np.abs(w) * rest
    recent = np.full((RECENT, 2), -1)  # pairs that were the best for a while: likely to be so again
    by_pairs = group < n or n <= SMALL_ROW
    swaps = 0
    looked = 0
    while swaps < limit:
        _changes(q, g, no_a, no_b, a, b)
        least = -RELATIVE_GAIN * error - ABSOLUTE_GAIN * largest
        if by_pairs:
            best, i, j, seen = _best_in_groups(w, G, a, b, group, least)
        else:
            slack = 1e-12 * error + 1e-14 * largest  # what rounding may hide
            best, i, j, seen = _best_in_row(w, G, a, b, no_a, score, near, far, partners, recent, least, slack, enough)
        looked += seen
        if i < 0:
            break
        pruned[i], pruned[j] = False, True
        no_a[i], no_b[i], no_a[j], no_b[j] = np.inf, 0.0, 0.0, np.inf
        _exchange(w, g, w[j], G[j], w[i], G[i])
        error = max(error + best, 0.0)  # below 0 by rounding, it would let exchanges that gain nothing go on for ever
        swaps += 1
    return swaps, looked


@njit
def _changes(q, g, no_a, no_b, a, b):  # type: ignore[no-untyped-def]
    for t in range(q.size):
        a[t] = q[t] - 2 * g[t] + no_a[t]
        b[t] = q[t] + 2 * g[t] + no_b[t]


@njit(parallel=True)
def _products(W, G, pruned):  # type: ignore[no-untyped-def]
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
def _add(g, x, line):  # type: ignore[no-untyped-def]
    for t in range(g.size):
        g[t] += x * line[t]


@njit(fastmath={"contract"})
def _exchange(w, g, w_in, line_in, w_out, line_out):  # type: ignore[no-untyped-def]
    for t in range(w.size):
        g[t] += w[t] * (w_in * line_in[t] - w_out * line_out[t])


@njit
def _best_in_groups(w, G, a, b, group, best):  # type: ignore[no-untyped-def]
    """Best exchange within a group that beats ``best``: (change, pruned index, kept index, pairs tried)."""
    best_i = -1
    best_j = -1
    looked = 0
    for i in range(w.size):
        if a[i] == np.inf:
            continue
        start = (i // group) * group
        for j in range(start, min(start + group, w.size)):
            if b[j] < np.inf:
                looked += 1
                change = a[i] + (b[j] - 2 * w[i] * w[j] * G[i, j])
                if change < best:
                    best, best_i, best_j = change, i, j
    return best, best_i, best_j, looked


@njit
def _best_in_row(w, G, a, b, no_a, score, near, far, partners, recent, best, slack, enough):  # type: ignore[no-untyped-def]
    """Best exchange in the row that beats ``best``, or ``enough`` of it: (change, pruned, kept index, pairs tried)."""
    n = w.size
    values = np.empty(n)  # scratch
    bounding.masked(near, no_a, values)
    lines = bounding.chords(b, score, bounding.largest(values), values)
    best_i = -1
    best_j = -1
    for k in range(RECENT):
        i, j = recent[k]
        if i >= 0:
            change = a[i] + (b[j] - 2 * w[i] * w[j] * G[i, j])
            if change < best or (change == best and _before(i, j, best_i, best_j)):
                best, best_i, best_j = change, i, j
    looked = RECENT
    bound = np.empty(n)
    bounding.bounds(a, near, lines, bound)
    hopeful = np.empty(n, np.int64)
    count = 0
    first = 0
    for i in range(n):
        if bound[i] <= best + slack:
            hopeful[count] = i
            if a[i] < a[hopeful[first]]:
                first = count
            count += 1
    if count == 0:
        return best, best_i, best_j, looked
    # the weight that would gain most by itself comes first: it prunes the rest
    hopeful[first], hopeful[0] = hopeful[0], hopeful[first]
    oldest = 0
    for x in range(count):
        i = hopeful[x]
        if bound[i] > (best / enough if best_i >= 0 else best) + slack:
            continue
        for k in range(partners.shape[1]):
            j = partners[i, k]
            looked += 1
            change = a[i] + (b[j] - 2 * w[i] * w[j] * G[i, j])
            if change < best or (change == best and _before(i, j, best_i, best_j)):
                best, best_i, best_j = change, i, j
        if a[i] + bounding.chord(lines, far[i]) <= (best / enough if best_i >= 0 else best) + slack:
            looked += n
            if bounding.any_reaches(w, G[i], b, 2 * w[i], best - a[i] + slack):
                level = bounding.gains(w, G[i], b, 2 * w[i], values) + slack
                for j in range(n):
                    if values[j] <= level:
                        change = a[i] + (b[j] - 2 * w[i] * w[j] * G[i, j])
                        if change < best or (change == best and _before(i, j, best_i, best_j)):
                            best, best_i, best_j = change, i, j
        if best_i == i:
            recent[oldest % RECENT, 0], recent[oldest % RECENT, 1] = i, best_j
            oldest += 1
    return best, best_i, best_j, looked


@njit
def _before(i, j, best_i, best_j):  # type: ignore[no-untyped-def]
    return best_i >= 0 and (i < best_i or (i == best_i and j < best_j))
