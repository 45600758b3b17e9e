"""Branch and bound trees (kind ``tree``).

A block is one row of the layer, or the whole layer where the pattern does not separate: ``m`` variables ``v`` (1 =
pruned), ``Q_ij = w_i w_j G_ij`` (0 between rows), ``c = 2w∘t`` (0 where the problem has no ``T``), the error ``vᵀQv +
cᵀv`` (and its rows' ``offset``, which ``rounding.whole`` adds), and a count of ones in each group of neighbours.
Its tree is a stream of steps in preorder. A state is a partial mask; where a group's count leaves no choice, its other
variables are fixed as well. The steps, and what they say of the masks of the state at hand:

    LEAF        they cost at least what the tangent at the current point says (a claim)
    BRANCH i    v_i is free: they are those with v_i = 0 and those with v_i = 1; the two subtrees follow, that of
                v_i = step - 1 first. Both start from the current point
    FIX i       v_i is free: those with the other value are bounded by the current point (a claim); v_i = step - 3
    POINT       the current point: u = (256 point + digits) / 2^15 for each free variable, each group's sum its count
    DIAGONAL    the current diagonal: a float32 for each free variable; a new point must follow
    NOTHING     they cost at least what ``cᵀv`` says, as ``vᵀQv ≥ 0``: nothing where ``c = 0``

So the leaves cover every mask by construction, and the least claim of a block bounds it from below.

**A claim.** Let ``R`` be the variables that were free when the diagonal ``d`` came, and ``d = 0`` elsewhere. Let
``(Q - Diag(d))_RR + ρ Σ_g 1_g1_gᵀ ⪰ 0`` be proved. On masks the error is ``F(v) = vᵀ(Q - Diag(d))v + (d +
c)ᵀv``. A mask of the state and the point ``u`` agree outside of ``R`` and have the same sums over groups, so ``z = v -
u`` has ``zᵀ(Q - Diag(d))z ≥ 0`` and

    F(v)  ≥  F(u) + ∇F(u)ᵀz  =  -uᵀ(Q - Diag(d))u + gᵀv,    g = 2(Q - Diag(d))u + d + c.

The least of ``gᵀv`` over the state's masks takes what is fixed and the smallest ``g`` of each group's free ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.verify import rounding
from fwbench.verify.rounding import Near, Refuted, Rounded, array

LEAF, BRANCH, FIX, POINT, DIAGONAL, NOTHING = 0, 1, 3, 5, 6, 7
UNIT = 2**15
CHUNK = 64  # points evaluated at a time, with all that they claim
STREAMS = {"step": np.uint8, "variable": np.uint16, "point": np.uint8, "digits": np.uint8, "diagonal": np.float32}


def bounds(problem: Problem, certificate: Certificate) -> list[float]:
    """What every mask costs at least, block by block.

    Arrays (all one-dimensional, the blocks one after another): ``step`` uint8; ``variable`` uint16, one for each BRANCH
    and FIX; ``point`` and ``digits`` uint8, ``diagonal`` float32, as the steps ask for them; ``rho`` float64, one a
    block; it may have ``scale`` float64, one a block (``rounding.scales``).

    Raises:
        Refuted: the message says why.
    """
    if not problem.pattern.grouped:
        raise Refuted(f"a tree needs a pattern of groups with a count, not {problem.pattern}")
    counts = rounding.block_counts(problem)
    rho = array(certificate, "rho", (len(counts),), np.float64)
    if (rho < 0).any():
        raise Refuted("rho is negative")
    stream = _Stream({name: array(certificate, name, (None,), dtype) for name, dtype in STREAMS.items()})
    found = []
    for block, scale in enumerate(rounding.scales(certificate, len(counts))):
        Q, c = rounding.block_matrix(problem, block, scale), rounding.linear(problem, block, scale)
        bound = _Tree(Q, c, counts[block], float(rho[block]), f"block {block}", stream).bound()
        found.append(rounding.unscaled(bound, scale))
    stream.end()
    return rounding.whole(problem, found)


class _Stream:
    """The certificate's arrays, read from front to end."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        single = {name: arrays[name].tolist() for name in ("step", "variable")}  # far faster one by one
        self.arrays: dict[str, Any] = {**arrays, **single}
        self.at = dict.fromkeys(arrays, 0)

    def take(self, name: str, number: int = 1) -> Any:
        part = self.arrays[name][self.at[name] : self.at[name] + number]
        if len(part) != number:
            raise Refuted(f"{name} ends too early{': a leaf is missing' * (name == 'step')}")
        self.at[name] += number
        return part

    def end(self) -> None:
        for name, at in self.at.items():
            if at != len(self.arrays[name]):
                raise Refuted(f"{name} goes on after the last tree")


@dataclass
class _Point:
    """A point, its diagonal, and the partial masks that it bounds: ``(m,)`` int32 in units of 2^-15, float64, int8."""

    u: np.ndarray
    d: np.ndarray
    claims: list[np.ndarray] = field(default_factory=list)


@dataclass
class _State:
    """A partial mask and what it stands on; ``need`` and ``free`` are what is left of each group."""

    fixed: np.ndarray  # (m,) int8, -1 free
    need: list[int]
    free: list[int]
    diagonal: np.ndarray | None = None
    point: _Point | None = None

    def copy(self) -> _State:
        return _State(self.fixed.copy(), self.need.copy(), self.free.copy(), self.diagonal, self.point)

    def fix(self, variable: int, value: int, size: int) -> None:
        group = variable // size
        self.fixed[variable] = value
        self.free[group] -= 1
        self.need[group] -= value
        self.force(group, size)

    def force(self, group: int, size: int) -> None:
        if self.free[group] and self.need[group] in (0, self.free[group]):
            part = self.fixed[group * size : (group + 1) * size]
            part[part < 0] = self.need[group] > 0
            self.need[group] = self.free[group] = 0


