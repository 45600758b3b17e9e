"""Many programs of ``maxcut`` at once, on any device: the same directions, each matrix operation one call for all.

Programs that end are taken out of the batch. A step's length is a program's own: a factorisation that fails shortens
that program's alone; ``X``'s lengths are found by such trials, not by Lanczos, which would need a triangular solve
for each of its products. Made for a GPU; on a CPU one program after the other is faster, so ``maxcut`` is not a batch
of one: what saves time there (work in place, first steps in float32, lengths of ``X`` by Lanczos) is a program's own.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from fwbench.solvers.semidefinite.maxcut import INSIDE, LANCZOS, LEAST, LEAST_TARGET, MAX_STEPS, SHORTER


@dataclass(frozen=True)
class InteriorPoints:
    """Where the programs ended; see :class:`fwbench.solvers.semidefinite.maxcut.InteriorPoint`."""

    y: torch.Tensor  # (programs, n)
    X: torch.Tensor  # (programs, n, n)
    border: torch.Tensor  # (programs, n), the first row of the inverse of C - diag(y)
    steps: torch.Tensor  # (programs,)
    converged: torch.Tensor  # (programs,) bool


def interior_points(
    C: torch.Tensor, margin: float, tolerance: float, deadline: float = math.inf, offset: torch.Tensor | None = None
) -> InteriorPoints:
    """Solve ``min ⟨C, X⟩, diag X = 1, X ⪰ 0`` for each ``C``, to a gap of ``tolerance`` relative to the dual's value.

    Args:
        C: float64 ``(programs, n, n)``, symmetric.
        margin: how far inside the plain relaxation to begin, in units of ``C``.
        deadline: of ``time.monotonic()``; what is returned earlier is feasible too.
        offset: ``(programs,)``, what each dual's value is added to before it is the measure of the gap; None for 0.
    """
    programs, n = C.shape[:2]
    y = torch.zeros_like(C[:, 0])
    offset = y[:, 0] if offset is None else offset
    factor = _started(C, y, margin)
    inverse = _inverse(factor)
    root = _diagonal(inverse).rsqrt()
    X = inverse * root[:, :, None] * root[:, None]
    live = torch.arange(programs, device=C.device)
    last = torch.ones_like(y[:, 0])
    reach = last.clone()
    out = InteriorPoints(
        y.clone(), torch.empty_like(C), y.clone(), torch.zeros_like(live), torch.zeros_like(live, dtype=torch.bool)
    )

    def leave(gone: torch.Tensor, step: int, converged: bool) -> None:
        """Write the results of programs that end here."""
        to = live[gone]
        out.y[to], out.X[to], out.border[to] = y[gone], X[gone], inverse[gone, 0]
        out.steps[to], out.converged[to] = step, converged

    for step in range(MAX_STEPS + 1):
        gap = (X * C).sum(dim=(1, 2)) - (_diagonal(X) * y).sum(dim=1)
        ended = gap <= tolerance * (y.sum(dim=1) + offset).abs()
        leave(ended, step, True)
        if step == MAX_STEPS or time.monotonic() >= deadline:
            leave(~ended, step, False)
            return out
        schur, info = torch.linalg.cholesky_ex(inverse * X)
        stuck = ~ended & (info > 0)  # as far as float64 goes
        leave(stuck, step, False)
        if bool((ended | stuck).any()):
            stay = ~(ended | stuck)
            live, C, y, X, inverse, schur = (item[stay] for item in (live, C, y, X, inverse, schur))
            gap, last, reach, offset = gap[stay], last[stay], reach[stay], offset[stay]
        if not len(live):
            return out
        dy = _solve(schur, torch.ones_like(y))
        dX = _symmetric_product(X * dy[:, None], inverse).sub_(X)
        target = gap / n * ((1 - _room(inverse, dy)) ** 2 + LEAST_TARGET).clamp(max=1)
        left = dX * dy[:, None]
        dy = _solve(schur, 1 - torch.linalg.vecdot(left, inverse) - target[:, None] * _diagonal(inverse))
        dX = _symmetric_product(left.addcmul_(X, dy[:, None]), inverse).add_(inverse * target[:, None, None]).sub_(X)
        reach, _ = _length(X, dX, (reach / 0.7).clamp(max=1))
        reach = torch.where(reach == 1, reach, INSIDE * reach)
        last, factor = _length(C - torch.diag_embed(y), torch.diag_embed(-dy), _room(inverse, dy))
        stuck = (last == 0) | (torch.maximum(reach, last) < 1e-6)
        if bool(stuck.any()):
            leave(stuck, step, False)
            live, C, y, X, inverse, dy, dX = (item[~stuck] for item in (live, C, y, X, inverse, dy, dX))
            last, reach, factor, offset = last[~stuck], reach[~stuck], factor[~stuck], offset[~stuck]
        X = X.add_(dX * reach[:, None, None])
        y = y + last[:, None] * dy
        inverse = _inverse(factor)
    raise AssertionError("the last step returns")


def _diagonal(A: torch.Tensor) -> torch.Tensor:
    return A.diagonal(dim1=1, dim2=2)


def _inverse(factor: torch.Tensor) -> torch.Tensor:
    """Of the matrices with these factors; ``torch.cholesky_inverse`` is far slower on a GPU."""
    one = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    half = torch.linalg.solve_triangular(factor, one, upper=False)
    return half.mT @ half


def _solve(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]


def _symmetric_product(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The symmetric part of ``A B``."""
    whole = A @ B
    return (whole + whole.mT).mul_(0.5)


