"""The doubly nonnegative bound of one row: Shor's, with ``u_i u_j ≥ 0`` for all pairs.

The alternating direction method on ``Y = (1, u)(1, u)ᵀ`` splits it in two: ``Y ≥ 0`` with ``diag U = u`` has an
entrywise projection, ``Y ⪰ 0`` with ``Y z = 0`` for each count one by an eigendecomposition (``project``), or on a GPU
by products alone. It starts at the Shor solution. Its multipliers ``N ≥ 0`` of ``Y ≥ 0`` need not converge: the
interior point finds the best diagonal for ``Q - N``, whatever N is, and that is the proof
(docs/mathematics.md, "Products of pairs").

Rows of one layer are one batch, tensors ``(rows, n + 1, n + 1)`` of float32; on the CPU a batch is one row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fwbench.solvers.semidefinite import lift_numba as kernel
from fwbench.solvers.semidefinite.psd_projection import Projection
from fwbench.solvers.semidefinite.row import RowForm, RowProof
from fwbench.solvers.semidefinite.shor import Shor, shor
from fwbench.verify.products import Listed, summed

Each = Callable[..., Iterable]


class Cuts(NamedTuple):
    """Products of triples and of fives, as a proof holds them (``fwbench.verify.products``)."""

    triple: np.ndarray = np.zeros((0, 3), np.uint16)
    corner: np.ndarray = np.zeros(0, np.uint8)
    weight: np.ndarray = np.zeros(0, np.float32)
    five: np.ndarray = np.zeros((0, 5), np.uint16)
    sign: np.ndarray = np.zeros(0, np.uint8)
    share: np.ndarray = np.zeros(0, np.float32)


NONE = Cuts()

ITERATIONS = 90  # some 2.5 s a row of 576 weights; more gains little
RELAXATION = 1.6
PENALTY = 0.2  # in units of sqrt(Q_ii Q_jj) for the entry ij
BORDER = 3.0  # the border's t, where the mean weight has 1
SMALLEST = 1e-4  # of the mean diagonal: below it entries are scaled alike


def doubly_nonnegative(
    form: RowForm,
    start: Shor | None = None,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = 3e-4,
    products: int = 20,
    deadline: float = math.inf,
) -> Shor:
    """The better of the Shor and the doubly nonnegative proof, and where its interior point ended.

    Args:
        start: the row's Shor solution, if known.
        products: at most this many times n of the multipliers are kept, the largest.
    """
    began = time.monotonic()
    start = start or shor(form, tolerance=tolerance, deadline=deadline)
    reserve = 1.5 * max(time.monotonic() - began, start.seconds)  # for the finish
    if time.monotonic() + reserve >= deadline:
        return start
    [N] = multipliers(Iteration([form], [start]), iterations, deadline - reserve)
    found = finish(form, N, products * len(form.Q), tolerance, deadline)
    return max(start, found, key=lambda one: one.proof.bound)


def finish(
    form: RowForm, N: np.ndarray, limit: int, tolerance: float, deadline: float = math.inf, cuts: Cuts = NONE
) -> Shor:
    """The interior point for the multipliers ``N (kinds, n, n)``, of which the ``limit`` largest are kept.

    ``N[kind, i, j]``, ``i < j``, is the multiplier of the pair's product of that kind (``fwbench.verify.products``).
    """
    less, thin = without(form, N, limit, cuts)
    return thin(shor(less, tolerance=tolerance, deadline=deadline))


def without(form: RowForm, N: np.ndarray, limit: int, cuts: Cuts = NONE) -> tuple[RowForm, Callable[[Shor], Shor]]:
    """The row less the ``limit`` largest products of pairs and the cuts, and what writes them into its proof."""
    kinds, n = N.shape[:2]
    i, j = np.triu_indices(n, 1)
    value = N[:, i, j].T.astype(np.float32).ravel()  # by pair, then by kind
    order = np.argsort(-value, kind="stable")[:limit]
    chosen = np.sort(order[value[order] > 0])
    kind, value = (chosen % kinds).astype(np.uint8), value[chosen]
    i, j = i[chosen // kinds], j[chosen // kinds]
    taken = summed(Listed(i * n + j, kind, value, *cuts), n)
    linear = np.asarray((0 if form.linear is None else form.linear) - taken.linear[0])
    less = replace(form, Q=form.Q - taken.N.matrix, linear=linear, constant=form.constant - taken.constant)

    def write(found: Shor) -> Shor:
        own = {"pair": i * n + j, "kind": kind, "multiplier": value}
        own |= cuts._asdict()
        return replace(found, proof=replace(found.proof, **own))

    return less, write


class Directions(Protocol):
    """The alternating directions of some rows, here or in ``mccormick``."""

    def step(self) -> None:
        """One iteration of all rows."""

    def multipliers(self) -> np.ndarray:
        """``N (rows, kinds, n, n)`` float32: that of a product at ``i < j``."""


def multipliers(rows: Directions, iterations: int, deadline: float = math.inf) -> np.ndarray:
    """The rows' multipliers after some iterations, fewer if the deadline comes."""
    for _ in range(iterations):
        if time.monotonic() >= deadline:
            break
        rows.step()
    return rows.multipliers()


