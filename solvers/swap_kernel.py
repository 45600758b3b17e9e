"""The numba kernel of ``swap``: exact best 1-swaps, examined only where a bound lets them win.

For a row, ``m_i = 2 max_j Q_ij`` bounds every interaction. With ``best`` the best exchange found so far, only pruned
``i`` with ``a_i + min b - m_i ≤ best`` and kept ``j`` with ``b_j + min a - m_j ≤ best`` can beat it. The candidates of
the smaller side are then scanned, each against the whole row in one vectorised pass. The result is the exhaustive
search's, ties included (lowest pruned index, then lowest kept index).
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

# A gain below this part of the row's error is rounding, not improvement: float64 products of length n
RELATIVE_GAIN = 1e-11


class Rows:
    """Rows of a layer under descent; holds what is shared by all calls.

    Args:
        W: float32 ``(rows, n)``.
        G: float64 ``(n, n)``.
        group: neighbours within which a row's weights may be exchanged; ``n`` for the whole row.
        threads: numba threads; the result does not depend on them.
    """

    def __init__(self, W: np.ndarray, G: np.ndarray, group: int, threads: int) -> None:
        self.W = W.astype(np.float64)
        self.G = np.ascontiguousarray(G)
        self.group = group
        numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))

    def descend(self, pruned: np.ndarray, rows: slice, limit: int) -> tuple[int, int]:
        """Best 1-swaps in each row of ``pruned (rows, n)``, in place; numbers of swaps and of pairs evaluated."""
        return _descend_rows(self.W[rows], self.G, pruned[rows], self.group, limit)

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
            if frees < 0 or not best_a[frees] + best_b[takes] < -RELATIVE_GAIN * errors.sum():
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


@numba.njit(parallel=True, cache=True)
def _descend_rows(W, G, pruned, group, limit):  # type: ignore[no-untyped-def]
    rows = W.shape[0]
    swaps = np.zeros(rows, np.int64)
    looked = np.zeros(rows, np.int64)
    for r in numba.prange(rows):
        swaps[r], looked[r] = _descend(W[r], G, pruned[r], group, limit)
    return swaps.sum(), looked.sum()


@numba.njit(cache=True)
def _descend(w, G, pruned, group, limit):  # type: ignore[no-untyped-def]
    n = w.size
    q = np.empty(n)  # diagonal of Q
    g = np.zeros(n)  # Qu
    m = np.empty(n)
    for i in range(n):
        q[i] = w[i] * w[i] * G[i, i]
        start = (i // group) * group
        m[i] = _interaction(w, G, i, start, min(start + group, n))
        if pruned[i]:
            for j in range(n):
                g[j] += w[i] * G[i, j]
    error = 0.0
    for j in range(n):
        g[j] *= w[j]
        if pruned[j]:
            error += g[j]
    a = np.empty(n)  # change when i is kept again, infinite if it is kept
    b = np.empty(n)  # change when j is pruned, infinite if it is pruned
    candidates = np.empty(n, np.int64)
    swaps = 0
    looked = 0
    while swaps < limit:
        for t in range(n):
            a[t] = q[t] - 2 * g[t] if pruned[t] else np.inf
            b[t] = np.inf if pruned[t] else q[t] + 2 * g[t]
        best = -RELATIVE_GAIN * error
        best_i = -1
        best_j = -1
        for start in range(0, n, group):
            found, i, j, seen = _best_pair(w, G, a, b, m, start, min(start + group, n), best, candidates)
            looked += seen
            if i >= 0:
                best, best_i, best_j = found, i, j
        if best_i < 0:
            break
        pruned[best_i] = False
        pruned[best_j] = True
        wi = w[best_i]
        wj = w[best_j]
        for t in range(n):
            g[t] += w[t] * (wj * G[best_j, t] - wi * G[best_i, t])
        error += best
        swaps += 1
    return swaps, looked


@numba.njit(cache=True)
def _interaction(w, G, i, start, stop):  # type: ignore[no-untyped-def]
    """``2 max_j Q_ij`` over the other weights of the group, at least 0."""
    weights, gram = w[start:stop], G[i, start:stop]
    own = i - start
    top = 0.0
    for j in range(weights.size):
        value = w[i] * weights[j] * gram[j] if j != own else 0.0
        if value > top:
            top = value
    return 2 * top


@numba.njit(cache=True)
def _best_pair(w, G, a, b, m, start, stop, best, candidates):  # type: ignore[no-untyped-def]
    """Best exchange within ``start:stop`` that beats ``best``: (change, pruned index, kept index, pairs evaluated)."""
    min_a = _least(a, start, stop)
    min_b = _least(b, start, stop)
    if min_a == np.inf or min_b == np.inf:
        return best, -1, -1, 0
    ins = 0
    outs = 0
    for t in range(start, stop):
        ins += a[t] + min_b - m[t] <= best
        outs += b[t] + min_a - m[t] <= best
    # scan the side with fewer candidates against the whole other side
    mine, theirs = (a, b) if ins <= outs else (b, a)
    least = min_b if ins <= outs else min_a
    count = 0
    top = -1
    for t in range(start, stop):
        if mine[t] + least - m[t] <= best:
            candidates[count] = t
            if top < 0 or mine[t] - m[t] < mine[candidates[top]] - m[candidates[top]]:
                top = count
            count += 1
    best_i = -1
    best_j = -1
    looked = 0
    for x in range(-1, count):  # the most promising first: it prunes the rest
        if count == 0 or x == top:
            continue
        t = candidates[top] if x < 0 else candidates[x]
        if mine[t] + least - m[t] > best:
            continue
        looked += stop - start
        if not _any_reaches(w, G, theirs, t, start, stop, best - mine[t]):
            continue
        twice = 2 * w[t]
        for other in range(start, stop):
            change = mine[t] + (theirs[other] - twice * w[other] * G[t, other])
            if change > best or (change == best and best_i < 0):
                continue
            i, j = (t, other) if ins <= outs else (other, t)
            if change < best or i < best_i or (i == best_i and j < best_j):
                best, best_i, best_j = change, i, j
    return best, best_i, best_j, looked


@numba.njit(cache=True)
def _least(x, start, stop):  # type: ignore[no-untyped-def]
    part = x[start:stop]
    low = np.inf
    for t in range(part.size):
        if part[t] < low:
            low = part[t]
    return low


@numba.njit(cache=True)
def _any_reaches(w, G, theirs, t, start, stop, level):  # type: ignore[no-untyped-def]
    """Whether some ``theirs_s - 2Q_ts`` of the group is at most ``level`` plus rounding.

    A count, because compilers vectorise a sum of comparisons and not a minimum; over views from zero, because an index
    that may be negative keeps them from it. 0.16 µs for n = 576, six times faster than the minimum.
    """
    twice = 2 * w[t]
    level += 1e-12 * abs(level)
    other, weights, gram = theirs[start:stop], w[start:stop], G[t, start:stop]
    count = 0
    for s in range(other.size):
        count += other[s] - twice * weights[s] * gram[s] <= level
    return count > 0
