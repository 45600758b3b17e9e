"""Numba kernels of the Frank-Wolfe loop: sums, the step, and directions without an active set, row by row.

A *row* here is what a step size belongs to: a row of the layer, or the whole layer laid flat when its pattern does not
separate. All the loop carries for it is ``u`` and the gradient ``g``, which is affine in ``u``; with ``W∘δ`` multiplied
by ``G`` outside, one pass over a row takes the step along ``δ`` and finds the next direction while the row is in cache.
"""

from __future__ import annotations

import numpy as np

from fwbench.solvers.frank_wolfe.oracle import oracle
from fwbench.solvers.numerics.extremes import largest_of_positive, smallest
from fwbench.solvers.numerics.jit import BLOCK, fast

VANILLA, DICG, INFACE, AWAY, PAIRWISE, BCG, BPCG = range(7)
OPEN, SHORT, LINESEARCH, ADAPTIVE = range(4)
BY_RULE, FORCED, DESCENT, EXACT = range(4)  # how the step along a direction is chosen
GROW, SHRINK = 2.0, 0.9  # of the adaptive step's Lipschitz estimate (Pedregosa et al. 2020, section 3)


# --- sums -------------------------------------------------------------------------------------------------------------


@fast
def dot(a, b):
    """``Σ a b``."""
    total = 0.0
    for start in range(0, a.size, BLOCK):
        x, y = a[start : min(start + BLOCK, a.size)], b[start : min(start + BLOCK, a.size)]
        part = a.dtype.type(0)
        for i in range(x.size):
            part += x[i] * y[i]
        total += part
    return total


@fast
def masked(g, fixed, score):
    """``score = g``, infinite where the weight is to stay."""
    inf = g.dtype.type(np.inf)
    for i in range(g.size):
        score[i] = inf if fixed[i] else g[i]


@fast
def gap_of(g, u, v):
    """The Frank-Wolfe gap ``gᵀ(u - v)``."""
    total, kind = 0.0, g.dtype.type
    for start in range(0, g.size, BLOCK):
        stop = min(start + BLOCK, g.size)
        x, y, z, part = g[start:stop], u[start:stop], v[start:stop], kind(0)
        for i in range(x.size):
            part += x[i] * (y[i] - z[i])
        total += part
    return total


@fast
def gradient(w, d, u, S, g):
    """``g = 2 w∘S + d∘(1 - 2u)``; an empty ``d`` is zero."""
    one, two = g.dtype.type(1), g.dtype.type(2)
    if d.size == 0:
        for i in range(g.size):
            g[i] = two * w[i] * S[i]
    else:
        for i in range(g.size):
            g[i] = two * w[i] * S[i] + d[i] * (one - two * u[i])


@fast
def value(d, c, u, g):
    """``h = (g + d + c)ᵀu / 2``, as ``g = 2(Q - D)u + d + c``; an empty ``d`` or ``c`` is zero."""
    return (dot(g, u) + (dot(d, u) if d.size else 0.0) + (dot(c, u) if c.size else 0.0)) / 2


# --- the step ---------------------------------------------------------------------------------------------------------


@fast
def step_size(rule, t, ell, slope, curvature, square, most, lipschitz):
    """Step along a direction and the Lipschitz estimate after it.

    ``slope = -gᵀδ``, ``curvature = 2 δᵀ(Q - D)δ``, ``square = ‖δ‖²``. For a quadratic the sufficient decrease of
    adaptive steps (Pedregosa et al. 2020, eq. 5) is ``curvature ≤ M ‖δ‖²``: backtracking needs no product.
    """
    if slope <= 0 or square == 0:
        return 0.0, lipschitz
    if rule == OPEN:
        return min(ell / (t + ell), most), lipschitz
    if rule == LINESEARCH:
        return (min(slope / curvature, most) if curvature > 0 else most), lipschitz
    if rule == ADAPTIVE:
        lipschitz = max(lipschitz * SHRINK, np.finfo(np.float64).tiny)  # from 0 it would never grow
        while lipschitz * square < curvature:
            lipschitz *= GROW
    bottom = lipschitz * square
    return (min(slope / bottom, most) if bottom > 0 else most), lipschitz


@fast
def step_in_mode(mode, rule, t, ell, slope, curvature, square, most, lipschitz):
    """The same along a direction that may ask for a step of its own: the longest, down to the minimum, or exact."""
    if mode == BY_RULE:
        return step_size(rule, t, ell, slope, curvature, square, most, lipschitz)
    if mode == EXACT:
        return (min(slope / curvature, most) if curvature > 0 else most), lipschitz
    if mode == DESCENT and not 2 * slope >= curvature * most:  # the objective would rise at the end of the direction
        return slope / curvature, lipschitz
    return most, lipschitz


