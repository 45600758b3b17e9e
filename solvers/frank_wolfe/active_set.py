"""Active sets of Frank-Wolfe: convex combinations of packed vertices, and the directions that need them.

A row's set has a fixed capacity: vertices of ``⌈n/8⌉`` bytes (bit ``b`` of byte ``w`` is entry ``b⌈n/8⌉ + w``, so that
a product with the gradient runs over contiguous memory), their weights in float64, and a hash to find them again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fwbench.solvers.frank_wolfe.kernels import AWAY, BCG, BY_RULE, DESCENT, FORCED, PAIRWISE, dot, towards_vertex
from fwbench.solvers.numerics.jit import fast

VANISHED = 1e-14  # a weight that is rounding


class Atoms(NamedTuple):
    """Active sets of some rows; without a set all arrays are empty."""

    bits: np.ndarray  # (rows, capacity, ⌈n/8⌉) uint8
    keys: np.ndarray  # (rows, capacity) uint64
    weights: np.ndarray  # (rows, capacity), their sum is 1
    change: np.ndarray  # (rows, capacity), of the weights along the direction
    count: np.ndarray  # type: ignore[assignment] # (rows,) int64
    hit: np.ndarray  # (rows,) int64, the atom that the longest step drops, or -1
    phi: np.ndarray  # (rows,) the gap estimate of lazy variants

    @classmethod
    def empty(cls, rows: int, capacity: int, n: int) -> Atoms:
        return cls(
            np.zeros((rows, capacity, (n + 7) // 8 if capacity else 0), np.uint8),
            np.zeros((rows, capacity), np.uint64),
            np.zeros((rows, capacity)),
            np.zeros((rows, capacity)),
            np.zeros(rows, np.int64),
            np.full(rows, -1),
            np.full(rows, np.inf),
        )


def atom_bytes(n: int) -> int:
    """Memory of one atom of ``n`` entries: its bits, key, weight and change."""
    return (n + 7) // 8 + 24


# --- packed vertices --------------------------------------------------------------------------------------------------


@fast
def pack(v, bits):
    """Pack ``v (n,)`` of 0 and 1; its hash (FNV-1a)."""
    width = bits.size
    bits[:] = 0
    for b in range(8):
        part = v[min(b * width, v.size) : min((b + 1) * width, v.size)]
        for w in range(part.size):
            bits[w] |= np.uint8(int(part[w]) << b)
    key = np.uint64(14695981039346656037)
    for w in range(width):
        key = (key ^ np.uint64(bits[w])) * np.uint64(1099511628211)
    return key


@fast
def bit_dot(bits, g):
    """``gᵀa`` for a packed vertex ``a``."""
    width, total, zero = bits.size, 0.0, g.dtype.type(0)
    for b in range(8):
        part = g[min(b * width, g.size) : min((b + 1) * width, g.size)]
        mask, sum_ = np.uint8(1 << b), zero
        for w in range(part.size):
            sum_ += part[w] if bits[w] & mask else zero
        total += sum_
    return total


@fast
def add_bits(bits, weight, x):
    """``x += weight a``."""
    width, by, zero = bits.size, x.dtype.type(weight), x.dtype.type(0)
    for b in range(8):
        part = x[min(b * width, x.size) : min((b + 1) * width, x.size)]
        mask = np.uint8(1 << b)
        for w in range(part.size):
            part[w] += by if bits[w] & mask else zero


@fast
def _find(bits, keys, count, packed, key):
    for j in range(count):
        if keys[j] == key and np.all(bits[j] == packed):
            return j
    return -1


# --- the start --------------------------------------------------------------------------------------------------------


@fast
def decompose(u, counts, bits, keys, weights):
    """Write ``u`` as a convex combination of vertices; how many, or 0 if they are more than the capacity.

    Systematic sampling (Madow 1949): with ``C`` the running sum of ``u`` in its group, the vertex at ``θ`` takes those
    ``i`` whose ``(C_{i-1}, C_i]`` contains some ``θ + integer``. It has the exact count, changes only at the fractional
    parts of ``C``, and its mean over ``θ`` in [0, 1) is ``u``.
    """
    n, groups = u.size, counts.size
    size = n // groups
    ends = np.empty(n)
    for group in range(groups):
        running = 0.0
        for i in range(group * size, (group + 1) * size):
            running += u[i]
            ends[i] = min(running, float(counts[group]))
        ends[(group + 1) * size - 1] = counts[group]
    marks = np.sort(ends - np.floor(ends))
    if np.sum(np.diff(marks) >= 1e-9) > weights.size:  # known before the memory is filled: no two are the same vertex
        return 0
    v, packed = np.empty(n, u.dtype), np.empty(bits.shape[1], np.uint8)
    count, low = 0, 0.0
    for m in range(n + 1):
        high = marks[m] if m < n else 1.0
        if high - low < 1e-9:
            continue
        theta = low + (high - low) / 2
        for i in range(n):
            before = 0.0 if i % size == 0 else ends[i - 1]
            v[i] = 1 if np.floor(ends[i] - theta) > np.floor(before - theta) else 0
        key = pack(v, packed)
        j = _find(bits, keys, count, packed, key)
        if j < 0:
            if count == weights.size:
                return 0
            j, count = count, count + 1
            bits[j], keys[j], weights[j] = packed, key, 0.0
        weights[j] += high - low
        low = high
    weights[:count] /= weights[:count].sum()
    return count


@fast
def _fractional(u):
    count = 0
    for i in range(u.size):
        count += 0 < u[i] < 1
    return count


@fast
def set_up(u, rounded, counts, a):
    """Fill the sets for the start ``u (rows, n)``, which becomes what they sum to.

    ``rounded`` are vertices to start from where ``u`` needs more atoms than fit.
    """
    for r in range(u.shape[0]):
        count = decompose(u[r], counts[r], a.bits[r], a.keys[r], a.weights[r])
        if count == 0:
            a.keys[r, 0] = pack(rounded[r], a.bits[r, 0])
            a.weights[r, 0], count = 1.0, 1
        a.count[r] = count
        u[r] = 0
        for j in range(count):
            add_bits(a.bits[r, j], a.weights[r, j], u[r])


# --- directions -------------------------------------------------------------------------------------------------------


@fast
def active_direction(variant, r, w, u, g, v, gap, counts, a, delta, P):
    """Direction of an active-set variant: the longest step and how to choose the step.

    ``away``: the better of towards the vertex and away from the worst atom; ``pairwise``: from the worst atom to the
    vertex (Lacoste-Julien and Jaggi 2015, algorithms 1 and 2). ``bpcg``: from the worst atom to the best while that
    promises more than the vertex (Tsuji, Tanaka and Pokutta 2022, algorithm 1). ``bcg``: gradient descent on the
    weights while it promises the gap estimate ``phi``, halved when the oracle cannot give it either (Braun, Pokutta,
    Tu and Wright 2019, algorithms 1 and 2).
    """
    if a.count[r] == a.weights.shape[1] and _fractional(u) + 3 < a.count[r]:  # full: a smaller set for the same point
        a.count[r] = decompose(u, counts, a.bits[r], a.keys[r], a.weights[r])
        a.weights[r, a.count[r] :] = 0
    count = a.count[r]
    products = np.empty(count)
    worst, best = 0, 0
    for j in range(count):
        products[j] = bit_dot(a.bits[r, j], g)
        worst = j if products[j] > products[worst] else worst
        best = j if products[j] < products[best] else best
    weights, change = a.weights[r], a.change[r]
    change[: count + 1] = 0
    a.hit[r] = -1
    local = products[worst] - products[best]
    if variant == AWAY:
        if count > 1 and products[worst] - dot(g, u) > gap:
            return _away(r, w, u, worst, a, delta, P), BY_RULE
    elif variant == BCG:
        if gap < a.phi[r] and local < a.phi[r]:
            a.phi[r] = max(gap, 0.0) / 2
        if count > 1 and local > 0 and local >= a.phi[r]:
            return _descent(r, w, products, a, delta, P), DESCENT
    elif variant != PAIRWISE and count > 1 and local >= gap:
        return _pair(r, w, worst, best, a, delta, P), BY_RULE
    packed = np.empty(a.bits.shape[2], np.uint8)
    key = pack(v, packed)
    slot = _find(a.bits[r], a.keys[r], count, packed, key)
    if slot < 0:
        if count == weights.size:
            return _merge(r, w, best, a, delta, P), FORCED
        slot = count
        a.bits[r, slot], a.keys[r, slot], weights[slot] = packed, key, 0.0
        a.count[r] += 1
    if variant == PAIRWISE:
        return _pair(r, w, worst, slot, a, delta, P), BY_RULE
    for j in range(count):
        change[j] = -weights[j]
    change[slot] += 1
    towards_vertex(w, u, g, v, delta, P)
    return 1.0, BY_RULE


@fast
def _times(w, delta, P):
    for i in range(delta.size):
        P[i] = w[i] * delta[i]


@fast
def _pair(r, w, source, target, a, delta, P):
    """From one atom to another, at most by the weight of the first."""
    a.change[r, source] -= 1
    a.change[r, target] += 1
    a.hit[r] = source
    delta[:] = 0
    add_bits(a.bits[r, source], -1.0, delta)
    add_bits(a.bits[r, target], 1.0, delta)
    _times(w, delta, P)
    return a.weights[r, source]


@fast
def _away(r, w, u, worst, a, delta, P):
    """Away from an atom, until its weight is gone."""
    weights = a.weights[r]
    a.change[r, : a.count[r]] = weights[: a.count[r]]
    a.change[r, worst] -= 1
    a.hit[r] = worst
    delta[:] = u
    add_bits(a.bits[r, worst], -1.0, delta)
    _times(w, delta, P)
    return weights[worst] / (1 - weights[worst])


@fast
def _descent(r, w, products, a, delta, P):
    """Along the projected gradient in the weights (simplex gradient descent), until the first weight is gone."""
    most = np.inf
    delta[:] = 0
    downs = products - products.mean()
    downs /= np.abs(downs).max()
    downs -= downs.mean()  # once more: products that differ by rounding have no exact mean, and the count would drift
    for j in range(products.size):
        down = downs[j]
        a.change[r, j] = -down
        add_bits(a.bits[r, j], -down, delta)
        if down > 0 and a.weights[r, j] < most * down:
            most = a.weights[r, j] / down
            a.hit[r] = j
    _times(w, delta, P)
    return most


@fast
def _merge(r, w, best, a, delta, P):
    """The set is full: move the smallest weight to the best atom. It stays feasible and costs next to nothing."""
    least = -1
    for j in range(a.count[r]):
        if j != best and (least < 0 or a.weights[r, j] < a.weights[r, least]):
            least = j
    return _pair(r, w, least, best, a, delta, P)


@fast
def update_weights(r, step, most, a):
    """Move the weights, drop what vanished; 1 if the step was the longest and dropped its atom."""
    weights, count = a.weights[r], a.count[r]
    total = 0.0
    for j in range(count):
        weights[j] += step * a.change[r, j]
    dropped = a.hit[r] >= 0 and step >= most
    if dropped:
        weights[a.hit[r]] = 0.0
    for j in range(count - 1, -1, -1):
        if weights[j] <= VANISHED:
            count -= 1
            a.bits[r, j], a.keys[r, j], weights[j] = a.bits[r, count], a.keys[r, count], weights[count]
            weights[count] = 0.0
    for j in range(count):
        total += weights[j]
    for j in range(count):
        weights[j] /= total
    a.count[r] = count
    return 1 if dropped else 0
