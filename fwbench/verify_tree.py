"""The checker of branch and bound trees (certificates of kind ``tree``): numpy and the problem alone, with rounding.

A block is one row of the layer, or the whole layer where the pattern does not separate: ``m`` variables ``v`` (1 =
pruned), ``Q_ij = w_i w_j G_ij`` (0 between rows), the error ``vᵀQv``, and a count of ones in each group of neighbours.
Its tree is a stream of steps in preorder. A state is a partial mask; where a group's count leaves no choice, its other
variables are fixed as well. The steps, and what they say of the masks of the state at hand:

    LEAF        they cost at least what the tangent at the current point says (a claim)
    BRANCH i    v_i is free: they are those with v_i = 0 and those with v_i = 1; the two subtrees follow, that of
                v_i = step - 1 first. Both start from the current point
    FIX i       v_i is free: those with the other value are bounded by the current point (a claim); v_i = step - 3
    POINT       the current point: u = (256 point + digits) / 2^15 for each free variable, each group's sum its count
    DIAGONAL    the current diagonal: a float32 for each free variable; a new point must follow
    NOTHING     they cost at least 0

So the leaves cover every mask by construction, and the least claim of a block bounds it from below.

**A claim.** Let ``R`` be the variables that were free when the diagonal ``d`` came, and ``d = 0`` elsewhere. The
checker proves ``(Q - Diag(d))_RR + ρ Σ_g 1_g1_gᵀ ⪰ 0``. On masks ``vᵀQv = F(v) = vᵀ(Q - Diag(d))v + dᵀv``. A mask of
the state and the point ``u`` agree outside of ``R`` and have the same sums over groups, so ``z = v - u`` has ``zᵀ(Q -
Diag(d))z ≥ 0`` and

    vᵀQv  ≥  F(u) + ∇F(u)ᵀz  =  -uᵀ(Q - Diag(d))u + gᵀv,    g = 2(Q - Diag(d))u + d.

The least of ``gᵀv`` over the state's masks takes what is fixed and the smallest ``g`` of each group's free ones.

**Rounding.** (1) *Positive semidefinite* (Rump, BIT 46, 2006; Higham, thm. 10.3): if Cholesky of a symmetric ``B`` of
size r runs to completion, ``λmin(B) ≥ -γ/(1-γ) tr B``, ``γ = γ_{r+1}``. ``w_i w_j`` is exact (48 bits); its product
with ``G_ij``, adding ``ρ`` and subtracting ``d`` and the shift are four roundings of at most ε/2 each of sums no
larger than ``|Q| + ρ + |d|``; the Frobenius norm of that, times 4ε, is added to a shift of twice ``γ/(1-γ) tr B``.
(2) *The tangent.* ``u`` is exact. A computed product ``uQ`` is off by at most ``γ_{m+1} u|Q|`` (Higham, eq. 3.5; the
rounding of ``Q_ij`` included). Elementwise steps add at most 4ε of the sum of the absolute values of what they join.
``g`` is lowered by its error before the smallest are summed; a sum of ``m`` numbers is off by at most ``γ_m`` times
the sum of their absolute values. ε is twice the unit roundoff below, so every bound of first order has a factor of 2
to spare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate

EPS = float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)
LEAF, BRANCH, FIX, POINT, DIAGONAL, NOTHING = 0, 1, 3, 5, 6, 7
UNIT = 2**15
CHUNK = 4096  # claims evaluated at a time
FARTHEST = 255  # the largest exponent in a scale: weights of float32 times it stay far from overflow when squared
ARRAYS = {
    "step": np.uint8,
    "variable": np.uint16,
    "point": np.uint8,
    "digits": np.uint8,
    "diagonal": np.float32,
    "rho": np.float64,
}


class Refuted(Exception):
    """A certificate does not hold; the message says why."""


def prove_tree(problem: Problem, certificate: Certificate) -> float:
    """The lower bound on the layer's error that the trees prove.

    Arrays (all one-dimensional, the blocks one after another): ``step`` uint8; ``variable`` uint16, one for each BRANCH
    and FIX; ``point`` and ``digits`` uint8, ``diagonal`` float32, as the steps ask for them; ``rho`` float64, one a
    block; it may have ``scale`` float64, one a block (``scales``).

    Raises:
        Refuted: the message says why.
    """
    if certificate.problem != problem.hash:
        raise Refuted("it belongs to another problem (hash differs)")
    if certificate.kind != "tree":
        raise Refuted(f"unknown kind of certificate {certificate.kind!r}")
    arrays = {}
    for name, dtype in ARRAYS.items():
        array = certificate.arrays.get(name)
        if array is None:
            raise Refuted(f"it has no array {name!r}")
        if array.dtype != dtype or array.ndim != 1:
            raise Refuted(f"{name} is {array.dtype} {array.shape}, not a list of {np.dtype(dtype)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Refuted(f"{name} has entries that are not finite")
        arrays[name] = array
    rho = arrays.pop("rho")
    blocks = problem.rows if problem.pattern.separable else 1
    scale = scales(certificate, blocks)
    if rho.size != blocks:
        raise Refuted(f"rho has {rho.size} entries for {blocks} blocks")
    if (rho < 0).any():
        raise Refuted("rho is negative")
    stream = _Stream(arrays)
    counts = problem.pattern.counts(problem.shape).reshape(blocks, -1)
    bounds = []
    for b in range(blocks):
        Q = block_matrix(problem, b, scale[b])
        found = _Walk(Q, counts[b].astype(np.int64), float(rho[b]), f"block {b}").bound(stream)
        bounds.append(unscaled(found, scale[b]))
    stream.end()
    return max(0.0, math.nextafter(math.fsum(bounds), -math.inf))


def scales(certificate: Certificate, count: int) -> list[float]:
    """What the weights of each row (block) are multiplied by before its own numbers hold: ones where none are said.

    Powers of two, so that nothing is rounded: in the units of float32 a row may be too small or too large.

    Raises:
        Refuted: the array ``scale`` is something else.
    """
    found = certificate.arrays.get("scale", np.ones(count))
    if not isinstance(found, np.ndarray) or found.dtype != np.float64 or found.shape != (count,):
        raise Refuted(f"scale is not a list of {count} float64")
    mantissa, exponent = np.frexp(found)
    if (mantissa != 0.5).any() or (np.abs(exponent - 1) > FARTHEST).any():
        raise Refuted("scale has an entry that is no power of two, or too far from 1")
    return found.tolist()


def unscaled(bound: float, scale: float) -> float:
    """The bound of a row from that of the row times ``scale``, a rigorous lower value."""
    return bound if scale == 1 else max(0.0, math.nextafter(bound / scale / scale, -math.inf))


def block_matrix(problem: Problem, block: int, scale: float = 1.0) -> np.ndarray:
    """``Q (m, m)`` of a block whose weights are multiplied by ``scale``, each entry the exact value rounded once."""
    if problem.pattern.separable:
        w = problem.W[block].astype(np.float64) * scale
        return (w[:, None] * w) * problem.G
    n = problem.n
    Q = np.zeros((problem.rows * n,) * 2)
    for row, weights in enumerate(problem.W.astype(np.float64) * scale):
        part = slice(row * n, (row + 1) * n)
        Q[part, part] = (weights[:, None] * weights) * problem.G
    return Q


def proves_positive(Q: np.ndarray, free: np.ndarray, size: int, d: np.ndarray, rho: float) -> bool:
    """Whether ``(Q - Diag(d))_RR + rho Σ_g 1_g1_gᵀ ⪰ 0`` is proved (rounding, point 1).

    Args:
        Q: ``(m, m)``; free: ``R``, ascending ``(r,)``; size: of a group; d: ``(r,)``.
    """
    r = free.size
    if r == 0:
        return True
    A = Q[np.ix_(free, free)]
    group = free // size
    together = np.where(group[:, None] == group, rho, 0.0)
    spread = np.abs(A) + together
    spread[np.diag_indices(r)] += np.abs(d)
    A = A + together
    diagonal = A.diagonal() - d
    if not diagonal.min() >= 0:
        return False
    gamma = (r + 2) * EPS
    # r² tiny covers underflow (Rump, thm. 2.3)
    shift = 2 * gamma / (1 - gamma) * float(diagonal.sum()) + 4 * EPS * float(np.linalg.norm(spread)) + r * r * TINY
    A[np.diag_indices(r)] = diagonal - shift
    try:
        return bool(np.isfinite(np.linalg.cholesky(A)).all())
    except np.linalg.LinAlgError:
        return False


class _Stream:
    """The certificate's arrays, read from front to end."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.steps, self.variables = arrays["step"].tolist(), arrays["variable"].tolist()
        self.at = dict.fromkeys(arrays, 0)

    def step(self) -> int:
        return self._one("step", self.steps)

    def variable(self) -> int:
        return self._one("variable", self.variables)

    def _one(self, name: str, values: list[int]) -> int:
        at = self.at[name]
        if at >= len(values):
            raise Refuted(f"{name} ends too early: a leaf is missing")
        self.at[name] = at + 1
        return values[at]

    def take(self, name: str, number: int) -> np.ndarray:
        at = self.at[name]
        part = self.arrays[name][at : at + number]
        if part.size != number:
            raise Refuted(f"{name} ends too early")
        self.at[name] = at + number
        return part

    def end(self) -> None:
        for name, at in self.at.items():
            if at != self.arrays[name].size:
                raise Refuted(f"{name} goes on after the last tree")