def _started(C: torch.Tensor, y: torch.Tensor, margin: float) -> torch.Tensor:
    """Set each ``y`` to equal entries well inside, and return the factors of the ``Z``."""
    factor = torch.empty_like(C)
    todo = torch.arange(len(C), device=C.device)
    while len(todo):
        y[todo] = -margin
        found, info = torch.linalg.cholesky_ex(C[todo] - torch.diag_embed(y[todo]))
        factor[todo] = found
        todo, margin = todo[info > 0], 2 * margin
    return factor


def _length(A: torch.Tensor, move: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps up to those given that keep each ``A + step move`` positive definite, 0 where none does; the factors."""
    factor, info = torch.linalg.cholesky_ex(A + length[:, None, None] * move)
    failed = (info > 0).nonzero()[:, 0]
    while len(failed):
        shorter = SHORTER * length[failed]
        length[failed] = torch.where(shorter > LEAST, shorter, 0.0)
        failed = failed[length[failed] > 0]
        found, info = torch.linalg.cholesky_ex(A[failed] + length[failed, None, None] * move[failed])
        factor[failed] = found
        failed = failed[info > 0]
    return length, factor


def _room(inverse: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """About the largest steps up to 1 that keep ``Z - step diag(dy)`` well inside.

    By the largest eigenvalue of ``diag(dy) Z⁻¹``, from above: Lanczos in the inner product of ``Z⁻¹``. A program whose
    Krylov space ends goes on with zeros, which add the eigenvalue 0 alone.
    """
    v = dy.clamp(min=0) + 1e-3 * dy.abs().mean(dim=1, keepdim=True)
    w = _times(inverse, v)
    before, beta = torch.zeros_like(v), _dot(v, w).clamp(min=0).sqrt()
    diagonal: list[torch.Tensor] = []
    beside: list[torch.Tensor] = []
    largest = torch.zeros_like(beta)
    for step in range(LANCZOS):
        on = beta > 1e-12 * largest
        beta = torch.where(on, beta, 0.0)
        by = torch.where(on, 1 / beta, 0.0)[:, None]
        beside.append(beta)
        before, v, w = v * by, before, w * by
        v = dy * w - (beta[:, None] * v if step else 0.0)
        diagonal.append(_dot(v, w))
        largest = torch.maximum(largest, diagonal[-1].abs())
        v = v - diagonal[-1][:, None] * before
        w = _times(inverse, v)
        beta = _dot(v, w).clamp(min=0).sqrt()
    T = np.zeros((len(dy), LANCZOS, LANCZOS))
    i = np.arange(LANCZOS)
    T[:, i, i] = torch.stack(diagonal, 1).cpu().numpy()
    T[:, i[1:], i[:-1]] = T[:, i[:-1], i[1:]] = torch.stack(beside[1:], 1).cpu().numpy()
    values, vectors = np.linalg.eigh(T)
    most = values[:, -1] + beta.cpu().numpy() * np.abs(vectors[:, -1, -1])
    return torch.from_numpy(np.where(most <= INSIDE, 1.0, INSIDE / np.maximum(most, INSIDE))).to(dy.device)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(dim=1)


def _times(A: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (A @ v[:, :, None])[:, :, 0]