class Iteration:
    """The alternating directions of some rows from their Shor solutions; ``N`` of ``u_i u_j ≥ 0`` is symmetric."""

    def __init__(self, forms: Sequence[RowForm], starts: Sequence[Shor], device: str = "cpu", each: Each = map) -> None:
        self.t, cost, face, self.S, L, self.scale = stacked(_prepared, forms, starts, device, each)
        self.project = Projection(face)
        self.cost, self.M = cost / PENALTY, L / PENALTY

    def step(self) -> None:
        V = meet(self.S, self.cost, self.M, self.t)
        self.S = self.project(V)
        self.M = V.sub_(self.S)

    def multipliers(self) -> np.ndarray:
        N = PENALTY * multipliers_of(self.S, self.cost, self.M) * (self.t[:, :, None] * self.t[:, None])
        return in_units(N, self.scale)[:, None, 1:, 1:].cpu().numpy()


def stacked(
    prepared: Callable[[RowForm, Shor], tuple[np.ndarray, ...]],
    forms: Sequence[RowForm],
    starts: Sequence[Shor],
    device: str,
    each: Each,
) -> list[torch.Tensor]:
    """The arrays of all rows' preparations, each kind one tensor on the device.

    Args:
        each: maps the preparation over the rows; a pool's own map runs them beside each other.
    """
    arrays = zip(*each(prepared, forms, starts), strict=True)
    return [torch.from_numpy(np.stack(kind)).to(device) for kind in arrays]


def _prepared(form: RowForm, start: Shor) -> tuple[np.ndarray, ...]:
    """A row in ``Ỹ = T Y T``, ``T = diag(t)``: with penalties in proportion to ``t_i² t_j² = sqrt(Q_ii Q_jj)``.

    With one penalty for all entries an ill-conditioned row wanders for hundreds of iterations. The arrays are ``t``,
    the cost, the orthonormal basis of the counts, Shor's ``Y`` and multiplier, and the unit of the cost.
    """
    scale = float(form.Q.diagonal().mean())
    t = np.r_[BORDER, np.maximum(form.Q.diagonal() / scale, SMALLEST) ** 0.25]
    outer = np.outer(t, t)
    face = np.linalg.qr(counts(form) / t[:, None])[0]
    priced = cost(form, scale)
    slack = dual_slack(start.proof, scale)
    L = -(priced + slack) / outer  # exactly consistent: no ρ in it
    single = (array.astype(np.float32) for array in (t, priced / outer, face, pruned_products(start.X) * outer, L))
    return (*single, np.array(scale))


