"""The semidefinite (Shor) bound of one row: a diagonal of its own (``maxcut`` finds it).

With ``u = (1 + x)/2`` and a border, a row's problem ``min uᵀQu + lᵀu`` over masks becomes a max-cut problem
``min ⟨C, X⟩``, ``diag X = 1``, ``X ⪰ 0``; ``C`` holds ``ρ z zᵀ`` for each group, ``z = (size - 2p, 1, ..., 1)``, which
is zero where the group's count is right and brings the products of the count with every variable (DESIGN section 7).
Its dual ``max Σy``, ``Z = C - diag(y) ⪰ 0`` gives the row's proof: ``d`` and ``rho`` are four times ``y`` and ``ρ``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.solvers import lapack
from fwbench.solvers.blocks import scale_for
from fwbench.solvers.maxcut import bordered, interior_point
from fwbench.verify_products import FIVES, TRIPLES

EPS = float(np.finfo(np.float64).eps)
FAR = 2.0  # from the middle of the cube, whose masks are at 1
SHIFT = 3e-6  # of the bound is lost by the first attempt to bring the point nearer
START_MARGIN = 0.4  # of Q's mean diagonal: how far inside the plain relaxation the interior point begins


@dataclass(frozen=True)
class RowForm:
    """One row: ``uᵀQu + lᵀu + constant`` over masks with ``counts[g]`` of each group of neighbours pruned."""

    Q: np.ndarray  # (n, n)
    counts: np.ndarray  # (groups,)
    linear: np.ndarray | None = None  # (n,)
    constant: float = 0.0
    scale: float = 1.0  # a power of two: it is the row whose weights are multiplied by it

    @classmethod
    def of(cls, problem: Problem, row: int) -> RowForm:
        w = problem.W[row].astype(np.float64)
        counts = problem.pattern.counts(problem.shape).reshape(problem.rows, -1)[row]
        scale = scale_for(float((w * w * problem.G.diagonal()).mean()))
        w *= scale
        return cls((w[:, None] * w) * problem.G, counts, scale=scale)

    @property
    def free(self) -> bool:
        """True if there is a choice to make, and something at stake."""
        size = len(self.Q) // len(self.counts)
        return bool(((self.counts > 0) & (self.counts < size)).any()) and bool(self.Q.diagonal().max() > 0)


@dataclass(frozen=True)
class RowProof:
    """What a row, its weights times ``scale``, brings to a certificate of kind ``rows`` (``fwbench.verify``)."""

    bound: float  # the tangent's, in plain float64
    d: np.ndarray  # (n,)
    rho: float
    u: np.ndarray  # (n,) float32
    pair: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    kind: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    multiplier: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    triple: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.uint16))
    corner: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    weight: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # of the triples
    five: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.uint16))
    sign: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    share: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # of the fives
    scale: float = 1.0

    @property
    def lower(self) -> float:
        """The bound of the row itself."""
        return self.bound / self.scale**2


def row_certificate(shared: Certificate, proofs: Mapping[int, RowProof], lower: float, source: str) -> Certificate:
    """The proofs of single rows in one certificate; the other rows stand on the shared one.

    Args:
        lower: the bound of the whole layer.
    """
    if not proofs:
        return shared
    rows = sorted(proofs)
    own = [proofs[row] for row in rows]
    u = np.array(shared.arrays["u"])
    u[rows] = np.stack([proof.u for proof in own])
    arrays = {
        "e": shared.arrays["e"],
        "u": u,
        "rows": np.array(rows, dtype=np.int64),
        "d": np.stack([proof.d for proof in own]),
        "rho": np.array([proof.rho for proof in own]),
        "start": np.cumsum([0, *(len(proof.pair) for proof in own)], dtype=np.int64),
        "pair": np.concatenate([proof.pair for proof in own]),
        "kind": np.concatenate([proof.kind for proof in own]),
        "multiplier": np.concatenate([proof.multiplier for proof in own]),
    }
    for *names, start in (TRIPLES, FIVES):
        if any(len(getattr(proof, names[0])) for proof in own):
            for name in names:
                arrays[name] = np.concatenate([getattr(proof, name) for proof in own])
            arrays[start] = np.cumsum([0, *(len(getattr(proof, names[0])) for proof in own)], dtype=np.int64)
    if any(proof.scale != 1 for proof in own):
        arrays["scale"] = np.array([proof.scale for proof in own])
    return Certificate(shared.problem, lower, "rows", arrays, source)


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
    C = torch.tensor(max_cut(form, rho))
    found = interior_point(C, START_MARGIN / 4, lambda y, gap: gap <= tolerance * abs(float(y.sum())), deadline)
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
    d = _safe(form, 4 * scale * y[1:], 4 * scale * rho)
    point = ((1 + border[1:] / border[0]) / 2).clip(-1, 2).astype(np.float32)
    return RowProof(tangent_bound(form, d, 4 * scale * rho, point), d, 4 * scale * rho, point, scale=form.scale)


def _near_masks(form: RowForm, y: np.ndarray, border: np.ndarray, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """``y`` and ``border`` where the function is least near the cube, for a little of the bound.

    Where ``Z`` is singular but for the last bits of ``y`` its least point may lie far away, and points that a
    certificate may hold, ``-1 ≤ u ≤ 2``, prove next to nothing.
    """
    lower = SHIFT * abs(float(y.sum())) / len(y)
    while np.abs(border).max() > FAR * abs(border[0]) and lower <= abs(float(y.sum())):
        y = y - lower
        Z = torch.from_numpy(max_cut(form, rho) - np.diag(y))
        one = torch.zeros(len(y), dtype=torch.float64)
        one[0] = 1
        if lapack.cholesky(Z):
            border = lapack.solve(Z, one).numpy()
        lower *= 4
    return y, border


def tangent_bound(form: RowForm, d: np.ndarray, rho: float, u: np.ndarray) -> float:
    """The row's lower bound by the tangent at ``u``, as ``fwbench.verify`` derives it, in plain float64."""
    u = u.astype(np.float64)
    product = form.Q @ u - d * u
    g = 2 * product + d
    if form.linear is not None:
        g += form.linear
    groups = np.sort(g.reshape(len(form.counts), -1), axis=1)
    chosen = groups[np.arange(groups.shape[1]) < form.counts[:, None]].sum()
    off = u.reshape(len(form.counts), -1).sum(axis=1) - form.counts
    return float(chosen - product @ u - rho * (off @ off)) + form.constant


