"""Tabu search among the most promising blocks of a band, for transposable N:M: ``core_numba``'s with other exchanges.

The ``M`` rows of a band are tied by their blocks' columns, so a mask changes by two rows and two columns of a block at
once (see ``exchange_numba``): with ``d`` what each weight's own change of side does to the error, rows ``r`` and ``s``
and columns ``i`` and ``j`` change it by

    d_ri + d_si + d_rj + d_sj - 2 (w_ri w_rj + w_si w_sj) G_ij

An iteration makes the best of these in the core whose four weights are not tabu, and the core's part of ``G``, which
all rows of a band share, stays in the nearest caches. Inputs are scaled to norm 1.
"""

from __future__ import annotations

import numpy as np

from fwbench.solvers.first_order.core_numba import BARRED, ROUNDING, _add
from fwbench.solvers.numerics.jit import fast


@fast
def search(W, G, u, X, half, core, turns, iterations, tenure, spread, size, random):
    """Tabu search of each band of ``u (rows, n)``, 1 where pruned, which ends at the best mask that it met.

    Args:
        W: float32 ``(rows, n)``.
        G: float32 ``(n, n)``, ones on its diagonal.
        X: ``(W∘u) G``, kept up to date.
        half: half of the linear term, ``(rows, n)``; ``(rows, 0)`` where there is none.
        core: columns searched at a time.
        turns: cores, one after the other.
        iterations: in each.
        tenure, spread: iterations in which a weight that moved is tabu: ``tenure`` and up to ``spread`` more.
        size: ``M``, rows and columns of a block.
        random: uint64 ``(rows,)``, none of them 0; a band uses that of its first row.
    """
    rows, n = W.shape
    blocks = min(max(core // size, 1), n // size)
    change = np.empty((size, n), np.float32)
    places = np.arange(n)
    for first in range(0, rows, size):
        band = slice(first, first + size)
        for _ in range(turns):
            for r in range(size):
                line = half[first + r] if half.size else half[0]
                _alone(W[first + r], u[first + r], X[first + r], line, places, change[r])
            columns = _choose(W[band], G, u[band], change, size, blocks)
            if columns.size == 0:
                break
            part = half[band] if half.size else half
            if not _search_core(
                W[band], G, u[band], X[band], part, columns, size, iterations, tenure, spread, random, first
            ):
                break


@fast
def _alone(w, u, x, half, places, change):
    """What each weight at ``places`` changes by going to the other side alone."""
    one, two = np.float32(1), np.float32(2)
    for k in range(places.size):
        t = places[k]
        g = two * w[t] * x[t]
        if half.size:
            g += two * half[t]
        change[k] = w[t] * w[t] + (-g if u[t] == one else g)


@fast
def _best(w, G, u, change, start, size, least):
    """The best exchange of the block whose columns begin at ``start``, if below ``least``: change, rows, columns."""
    first, second, left, right = -1, -1, -1, -1
    two = np.float32(2)
    for r in range(size - 1):
        for s in range(r + 1, size):
            for i in range(start, start + size - 1):
                if u[r, i] == u[s, i]:
                    continue
                here, wr, ws = change[r, i] + change[s, i], two * w[r, i], two * w[s, i]
                for j in range(i + 1, start + size):
                    if u[r, j] != u[s, i] or u[s, j] != u[r, i]:
                        continue
                    found = here + (change[r, j] + change[s, j]) - (wr * w[r, j] + ws * w[s, j]) * G[i, j]
                    if found < least:
                        least, first, second, left, right = found, r, s, i, j
    return least, first, second, left, right


@fast
def _choose(w, G, u, change, size, blocks):
    """The columns of the blocks whose best exchanges change least, in order; none where no block has one."""
    n = w.shape[1]
    value = np.empty(n // size, np.float32)
    for b in range(value.size):
        value[b] = _best(w, G, u, change, b * size, size, BARRED)[0]
    chosen = np.sort(np.argsort(value)[:blocks])
    columns, count = np.empty(blocks * size, np.int64), 0
    for b in chosen:
        if value[b] < BARRED:
            for t in range(size):
                columns[count] = b * size + t
                count += 1
    return columns[:count]


@fast
def _search_core(w, G, u, x, half, columns, size, iterations, tenure, spread, random, key):
    """Search the blocks at ``columns`` and move ``u`` and ``x`` to the best met; whether that is any better."""
    m, two = columns.size, np.float32(2)
    inner, own, side = np.empty((m, m), np.float32), np.empty((size, m), np.float32), np.empty((size, m), np.float32)
    change, free = np.empty((size, m), np.float32), np.zeros((size, m), np.int32)
    open_to = np.empty((size, m), np.float32)
    for s in range(m):
        line = G[columns[s]]
        for t in range(m):
            inner[s, t] = line[columns[t]]
    error = 0.0
    for r in range(size):
        for t in range(w.shape[1]):
            error += w[r, t] * u[r, t] * x[r, t]
        for s in range(m):
            own[r, s], side[r, s] = w[r, columns[s]], u[r, columns[s]]
        _alone(w[r], u[r], x[r], half[r] if half.size else half[0], columns, change[r])
    open_to[:] = change
    moved = np.empty((iterations, 4), np.int64)
    now = least = 0.0
    made = kept = 0
    for now_at in range(1, iterations + 1):
        found, r, s, i, j = BARRED / two, -1, -1, -1, -1
        for start in range(0, m, size):
            best, a, b, left, right = _best(own, inner, side, open_to, start, size, found)
            if a >= 0:
                found, r, s, i, j = best, a, b, left, right
        if r < 0:
            _reopen(change, free, np.int32(now_at + 1), open_to)
            continue
        now += found
        bits = random[key]
        bits ^= bits << np.uint64(13)  # xorshift64 (Marsaglia 2003)
        bits ^= bits >> np.uint64(7)
        bits ^= bits << np.uint64(17)
        random[key] = bits
        high, low = bits >> np.uint64(40), (bits >> np.uint64(16)) & np.uint64(0xFFFFFF)
        for row, drawn in ((r, high), (s, low)):
            _turn(own[row], inner, side[row], change[row], i, j)
            until = now_at + 1 + tenure + np.int64((drawn * np.uint64(spread + 1)) >> np.uint64(24))
            free[row, i] = free[row, j] = until
        moved[made, 0], moved[made, 1], moved[made, 2], moved[made, 3] = r, s, i, j
        made += 1
        if now < least - ROUNDING * error:
            least, kept = now, made
        _reopen(change, free, np.int32(now_at + 1), open_to)
    for k in range(kept):
        for row in moved[k, :2]:
            for place in moved[k, 2:]:
                t = columns[place]
                u[row, t] = np.float32(1) - u[row, t]
                _add(x[row], w[row, t] if u[row, t] > 0 else -w[row, t], G[t])
    return kept > 0


@fast
def _reopen(change, free, iteration, open_to):
    """What may move at an iteration."""
    for r in range(change.shape[0]):
        for t in range(change.shape[1]):
            open_to[r, t] = change[r, t] if free[r, t] <= iteration else BARRED


@fast
def _turn(w, G, side, change, i, j):
    """Two weights of a row, one of them pruned, change places."""
    one, two = np.float32(1), np.float32(2)
    sign = one if side[i] == one else -one  # the pruned one comes back, its row's products lose its part
    left, right = -sign * two * w[i], sign * two * w[j]
    side[i], side[j] = side[j], side[i]
    change[i], change[j] = -change[i], -change[j]
    change[i] += two * w[i] * w[i]
    change[j] += two * w[j] * w[j]
    for t in range(w.size):
        g = w[t] * (left * G[i, t] + right * G[j, t])
        change[t] += -g if side[t] == one else g
