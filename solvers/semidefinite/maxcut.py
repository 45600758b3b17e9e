"""The semidefinite program of max-cut, ``min ⟨C, X⟩, diag X = 1, X ⪰ 0``, and its dual, ``max Σy, C - diag(y) ⪰ 0``.

Primal-dual interior point of Helmberg, Rendl, Vanderbei and Wolkowicz (SIAM J. Optim. 6, 1996) with Mehrotra's
predictor and corrector. Of Shor's bound of a row (``shor``), and of the diagonals of branch and bound (``bnb``).

The same algorithm stands in two more files, where its steps differ: ``maxcut_batch`` takes many programs at once and
finds lengths by trials, for a GPU (a batch of one on a CPU is far slower than this, which works in place and begins
in float32: docs/decisions/semidefinite.md); ``shared_diagonal`` has the slack of ``y ≥ 0`` besides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from fwbench.solvers.numerics import lapack

MAX_STEPS = 60
INSIDE = 0.97  # of the way to the wall
LEAST_TARGET = 0.003  # of the gap that is left: no step aims at less
SHORTER, LEAST = 0.8, 1e-7  # the factor of a length that fails, and where a step is none
LANCZOS, FEW = 10, 6  # products for the length of a step, and of one that is only a trial
LARGE = 300  # from this size on they cost less than trying lengths by Cholesky, and float32 less than float64
ROUGH, SHORT = 0.05, 0.3  # float32 ends at this relative gap, or when rounding makes steps as short as this
EARLY = 4  # steps that may be short anyway
EPS32 = float(np.finfo(np.float32).eps)
Vector = Callable[[torch.Tensor], torch.Tensor]


def bordered(Q: np.ndarray, linear: np.ndarray, start: np.ndarray, need: np.ndarray, rho: float) -> np.ndarray:
    """``C (n + 1, n + 1)`` of a row: with ``x = (1, 2u - 1)``, ``xᵀCx = uᵀQu + linearᵀu + rho Σ_g (Σu_g - need_g)²``.

    The last term is ``rho/4 (z_gᵀx)²`` with ``z_g = (size - 2 need_g, 1, ..., 1)`` on group ``start[g]:start[g + 1]``.
    """
    sums, sizes = Q.sum(axis=1), np.diff(start)
    off = rho / 4 * (sizes - 2 * need)
    C = np.empty((len(Q) + 1, len(Q) + 1))
    C[1:, 1:] = Q / 4
    for first, last in pairwise(start + 1):
        C[first:last, first:last] += rho / 4
    C[0, 1:] = C[1:, 0] = (sums + linear) / 4 + np.repeat(off, sizes)
    C[0, 0] = sums.sum() / 4 + linear.sum() / 2 + off @ (sizes - 2 * need)
    return C


@dataclass(frozen=True)
class InteriorPoint:
    """Where the interior point ended; every ``y`` on its way is feasible to rounding."""

    y: torch.Tensor  # (n,)
    X: torch.Tensor  # (n, n)
    inverse: torch.Tensor  # of Z = C - diag(y)
    steps: int
    converged: bool


def interior_point(
    C: torch.Tensor, margin: float, done: Callable[[torch.Tensor, float], bool], deadline: float = math.inf
) -> InteriorPoint:
    """Solve both programs, until ``done(y, gap)`` or the ``deadline`` (of ``time.monotonic()``).

    It begins a little inside the plain relaxation, ``Z ≈ C``, with ``X`` the inverse of ``Z`` scaled to unit diagonal
    (the first steps are short where ``X`` is far from ``Z⁻¹``). Large programs take their first steps in float32, and
    what these left of feasibility is mended.

    Args:
        C: float64 ``(n, n)``, symmetric, on the CPU.
        margin: how far inside the plain relaxation to begin, in units of ``C``.
    """
    if len(C) < LARGE:
        return _follow(C, *_start(C, margin), done, deadline)
    unit = float(C.abs().max())
    single = (C / unit).float()
    rough = _follow(single, *_start(single, margin / unit), lambda y, gap: gap <= ROUGH * _value(y), deadline, SHORT)
    found = _follow(C, *_mended(C, unit * rough.y.double(), rough.X.double()), done, deadline)
    if not found.converged and time.monotonic() < deadline:  # float32 can lead to where float64 does not come away from
        found = _follow(C, *_start(C, margin), done, deadline)
    return replace(found, steps=rough.steps + found.steps)


def _follow(
    C: torch.Tensor,
    y: torch.Tensor,
    inverse: torch.Tensor,
    X: torch.Tensor,
    factor: torch.Tensor,
    done: Callable[[torch.Tensor, float], bool],
    deadline: float,
    least: float = 0.0,
) -> InteriorPoint:
    """Steps in the precision of ``C``, each two products, an inversion and three factorisations.

    All matrices lie row by row, as mixed layouts make the entrywise work slow.

    Args:
        inverse: of ``C - diag(y)``.
        factor: of ``X``.
        least: a shorter step is the last.
    """
    n = len(y)
    left, work, dX = torch.empty_like(C), torch.empty_like(C), torch.empty_like(C)
    reach_X = b = 1.0
    for step in range(MAX_STEPS):
        gap = _dot(X, C) - float(X.diagonal() @ y)
        if done(y, gap):
            return InteriorPoint(y, X, inverse, step, True)
        schur = torch.mul(inverse, X, out=work)
        stuck = min(b, reach_X) < least and step > EARLY
        if time.monotonic() >= deadline or stuck or not lapack.cholesky(schur):
            return InteriorPoint(y, X, inverse, step, False)
        dy = lapack.solve(schur, torch.ones_like(y))
        a = _room(C, y, dy, inverse, b, FEW)  # X's own room is not worth the factorisations here
        target = gap / n * min(1.0, (1 - a) ** 2 + LEAST_TARGET)  # the predictor leaves 1 - a of the gap
        torch.mul(X, dy, out=left)
        _symmetric_product(left, inverse, dX).sub_(X)
        torch.mul(dX, dy, out=left)  # the corrector's part: of its product the diagonal alone is needed here
        corrected = torch.linalg.vecdot(left, inverse) + target * inverse.diagonal()
        dy = lapack.solve(schur, 1 - corrected)
        left.addcmul_(X, dy)
        _symmetric_product(left, inverse, dX).add_(inverse, alpha=target).sub_(X)
        b, last = _dual_step(C, y, dy, _room(C, y, dy, inverse, b, LANCZOS))
        reach_X, factor = _primal_step(X, dX, factor, reach_X)
        if last is None or max(reach_X, b) < 1e-6:
            return InteriorPoint(y, X, inverse, step, False)
        y = y + b * dy
        inverse = lapack.inverse(last)
    return InteriorPoint(y, X, inverse, MAX_STEPS, False)


def _dot(A: torch.Tensor, B: torch.Tensor) -> float:
    return float(torch.dot(A.reshape(-1), B.reshape(-1)))


def _value(y: torch.Tensor) -> float:
    return abs(float(y.sum()))


def _symmetric_product(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The symmetric part of ``A B``."""
    whole = lapack.product(A, B)
    return torch.add(whole, whole.mT, out=out).mul_(0.5)