@fast
def change_of_gradient(w, d, delta, T):
    """Turn ``T = (w∘δ) G`` into ``2(Q - D)δ``, in place; the curvature ``δᵀT``."""
    if T.size <= BLOCK:
        return float(_change(w, d, delta, T))
    total = 0.0
    for start in range(0, T.size, BLOCK):
        stop = min(start + BLOCK, T.size)
        total += _change(w[start:stop], d[start:stop], delta[start:stop], T[start:stop])
    return total


@fast
def _change(w, d, delta, T):
    two, total = T.dtype.type(2), T.dtype.type(0)
    if d.size == 0:
        for i in range(T.size):
            x = two * w[i] * T[i]
            T[i] = x
            total += x * delta[i]
    else:
        for i in range(T.size):
            x = two * (w[i] * T[i] - d[i] * delta[i])
            T[i] = x
            total += x * delta[i]
    return total


@fast
def move(step, delta, T, u, g):
    """``u += step δ``, ``g += step T``; what comes within rounding of 0 or 1, or passes it, is put there."""
    s, one, zero = u.dtype.type(step), u.dtype.type(1), u.dtype.type(0)
    near = 2 * np.finfo(u.dtype).eps
    top = one - near
    for i in range(u.size):
        x = u[i] + s * delta[i]
        x = zero if x < near else x
        u[i] = one if x > top else x
        g[i] += s * T[i]


@fast
def curvature_towards(d, u, toward, P, T):
    """``2 δᵀ(Q - D)δ`` of vanilla's ``δ = v - u`` from ``P = w∘δ`` and ``T = P G``, none of which it writes."""
    total, kind = 2 * dot(P, T), u.dtype.type
    if d.size == 0:
        return total
    for start in range(0, u.size, BLOCK):
        stop = min(start + BLOCK, u.size)
        x, y, z, part = d[start:stop], u[start:stop], toward[start:stop], kind(0)
        for i in range(x.size):
            part += x[i] * (kind(z[i]) - y[i]) ** 2
        total -= 2 * part
    return total


@fast
def square_towards(u, toward):
    """``‖v - u‖²``."""
    total = 0.0
    for i in range(u.size):
        total += (toward[i] - u[i]) ** 2
    return total


@fast
def move_towards(step, w, d, toward, T, u, g):
    """``move`` for vanilla: reads as little as it can, as the rows come from beyond the first cache."""
    kind = u.dtype.type
    s, one, zero, two = kind(step), kind(1), kind(0), kind(2 * step)
    near = kind(2 * np.finfo(u.dtype).eps)
    top = one - near
    if d.size:
        for i in range(u.size):
            g[i] -= two * d[i] * (kind(toward[i]) - u[i])
    for i in range(u.size):
        g[i] += two * w[i] * T[i]
        x = u[i] + s * (kind(toward[i]) - u[i])
        x = zero if x < near else x
        u[i] = one if x > top else x


# --- directions without an active set ---------------------------------------------------------------------------------


@fast
def towards_vertex(w, u, g, v, delta, P):
    """``δ = v - u``, ``P = w∘δ``; the slope ``-gᵀδ``."""
    for i in range(u.size):
        delta[i] = v[i] - u[i]
    for i in range(u.size):
        P[i] = w[i] * delta[i]
    return gap_of(g, u, v)


@fast
def aim(w, u, g, v, toward, P):
    """The same for vanilla, which keeps the vertex as bytes in place of ``δ``."""
    for i in range(u.size):
        toward[i] = np.uint8(v[i])
    for i in range(u.size):
        P[i] = w[i] * (v[i] - u[i])
    return gap_of(g, u, v)


@fast
def in_face(w, u, g, v, counts, guess, delta, P, score, away, scratch):
    """Decomposition-invariant pairwise direction ``δ = v - a`` (Garber and Meshi 2016, algorithm 3; the longest step).

    ``a`` is the worst vertex of the smallest face that contains ``u``: what is 0 stays 0, what is 1 stays 1.
    """
    _face_score(u, g, u.dtype.type(-1), score)
    oracle(score, counts, guess, away, scratch)
    most = _between(w, u, v, away, delta, P, score)
    if most > 0:
        return float(most)
    towards_vertex(w, u, g, v, delta, P)  # the count is off by rounding: no vertex of the face has it
    return 1.0


@fast
def _face_score(u, g, sign, score):
    inf, one, zero = u.dtype.type(np.inf), u.dtype.type(1), u.dtype.type(0)
    for i in range(u.size):
        x = inf if u[i] <= zero else sign * g[i]
        score[i] = -inf if u[i] >= one else x


@fast
def _between(w, u, v, away, delta, P, room):
    """``δ = v - a``, ``P = w∘δ``; the longest step. ``room`` is written over."""
    one, zero = u.dtype.type(1), u.dtype.type(0)
    for i in range(u.size):
        x = v[i] - away[i]
        delta[i] = x
        P[i] = w[i] * x
        left = one - u[i] if x > zero else u[i]
        room[i] = one if x == zero else left
    return smallest(room)


