"""The numba kernel of ``swap``: exact best 1-swaps, examined only where a bound lets them win.

For a row, ``m_i = max_j |Q_ij|`` bounds every interaction. With ``best`` the best exchange found so far, only pruned
``i`` with ``a_i + min b - 2m_i < best`` and kept ``j`` with ``b_j + min a - 2m_j < best`` can beat it, and of these
pairs only those with ``a_i + b_j - 2 min(m_i, m_j) < best``. The result is the exhaustive search's, ties included
(lowest pruned index, then lowest kept index).
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
    g = np.zeros(n)  # (Qu)
    m = np.zeros(n)
    for i in range(n):
        wi = abs(w[i])
        top = 0.0
        start = (i // group) * group
        for j in range(start, min(start + group, n)):
            if j != i:
                top = max(top, abs(G[i, j] * w[j]))
        m[i] = wi * top
        if pruned[i]:
            for j in range(n):
                g[j] += w[i] * G[i, j]
    error = 0.0
    for j in range(n):
        g[j] *= w[j]
        if pruned[j]:
            error += g[j]
    ins = np.empty(n, np.int64)
    outs = np.empty(n, np.int64)
    swaps = 0
    looked = 0
    while swaps < limit:
        best = -RELATIVE_GAIN * error
        best_i = -1
        best_j = -1
        for start in range(0, n, group):
            found, i, j, seen = _best_pair(w, G, pruned, g, m, start, min(start + group, n), best, ins, outs)
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
def _best_pair(w, G, pruned, g, m, start, stop, best, ins, outs):  # type: ignore[no-untyped-def]
    """Best exchange within ``start:stop`` that beats ``best``: (gain, pruned index, kept index, pairs evaluated)."""
    min_a = np.inf
    min_b = np.inf
    first = -1
    second = -1
    for i in range(start, stop):
        q = w[i] * w[i] * G[i, i]
        if pruned[i]:
            if q - 2 * g[i] < min_a:
                min_a = q - 2 * g[i]
                first = i
        elif q + 2 * g[i] < min_b:
            min_b = q + 2 * g[i]
            second = i
    if first < 0 or second < 0:
        return best, -1, -1, 0
    best_i = -1
    best_j = -1
    looked = 0
    # a good first guess prunes the rest: the best partner of each extreme
    for t in range(start, stop):
        q = w[t] * w[t] * G[t, t]
        if pruned[t]:
            change = q - 2 * g[t] + min_b - 2 * w[t] * w[second] * G[t, second]
            i, j = t, second
        else:
            change = q + 2 * g[t] + min_a - 2 * w[first] * w[t] * G[first, t]
            i, j = first, t
        if change < best or (change == best and best_i >= 0 and (i < best_i or (i == best_i and j < best_j))):
            best, best_i, best_j = change, i, j
    looked += stop - start
    n_in = 0
    n_out = 0
    for t in range(start, stop):
        q = w[t] * w[t] * G[t, t]
        if pruned[t]:
            if q - 2 * g[t] + min_b - 2 * m[t] <= best:
                ins[n_in] = t
                n_in += 1
        elif q + 2 * g[t] + min_a - 2 * m[t] <= best:
            outs[n_out] = t
            n_out += 1
    for x in range(n_in):
        i = ins[x]
        a = w[i] * w[i] * G[i, i] - 2 * g[i]
        for y in range(n_out):
            j = outs[y]
            b = w[j] * w[j] * G[j, j] + 2 * g[j]
            if a + b - 2 * min(m[i], m[j]) <= best:
                looked += 1
                change = a + b - 2 * w[i] * w[j] * G[i, j]
                if change < best or (
                    change == best and best_i >= 0 and (i < best_i or (i == best_i and j < best_j))
                ):
                    best, best_i, best_j = change, i, j
    return best, best_i, best_j, looked