def _factor(A: torch.Tensor) -> torch.Tensor | None:
    """What ``lapack.cholesky`` makes of a copy of A, None if A is not positive definite."""
    copy = A.clone()
    return copy if lapack.cholesky(copy) else None


def _slack_factor(C: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
    Z = C.clone()
    Z.diagonal().sub_(y)
    return Z if lapack.cholesky(Z) else None


def _start(C: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A ``y`` of equal entries well inside, the inverse of its ``Z``, an ``X`` and its factor."""
    while True:
        y = torch.full(C.shape[:1], -margin, dtype=C.dtype)
        factor = _slack_factor(C, y)
        if factor is not None:
            inverse = lapack.inverse(factor)
            return y, inverse, *_unit_diagonal(inverse)
        if not math.isfinite(margin):
            raise ArithmeticError("a matrix of a bound is not finite")
        margin *= 2


def _unit_diagonal(A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A scaled to a diagonal of ones, and its factor; where not definite, some is added to it."""
    root = A.diagonal().rsqrt()
    X, part = A * root * root[:, None], float(torch.finfo(A.dtype).eps)
    while (factor := _factor(X)) is None:
        X.mul_(1 - part).diagonal().add_(part)
        part *= 4
    return X, factor


def _mended(
    C: torch.Tensor, y: torch.Tensor, X: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What :func:`_follow` starts from, feasible, near ``y`` and ``X`` that are so but for rounding in float32."""
    lower = EPS32 * float(C.diagonal().abs().mean())
    while (factor := _slack_factor(C, y)) is None:
        y, lower = y - lower, 4 * lower
    return y, lapack.inverse(factor), *_unit_diagonal((X + X.mT) / 2)


def _room(
    C: torch.Tensor, y: torch.Tensor, dy: torch.Tensor, inverse: torch.Tensor, last: float, products: int
) -> float:
    """About the largest step up to 1 that keeps ``C - diag(y + step dy)`` well inside; ``last``: the step before."""
    if len(y) >= LARGE:
        start = dy.clamp(min=0) + 1e-3 * float(dy.abs().mean())
        return _length(lambda v: dy * v, lambda v: inverse @ v, start, products)
    length, _ = _dual_step(C, y, dy, min(1.0, last / 0.7))
    return length if length == 1.0 else INSIDE * length


def _length(move: Vector, inverse: Vector, v: torch.Tensor, products: int) -> float:
    """About the largest step up to 1 that keeps ``A - step B`` well inside, without a factorisation.

    The largest eigenvalue of ``B A⁻¹``, from above, by Lanczos from ``v`` in the inner product of ``A⁻¹``.

    Args:
        move: ``v ↦ B v``.
        inverse: ``v ↦ A⁻¹ v``.
    """
    w = inverse(v)
    before, beta = torch.zeros_like(v), math.sqrt(max(float(v @ w), 0.0))
    diagonal: list[float] = []
    beside: list[float] = []
    while len(diagonal) < products and beta > 1e-12 * max(map(abs, diagonal), default=0.0):
        beside.append(beta)
        before, v, w = v / beta, before, w / beta
        v = move(w) - (beta * v if diagonal else 0.0)
        diagonal.append(float(v @ w))
        v -= diagonal[-1] * before
        w = inverse(v)
        beta = math.sqrt(max(float(v @ w), 0.0))
    if not diagonal:
        return 1.0
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside[1:], 1) + np.diag(beside[1:], -1))
    largest = float(values[-1]) + beta * abs(float(vectors[-1, -1]))
    return 1.0 if largest <= INSIDE else INSIDE / largest


def _dual_step(C: torch.Tensor, y: torch.Tensor, dy: torch.Tensor, length: float) -> tuple[float, torch.Tensor | None]:
    """A step that keeps ``C - diag(y + step dy)`` positive definite, and its factor."""
    while length > LEAST:
        factor = _slack_factor(C, y + length * dy)
        if factor is not None:
            return length, factor
        length *= SHORTER
    return 0.0, None


def _primal_step(X: torch.Tensor, move: torch.Tensor, factor: torch.Tensor, last: float) -> tuple[float, torch.Tensor]:
    """Add to ``X`` up to one ``move``, as far as it stays well inside: the length, and the factor of the new ``X``.

    Args:
        factor: of ``X``; wanted and returned where lengths are by Lanczos.
        last: the length before.
    """
    large = len(X) >= LARGE
    if large:
        length = _length(lambda v: -(move @ v), lambda v: lapack.solve(factor, v), factor.tril().sum(dim=1), LANCZOS)
    else:
        length = min(1.0, last / 0.7)
    while length > LEAST:
        moved = _factor(X.add_(move, alpha=length))
        if moved is not None:
            if not large and length < 1:
                X.sub_(move, alpha=(1 - INSIDE) * length)
            return length if large or length == 1 else INSIDE * length, moved
        X.sub_(move, alpha=length)
        length *= SHORTER
    return 0.0, factor
