"""The numba kernel of ``swap``: exact best 1-swaps, looked for only where a bound lets them win.

With ``c_i = |w_i|`` times the largest ``|G_ij| / sqrt(G_jj)`` outside the few partners that ``i`` correlates with
most, and the Wanda score ``s_j = |w_j| sqrt(G_jj)``, every other kept ``j`` has ``Q_ij ≤ c_i s_j``. So a pruned ``i``
gains at best ``a_i + φ(c_i)`` with ``φ(c) = min_j b_j - 2c s_j``, which is concave: chords between a few values of
``c`` lie below it. The partners are tried one by one, everything else is scanned only if this bound beats the best
exchange so far. The result is the exhaustive search's, ties included (lowest pruned index, then lowest kept index).
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from fwbench.solvers.threads import numba_threads

# A gain below this part of the row's error is rounding, not improvement: float64 products of length n
RELATIVE_GAIN = 1e-11
PARTNERS = 16  # of each weight, tried one by one; more pays only where whole heads correlate
KNOTS = 8  # values of c at which φ is computed
SMALL_GROUP = 32  # up to this size all pairs of a group are tried


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
        self.partners, self.strongest, self.rest = _partners(self.G, PARTNERS)
        self.threads = threads

    def descend(self, pruned: np.ndarray, rows: slice, limit: int) -> tuple[int, int]:
        """Best 1-swaps in each row of ``pruned (rows, n)``, in place; numbers of swaps and of pairs evaluated."""
        shared = (self.group, self.partners, self.strongest, self.rest)
        with numba_threads(self.threads):
            return _descend_rows(self.W[rows], self.G, pruned[rows], *shared, limit)

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


def _partners(G: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each weight: the ``count`` others with the largest ``|G_ij| / sqrt(G_jj)``, the largest, that of the rest."""
    n = G.shape[0]
    root = np.sqrt(np.maximum(G.diagonal(), 0.0))
    strength = np.abs(G) / np.where(root > 0, root, np.inf)
    np.fill_diagonal(strength, -1.0)
    count = min(count, n - 1)
    if count < 1:
        return np.empty((n, 0), np.int64), np.zeros(n), np.zeros(n)
    order = np.argpartition(-strength, count - 1, axis=1)
    rest = np.take_along_axis(strength, order[:, count:], axis=1).max(axis=1, initial=0.0)
    return np.ascontiguousarray(order[:, :count]), strength.max(axis=1, initial=0.0), rest


@numba.njit(parallel=True, cache=True)
def _descend_rows(W, G, pruned, group, partners, strongest, rest, limit):  # type: ignore[no-untyped-def]
    rows = W.shape[0]
    swaps = np.zeros(rows, np.int64)
    looked = np.zeros(rows, np.int64)
    for r in numba.prange(rows):
        swaps[r], looked[r] = _descend(W[r], G, pruned[r], group, partners, strongest, rest, limit)
    return swaps.sum(), looked.sum()


@numba.njit(cache=True)
def _descend(w, G, pruned, group, partners, strongest, rest, limit):  # type: ignore[no-untyped-def]
    n = w.size
    q = np.empty(n)  # diagonal of Q
    g = np.zeros(n)  # Qu
    for i in range(n):
        q[i] = w[i] * w[i] * G[i, i]
        if pruned[i]:
            row = G[i]
            for j in range(n):
                g[j] += w[i] * row[j]
    error = 0.0
    for j in range(n):
        g[j] *= w[j]
        if pruned[j]:
            error += g[j]
    a = np.empty(n)  # change when i is kept again, infinite if it is kept
    b = np.empty(n)  # change when j is pruned, infinite if it is pruned
    score = np.sqrt(q)
    near = np.abs(w) * strongest
    far = np.abs(w) * rest
    small = group <= SMALL_GROUP
    swaps = 0
    looked = 0
    while swaps < limit:
        for t in range(n):
            a[t] = q[t] - 2 * g[t] if pruned[t] else np.inf
            b[t] = np.inf if pruned[t] else q[t] + 2 * g[t]
        if small:
            best, i, j, seen = _best_in_groups(w, G, a, b, group, -RELATIVE_GAIN * error)
        else:
            best, i, j, seen = _best_in_row(w, G, a, b, score, near, far, partners, -RELATIVE_GAIN * error)
        looked += seen
        if i < 0:
            break
        pruned[i] = False
        pruned[j] = True
        out, into = G[i], G[j]
        for t in range(n):
            g[t] += w[t] * (w[j] * into[t] - w[i] * out[t])
        error += best
        swaps += 1
    return swaps, looked