def counts(form: RowForm) -> np.ndarray:
    """``z (n + 1, groups)``: ``Y z = 0`` for each group's count."""
    n, groups = len(form.Q), len(form.counts)
    z = np.zeros((n + 1, groups))
    z[0] = -form.counts
    z[1 + np.arange(n), np.arange(n) // (n // groups)] = 1
    return z


def in_units(N: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``N`` times each row's float64 unit, float32."""
    return (N.double() * scale[:, None, None]).float()


def cost(form: RowForm, scale: float) -> np.ndarray:
    """The bordered ``[[0, l/2], [l/2, Q]]`` in units of ``scale``."""
    bordered = np.zeros((len(form.Q) + 1,) * 2)
    bordered[1:, 1:] = form.Q / scale
    if form.linear is not None:
        bordered[0, 1:] = bordered[1:, 0] = form.linear / (2 * scale)
    return bordered


def meet(P: torch.Tensor, C: torch.Tensor, M: torch.Tensor, t: torch.Tensor, apart: int = 0) -> torch.Tensor:
    """``RELAXATION Y + (1 - RELAXATION) P + M``, ``Y`` the nearest to ``P - C - M`` of the matrices that are wanted.

    These are ``T Y T ≥ 0``, ``T = diag(t)``, with ``Y_00 = 1``, a diagonal that equals the border, and zeros ``apart``
    from the diagonal, beside the border. All are ``(rows, size, size)`` float32 and symmetric, ``t (rows, size)``.
    """
    V = met_rows(P, C, M) if P.device.type == "cpu" else met(P, C, M)

    def relaxed(Y: torch.Tensor | float, part: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return RELAXATION * Y + (1 - RELAXATION) * part(P) + part(M)

    def border(A: torch.Tensor) -> torch.Tensor:
        return A[:, 0, 1:]

    def diagonal(A: torch.Tensor, offset: int = 0) -> torch.Tensor:
        return A.diagonal(offset, dim1=1, dim2=2)[:, 1:]

    first, t = t[:, :1], t[:, 1:]
    near = [part(P) - part(C) - part(M) for part in (border, diagonal)]
    u = ((2 * first * near[0] + t * near[1]) / (t * (2 * first**2 + t**2))).clamp(0, 1)
    V[:, 0, 0] = relaxed(first[:, 0] ** 2, lambda A: A[:, 0, 0])
    V[:, 0, 1:] = V[:, 1:, 0] = relaxed(first * t * u, border)
    diagonal(V)[:] = relaxed(t**2 * u, diagonal)
    for offset in (apart, -apart) if apart else ():
        diagonal(V, offset)[:] = relaxed(0.0, partial(diagonal, offset=offset))
    return V


def met(P: torch.Tensor, C: torch.Tensor, M: torch.Tensor) -> torch.Tensor:
    """What :func:`meet` is but for the entries with conditions of their own, on any device."""
    return (P - C - M).clamp_(min=0).mul_(RELAXATION).add_(P, alpha=1 - RELAXATION).add_(M)


def met_rows(P: torch.Tensor, C: torch.Tensor, M: torch.Tensor) -> torch.Tensor:
    """The same on the CPU."""
    V = torch.empty_like(P)
    for p, c, m, v in zip(P, C, M, V, strict=True):
        kernel.met(p.numpy(), c.numpy(), m.numpy(), np.float32(RELAXATION), v.numpy())
    return V


def multipliers_of(P: torch.Tensor, C: torch.Tensor, M: torch.Tensor) -> torch.Tensor:
    """The multipliers of ``T Y T ≥ 0`` in units of the penalty, from what :func:`meet` takes."""
    return (C + M - P).clamp_(min=0)


def pruned_products(X: np.ndarray) -> np.ndarray:
    """``(1, u)(1, u)ᵀ`` of the relaxation from the same in ±1 variables."""
    Y = (1 + X[:1] + X[:, :1] + X) / 4
    Y[0] = Y[:, 0] = (1 + X[0]) / 2
    return Y


def dual_slack(proof: RowProof, scale: float) -> np.ndarray:
    """``Z`` of the Shor proof less the cost, in ``u``: ``Σ d u (1 - u) - bound`` as a bordered matrix."""
    d = proof.d / scale
    slack = np.diag(np.r_[-proof.bound / scale, -d])
    slack[0, 1:] = slack[1:, 0] = d / 2
    return slack