def _safe(form: RowForm, d: np.ndarray, rho: float) -> np.ndarray:
    """Lower ``d`` by what the checker's verified Cholesky needs, and some more."""
    n = len(form.Q)
    spread = float(np.linalg.norm(form.Q)) + rho * n
    margin = 4 * (n + 2) * EPS * (float(np.abs(form.Q.diagonal()).sum()) + rho * n) + 64 * EPS * spread + 1e-300
    A = form.Q.copy()
    size = n // len(form.counts)
    for first in range(0, n, size):
        A[first : first + size, first : first + size] += rho
    shift = margin
    while True:
        try:
            np.linalg.cholesky(A - np.diag(d - shift + margin / 2))
        except np.linalg.LinAlgError:
            shift *= 2
        else:
            return d - shift


def _units(form: RowForm, rho: float | None) -> tuple[float, float]:
    """Mean diagonal, and the weight of the count in its units; by itself, enough to lose less than a thousandth."""
    return float(form.Q.diagonal().mean()), 2.5 + 200 / len(form.Q) if rho is None else rho


def max_cut(form: RowForm, rho: float | None = None) -> np.ndarray:
    """``C (n + 1, n + 1)`` in units of the mean diagonal, with ``rho`` as in :func:`shor`."""
    scale, rho = _units(form, rho)
    n = len(form.Q)
    linear = np.zeros(n) if form.linear is None else form.linear / scale
    start = np.linspace(0, n, len(form.counts) + 1, dtype=np.int64)
    return bordered(form.Q / scale, linear, start, form.counts, 4 * rho)
