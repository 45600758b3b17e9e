"""The numba kernel of ``anneal``: Metropolis swaps of many rows, each resumable after any number of sweeps.

Per row it holds ``y = G (w∘u) + t``, ``t`` the target's or 0. With it the exchange of pruned ``i`` and kept ``j``
changes the error by ``Q_ii + Q_jj + 2 w_j (y_j - w_i G_ij) - 2 w_i y_i``: one entry of ``G`` a proposal, two of its
lines once accepted.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from fwbench.solvers.numerics.jit import njit

# -ln of a uniform number, tabulated: a logarithm for each proposal would cost as much as all else
TABLE = -np.log((np.arange(4096) + 0.5) / 4096)
FAST = {"contract", "nsz"}
FIRST, PRUNED, KEPT = range(3)  # of a group's slots: where they begin, and the numbers of either side


class AnnealState(NamedTuple):
    """State of a walk of some rows; every array but ``G`` and its diagonal has a row for each."""

    W: np.ndarray  # float64 (rows, n)
    G: np.ndarray  # float64 (n, n)
    now: np.ndarray  # bool (rows, n), True = pruned
    best: np.ndarray  # bool (rows, n), the best of the cold half
    y: np.ndarray  # float64 (rows, n), with the target's ``T``
    slots: np.ndarray  # uint64 (rows, n): indices by group, in each the pruned first
    groups: np.ndarray  # uint64 (rows, groups, 3): FIRST, PRUNED and KEPT of the groups where something can move
    movable: np.ndarray  # int64 (rows,), number of such groups
    error: np.ndarray  # float64 (rows,), of ``now``
    least: np.ndarray  # float64 (rows,), of the best mask
    unit: np.ndarray  # float64 (rows,), of temperatures
    behind: np.ndarray  # bool (rows,), whether the best mask is ``now``, and ``best`` not yet
    random: np.ndarray  # uint64 (rows,)
    diagonal: np.ndarray  # float64 (n,), of G

    @classmethod
    def begin(
        cls,
        W: np.ndarray,
        G: np.ndarray,
        pruned: np.ndarray,
        free: np.ndarray,
        group: int,
        random: np.ndarray,
        T: np.ndarray | None = None,
        offset: np.ndarray | None = None,
    ) -> AnnealState:
        """Start from masks ``pruned``; only weights marked ``free (rows, n)`` take part, within groups of neighbours.

        ``random (rows,)``, of :func:`keys`, fixes all random choices. ``T`` and ``offset`` are the rows' of a problem
        that has a target; the unit of temperatures leaves both out.
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
            np.zeros(rows),
            np.zeros(rows),
            np.zeros(rows),
            np.zeros(rows, bool),
            random.copy(),
            G.diagonal().copy(),
        )
        _begin(walk, free, group)
        np.divide(walk.error, n, out=walk.unit)
        if T is not None:
            add_target(W, T, offset, pruned, walk.y, walk.error)
        return walk

    def cool(self, hot: float, cold: float, first: int, stop: int, total: int) -> int:
        """Sweeps ``first:stop`` of ``total``, from ``hot`` to ``cold`` times a row's error / n; the swaps accepted."""
        return _cool(self, TABLE, hot, cold, first, stop, total)


def add_target(
    W: np.ndarray, T: np.ndarray, offset: np.ndarray | None, pruned: np.ndarray, y: np.ndarray, error: np.ndarray
) -> None:
    """Add a target to ``y = G (w∘u) (rows, n)`` and ``error = uᵀQu (rows,)``, in place.

    ``w∘t`` is half of the linear term: with ``y + t`` for ``y`` every change of the error has its part of it.
    """
    error += 2 * (W * pruned * T).sum(axis=1) + offset
    y += T


def errors(
    W: np.ndarray, G: np.ndarray, pruned: np.ndarray, T: np.ndarray | None = None, offset: np.ndarray | None = None
) -> np.ndarray:
    """Error of each row, the same to the last bit whatever the other rows and the threads."""
    out = np.empty(len(W))
    _errors(W, G, pruned, out)
    if T is not None:
        add_target(W, T, offset, pruned, np.zeros_like(W), out)
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
def _errors(W, G, pruned, out):
    for r in numba.prange(W.shape[0]):
        y = np.zeros(W.shape[1])
        out[r] = _products(W[r], G, pruned[r], y)


@njit
def _products(w, G, pruned, y):
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
def _axpy(y, a, x):
    for t in range(y.size):
        y[t] += a * x[t]


@njit(fastmath=FAST)
def _axpy_two(y, a, x, b, z):
    for t in range(y.size):
        y[t] += a * x[t] - b * z[t]


@njit(parallel=True)
def _begin(walk, free, group):
    for r in numba.prange(walk.W.shape[0]):
        _begin_row(walk, r, free[r], group)  # what a parallel loop itself writes to a tuple's arrays numba (0.68) loses


@njit
def _begin_row(walk, r, free, group):
    now, slots, groups = walk.now[r], walk.slots[r], walk.groups[r]
    walk.error[r] = _products(walk.W[r], walk.G, now, walk.y[r])
    walk.least[r] = np.inf
    used = movable = 0
    for start in range(0, now.size, group):
        first = used
        for side in (True, False):
            for i in range(start, start + group):
                if free[i] and now[i] == side:
                    slots[used] = i
                    used += 1
            if side:
                pruned = used - first
        kept = used - first - pruned
        if pruned == 0 or kept == 0:
            used = first
            continue
        groups[movable, FIRST], groups[movable, PRUNED], groups[movable, KEPT] = first, pruned, kept
        movable += 1
    walk.movable[r] = movable


@njit(parallel=True)
def _cool(walk, table, hot, cold, first, stop, total):
    accepted = np.zeros(walk.W.shape[0], np.int64)
    for r in numba.prange(walk.W.shape[0]):
        if walk.movable[r] > 0:
            accepted[r] = _cool_row(walk, r, table, hot, cold, first, stop, total)
    return accepted.sum()


@njit(fastmath=FAST)
def _cool_row(walk, r, table, hot, cold, first, stop, total):
    """Sweeps of one row, each as many proposals as weights at one temperature; the swaps accepted."""
    w, G, now, best, y = walk.W[r], walk.G, walk.now[r], walk.best[r], walk.y[r]
    slots, groups, count, diagonal = walk.slots[r], walk.groups[r], walk.movable[r], walk.diagonal
    x, error, least, behind = walk.random[r], walk.error[r], walk.least[r], walk.behind[r]
    unit, swaps = walk.unit[r], 0
    several = np.uint64(count)
    mask = np.uint64(0x3FFFF)
    for sweep in range(first, stop):
        heat = unit * hot * (cold / hot) ** (sweep / total)
        watch = 2 * sweep >= total
        if watch and error < least:
            least = error
            behind = True
        start, pruned, kept = groups[0, FIRST], groups[0, PRUNED], groups[0, KEPT]
        for _ in range(w.size):
            x ^= x << np.uint64(13)  # xorshift64 (Marsaglia 2003)
            x ^= x >> np.uint64(7)
            x ^= x << np.uint64(17)
            # 12 bits for the threshold, 16 for the group, 18 for each of the two weights
            if count > 1:
                g = ((x >> np.uint64(48)) * several) >> np.uint64(16)
                start, pruned, kept = groups[g, FIRST], groups[g, PRUNED], groups[g, KEPT]
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
    if stop == total and behind:
        best[:] = now
        behind = False
    walk.random[r], walk.error[r], walk.least[r], walk.behind[r] = x, error, least, behind
    return swaps