@fast
def conjugate(w, u, g, v, gap, counts, scale, guess, rho, delta, P, score, toward, scratch):
    """In-face extended Frank-Wolfe (Freund, Grigas and Mazumder 2017, algorithm 2): longest step, slope, new ``rho``.

    While the face that contains ``u`` promises at least half of the gap, a conjugate gradient direction within it:
    the projected gradient scaled by ``scale`` (the inverse diagonal of ``Q - D``), plus the last direction by the ratio
    of the ``rho`` (Fletcher and Reeves 1964). ``rho`` is 0 when there is no last direction in this face. Otherwise
    towards the vertex ``v``, which leaves the face.
    """
    _face_score(u, g, u.dtype.type(1), score)
    oracle(score, counts, guess, toward, scratch)
    promise = gap_of(g, u, toward)
    if promise < 0.5 * gap or not promise > 4 * np.finfo(u.dtype).eps * abs(dot(g, u)):
        return 1.0, towards_vertex(w, u, g, v, delta, P), 0.0
    size, room = u.size // counts.size, scratch[: counts.size]
    for group in range(counts.size):
        part = slice(group * size, group * size + size)
        room[group] = _project(u[part], g[part], scale[part], score[part])
    fresh = -dot(g, score)
    if not fresh > 0:
        return 1.0, towards_vertex(w, u, g, v, delta, P), 0.0
    slope = 0.0
    if 0 < fresh < 4 * rho:  # growth beyond that is rounding
        for group in range(counts.size):
            part = slice(group * size, group * size + size)
            _add(u[part], scale[part], score[part], fresh / rho, room[group], delta[part])
        slope = -dot(g, delta)
    if not slope > 0:
        delta[:] = score
        slope = fresh
    inverse = _inverse_of_longest(w, u, delta, P, scratch[: u.size])
    if not inverse > np.finfo(u.dtype).eps:  # less than the rounding of every entry: a direction to nowhere
        return 1.0, towards_vertex(w, u, g, v, delta, P), 0.0
    return 1.0 / inverse, slope, fresh


@fast
def _project(u, g, scale, z):
    """``z = -scale∘(g - λ)`` on the fractional entries, 0 elsewhere, with the ``λ`` that makes its sum 0.

    Returns the sum of their ``scale``. Near the end ``g - λ`` is mostly rounding: so ``λ`` is one of the ``g`` and a
    mean difference from it, which is 0 where they are equal.
    """
    top, bottom, total, one, zero = 0.0, 0.0, 0.0, u.dtype.type(1), u.dtype.type(0)
    first = 0
    while first + 1 < u.size and not zero < u[first] < one:
        first += 1
    base = g[first]
    for start in range(0, u.size, BLOCK):
        part = slice(start, min(start + BLOCK, u.size))
        x, y = _weighed(u[part], g[part], scale[part], base)
        top += x
        bottom += y
    level = base + u.dtype.type(top / bottom) if bottom > 0 else zero
    for i in range(u.size):
        x = scale[i] * (level - g[i]) if zero < u[i] < one else zero
        z[i] = x
        total += x
    _balance(u, scale, total, bottom, z)
    return bottom


@fast
def _weighed(u, g, scale, base):
    """``Σ scale (g - base)`` and ``Σ scale`` over the fractional entries."""
    one, zero = u.dtype.type(1), u.dtype.type(0)
    top, bottom = zero, zero
    for i in range(u.size):
        x = scale[i] if zero < u[i] < one else zero
        top += x * (g[i] - base)
        bottom += x
    return top, bottom


@fast
def _add(u, scale, z, beta, bottom, delta):
    """``δ = z + beta δ``, its sum 0 like that of ``z``; ``bottom`` is what ``_project`` returned."""
    total, b, one, zero = 0.0, u.dtype.type(beta), u.dtype.type(1), u.dtype.type(0)
    for i in range(u.size):
        x = z[i] + b * delta[i] if zero < u[i] < one else zero
        delta[i] = x
        total += x
    _balance(u, scale, total, bottom, delta)


@fast
def _balance(u, scale, total, bottom, z):
    """Make the sum of ``z`` 0 to rounding; it was ``total``, and the fractional entries' scales sum to ``bottom``."""
    one, zero = u.dtype.type(1), u.dtype.type(0)
    level = u.dtype.type(total / bottom) if bottom > 0 else zero
    for i in range(u.size):
        z[i] -= scale[i] * level if zero < u[i] < one else zero


@fast
def _inverse_of_longest(w, u, delta, P, ratio):
    """``P = w∘δ``, and the inverse of the longest step along ``δ``; ``ratio`` is written over."""
    tiny, one, zero = np.finfo(u.dtype).tiny, u.dtype.type(1), u.dtype.type(0)
    for i in range(u.size):
        x = delta[i]
        P[i] = w[i] * x
        room = one - u[i] if x > zero else u[i]
        ratio[i] = abs(x) / (room if room > tiny else tiny)
    return largest_of_positive(ratio)