@numba.njit(cache=True)
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


@numba.njit(cache=True)
def _best_in_row(w, G, a, b, score, near, far, partners, best):  # type: ignore[no-untyped-def]
    """Best exchange in the row that beats ``best``: (change, pruned index, kept index, pairs tried)."""
    n = w.size
    slack = 1e-12 * abs(best) / RELATIVE_GAIN  # of the row's error: what rounding may hide
    top = 0.0
    first = 0
    for i in range(n):
        if a[i] < a[first]:
            first = i
        if a[i] < np.inf and near[i] > top:
            top = near[i]
    if a[first] == np.inf:
        return best, -1, -1, 0
    low = _knots(b, score, top)
    best_i = -1
    best_j = -1
    looked = 0
    for x in range(-1, n):  # the weight that would gain most by itself first: it prunes the rest
        i = first if x < 0 else x
        if a[i] + _chord(low, near[i], top) > best + slack:
            continue
        for k in range(partners.shape[1]):
            j = partners[i, k]
            looked += 1
            change = a[i] + (b[j] - 2 * w[i] * w[j] * G[i, j])
            if change < best or (change == best and _before(i, j, best_i, best_j)):
                best, best_i, best_j = change, i, j
        if a[i] + _chord(low, far[i], top) > best + slack:
            continue
        looked += n
        if not _any_reaches(w, G, b, i, best - a[i]):
            continue
        for j in range(n):
            change = a[i] + (b[j] - 2 * w[i] * w[j] * G[i, j])
            if change < best or (change == best and _before(i, j, best_i, best_j)):
                best, best_i, best_j = change, i, j
    return best, best_i, best_j, looked


@numba.njit(cache=True)
def _before(i, j, best_i, best_j):  # type: ignore[no-untyped-def]
    return best_i >= 0 and (i < best_i or (i == best_i and j < best_j))


@numba.njit(cache=True)
def _knots(b, score, top):  # type: ignore[no-untyped-def]
    """``φ(c) = min_j b_j - 2c s_j`` at ``KNOTS`` values of ``c`` from 0 to ``top``."""
    low = np.full(KNOTS, np.inf)
    twice = np.empty(KNOTS)
    for k in range(KNOTS):
        twice[k] = 2 * top * k / (KNOTS - 1)
    for j in range(b.size):
        for k in range(KNOTS):
            value = b[j] - twice[k] * score[j]
            low[k] = value if value < low[k] else low[k]
    return low


@numba.njit(cache=True)
def _chord(low, c, top):  # type: ignore[no-untyped-def]
    """A lower bound of ``φ(c)``: the chord between the knots around ``c``."""
    if top == 0.0:
        return low[0]
    place = c / top * (KNOTS - 1)
    k = min(int(place), KNOTS - 2)
    return low[k] + (place - k) * (low[k + 1] - low[k])


@numba.njit(cache=True)
def _any_reaches(w, G, b, i, level):  # type: ignore[no-untyped-def]
    """Whether some ``b_j - 2Q_ij`` is at most ``level`` plus rounding.

    A count, because compilers vectorise a sum of comparisons and not a minimum: 0.16 µs for n = 576, six times faster.
    """
    twice = 2 * w[i]
    level += 1e-12 * abs(level)
    row = G[i]
    count = 0
    for j in range(w.size):
        count += b[j] - twice * w[j] * row[j] <= level
    return count > 0
