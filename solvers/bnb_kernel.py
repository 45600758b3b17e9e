"""The numba kernel of ``bnb``: depth-first search of one subtree, its quadratic programs, and what it claims.

A subtree is ``min vᵀAv + bᵀv`` over masks of its ``r`` free variables with ``need[g]`` ones in each group, ``A``
positive semidefinite along the groups' hyperplanes, all in units of the incumbent. The nodes' relaxations are solved by
exchanging mass within the pair that lowers the objective most (sequential minimal optimisation: Fan, Chen, Lin, JMLR 6,
2005), which never leaves the hyperplane. With ``g`` the gradient at any ``u`` of the polytope and any ``λ`` of a group,

    value ≥ h(u) - Σ max((g - λ)u, (g - λ)(u - 1))

over the free variables, best with the largest ``g`` that the oracle prunes as ``λ``. To prune a variable it keeps, or
the other way round, raises that by the distance of its ``g`` to the other side's nearest, and fixes it when the
incumbent is reached. What is claimed is claimed at a point of few digits, so that the proof stores little.

The proof of a subtree is a stream of steps in preorder (``fwbench.verify_tree``); OPEN stands for a node left open.
"""

from __future__ import annotations

import numba
import numpy as np

LEAF, BRANCH, FIX, POINT, OPEN = 0, 1, 3, 5, 8  # BRANCH + value of the first child, FIX + value
COARSE, FINE = 128.0, 32768.0  # points are whole parts of these
LOSS = 0.02  # of the distance to the incumbent that a coarse point may lose
CANDIDATES = 6  # strongly branched at a node
RELIABLE = 3  # looks at a variable's two children before its average is trusted
LOOK = 48  # steps of a look
CHECK = 12  # steps between two looks at the bound
PATIENCE = 0.15  # a node that cannot be pruned is solved to this part of its distance from the incumbent


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def gradient(A, b, u, g):  # type: ignore[no-untyped-def]
    """``g = 2Au + b`` in place."""
    g[:] = b
    for i in range(u.size):
        if u[i] != 0.0:
            t = 2.0 * u[i]
            row = A[i]
            for j in range(u.size):
                g[j] += t * row[j]


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _value(b, u, g):  # type: ignore[no-untyped-def]
    s = 0.0
    for i in range(u.size):
        s += u[i] * (g[i] + b[i])
    return 0.5 * s


@numba.njit(cache=True, nogil=True)
def bound(b, start, need, low, high, u, g, edge):  # type: ignore[no-untyped-def]
    """Value at ``u`` and the bound it gives; ``edge (groups, 2)``: the largest ``g`` pruned and the least kept."""
    gap = 0.0
    for group in range(start.size - 1):
        first, last = start[group], start[group + 1]
        free = np.empty(last - first)
        number, left = 0, need[group]
        for i in range(first, last):
            if low[i] < high[i]:
                free[number] = g[i]
                number += 1
            elif low[i] == 1.0:
                left -= 1
        edge[group] = 0.0
        if number == 0 or left <= 0 or left >= number:
            continue
        _select(free[:number], left)
        edge[group, 0] = free[:left].max()
        edge[group, 1] = free[left:number].min()
        for i in range(first, last):
            if low[i] < high[i]:
                over = g[i] - edge[group, 0]
                gap += max(over * u[i], over * (u[i] - 1.0))
    value = _value(b, u, g)
    return value, value - gap


