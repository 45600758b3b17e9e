"""Tabu search of each row among its most promising weights only, the core: an iteration costs the core's size, not n.

All else stays on its side for a while, so that the row's part of ``Q`` is a small float32 matrix in the nearest caches,
and hundreds of exchanges cost what a few products with ``G`` do. (Restricting a search to what is promising, and then
to what is so next, is the kernel search of Angelelli, Mansini and Speranza 2010.) An iteration exchanges the pruned
weight that gains most by coming back and the kept one that then costs least, neither of them tabu; within groups of a
row, a weight's gain counts together with the cost of its group's cheapest partner.

Inputs are scaled to norm 1. A core's arrays hold the first weights of all its groups, then the second ones, and so on,
so that loops over groups vectorise.
"""

from __future__ import annotations

import numpy as np

from fwbench.solvers.frank_wolfe.oracle import threshold
from fwbench.solvers.numerics.jit import fast

INDEX = 4095  # of the bits of a number those that hold its place while the least is sought: the largest core, less 1
BARRED = np.float32(1e30)  # the change by what may not move
NEVER = np.int32(2**31 - 1)  # the iteration from which on a weight may move that is on the other side
ROUNDING = 1e-6  # relative to a row's error: what float32 may hide


@fast
def search(W, G, u, X, half, core, turns, iterations, tenure, spread, group, random):
    """Tabu search of each row of ``u (rows, n)``, 1 where pruned, which ends at the best mask that it met.

    Args:
        W: float32 ``(rows, n)``.
        G: float32 ``(n, n)``, ones on its diagonal.
        X: ``(W∘u) G``, kept up to date.
        half: half of the linear term, ``(rows, n)``; ``(rows, 0)`` where there is none.
        core: weights searched at a time, some of them kept and some pruned.
        turns: cores, one after the other.
        iterations: in each.
        tenure, spread: iterations in which a weight that moved is tabu: ``tenure`` and up to ``spread`` more.
        group: neighbours within which weights may be exchanged; ``n`` for the whole row.
        random: uint64 ``(rows,)``, none of them 0.
    """
    rows, n = W.shape
    a, b, scratch = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    guess, places = np.full((2, 2), np.nan), np.empty(n, np.int64)
    for r in range(rows):
        guess[:] = np.nan
        for _ in range(turns):
            _sides(W[r], u[r], X[r], half[r], a, b)
            size, width = _choose(a, b, group, core, guess, scratch, places)
            if size == 0:
                break
            chosen = places[:size]
            if not _search_core(W[r], G, u[r], X[r], half[r], chosen, width, iterations, tenure, spread, random, r):
                break


@fast
def _sides(w, u, x, half, a, b):
    """Changes of the error when one weight moves alone: ``a`` of the pruned ones, ``b`` of the kept ones."""
    inf, one, two = np.float32(np.inf), np.float32(1), np.float32(2)
    for t in range(w.size):
        g = two * w[t] * x[t]
        if half.size:
            g += two * half[t]
        q = w[t] * w[t]
        a[t] = q - g if u[t] == one else inf
        b[t] = inf if u[t] == one else q + g


