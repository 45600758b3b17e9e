"""The semidefinite (Shor) bound of one row: a diagonal of its own (``maxcut`` finds it).

With ``u = (1 + x)/2`` and a border, a row's problem ``min uᵀQu + lᵀu`` over masks becomes a max-cut problem
``min ⟨C, X⟩``, ``diag X = 1``, ``X ⪰ 0``; ``C`` holds ``ρ z zᵀ`` for each group, ``z = (size - 2p, 1, ..., 1)``, which
is zero where the group's count is right and brings the products of the count with every variable (docs/mathematics.md,
"The count without a multiplier").
Its dual ``max Σy``, ``Z = C - diag(y) ⪰ 0`` gives the row's proof: ``d`` and ``rho`` are four times ``y`` and ``ρ``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from fwbench.bounds import lowered
from fwbench.solvers.numerics import lapack
from fwbench.solvers.semidefinite.maxcut import bordered, interior_point
from fwbench.solvers.semidefinite.row import RowForm, RowProof, tangent_bound
from fwbench.verify.rounding import EPS, proves_positive

FAR = 2.0  # from the middle of the cube, whose masks are at 1
SHIFT = 3e-6  # of the bound is lost by the first attempt to bring the point nearer
START_MARGIN = 0.4  # of Q's mean diagonal: how far inside the plain relaxation the interior point begins


@dataclass(frozen=True)
class Shor:
    """Where the interior point ended."""

    proof: RowProof
    X: np.ndarray  # (n + 1, n + 1) of the primal, in ±1 variables
    steps: int
    converged: bool
    seconds: float = 0.0  # that it took


def shor(form: RowForm, *, tolerance: float = 1e-4, rho: float | None = None, deadline: float = math.inf) -> Shor:
    """The Shor bound of a row to a relative ``tolerance``, or as far as the ``deadline`` lets it come.

    Args:
        form: a row with a free choice (``form.free``).
        rho: weight of the count in mean diagonals of C; finite, so that an interior remains. None: enough to lose less
            than a thousandth of the bound, for which small rows need more.
        deadline: of ``time.monotonic()``; what is returned earlier is valid too.
    """
    began = time.monotonic()
    C, offset = torch.tensor(max_cut(form, rho)), form.offset / form.unit

    def done(y: torch.Tensor, gap: float) -> bool:
        return gap <= tolerance * abs(float(y.sum()) + offset)

    found = interior_point(C, START_MARGIN / 4, done, deadline)
    proof = proof_of(form, found.y.numpy(), found.inverse[0].numpy(), rho)
    return Shor(proof, found.X.numpy(), found.steps, found.converged, time.monotonic() - began)


def proof_of(form: RowForm, y: np.ndarray, border: np.ndarray, rho: float | None = None) -> RowProof:
    """The proof by a dual point ``y (n + 1,)`` of :func:`max_cut`'s program.

    Args:
        border: ``(n + 1,)``, the first row of ``Z⁻¹``: as ``Z`` is the bordered Hessian of the convex function, it says
            where that is least. Any other point would be valid too.
    """
    scale, rho = _units(form, rho)
    y, border = _near_masks(form, y, border, rho)
    d = safe_diagonal(form, 4 * scale * y[1:], 4 * scale * rho)
    point = ((1 + border[1:] / border[0]) / 2).clip(-1, 2).astype(np.float32)
    return RowProof(tangent_bound(form, d, 4 * scale * rho, point), d, 4 * scale * rho, point, scale=form.scale)


def _near_masks(form: RowForm, y: np.ndarray, border: np.ndarray, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """``y`` and ``border`` where the function is least near the cube, for a little of the bound.

    Where ``Z`` is singular but for the last bits of ``y`` its least point may lie far away, and points that a
    certificate may hold, ``-1 ≤ u ≤ 2``, prove next to nothing.
    """
    lower = SHIFT * abs(float(y.sum())) / len(y)
    while np.abs(border).max() > FAR * abs(border[0]) and 0 < lower <= abs(float(y.sum())):
        y = y - lower
        Z = torch.from_numpy(max_cut(form, rho) - np.diag(y))
        one = torch.zeros(len(y), dtype=torch.float64)
        one[0] = 1
        if lapack.cholesky(Z):
            border = lapack.solve(Z, one).numpy()
        lower *= 4
    return y, border


def safe_diagonal(form: RowForm, d: np.ndarray, rho: float) -> np.ndarray:
    """Lower ``d`` by what the checker's verified Cholesky needs, and some more."""
    n, groups = len(form.Q), len(form.counts)
    A = form.Q + np.kron(np.eye(groups), np.full((n // groups,) * 2, rho))
    spread = max(float(np.linalg.norm(form.Q)) + rho * n, float(np.linalg.norm(d)) / 4)
    margin = 4 * (n + 2) * EPS * (float(np.abs(form.Q.diagonal()).sum()) + rho * n) + 64 * EPS * spread + 1e-300
    return lowered(d, lambda d: proves_positive(A - np.diag(d), 32 * EPS * spread), margin, margin)


def _units(form: RowForm, rho: float | None) -> tuple[float, float]:
    """Mean diagonal, and the weight of the count in its units; by itself, enough to lose less than a thousandth."""
    return form.unit, 2.5 + 200 / len(form.Q) if rho is None else rho


def max_cut(form: RowForm, rho: float | None = None) -> np.ndarray:
    """``C (n + 1, n + 1)`` in units of the mean diagonal, with ``rho`` as in :func:`shor`."""
    scale, rho = _units(form, rho)
    n = len(form.Q)
    linear = np.zeros(n) if form.linear is None else form.linear / scale
    start = np.linspace(0, n, len(form.counts) + 1, dtype=np.int64)
    return bordered(form.Q / scale, linear, start, form.counts, 4 * rho)