@numba.njit(cache=True, nogil=True)
def _select(x, k):  # type: ignore[no-untyped-def]
    """Reorder ``x`` so that its ``k`` smallest come first (Hoare)."""
    left, right = 0, x.size - 1
    while left < right:
        pivot = x[(left + right) // 2]
        i, j = left, right
        while i <= j:
            while x[i] < pivot:
                i += 1
            while x[j] > pivot:
                j -= 1
            if i <= j:
                x[i], x[j] = x[j], x[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            right = j
        elif k - 1 >= i:
            left = i
        else:
            break


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _move(A, g, i, j, t):  # type: ignore[no-untyped-def]
    """Gradient after ``t`` has moved from ``j`` to ``i``."""
    t *= 2.0
    ai, aj = A[i], A[j]
    for k in range(g.size):
        g[k] += t * (ai[k] - aj[k])


@numba.njit(cache=True, nogil=True)
def solve(A, b, start, need, low, high, u, g, edge, target, most_steps):  # type: ignore[no-untyped-def]
    """Lower the value at ``u`` until it is known whether the bound reaches ``target``; (value, bound)."""
    value, lower = 0.0, -np.inf
    for step in range(most_steps + 1):
        if step % CHECK == 0 or step == most_steps:
            value, lower = bound(b, start, need, low, high, u, g, edge)
            if lower >= target or (value < target and value - lower <= PATIENCE * (target - value)):
                break
            if step == most_steps or value - lower <= 1e-12 * abs(value):
                break
        widest, up, group_of = 0.0, -1, 0
        for group in range(start.size - 1):
            least, at, most = np.inf, -1, -np.inf
            for i in range(start[group], start[group + 1]):
                if u[i] < high[i] and g[i] < least:
                    least, at = g[i], i
                if u[i] > low[i] and g[i] > most:
                    most = g[i]
            if most - least > widest:
                widest, up, group_of = most - least, at, group
        if up < 0:
            value, lower = bound(b, start, need, low, high, u, g, edge)
            break
        gain, down = 0.0, -1
        row = A[up]
        for j in range(start[group_of], start[group_of + 1]):
            slope = g[j] - g[up]
            if u[j] > low[j] and slope > 0:
                curve = max(row[up] + A[j, j] - 2.0 * row[j], 1e-14)
                t = min(slope / (2.0 * curve), high[up] - u[up], u[j] - low[j])
                this = t * (slope - curve * t)
                if this > gain:
                    gain, down = this, j
        if down < 0:
            value, lower = bound(b, start, need, low, high, u, g, edge)
            break
        curve = max(row[up] + A[down, down] - 2.0 * row[down], 1e-14)
        t = (g[down] - g[up]) / (2.0 * curve)
        room_up, room_down = high[up] - u[up], u[down] - low[down]
        t = min(t, room_up, room_down)
        u[up] = high[up] if t == room_up else u[up] + t
        u[down] = low[down] if t == room_down else u[down] - t
        _move(A, g, up, down, t)
    return value, lower


@numba.njit(cache=True, nogil=True)
def force(start, need, low, high, group):  # type: ignore[no-untyped-def]
    """Fix what is left of a group once its count leaves no choice."""
    free, left = 0, float(need[group])
    for i in range(start[group], start[group + 1]):
        free += low[i] < high[i]
        if low[i] == high[i]:
            left -= low[i]
    if free > 0 and (left <= 0 or left >= free):
        for i in range(start[group], start[group + 1]):
            if low[i] < high[i]:
                low[i] = high[i] = 0.0 if left <= 0 else 1.0


@numba.njit(cache=True, nogil=True)
def settle(start, need, low, high, u):  # type: ignore[no-untyped-def]
    """Put fixed variables to their values; the free ones of the group take what is missing, fractional ones first."""
    for group in range(start.size - 1):
        rest = float(need[group])
        for i in range(start[group], start[group + 1]):
            if low[i] == high[i]:
                u[i] = low[i]
            rest -= u[i]
        for attempt in range(60):
            if abs(rest) < 1e-14:
                break
            total, room = 0.0, 0.0
            for i in range(start[group], start[group + 1]):
                if low[i] < high[i]:
                    total += u[i] * (1.0 - u[i])
                    room += 1.0 - u[i] if rest > 0 else u[i]
            by_room = total < 1e-9 or attempt > 8
            size, scale = abs(rest), room if by_room else total
            if scale <= 0.0:
                break
            moved = 0.0
            for i in range(start[group], start[group + 1]):
                if low[i] < high[i]:
                    space = 1.0 - u[i] if rest > 0 else u[i]
                    t = min(space, size * (space if by_room else u[i] * (1.0 - u[i])) / scale)
                    if t == space:
                        u[i] = 1.0 if rest > 0 else 0.0
                    else:
                        u[i] += t if rest > 0 else -t
                    moved += t
            rest = rest - moved if rest > 0 else rest + moved


@numba.njit(cache=True, nogil=True)
def fix(start, need, low, high, u, k, value):  # type: ignore[no-untyped-def]
    """Fix variable ``k``, force what follows, and settle."""
    low[k] = high[k] = value
    group = 0
    while start[group + 1] <= k:
        group += 1
    force(start, need, low, high, group)
    settle(start, need, low, high, u)


@numba.njit(cache=True, nogil=True)
def quantise(start, need, low, high, u, unit):  # type: ignore[no-untyped-def]
    """Whole parts of ``unit`` near ``u`` with exact sums, in place: the largest remainders are rounded up."""
    for group in range(start.size - 1):
        first, last = start[group], start[group + 1]
        rest = np.empty(last - first)
        left = unit * need[group]
        for i in range(first, last):
            whole = np.floor(u[i] * unit + 1e-7)
            rest[i - first] = u[i] * unit - whole if low[i] < high[i] else -1.0
            u[i] = whole
            left -= whole
        if left == 0:
            for i in range(first, last):
                u[i] /= unit
            continue
        order = np.argsort(-rest, kind="mergesort")
        while left != 0:
            before = left
            for x in range(order.size):
                i = first + order[x]
                if low[i] < high[i]:
                    if left > 0 and u[i] < unit:
                        u[i] += 1
                        left -= 1
                    elif left < 0 and u[i] > 0:
                        u[i] -= 1
                        left += 1
                    if left == 0:
                        break
            if before == left:
                break
        for i in range(first, last):
            u[i] /= unit


@numba.njit(cache=True, nogil=True)
def relax(A, b, start, need, low, high, u, g, edge, target, most_steps):  # type: ignore[no-untyped-def]
    """Solve a node's relaxation and claim at a point of few digits, as few as do; (value, bound)."""
    gradient(A, b, u, g)
    value, exact = solve(A, b, start, need, low, high, u, g, edge, target, most_steps)
    fine = u.copy()
    quantise(start, need, low, high, u, COARSE)
    gradient(A, b, u, g)
    value, lower = bound(b, start, need, low, high, u, g, edge)
    if lower < min(target, exact - LOSS * (target - exact)):
        u[:] = fine
        quantise(start, need, low, high, u, FINE)
        gradient(A, b, u, g)
        value, lower = bound(b, start, need, low, high, u, g, edge)
    return value, lower


@numba.njit(cache=True, nogil=True)
def descend(A, b, start, v, g):  # type: ignore[no-untyped-def]
    """Best 1-swaps within the groups until none helps; mask ``v``, its gradient ``g`` in place, its value returned."""
    value = _value(b, v, g)
    while True:
        best, leave, enter = -1e-11 * abs(value), -1, -1
        for group in range(start.size - 1):
            for i in range(start[group], start[group + 1]):
                if v[i] == 1.0:
                    own = A[i, i] - g[i]
                    for j in range(start[group], start[group + 1]):
                        if v[j] == 0.0:
                            change = own + g[j] + A[j, j] - 2.0 * A[i, j]
                            if change < best:
                                best, leave, enter = change, i, j
        if leave < 0:
            return value
        v[leave], v[enter] = 0.0, 1.0
        _move(A, g, enter, leave, 1.0)
        value += best


@numba.njit(cache=True, nogil=True)
def perturbed(A, b, start, v, rounds, seed):  # type: ignore[no-untyped-def]
    """Random exchanges and descent, again and again from the best mask ``v``, in place; its value."""
    np.random.seed(seed)  # noqa: NPY002 (numba's own)
    g = np.empty(v.size)
    gradient(A, b, v, g)
    best = descend(A, b, start, v, g)
    trial = v.copy()
    for _ in range(rounds):
        trial[:] = v
        for _ in range(2 + np.random.randint(5)):  # noqa: NPY002 (numba's own)
            group = np.random.randint(start.size - 1)  # noqa: NPY002 (numba's own)
            size = start[group + 1] - start[group]
            i = start[group] + np.random.randint(size)  # noqa: NPY002 (numba's own)
            j = start[group] + np.random.randint(size)  # noqa: NPY002 (numba's own)
            trial[i], trial[j] = trial[j], trial[i]
        gradient(A, b, trial, g)
        value = descend(A, b, start, trial, g)
        if value < best - 1e-11 * abs(best):
            best = value
            v[:] = trial
    return best


@numba.njit(cache=True, nogil=True)
def _round(A, b, start, need, u, v, g):  # type: ignore[no-untyped-def]
    """The mask of the largest ``u`` of each group, refined, in ``v``; its value."""
    for group in range(start.size - 1):
        first, last = start[group], start[group + 1]
        order = np.argsort(-u[first:last], kind="mergesort")
        for x in range(order.size):
            v[first + order[x]] = 1.0 if x < need[group] else 0.0
    gradient(A, b, v, g)
    return descend(A, b, start, v, g)


@numba.njit(cache=True, nogil=True)
def _gain(psc, seen, side, k, overall, width):  # type: ignore[no-untyped-def]
    return (psc[side, k] / seen[side, k] if seen[side, k] > 0 else overall) * width * width


@numba.njit(cache=True, nogil=True)
def choose(A, b, start, need, low, high, u, lower, target, psc, seen, work):  # type: ignore[no-untyped-def]
    """Variable to branch on: the largest product of its children's gains, by a look or by averages (-1: none free)."""
    r = u.size
    score = np.full(r, -1.0)
    overall = 0.0
    number = 0.0
    for side in range(2):
        for k in range(r):
            overall += psc[side, k]
            number += seen[side, k]
    overall = overall / number if number > 0 else 1.0
    for k in range(r):
        if low[k] < high[k]:
            inner = 1e-9 + u[k] * (1.0 - u[k])
            score[k] = (
                1e-30 * inner
                + _gain(psc, seen, 0, k, overall, u[k]) * _gain(psc, seen, 1, k, overall, 1.0 - u[k])
                + (1e-6 * inner * overall * overall * A[k, k])
            )
    order = np.argsort(-score, kind="mergesort")
    best, at = -1.0, order[0] if score[order[0]] >= 0 else -1
    edge = np.empty((start.size - 1, 2))
    wu, wg, wl, wh = work[0], work[1], work[2], work[3]
    for x in range(min(CANDIDATES, r)):
        k = order[x]
        if score[k] < 0:
            break
        if min(seen[0, k], seen[1, k]) >= RELIABLE:
            this = score[k]
        else:
            gains = np.empty(2)
            for side in range(2):
                wu[:] = u
                wl[:] = low
                wh[:] = high
                fix(start, need, wl, wh, wu, k, float(side))
                gradient(A, b, wu, wg)
                _, found = solve(A, b, start, need, wl, wh, wu, wg, edge, target, LOOK)
                width = abs(side - u[k])
                gains[side] = min(max(found - lower, 0.0), target - lower)
                if width > 0.05:
                    psc[side, k] += gains[side] / (width * width)
                    seen[side, k] += 1
            this = max(gains[0], 1e-9) * max(gains[1], 1e-9)
        if this > best:
            best, at = this, k
    return at


@numba.njit(cache=True, nogil=True)
def _emit(stream, used, code, operand):  # type: ignore[no-untyped-def]
    if used == len(stream):
        more = np.empty((2 * used, 2), np.int16)
        more[:used] = stream
        stream = more
    stream[used, 0] = code
    stream[used, 1] = operand
    return stream, used + 1


@numba.njit(cache=True, nogil=True)
def _free(low, high):  # type: ignore[no-untyped-def]
    number = 0
    for i in range(low.size):
        number += low[i] < high[i]
    return number


@numba.njit(cache=True, nogil=True)
def _store(points, used, low, high, u):  # type: ignore[no-untyped-def]
    if used + u.size > points.size:
        more = np.empty(2 * points.size + u.size, np.uint16)
        more[:used] = points[:used]
        points = more
    for i in range(u.size):
        if low[i] < high[i]:
            points[used] = np.uint16(u[i] * FINE + 0.5)
            used += 1
    return points, used


@numba.njit(cache=True, nogil=True)
def explore(A, b, start, need, first, mask, best, constant, tolerance, budget, effort, psc, seen):  # type: ignore[no-untyped-def]
    """Search the subtree from the point ``first (r,)`` until it is done or ``budget`` nodes are spent.

    Args:
        mask: ``(r,)`` receives a better mask than ``best``, if one is found.
        constant: what the fixed part of the whole mask costs.
        tolerance: a bound on the whole mask of ``(best + constant)(1 - tolerance)`` is enough.
        effort: most steps of a node's relaxation, in multiples of r.
        psc, seen: ``(2, r)`` sums and numbers of gains by branching down and up, in place.

    Returns:
        best value, nodes, steps ``(s, 2)``, points, and the nodes left open: fixings ``(o, r)`` (-1 free), points
        ``(o, r)`` and bounds ``(o,)``.
    """
    r = b.size
    depth = r + 2
    lows, highs, us = np.zeros((depth, r)), np.ones((depth, r)), np.zeros((depth, r))
    came = np.full((depth, 2), -1, np.int64)  # variable branched on, and its value
    before = np.zeros((depth, 2))  # the parent's bound, and how far the variable moved
    work = np.empty((4, r))
    v, vg, g = np.empty(r), np.empty(r), np.empty(r)
    edge = np.empty((start.size - 1, 2))
    stream, steps = np.empty((256, 2), np.int16), 0
    points, stored = np.empty(64 * r + 64, np.uint16), 0
    us[0] = first
    top, nodes = 1, 0
    most_steps = effort * r
    target = best - tolerance * (best + constant)
    while top > 0 and nodes < budget:
        top -= 1
        low, high, u = lows[top].copy(), highs[top].copy(), us[top].copy()
        nodes += 1
        fresh = True
        while True:
            _, lower = relax(A, b, start, need, low, high, u, g, edge, target, most_steps)
            whole = True
            for i in range(r):
                if u[i] != 0.0 and u[i] != 1.0:
                    whole = False
                    break
            if whole or (fresh and (nodes & (nodes - 1)) == 0):
                found = _round(A, b, start, need, u, v, vg)
                if found < best:
                    best = found
                    target = best - tolerance * (best + constant)
                    mask[:] = v
            if fresh and came[top, 0] >= 0 and before[top, 1] > 0.05:
                k, side, width = came[top, 0], came[top, 1], before[top, 1]
                psc[side, k] += min(max(lower - before[top, 0], 0.0), target - before[top, 0]) / (width * width)
                seen[side, k] += 1
            fresh = False
            if lower >= target:
                stream, steps = _emit(stream, steps, POINT, _free(low, high))
                points, stored = _store(points, stored, low, high, u)
                stream, steps = _emit(stream, steps, LEAF, 0)
                break
            fixed = 0
            for group in range(start.size - 1):
                for i in range(start[group], start[group + 1]):
                    side = 0 if g[i] > edge[group, 0] else 1
                    over = g[i] - edge[group, 0] if side == 0 else edge[group, 1] - g[i]
                    if low[i] < high[i] and lower + over >= target:
                        if fixed == 0:
                            stream, steps = _emit(stream, steps, POINT, _free(low, high))
                            points, stored = _store(points, stored, low, high, u)
                        stream, steps = _emit(stream, steps, FIX + side, i)
                        fixed += 1
                        # u is not settled before all are fixed: the claims are of one point
                        low[i] = high[i] = side
                        force(start, need, low, high, group)
            moved = False
            for i in range(r):
                moved |= low[i] == high[i] and u[i] != low[i]
            if moved:
                settle(start, need, low, high, u)
                continue
            k = choose(A, b, start, need, low, high, u, lower, target, psc, seen, work)
            if k < 0:  # a single mask, worth no less than the best up to rounding
                stream, steps = _emit(stream, steps, POINT, _free(low, high))
                points, stored = _store(points, stored, low, high, u)
                stream, steps = _emit(stream, steps, LEAF, 0)
                break
            side = 1 if u[k] > 0.5 else 0
            stream, steps = _emit(stream, steps, BRANCH + side, k)
            for child in range(2):
                to = 1 - side if child == 0 else side
                lows[top], highs[top], us[top] = low, high, u
                came[top, 0], came[top, 1] = k, to
                before[top, 0], before[top, 1] = lower, abs(to - u[k])
                fix(start, need, lows[top], highs[top], us[top], k, float(to))
                top += 1
            break
    fixings, starts, bounds = np.empty((top, r), np.int8), np.empty((top, r)), np.empty(top)
    for x in range(top):
        low, high, u = lows[top - 1 - x], highs[top - 1 - x], us[top - 1 - x]
        _, bounds[x] = relax(A, b, start, need, low, high, u, g, edge, target, most_steps)
        for i in range(r):
            fixings[x, i] = -1 if low[i] < high[i] else np.int8(low[i])
        starts[x] = u
        stream, steps = _emit(stream, steps, OPEN, x)
    return best, nodes, stream[:steps], points[:stored], fixings, starts, bounds
