"""The numba kernel of ``tabu``: best non-tabu swaps of many rows, each resumable after any number of iterations.

Per row it holds ``y = G (w∘u) + t``, ``t`` the target's or 0, and the change of the error when one weight changes side
by itself. In patterns that count a whole row, the weights within a margin of the best of each side are candidates, and
all their pairs are evaluated; the margin follows the wanted number of candidates, so nothing is sorted. Within the
small groups of N:M all pairs are evaluated.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from fwbench.solvers.local_search.anneal_numba import add_target
from fwbench.solvers.local_search.swap_numba import RELATIVE_GAIN
from fwbench.solvers.numerics.extremes import smallest
from fwbench.solvers.numerics.jit import njit

FAST = {"contract", "nnan", "nsz"}


class TabuState(NamedTuple):
    """State of the search in some rows; every array but ``G`` has a row for each."""

    W: np.ndarray  # float64 (rows, n)
    G: np.ndarray  # float64 (n, n)
    now: np.ndarray  # bool (rows, n), True = pruned
    best: np.ndarray  # bool (rows, n)
    y: np.ndarray  # float64 (rows, n), with the target's ``T``
    barred: np.ndarray  # int64 (rows, n), last iteration in which the weight is tabu
    error: np.ndarray  # float64 (rows,), of ``now``
    least: np.ndarray  # float64 (rows,), of ``best``
    margin_in: np.ndarray  # float64 (rows,), of the candidates that may come in: those pruned
    margin_out: np.ndarray  # float64 (rows,), of those that may be pruned
    random: np.ndarray  # uint64 (rows,)
    group: int

    @classmethod
    def begin(
        cls,
        W: np.ndarray,
        G: np.ndarray,
        pruned: np.ndarray,
        group: int,
        random: np.ndarray,
        T: np.ndarray | None = None,
        offset: np.ndarray | None = None,
    ) -> TabuState:
        """Start from masks ``pruned (rows, n)``, swapping within groups of neighbours; ``random (rows,)`` seeds.

        ``T`` and ``offset`` are the rows' of a problem that has a target.
        """
        rows, n = W.shape
        y, barred = np.zeros((rows, n)), np.full((rows, n), -1)
        error, least, margin_in, margin_out = np.zeros((4, rows))
        now, best = pruned.copy(), pruned.copy()
        state = cls(W, G, now, best, y, barred, error, least, margin_in, margin_out, random.copy(), group)
        _begin(state)
        if T is not None:
            add_target(W, T, offset, pruned, y, error)
            least[:] = error
        return state

    def walk(self, first: int, stop: int, candidates: int, tenure: int, spread: int) -> tuple[int, int]:
        """Iterations ``first:stop``; numbers of swaps and of pairs evaluated."""
        return _walk(self, first, stop, candidates, tenure, spread)


@njit(parallel=True)
def _begin(state):
    for r in numba.prange(state.W.shape[0]):
        _begin_row(state, r)  # what a parallel loop itself writes to a tuple's arrays numba (0.68) loses


@njit
def _begin_row(state, r):
    w, G, y, now, error = state.W[r], state.G, state.y[r], state.now[r], 0.0
    for i in range(w.size):
        if now[i]:
            for t in range(w.size):
                y[t] += w[i] * G[i, t]
    for i in range(w.size):
        if now[i]:
            error += w[i] * y[i]
    state.error[r] = state.least[r] = error
    state.margin_in[r] = state.margin_out[r] = 1e-3 * error / w.size


@njit(parallel=True)
def _walk(state, first, stop, candidates, tenure, spread):
    rows = state.W.shape[0]
    swaps = np.zeros(rows, np.int64)
    evaluated = np.zeros(rows, np.int64)
    for r in numba.prange(rows):
        swaps[r], evaluated[r] = _walk_row(state, r, first, stop, candidates, tenure, spread)
    return swaps.sum(), evaluated.sum()


@njit
def _walk_row(state, r, first, stop, candidates, tenure, spread):
    w, G, now, best = state.W[r], state.G, state.now[r], state.best[r]
    y, barred, random, group = state.y[r], state.barred[r], state.random[r : r + 1], state.group
    n = w.size
    own = np.empty(n)  # diagonal of Q
    sign = np.empty(n)  # w where pruned, -w where kept
    change = np.empty(n)  # of the error, when this weight alone changes side
    shut = np.empty((2, n))  # 0 where a weight of this side (0 kept, 1 pruned) is free to move, else infinite
    tabu = np.empty(n, np.int64)
    listed = 0
    for t in range(n):
        own[t] = w[t] * w[t] * G[t, t]
        sign[t] = w[t] if now[t] else -w[t]
        change[t] = own[t] - 2 * sign[t] * y[t]
        shut[:, t] = np.inf
        if barred[t] >= first:
            tabu[listed] = t
            listed += 1
        else:
            shut[1 if now[t] else 0, t] = 0.0
    ins = np.empty(n + 1, np.int64)
    outs = np.empty(n + 1, np.int64)
    values = np.empty(n)
    error, least, margin_in, margin_out = state.error[r], state.least[r], state.margin_in[r], state.margin_out[r]
    swaps = 0
    evaluated = 0
    for iteration in range(first, stop):
        still = 0
        for k in range(listed):
            t = tabu[k]
            if barred[t] >= iteration:
                tabu[still] = t
                still += 1
            else:
                shut[1 if now[t] else 0, t] = 0.0
        listed = still
        aspired = least - error - RELATIVE_GAIN * abs(least)
        if group == n:
            low_in = _least_sum(change, shut[1], values) + margin_in
            low_out = _least_sum(change, shut[0], values) + margin_out
            count_in = 0
            count_out = 0
            for t in range(n):
                ins[count_in] = outs[count_out] = t
                count_in += now[t] & (change[t] <= low_in)
                count_out += (not now[t]) & (change[t] <= low_out)
            margin_in *= _correction(count_in, candidates)
            margin_out *= _correction(count_out, candidates)
            top, best_i, best_j = _best_pair(
                G, sign, change, barred, iteration, ins[:count_in], outs[:count_out], aspired
            )
            evaluated += count_in * count_out
        else:
            top, best_i, best_j = np.inf, -1, -1
            for start in range(0, n, group):
                count_in = 0
                count_out = 0
                for t in range(start, start + group):
                    if now[t]:
                        ins[count_in] = t
                        count_in += 1
                    else:
                        outs[count_out] = t
                        count_out += 1
                value, i, j = _best_pair(G, sign, change, barred, iteration, ins[:count_in], outs[:count_out], aspired)
                evaluated += count_in * count_out
                if value < top:
                    top, best_i, best_j = value, i, j
        if best_i < 0:  # all are tabu, or there is nothing to swap
            continue
        now[best_i] = False
        now[best_j] = True
        sign[best_i] = -w[best_i]
        sign[best_j] = w[best_j]
        _update(y, change, own, sign, G[best_i], G[best_j], w[best_i], w[best_j])
        error += top
        swaps += 1
        for t in (best_i, best_j):
            if barred[t] < iteration:
                tabu[listed] = t
                listed += 1
            x = random[0]
            x ^= x << np.uint64(13)  # xorshift64 (Marsaglia 2003)
            x ^= x >> np.uint64(7)
            x ^= x << np.uint64(17)
            random[0] = x
            barred[t] = iteration + tenure + np.int64(((x >> np.uint64(32)) * np.uint64(spread + 1)) >> np.uint64(32))
            shut[:, t] = np.inf
        if error < least - RELATIVE_GAIN * abs(least):
            least = error
            best[:] = now
    state.error[r], state.least[r], state.margin_in[r], state.margin_out[r] = error, least, margin_in, margin_out
    return swaps, evaluated


@njit
def _best_pair(G, sign, change, barred, iteration, ins, outs, aspired):
    """Least change over pairs: neither weight tabu, or the result a new best (aspiration)."""
    top, best_i, best_j = np.inf, -1, -1
    for i in ins:
        held = barred[i] >= iteration
        for j in outs:
            value = change[i] + change[j] + 2 * sign[i] * sign[j] * G[i, j]
            if value < top and (value < aspired or not (held or barred[j] >= iteration)):
                top, best_i, best_j = value, i, j
    return top, best_i, best_j


@njit
def _correction(count, wanted):
    if count > 2 * wanted:
        return 0.8
    return 1.25 if count < wanted else 1.0


@njit
def _least_sum(x, z, values):
    for t in range(x.size):
        values[t] = x[t] + z[t]
    return smallest(values)


@njit(fastmath=FAST)
def _update(y, change, own, sign, line_in, line_out, w_in, w_out):
    for t in range(y.size):
        y[t] += w_out * line_out[t] - w_in * line_in[t]
        change[t] = own[t] - 2 * sign[t] * y[t]
