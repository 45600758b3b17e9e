"""The numba kernel of ``anneal``: Metropolis swaps of many rows, each resumable after any number of sweeps.

Per row it holds ``y = G (w∘u)``. With it the exchange of pruned ``i`` and kept ``j`` changes the error by
``Q_ii + Q_jj + 2 w_j (y_j - w_i G_ij) - 2 w_i y_i``: one entry of ``G`` a proposal, two of its lines once accepted. A
proposal costs some 5 ns at n = 576, an accepted one 0.2 µs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from fwbench.solvers.numerics.jit import njit

# -ln of a uniform number, tabulated: a logarithm for each proposal would cost as much as all else
TABLE = -np.log((np.arange(4096) + 0.5) / 4096)
FAST = {"contract", "nsz"}


@dataclass
class Walk:
    """State of a walk of some rows; every array has a row for each."""

    W: np.ndarray  # float64 (rows, n)
    G: np.ndarray  # float64 (n, n)
    now: np.ndarray  # bool (rows, n), True = pruned
    best: np.ndarray  # bool (rows, n), the best of the cold half
    y: np.ndarray  # float64 (rows, n)
    slots: np.ndarray  # uint64 (rows, n): indices by group, in each the pruned first
    groups: np.ndarray  # uint64 (rows, groups, 3): first slot, pruned, kept; of the groups where something can move
    count: np.ndarray  # int64 (rows,), number of such groups
    level: np.ndarray  # float64 (rows, 4): error now, least error, temperature, 1 if ``best`` is behind
    random: np.ndarray  # uint64 (rows,)
    diagonal: np.ndarray  # float64 (n,), of G

    @classmethod
    def begin(
        cls, W: np.ndarray, G: np.ndarray, pruned: np.ndarray, free: np.ndarray, group: int, random: np.ndarray
    ) -> Walk:
        """Start from masks ``pruned``; only weights marked ``free (rows, n)`` take part, within groups of neighbours.

        ``random (rows,)``, of :func:`keys`, fixes all random choices.
        """
        rows, n = W.shape
        walk = cls(
            W,
            G,
            pruned.copy(),
            pruned.copy(),
            np.zeros((rows, n)),
            np.empty((rows, n), np.uint64),
            np.empty((rows, n // group, 3), np.uint64),
            np.zeros(rows, np.int64),
            np.zeros((rows, 4)),
            random.copy(),
            G.diagonal().copy(),
        )
        _begin(W, G, walk.now, free, group, walk.y, walk.slots, walk.groups, walk.count, walk.level)
        return walk

    def cool(self, hot: float, cold: float, first: int, stop: int, total: int) -> int:
        """Sweeps ``first:stop`` of ``total``, from ``hot`` to ``cold`` times a row's error / n; the swaps accepted."""
        return _cool(
            self.W, self.G, self.now, self.best, self.y, self.slots, self.groups, self.count, self.level, self.random,
            self.diagonal, TABLE, hot, cold, first, stop, total,
        )  # fmt: skip


def errors(W: np.ndarray, G: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    """Error of each row, the same to the last bit whatever the other rows and the threads."""
    out = np.empty(len(W))
    _errors(W, G, pruned, out)
    return out


def keys(seed: int, rows: np.ndarray, run: int) -> np.ndarray:
    """A start for the random numbers of each row, never 0."""
    with np.errstate(over="ignore"):
        first = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(run) * np.uint64(0xD1B54A32D192ED03)
        x = first + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x8CB92BA72F3D8DD7)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return (x ^ (x >> np.uint64(31))) | np.uint64(1)


@njit(parallel=True)
def _errors(W, G, pruned, out):  # type: ignore[no-untyped-def]
    for r in numba.prange(W.shape[0]):
        y = np.zeros(W.shape[1])
        out[r] = _products(W[r], G, pruned[r], y)


@njit
def _products(w, G, pruned, y):  # type: ignore[no-untyped-def]
    """Add ``G (w∘u)`` to ``y``; the row's error."""
    for i in range(w.size):
        if pruned[i]:
            _axpy(y, w[i], G[i])
    error = 0.0
    for i in range(w.size):
        if pruned[i]:
            error += w[i] * y[i]
    return error