class _Tree:
    """One block's tree, read from the stream."""

    def __init__(self, Q: np.ndarray, c: Near, counts: np.ndarray, rho: float, name: str, stream: _Stream) -> None:
        self.Q, self.c, self.counts, self.rho, self.name, self.stream = Q, c, counts, rho, name, stream
        self.size = len(Q) // len(counts)
        self.points: list[_Point] = []

    def bound(self) -> float:
        groups = len(self.counts)
        root = _State(np.full(len(self.Q), -1, np.int8), self.counts.tolist(), [self.size] * groups)
        for group in range(groups):
            root.force(group, self.size)
        nothing: list[np.ndarray] = []
        stack = [root]
        while stack:
            state = stack.pop()
            while (step := self.stream.take("step")[0]) not in (LEAF, NOTHING):
                if (other := self._step(state, step)) is not None:
                    stack.append(other)
            if step == LEAF:
                self._claim(state, state.fixed)  # which does not change any more
            else:
                nothing.append(state.fixed)
        return min(self._least(), self._linear(nothing))

    def _step(self, state: _State, step: int) -> _State | None:
        """Take a step inside of a tree; of a branch, the state of the second subtree."""
        if step == POINT:
            self._point(state)
        elif step == DIAGONAL:
            self._diagonal(state)
        elif BRANCH <= step < BRANCH + 2:
            variable, other = self._free(state), state.copy()
            other.fix(variable, 1 - (step - BRANCH), self.size)
            state.fix(variable, step - BRANCH, self.size)
            return other
        elif FIX <= step < FIX + 2:
            variable, excluded = self._free(state), state.fixed.copy()
            excluded[variable] = 1 - (step - FIX)
            self._claim(state, excluded)
            state.fix(variable, step - FIX, self.size)
        else:
            raise Refuted(f"{self.name}: unknown step {step}")
        return None

    def _free(self, state: _State) -> int:
        [variable] = self.stream.take("variable")
        if variable >= state.fixed.size or state.fixed[variable] >= 0:
            raise Refuted(f"{self.name}: variable {variable} is not free where the tree divides it")
        return variable

    def _claim(self, state: _State, fixed: np.ndarray) -> None:
        if state.point is None:
            raise Refuted(f"{self.name}: a claim without a point")
        state.point.claims.append(fixed)

    def _point(self, state: _State) -> None:
        if state.diagonal is None:
            raise Refuted(f"{self.name}: a point without a diagonal")
        u, number = state.fixed.astype(np.int32) * UNIT, sum(state.free)
        high, low = (self.stream.take(name, number).astype(np.int32) for name in ("point", "digits"))
        u[state.fixed < 0] = 256 * high + low
        state.point = _Point(u, state.diagonal)
        self.points.append(state.point)

    def _diagonal(self, state: _State) -> None:
        free = np.flatnonzero(state.fixed < 0)
        d = np.zeros(state.fixed.size)
        d[free] = self.stream.take("diagonal", free.size)
        if not rounding.proves_convex(self.Q[np.ix_(free, free)], d[free], self.rho, free // self.size):
            raise Refuted(f"{self.name}: Q - Diag(d) + rho 11ᵀ cannot be proved positive semidefinite")
        state.diagonal, state.point = d, None

    def _least(self) -> float:
        """A lower value of the least claim; infinite if there is none."""
        Q, least = Rounded(self.Q, np.abs(self.Q), 1), math.inf
        for first in range(0, len(self.points), CHUNK):
            points = self.points[first : first + CHUNK]
            u = np.array([point.u for point in points])
            if u.max() > UNIT:
                raise Refuted(f"{self.name}: a point leaves [0, 1]")
            if (u.reshape(len(u), -1, self.size).sum(axis=2, dtype=np.int64) != UNIT * self.counts).any():
                raise Refuted(f"{self.name}: a point misses the count")
            u = u / UNIT  # exact
            d = np.array([point.d for point in points])
            origin, low = rounding.tangent(1.0, rounding.product(u, Q), u, d, linear=self.c)
            which = np.repeat(np.arange(len(u)), [len(point.claims) for point in points])
            if which.size:
                fixed = np.array([claim for point in points for claim in point.claims])
                least = min(least, float(self._values(rounding.lower_sums(origin)[which], low[which], fixed).min()))
        return least

    def _linear(self, states: list[np.ndarray]) -> float:
        """A lower value of the least ``cᵀv`` over the masks of some states; infinite if there is none."""
        if not states:
            return math.inf
        low = np.broadcast_to(np.subtract(*self.c), (len(states), len(self.Q)))
        return float(self._values(np.zeros(len(states)), low, np.array(states)).min())

    def _values(self, origin: np.ndarray, low: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        """Least value of the tangents over masks with what is ``fixed (c, m)``; infinite if there is no such mask."""
        shape = (len(fixed), -1, self.size)
        ones, free = fixed == 1, fixed < 0
        need = self.counts - ones.reshape(shape).sum(axis=2)
        none = ((need < 0) | (need > free.reshape(shape).sum(axis=2))).any(axis=1)
        terms = rounding.smallest(np.where(free, low, np.inf).reshape(shape), need).reshape(fixed.shape)
        terms += np.where(ones, low, 0.0)
        terms[none] = 0.0
        return np.where(none, np.inf, rounding.lower_sums(terms, origin))
