"""The numba kernel of ``bnb``: depth-first search of one subtree, and what it claims.

A subtree is ``min vᵀAv + bᵀv`` over masks of its ``r`` free variables, in units of the incumbent
(``relaxation_numba``). A bound that reaches the incumbent prunes; a variable whose other value would is fixed. What is
claimed is claimed at a point of few digits, so that the proof stores little: a stream of steps in preorder
(``fwbench.verify.tree``), after which the nodes left open would follow.
"""

from __future__ import annotations

import numpy as np

from fwbench.solvers.branch_and_bound.relaxation_numba import (
    FINE,
    KEPT,
    PRUNED,
    fix,
    force,
    gradient,
    move,
    relax,
    settle,
    solve,
    value_of,
)
from fwbench.solvers.numerics.jit import njit

LEAF, BRANCH, FIX, POINT = 0, 1, 3, 5  # BRANCH + value of the first child, FIX + value
CODE, OPERAND = 0, 1  # of a step
VARIABLE, SIDE = 0, 1  # of a branching
BOUND, WIDTH = 0, 1  # before it
SUM, NUMBER = 0, 1  # of what is averaged
CANDIDATES = 12  # variables looked at in a node
RELIABLE = 6  # looks at a variable's two children before its average is trusted
LOOK = 72  # steps of a look
MOST_SWAPS = 100  # of a descent, times the variables: none takes so many but where rounding swaps to and fro


@njit(nogil=True)
def descend(A, b, start, v, g):
    """Best 1-swaps within the groups until none helps; mask ``v``, its gradient ``g`` in place, its value returned."""
    value = value_of(b, v, g)
    for _ in range(MOST_SWAPS * v.size):
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
        move(A, g, enter, leave, 1.0)
        value += best
    return value


@njit(nogil=True)
def perturbed(A, b, start, v, rounds, seed, stop):
    """Random exchanges and descent, again and again from the best mask ``v``, in place, until ``stop``; its value."""
    np.random.seed(seed)  # noqa: NPY002 (numba's own)
    g = np.empty(v.size)
    gradient(A, b, v, g)
    best = descend(A, b, start, v, g)
    trial = v.copy()
    for _ in range(rounds):
        if stop[0]:
            break
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


@njit(nogil=True)
def _round(A, b, start, need, u, v, g):
    """The mask of the largest ``u`` of each group, refined, in ``v``; its value."""
    for group in range(start.size - 1):
        first, last = start[group], start[group + 1]
        order = np.argsort(-u[first:last], kind="mergesort")
        for x in range(order.size):
            v[first + order[x]] = 1.0 if x < need[group] else 0.0
    gradient(A, b, v, g)
    return descend(A, b, start, v, g)


@njit(nogil=True)
def _gain(psc, seen, side, k, overall, width):
    return (psc[side, k] / seen[side, k] if seen[side, k] > 0 else overall) * width * width


@njit(nogil=True)
def choose(A, b, start, need, low, high, u, lower, target, psc, seen, work):
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


@njit(nogil=True)
def _emit(stream, used, code, operand):
    if used == len(stream):
        more = np.empty((2 * used, 2), np.int16)
        more[:used] = stream
        stream = more
    stream[used, CODE] = code
    stream[used, OPERAND] = operand
    return stream, used + 1


@njit(nogil=True)
def _free(low, high):
    number = 0
    for i in range(low.size):
        number += low[i] < high[i]
    return number


@njit(nogil=True)
def _store(points, used, low, high, u):
    if used + u.size > points.size:
        more = np.empty(2 * points.size + u.size, np.uint16)
        more[:used] = points[:used]
        points = more
    for i in range(u.size):
        if low[i] < high[i]:
            points[used] = np.uint16(u[i] * FINE + 0.5)
            used += 1
    return points, used


@njit(nogil=True)
def explore(A, b, start, need, first, mask, best, constant, tolerance, budget, effort, psc, seen, split, stop):
    """Search the subtree from the point ``first (r,)`` until it is done or ``budget`` nodes are spent.

    Args:
        mask: ``(r,)`` receives a better mask than ``best``, if one is found.
        constant: what the fixed part of the whole mask costs.
        tolerance: a bound on the whole mask that is less than ``best + constant`` by this part of it is enough.
        effort: most steps of a node's relaxation, in multiples of r.
        psc, seen: ``(2, r)`` pseudocosts: sums and numbers of gains by branching down and up, in place.
        split: ``(2, r)`` SUM of ``4u(1 - u)`` over pruned nodes, and their NUMBER, in place.
        stop: ``(1,)`` bool, set by another thread when the time is over.

    Returns:
        best value, nodes, steps ``(s, 2)``, points, and the nodes left open in preorder: fixings ``(o, r)`` (-1 free),
        points ``(o, r)`` and bounds ``(o,)``.
    """
    r = b.size
    depth = r + 2
    lows, highs, us = np.zeros((depth, r)), np.ones((depth, r)), np.zeros((depth, r))
    came = np.full((depth, 2), -1, np.int64)  # VARIABLE branched on, and its SIDE
    before = np.zeros((depth, 2))  # the parent's BOUND, and how far the variable moved, WIDTH
    work = np.empty((4, r))
    v, vg, g = np.empty(r), np.empty(r), np.empty(r)
    edge = np.empty((start.size - 1, 2))
    stream, steps = np.empty((256, 2), np.int16), 0
    points, stored = np.empty(64 * r + 64, np.uint16), 0
    us[0] = first
    top, nodes = 1, 0
    most_steps = effort * r
    target = best - tolerance * abs(best + constant)
    while top > 0 and nodes < budget and not stop[0]:
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
                    target = best - tolerance * abs(best + constant)
                    mask[:] = v
            if fresh and came[top, VARIABLE] >= 0 and before[top, WIDTH] > 0.05:
                k, side, width = came[top, VARIABLE], came[top, SIDE], before[top, WIDTH]
                psc[side, k] += min(max(lower - before[top, BOUND], 0.0), target - before[top, BOUND]) / (width * width)
                seen[side, k] += 1
            fresh = False
            if lower >= target:
                split[SUM] += 4.0 * u * (1.0 - u)
                split[NUMBER] += 1.0
                stream, steps = _emit(stream, steps, POINT, _free(low, high))
                points, stored = _store(points, stored, low, high, u)
                stream, steps = _emit(stream, steps, LEAF, 0)
                break
            fixed = 0
            for group in range(start.size - 1):
                for i in range(start[group], start[group + 1]):
                    side = 0 if g[i] > edge[group, PRUNED] else 1
                    over = g[i] - edge[group, PRUNED] if side == 0 else edge[group, KEPT] - g[i]
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
                if stop[0]:  # it stays open, behind what is fixed
                    lows[top], highs[top], us[top] = low, high, u
                    top += 1
                    break
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
                came[top, VARIABLE], came[top, SIDE] = k, to
                before[top, BOUND], before[top, WIDTH] = lower, abs(to - u[k])
                fix(start, need, lows[top], highs[top], us[top], k, float(to))
                top += 1
            break
    if stop[0]:
        most_steps = r  # there may be as many nodes as variables
    fixings, starts, bounds = np.empty((top, r), np.int8), np.empty((top, r)), np.empty(top)
    for x in range(top):
        low, high, u = lows[top - 1 - x], highs[top - 1 - x], us[top - 1 - x]
        _, bounds[x] = relax(A, b, start, need, low, high, u, g, edge, target, most_steps)
        for i in range(r):
            fixings[x, i] = -1 if low[i] < high[i] else np.int8(low[i])
        starts[x] = u
    return best, nodes, stream[:steps], points[:stored], fixings, starts, bounds