@dataclass
class _State:
    """A partial mask and what it stands on; ``need`` and ``free`` are what is left of each group."""

    fixed: np.ndarray  # (m,) int8, -1 free
    need: list[int]
    free: list[int]
    diagonal: int = -1
    point: int = -1

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


@dataclass
class _Walk:
    """One block's tree: points, diagonals and claims as its steps name them."""

    Q: np.ndarray
    counts: np.ndarray
    rho: float
    name: str
    diagonals: list[np.ndarray] = field(default_factory=list)  # (m,) each
    points: list[np.ndarray] = field(default_factory=list)  # (m,) int32, in units of 2^-15
    point_diagonal: list[int] = field(default_factory=list)
    claims: list[np.ndarray] = field(default_factory=list)  # (m,) int8, partial masks
    claim_point: list[int] = field(default_factory=list)
    nothing: bool = False

    def bound(self, stream: _Stream) -> float:
        m, groups = len(self.Q), self.counts.size
        size = m // groups
        root = _State(np.full(m, -1, np.int8), self.counts.tolist(), [size] * groups)
        for group in range(groups):
            root.force(group, size)
        stack = [root]
        while stack:
            state = stack.pop()
            while True:
                step = stream.step()
                if step == LEAF:
                    self._claim(state, state.fixed)
                    break
                if step == NOTHING:
                    self.nothing = True
                    break
                if step == POINT:
                    self._point(state, stream, size)
                elif step == DIAGONAL:
                    self._diagonal(state, stream, size)
                elif BRANCH <= step < BRANCH + 2:
                    variable = self._free(state, stream)
                    other = state.copy()
                    other.fix(variable, 1 - (step - BRANCH), size)
                    stack.append(other)
                    state.fix(variable, step - BRANCH, size)
                elif FIX <= step < FIX + 2:
                    variable = self._free(state, stream)
                    excluded = state.fixed.copy()
                    excluded[variable] = 1 - (step - FIX)
                    self._claim(state, excluded)
                    state.fix(variable, step - FIX, size)
                else:
                    raise Refuted(f"{self.name}: unknown step {step}")
        least = min(self._values(size), default=math.inf)
        if math.isnan(least):
            raise Refuted(f"{self.name}: a claim overflows")
        return max(0.0, min(least, 0.0) if self.nothing else least)

    def _free(self, state: _State, stream: _Stream) -> int:
        variable = stream.variable()
        if variable >= state.fixed.size or state.fixed[variable] >= 0:
            raise Refuted(f"{self.name}: variable {variable} is not free where the tree divides it")
        return variable

    def _claim(self, state: _State, fixed: np.ndarray) -> None:
        if state.point < 0:
            raise Refuted(f"{self.name}: a claim without a point")
        self.claims.append(fixed.copy())
        self.claim_point.append(state.point)

    def _point(self, state: _State, stream: _Stream, size: int) -> None:
        if state.diagonal < 0:
            raise Refuted(f"{self.name}: a point without a diagonal")
        u = state.fixed.astype(np.int32) * UNIT
        free = state.fixed < 0
        number = int(free.sum())
        u[free] = stream.take("point", number).astype(np.int32) * 256 + stream.take("digits", number)
        if u.max() > UNIT:
            raise Refuted(f"{self.name}: a point leaves [0, 1]")
        if (u.reshape(-1, size).sum(axis=1, dtype=np.int64) != UNIT * self.counts).any():
            raise Refuted(f"{self.name}: a point misses the count")
        state.point = len(self.points)
        self.points.append(u)
        self.point_diagonal.append(state.diagonal)

    def _diagonal(self, state: _State, stream: _Stream, size: int) -> None:
        free = np.flatnonzero(state.fixed < 0)
        d = np.zeros(state.fixed.size)
        d[free] = stream.take("diagonal", free.size)
        if not proves_positive(self.Q, free, size, d[free], self.rho):
            raise Refuted(f"{self.name}: Q - Diag(d) + rho 11ᵀ cannot be proved positive semidefinite")
        state.diagonal, state.point = len(self.diagonals), -1
        self.diagonals.append(d)

    def _values(self, size: int) -> Iterator[float]:
        """Lower values of the claims, a chunk's least at a time."""
        point = np.array(self.claim_point, dtype=np.int64)
        order = np.argsort(point, kind="stable")
        absolute = np.abs(self.Q)
        for first in range(0, order.size, CHUNK):
            chosen = order[first : first + CHUNK]
            used, which = np.unique(point[chosen], return_inverse=True)
            u = np.array([self.points[p] for p in used]) / UNIT  # exact
            d = np.array([self.diagonals[self.point_diagonal[p]] for p in used])
            origin, low = _tangent(self.Q, absolute, u, d)
            yield float(
                _least(origin[which], low[which], np.array([self.claims[c] for c in chosen]), size, self.counts).min()
            )