@fast
def _choose(a, b, group, core, guess, scratch, places):
    """Fill ``places`` with the core's; how many, and how many groups they are of (0 of either: nothing to search)."""
    n = a.size
    groups = n // group
    if 2 * group > core or groups == 1:  # within one group
        first = 0
        if groups > 1:
            _of_groups(a, b, group, scratch)
            first = int(np.argmin(scratch[:groups])) * group
        count = _least_of(a[first : first + group], core // 2, guess[0], first, places, 0)
        more = _least_of(b[first : first + group], core // 2, guess[1], first, places, count)
        return (more, 1) if 0 < count < more else (0, 1)
    _of_groups(a, b, group, scratch)
    width = min(core // group, groups)
    chosen = np.empty(groups, np.int64)
    width = _least_of(scratch[:groups], width, guess[0], 0, chosen, 0)
    for place in range(group):
        for k in range(width):
            places[place * width + k] = chosen[k] * group + place
    return width * group, width


@fast
def _of_groups(a, b, group, value):
    """The least ``a`` and the least ``b`` of each group together."""
    for g in range(a.size // group):
        low_a, low_b = a[g * group], b[g * group]
        for t in range(g * group + 1, (g + 1) * group):
            low_a, low_b = min(low_a, a[t]), min(low_b, b[t])
        value[g] = low_a + low_b


@fast
def _least_of(x, most, guess, first, places, at):
    """Append where the ``most`` least finite ``x`` are to ``places[:at]``, in their order; the new length."""
    finite = 0
    for t in range(x.size):
        finite += x[t] < np.inf
    if finite <= most:
        for t in range(x.size):
            if x[t] < np.inf:
                places[at] = first + t
                at += 1
        return at
    level, left = threshold(x, most, guess)
    for t in range(x.size):
        take = x[t] < level or (x[t] == level and left != 0)
        if take:
            left -= x[t] == level
            places[at] = first + t
            at += 1
    return at


@fast
def _search_core(w, G, u, x, half, places, width, iterations, tenure, spread, random, r):
    """Search the core at ``places`` and move ``u`` and ``x`` to the best that it met; whether that is any better."""
    m, two = places.size, np.float32(2)
    Q, q, g = np.empty((m, m), np.float32), np.empty(m, np.float32), np.empty(m, np.float32)
    back, out = np.empty(m, np.int32), np.empty(m, np.int32)  # iterations from which on it may come back, or go out
    own, before = np.empty(m, np.float32), np.empty(m, np.float32)
    for s in range(m):
        own[s], before[s] = w[places[s]], u[places[s]]
    error = 0.0
    for t in range(w.size):
        error += w[t] * u[t] * x[t]
    for s in range(m):
        line, twice = G[places[s]], two * own[s]
        for t in range(m):
            Q[s, t] = twice * own[t] * line[places[t]]
        q[s], g[s] = own[s] * own[s], twice * x[places[s]]
        if half.size:
            g[s] += two * half[places[s]]
        back[s], out[s] = (0, NEVER) if before[s] > 0 else (NEVER, 0)
    moved = np.empty((iterations, 2), np.int64)
    value, cheapest = np.empty(m, np.float32), np.empty(width, np.float32)
    now = least = 0.0
    made = kept = 0
    for now_at in range(1, iterations + 1):
        iteration = np.int32(now_at)
        _come_back(q, g, back, iteration, value)
        if width == 1:
            i = _place_of_least(value)
            change = value[i]
            _go_out(q, g, Q[i], out, iteration, value)
            j = _place_of_least(value)
            change += value[j]
        else:
            _with_partner(q, g, back, out, iteration, cheapest, value)
            i = _place_of_least(value)
            j, change = i, BARRED
            for s in range(i % width, m, width):
                cost = q[i] - g[i] + (q[s] + g[s] - Q[i, s])
                if out[s] <= iteration and back[i] <= iteration and cost < change:
                    j, change = s, cost
        if not change < BARRED / two:
            continue
        _exchange(g, Q[j], Q[i])
        now += change
        bits = random[r]
        bits ^= bits << np.uint64(13)  # xorshift64 (Marsaglia 2003)
        bits ^= bits >> np.uint64(7)
        bits ^= bits << np.uint64(17)
        random[r] = bits
        high, low = bits >> np.uint64(40), (bits >> np.uint64(16)) & np.uint64(0xFFFFFF)
        back[i] = out[j] = NEVER
        out[i] = now_at + 1 + tenure + np.int64((high * np.uint64(spread + 1)) >> np.uint64(24))
        back[j] = now_at + 1 + tenure + np.int64((low * np.uint64(spread + 1)) >> np.uint64(24))
        moved[made, 0], moved[made, 1] = i, j
        made += 1
        if now < least - ROUNDING * error:
            least, kept = now, made
    for k in range(kept):
        i, j = places[moved[k, 0]], places[moved[k, 1]]
        u[i], u[j] = 0, 1
    for s in range(m):
        if u[places[s]] != before[s]:
            _add(x, (u[places[s]] - before[s]) * own[s], G[places[s]])
    return kept > 0


@fast
def _come_back(q, g, back, iteration, value):
    for t in range(value.size):
        change = q[t] - g[t]
        value[t] = change if back[t] <= iteration else BARRED


@fast
def _go_out(q, g, line, out, iteration, value):
    for t in range(value.size):
        change = q[t] + g[t] - line[t]
        value[t] = change if out[t] <= iteration else BARRED


@fast
def _with_partner(q, g, back, out, iteration, cheapest, value):
    """The change by each pruned weight and the cheapest partner in its group, their coupling left out."""
    width = cheapest.size
    for t in range(value.size):
        change = q[t] + g[t]
        value[t] = change if out[t] <= iteration else BARRED
    cheapest[:] = BARRED
    for first in range(0, value.size, width):
        _lower(cheapest, value[first : first + width])
    _come_back(q, g, back, iteration, value)
    for first in range(0, value.size, width):
        _add(value[first : first + width], np.float32(1), cheapest)


@fast
def _lower(low, other):
    for k in range(low.size):
        low[k] = other[k] if other[k] < low[k] else low[k]


@fast
def _place_of_least(value):
    """Where the least is, but for what the bits tell less that hold places: so it takes one pass that vectorises."""
    bits = value.view(np.int32)
    least = NEVER
    for t in range(bits.size):
        ordered = bits[t] ^ ((bits[t] >> np.int32(31)) & NEVER)  # as whole numbers they are then in order
        least = min(least, (ordered & np.int32(~INDEX)) | np.int32(t))
    return int(least) & INDEX


@fast
def _exchange(g, line_in, line_out):
    for t in range(g.size):
        g[t] += line_in[t] - line_out[t]


@fast
def _add(x, factor, line):
    for t in range(x.size):
        x[t] += factor * line[t]
