"""The relaxation of a node of ``bnb`` in numba: its solution, the bound of any point, points of few digits.

``min uᵀAu + bᵀu`` over ``low ≤ u ≤ high`` with ``need[g]`` in each group (``start[g]:start[g + 1]``), ``A`` positive
semidefinite along the groups' hyperplanes. Mass is exchanged within the pair that lowers the objective most
(sequential minimal optimisation: Fan, Chen, Lin, JMLR 6, 2005), which never leaves them. With ``g`` the gradient at
any ``u`` of the polytope and any ``λ`` of a group,

    value ≥ h(u) - Σ max((g - λ)u, (g - λ)(u - 1))

over the free variables, best with the largest ``g`` that the oracle prunes as ``λ``. To prune a variable it keeps, or
the other way round, raises that by the distance of its ``g`` to the other side's nearest.
"""

from __future__ import annotations

import numpy as np

from fwbench.solvers.numerics.jit import njit

PRUNED, KEPT = 0, 1  # of a group's edge: the largest gradient that the oracle prunes, the least that it keeps
COARSE, FINE = 16.0, 32768.0  # points are whole parts of these, or of what lies between in steps of 4
LOSS = 0.05  # of the distance to the incumbent that a coarse point may lose
MARGIN = 1e-3  # of the incumbent: what is pruned is solved beyond it, so that fewer digits do
CHECK = 12  # steps between two looks at the bound
PATIENCE = 0.04  # a node that cannot be pruned is solved to this part of its distance from the incumbent


@njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def gradient(A, b, u, g):
    """``g = 2Au + b`` in place."""
    g[:] = b
    for i in range(u.size):
        if u[i] != 0.0:
            t = 2.0 * u[i]
            row = A[i]
            for j in range(u.size):
                g[j] += t * row[j]


@njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def value_of(b, u, g):
    s = 0.0
    for i in range(u.size):
        s += u[i] * (g[i] + b[i])
    return 0.5 * s


@njit(nogil=True)
def bound(b, start, need, low, high, u, g, edge):
    """Value at ``u`` and the bound it gives; ``edge (groups, 2)``: the largest ``g`` PRUNED, the least KEPT."""
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
        edge[group, PRUNED] = free[:left].max()
        edge[group, KEPT] = free[left:number].min()
        for i in range(first, last):
            if low[i] < high[i]:
                over = g[i] - edge[group, PRUNED]
                gap += max(over * u[i], over * (u[i] - 1.0))
    value = value_of(b, u, g)
    return value, value - gap


@njit(nogil=True)
def _select(x, k):
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


@njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def move(A, g, i, j, t):
    """Gradient after ``t`` has moved from ``j`` to ``i``."""
    t *= 2.0
    ai, aj = A[i], A[j]
    for k in range(g.size):
        g[k] += t * (ai[k] - aj[k])


@njit(nogil=True)
def solve(A, b, start, need, low, high, u, g, edge, target, most_steps):
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
        move(A, g, up, down, t)
    return value, lower


@njit(nogil=True)
def force(start, need, low, high, group):
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


@njit(nogil=True)
def settle(start, need, low, high, u):
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


@njit(nogil=True)
def fix(start, need, low, high, u, k, value):
    """Fix variable ``k``, force what follows, and settle."""
    low[k] = high[k] = value
    group = 0
    while start[group + 1] <= k:
        group += 1
    force(start, need, low, high, group)
    settle(start, need, low, high, u)


@njit(nogil=True)
def quantise(start, need, low, high, u, unit):
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
            if not abs(left) < abs(before):
                break
        for i in range(first, last):
            u[i] /= unit


@njit(nogil=True)
def relax(A, b, start, need, low, high, u, g, edge, target, most_steps):
    """Solve a node's relaxation and claim at a point of few digits, as few as do; (value, bound)."""
    gradient(A, b, u, g)
    margin = MARGIN * abs(target)
    value, exact = solve(A, b, start, need, low, high, u, g, edge, target + margin, most_steps)
    claim = target if exact >= target else exact - LOSS * (target - exact)
    exactly = u.copy()
    lower, unit = -np.inf, COARSE
    while True:
        u[:] = exactly
        quantise(start, need, low, high, u, unit)
        gradient(A, b, u, g)
        value, lower = bound(b, start, need, low, high, u, g, edge)
        if lower >= claim or unit >= FINE:
            return value, lower
        unit = min(4.0 * unit, FINE)
