"""The semidefinite program of max-cut, ``min ⟨C, X⟩, diag X = 1, X ⪰ 0``, and its dual, ``max Σy, C - diag(y) ⪰ 0``.

Primal-dual interior point of Helmberg, Rendl, Vanderbei and Wolkowicz (SIAM J. Optim. 6, 1996) with Mehrotra's
predictor and corrector. Of Shor's bound of a row (``shor``), and of the diagonals of branch and bound (``bnb``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

MAX_STEPS = 60
INSIDE = 0.95  # of the way to the wall
LEAST_TARGET = 0.01  # of the gap that is left: no step aims at less
SHORTER, LEAST = 0.8, 1e-7  # the factor of a length that fails, and where a step is none
LANCZOS = 12  # products for the length of a step
LARGE = 300  # from this size on they cost less than trying lengths by Cholesky
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
class Point:
    """Where the interior point ended; every ``y`` on its way is feasible to rounding."""

    y: torch.Tensor  # (n,)
    X: torch.Tensor  # (n, n)
    inverse: torch.Tensor  # of Z = C - diag(y)
    steps: int
    converged: bool


def interior_point(
    C: torch.Tensor, margin: float, done: Callable[[torch.Tensor, float], bool], deadline: float = math.inf
) -> Point:
    """Solve both programs, until ``done(y, gap)`` or the ``deadline`` (of ``time.monotonic()``).

    It begins a little inside the plain relaxation, ``Z ≈ C``, with ``X`` the inverse of ``Z`` scaled to unit diagonal
    (the first steps are short where ``X`` is far from ``Z⁻¹``). A step is two products, an inversion and three
    factorisations; all matrices lie row by row, as mixed layouts make the entrywise work slow.

    Args:
        C: float64 ``(n, n)``, symmetric, on the CPU.
        margin: how far inside the plain relaxation to begin, in units of ``C``.
    """
    y, factor = _start(C, margin)
    inverse = torch.cholesky_inverse(factor).mT
    root = inverse.diagonal().rsqrt()
    X = inverse * root * root[:, None]
    factor = torch.linalg.cholesky_ex(X).L
    n = len(y)
    left, product, dX = torch.empty_like(C), torch.empty_like(C), torch.empty_like(C)
    reach_X = b = 1.0
    for step in range(MAX_STEPS):
        gap = _dot(X, C) - float(X.diagonal() @ y)
        if done(y, gap):
            return Point(y, X, inverse, step, True)
        if time.monotonic() >= deadline:
            return Point(y, X, inverse, step, False)
        schur, info = torch.linalg.cholesky_ex(torch.mul(inverse, X, out=product))
        if int(info):
            return Point(y, X, inverse, step, False)  # as far as float64 goes
        dy = _solve(schur, torch.ones_like(y))
        a = _room(C, y, dy, inverse, b)  # X's own room is not worth the factorisations here
        target = gap / n * min(1.0, (1 - a) ** 2 + LEAST_TARGET)  # the predictor leaves 1 - a of the gap
        torch.mul(X, dy, out=left)
        _symmetric_product(left, inverse, product, dX).sub_(X)
        torch.mul(dX, dy, out=left)  # the corrector's part: of its product the diagonal alone is needed here
        corrected = torch.linalg.vecdot(left, inverse) + target * inverse.diagonal()
        dy = _solve(schur, 1 - corrected)
        left.addcmul_(X, dy)
        _symmetric_product(left, inverse, product, dX).add_(inverse, alpha=target).sub_(X)
        b, last = _dual_step(C, y, dy, _room(C, y, dy, inverse, b))
        reach_X, factor = _primal_step(X, dX, factor, reach_X)
        if last is None or max(reach_X, b) < 1e-6:
            return Point(y, X, inverse, step, False)
        y = y + b * dy
        inverse = torch.cholesky_inverse(last).mT
    return Point(y, X, inverse, MAX_STEPS, False)


def _dot(A: torch.Tensor, B: torch.Tensor) -> float:
    return float(torch.dot(A.reshape(-1), B.reshape(-1)))


def _solve(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_solve(right[:, None], factor)[:, 0]


def _symmetric_product(A: torch.Tensor, B: torch.Tensor, work: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The symmetric part of ``A B``."""
    torch.mm(A, B, out=work)
    return torch.add(work, work.mT, out=out).mul_(0.5)


def _start(C: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A ``y`` of equal entries well inside, and the factor of its ``Z``."""
    while True:
        y = torch.full(C.shape[:1], -margin, dtype=C.dtype)
        factor, info = torch.linalg.cholesky_ex(C - torch.diag(y))
        if int(info) == 0:
            return y, factor
        margin *= 2


def _room(C: torch.Tensor, y: torch.Tensor, dy: torch.Tensor, inverse: torch.Tensor, last: float) -> float:
    """About the largest step up to 1 that keeps ``C - diag(y + step dy)`` well inside; ``last``: the step before."""
    if len(y) >= LARGE:
        start = dy.clamp(min=0) + 1e-3 * float(dy.abs().mean())
        return _length(lambda v: dy * v, lambda v: inverse @ v, start)
    length, _ = _dual_step(C, y, dy, min(1.0, last / 0.7))
    return length if length == 1.0 else INSIDE * length


def _length(move: Vector, inverse: Vector, v: torch.Tensor) -> float:
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
    while len(diagonal) < LANCZOS and beta > 1e-12 * max(map(abs, diagonal), default=0.0):
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
        factor, info = torch.linalg.cholesky_ex(C - torch.diag(y + length * dy))
        if int(info) == 0:
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
        length = _length(lambda v: -(move @ v), lambda v: _solve(factor, v), factor.sum(dim=1))
    else:
        length = min(1.0, last / 0.7)
    while length > LEAST:
        moved, info = torch.linalg.cholesky_ex(X.add_(move, alpha=length))
        if int(info) == 0:
            if not large and length < 1:
                X.sub_(move, alpha=(1 - INSIDE) * length)
            return length if large or length == 1 else INSIDE * length, moved
        X.sub_(move, alpha=length)
        length *= SHORTER
    return 0.0, factor