def _tangent(Q: np.ndarray, absolute: np.ndarray, u: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For points ``u (p, m)``: the tangent's value at the origin ``(p,)`` and its gradient, lowered by their errors."""
    gamma = (len(Q) + 3) * EPS
    S, T = u @ Q, u @ absolute
    du = d * u
    g = 2 * (S - du) + d
    g_error = 2 * gamma * T + 8 * EPS * (2 * T + 2 * np.abs(du) + np.abs(d))
    terms = u * (du - S)
    size = u * (np.abs(du) + T)
    return terms.sum(axis=1) - 4 * gamma * size.sum(axis=1), g - g_error


def _least(origin: np.ndarray, low: np.ndarray, fixed: np.ndarray, size: int, counts: np.ndarray) -> np.ndarray:
    """Least value of the tangents over masks with what is ``fixed (c, m)``; infinite if there is no such mask."""
    claims, m = fixed.shape
    shape = (claims, m // size, size)
    ones = fixed == 1
    need = counts - ones.reshape(shape).sum(axis=2)
    free = (fixed < 0).reshape(shape)
    parts = np.sort(np.where(free, low.reshape(shape), np.inf), axis=2)
    taken = np.where(np.arange(size) < need[:, :, None], parts, 0.0).reshape(claims, m) + np.where(ones, low, 0.0)
    none = ((need < 0) | (need > free.sum(axis=2))).any(axis=1)
    taken[none] = 0.0
    value = origin + taken.sum(axis=1)
    value -= (m + 4) * EPS * (np.abs(origin) + np.abs(taken).sum(axis=1)) + m * m * TINY
    return np.where(none, np.inf, value)