@njit(fastmath=FAST)
def _axpy(y, a, x):  # type: ignore[no-untyped-def]
    for t in range(y.size):
        y[t] += a * x[t]


@njit(fastmath=FAST)
def _axpy_two(y, a, x, b, z):  # type: ignore[no-untyped-def]
    for t in range(y.size):
        y[t] += a * x[t] - b * z[t]


@njit(parallel=True)
def _begin(W, G, now, free, group, y, slots, groups, count, level):  # type: ignore[no-untyped-def]
    n = W.shape[1]
    for r in numba.prange(W.shape[0]):
        level[r, 0] = _products(W[r], G, now[r], y[r])
        level[r, 1] = np.inf
        used = 0
        for start in range(0, n, group):
            first = used
            for side in (True, False):
                for i in range(start, start + group):
                    if free[r, i] and now[r, i] == side:
                        slots[r, used] = i
                        used += 1
                if side:
                    pruned = used - first
            kept = used - first - pruned
            if pruned == 0 or kept == 0:
                used = first
                continue
            groups[r, count[r], 0] = first
            groups[r, count[r], 1] = pruned
            groups[r, count[r], 2] = kept
            count[r] += 1


@njit(parallel=True)
def _cool(W, G, now, best, y, slots, groups, count, level, random, diagonal, table, hot, cold, first, stop, total):  # type: ignore[no-untyped-def]
    accepted = np.zeros(W.shape[0], np.int64)
    for r in numba.prange(W.shape[0]):
        if count[r] == 0:
            continue
        if first == 0:
            level[r, 2] = level[r, 0] / W.shape[1]
        for sweep in range(first, stop):
            heat = level[r, 2] * hot * (cold / hot) ** (sweep / total)
            random[r], swaps = _sweep(
                W[r], G, now[r], best[r], y[r], slots[r], groups[r], count[r], level[r], random[r], diagonal, table,
                heat, 2 * sweep >= total,
            )  # fmt: skip
            accepted[r] += swaps
        if stop == total and level[r, 3]:
            best[r] = now[r]
            level[r, 3] = 0
    return accepted.sum()


@njit(fastmath=FAST)
def _sweep(w, G, now, best, y, slots, groups, count, level, x, diagonal, table, heat, watch):  # type: ignore[no-untyped-def]
    """As many proposals as weights, at one temperature; the random state and the swaps accepted."""
    error = level[0]
    least = level[1]
    behind = level[3] > 0
    if watch and error < least:
        least = error
        behind = True
    swaps = 0
    several = np.uint64(count)
    mask = np.uint64(0x3FFFF)
    start, pruned, kept = groups[0, 0], groups[0, 1], groups[0, 2]
    for _ in range(w.size):
        x ^= x << np.uint64(13)  # xorshift64 (Marsaglia 2003)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
        # 12 bits for the threshold, 16 for the group, 18 for each of the two weights
        if count > 1:
            g = ((x >> np.uint64(48)) * several) >> np.uint64(16)
            start, pruned, kept = groups[g, 0], groups[g, 1], groups[g, 2]
        a = start + ((((x >> np.uint64(30)) & mask) * pruned) >> np.uint64(18))
        b = start + pruned + ((((x >> np.uint64(12)) & mask) * kept) >> np.uint64(18))
        i = slots[a]
        j = slots[b]
        wi = w[i]
        wj = w[j]
        row = G[i]
        change = wi * (wi * diagonal[i] - 2 * y[i]) + wj * (wj * diagonal[j] + 2 * (y[j] - wi * row[j]))
        if not change <= heat * table[x & np.uint64(4095)]:
            continue
        if behind and change > 0:  # about to leave the best: only now is it worth a copy
            best[:] = now
            behind = False
        slots[a] = j
        slots[b] = i
        now[i] = False
        now[j] = True
        _axpy_two(y, wj, G[j], wi, row)
        error += change
        swaps += 1
        if watch and error < least:
            least = error
            behind = True
    level[0] = error
    level[1] = least
    level[3] = 1.0 if behind else 0.0
    return x, swaps
