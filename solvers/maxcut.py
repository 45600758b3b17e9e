"""The semidefinite program of max-cut, ``min ⟨C, X⟩, diag X = 1, X ⪰ 0``, and its dual, ``max Σy, C - diag(y) ⪰ 0``.

Primal-dual interior point of Helmberg, Rendl, Vanderbei and Wolkowicz (SIAM J. Optim. 6, 1996) with Mehrotra's
predictor and corrector. Of Shor's bound of a row (``shor``), and of the diagonals of branch and bound (``bnb``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

MAX_STEPS = 60
INSIDE = 0.95  # of the way to the wall
LEAST_TARGET = 0.01  # of the gap that is left: no step aims at less
SHORTER, LEAST = 0.8, 1e-7  # the factor of a length that fails, and where a step is none
LANCZOS = 12  # products for the length of a step
LARGE = 300  # from this size on they cost less than trying lengths by Cholesky


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
    (the first steps are short where ``X`` is far from ``Z⁻¹``). A step is three products, two inversions' worth of
    Cholesky, and one Cholesky for each trial of a length; all matrices lie row by row, as mixed layouts make the
    entrywise work slow.

    Args:
        C: float64 ``(n, n)``, symmetric, on the CPU.
        margin: how far inside the plain relaxation to begin, in units of ``C``.
    """
    y, factor = _start(C, margin)
    inverse = torch.cholesky_inverse(factor).mT
    root = inverse.diagonal().rsqrt()
    X = inverse * root * root[:, None]
    n = len(y)
    product, dX = torch.empty_like(C), torch.empty_like(C)
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
        _symmetric_product(X, dy, inverse, dX).sub_(X)
        constant = _symmetric_product(dX, dy, inverse, product).add_(inverse, alpha=target)
        dy = _solve(schur, 1 - constant.diagonal())
        _symmetric_product(X, dy, inverse, dX).add_(constant).sub_(X)
        reach_X = _reach(X, dX, min(1.0, reach_X / 0.7))
        b, last = _dual_step(C, y, dy, _room(C, y, dy, inverse, b))
        if last is None or max(reach_X, b) < 1e-6:
            return Point(y, X, inverse, step, False)
        X.add_(dX, alpha=reach_X)
        y = y + b * dy
        inverse = torch.cholesky_inverse(last).mT
    return Point(y, X, inverse, MAX_STEPS, False)


def _dot(A: torch.Tensor, B: torch.Tensor) -> float:
    return float(torch.dot(A.reshape(-1), B.reshape(-1)))


def _solve(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_solve(right[:, None], factor)[:, 0]


def _symmetric_product(A: torch.Tensor, d: torch.Tensor, B: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The symmetric part of ``A diag(d) B``."""
    whole = (A * d) @ B
    return torch.add(whole, whole.mT, out=out).mul_(0.5)


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
        return _room_by_lanczos(inverse, dy)
    length, _ = _dual_step(C, y, dy, min(1.0, last / 0.7))
    return length if length == 1.0 else INSIDE * length


def _room_by_lanczos(inverse: torch.Tensor, dy: torch.Tensor) -> float:
    """The same with ``Z - step diag(dy)``, without a factorisation.

    The largest eigenvalue of ``diag(dy) Z⁻¹``, from above, by Lanczos in the inner product of ``Z⁻¹``.
    """
    v = dy.clamp(min=0) + 1e-3 * float(dy.abs().mean())
    w = inverse @ v
    before, beta = torch.zeros_like(v), math.sqrt(max(float(v @ w), 0.0))
    diagonal: list[float] = []
    beside: list[float] = []
    while len(diagonal) < LANCZOS and beta > 1e-12 * max(map(abs, diagonal), default=0.0):
        beside.append(beta)
        before, v, w = v / beta, before, w / beta
        v = dy * w - (beta * v if diagonal else 0.0)
        diagonal.append(float(v @ w))
        v -= diagonal[-1] * before
        w = inverse @ v
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


def _reach(X: torch.Tensor, move: torch.Tensor, length: float) -> float:
    """A step that keeps ``X + step move`` positive definite, well inside if it is no full one."""
    while length > LEAST:
        if int(torch.linalg.cholesky_ex(torch.add(X, move, alpha=length)).info) == 0:
            return length if length == 1.0 else INSIDE * length
        length *= SHORTER
    return 0.0
