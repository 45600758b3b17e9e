"""The doubly nonnegative bound of one row: Shor's, with ``u_i u_j ≥ 0`` for all pairs.

The alternating direction method on ``Y = (1, u)(1, u)ᵀ`` splits it in two: ``Y ≥ 0`` with ``diag U = u`` has an
entrywise projection, ``Y ⪰ 0`` with ``Y z = 0`` for each count one by an eigendecomposition (``psd_projection``), or on
a GPU by products alone. It starts at the Shor solution. Its multipliers ``N ≥ 0`` of ``Y ≥ 0`` need not converge: the
interior point finds the best diagonal for ``Q - N``, whatever N is, and that is the proof (``ladder.climb``;
docs/mathematics.md, "Products of pairs").

Rows of one layer are one batch, tensors ``(rows, n + 1, n + 1)`` of float32; on the CPU a batch is one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fwbench.solvers.semidefinite import lift_numba as kernel
from fwbench.solvers.semidefinite.psd_projection import Projection
from fwbench.solvers.semidefinite.row import RowForm, RowProof
from fwbench.solvers.semidefinite.shor import Shor
from fwbench.verify.products import Listed, summed

RowMap = Callable[..., Iterable]  # as the built-in ``map``


class Cuts(NamedTuple):
    """Products of triples and of fives, as a proof holds them (``fwbench.verify.products``)."""

    triple: np.ndarray = np.zeros((0, 3), np.uint16)
    corner: np.ndarray = np.zeros(0, np.uint8)
    weight: np.ndarray = np.zeros(0, np.float32)
    five: np.ndarray = np.zeros((0, 5), np.uint16)
    sign: np.ndarray = np.zeros(0, np.uint8)
    share: np.ndarray = np.zeros(0, np.float32)


NONE = Cuts()

RELAXATION = 1.6
PENALTY = 0.2  # in units of sqrt(Q_ii Q_jj) for the entry ij
BORDER = 3.0  # the border's t, where the mean weight has 1
SMALLEST = 1e-4  # of the mean diagonal: below it entries are scaled alike


def lagrangian(
    form: RowForm, N: np.ndarray, cuts: Cuts = NONE, *, limit: int
) -> tuple[RowForm, Callable[[Shor], Shor]]:
    """The row's Lagrangian, its form less the products times their multipliers; and what adds these to a proof of it.

    Args:
        N: ``(kinds, n, n)``: at ``i < j`` the multiplier of the pair's product of that kind
            (``fwbench.verify.products``). The ``limit`` largest are taken.
        cuts: products of more than two weights, all taken.
    """
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
    """The alternating directions of some rows of equal length: what climbs to a rung of the ladder.

    Args:
        starts: where the rung below ended.
        iterations: that are planned; the deadline may come before.
        each: maps what is a row's own and small over the rows.
    """

    def __init__(
        self,
        forms: Sequence[RowForm],
        starts: Sequence[Shor],
        iterations: int,
        device: str = "cpu",
        each: RowMap = map,
    ) -> None: ...

    def step(self) -> None:
        """One iteration of all rows."""

    def multipliers(self) -> np.ndarray:
        """``N (rows, kinds, n, n)`` float32: that of a product at ``i < j``."""

    def cuts(self) -> list[Cuts]:
        """Of each row, the products of more than two weights."""


class DoublyNonnegative:
    """The directions from Shor solutions, see :class:`Directions`; ``N`` of ``u_i u_j ≥ 0`` is symmetric."""

    def __init__(
        self,
        forms: Sequence[RowForm],
        starts: Sequence[Shor],
        iterations: int,
        device: str = "cpu",
        each: RowMap = map,
    ) -> None:
        self.t, cost, face, self.S, L, self.scale = stacked(_prepared, forms, starts, device, each)
        self.project = Projection(face)
        self.cost, self.M = cost / PENALTY, L / PENALTY

    def step(self) -> None:
        V = prox(self.S, self.cost, self.M, self.t)
        self.S = self.project(V)
        self.M = V.sub_(self.S)

    def multipliers(self) -> np.ndarray:
        N = PENALTY * multipliers_of(self.S, self.cost, self.M) * (self.t[:, :, None] * self.t[:, None])
        return in_units(N, self.scale)[:, None, 1:, 1:].cpu().numpy()

    def cuts(self) -> list[Cuts]:
        return [NONE] * len(self.S)


def stacked(
    prepared: Callable[[RowForm, Shor], tuple[np.ndarray, ...]],
    forms: Sequence[RowForm],
    starts: Sequence[Shor],
    device: str,
    each: RowMap,
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
    scale = form.unit
    t = np.r_[BORDER, np.maximum(form.Q.diagonal() / scale, SMALLEST) ** 0.25]
    outer = np.outer(t, t)
    face = np.linalg.qr(counts(form) / t[:, None])[0]
    priced = cost(form, scale)
    slack = dual_slack(form, start.proof, scale)
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


def prox(P: torch.Tensor, C: torch.Tensor, M: torch.Tensor, t: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """The proximal step of the cost on the nonnegative matrices, over-relaxed, plus the multiplier.

    ``RELAXATION Y + (1 - RELAXATION) P + M`` with ``Y`` the projection of ``P - C - M`` on the ``T Y T ≥ 0``,
    ``T = diag(t)``, whose ``Y_00`` is 1 and whose diagonal equals the border.

    Args:
        P, C, M: iterate, cost and multiplier, ``(rows, size, size)`` float32 and symmetric; the last two in units of
            the penalty.
        t: ``(rows, size)``.
        offset: besides, the diagonal so far from the main one is zero but for the border; 0 for none.
    """
    V = prox_entries_by_row(P, C, M) if P.device.type == "cpu" else prox_entries(P, C, M)

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
    for place in (offset, -offset) if offset else ():
        diagonal(V, place)[:] = relaxed(0.0, partial(diagonal, offset=place))
    return V


def prox_entries(P: torch.Tensor, C: torch.Tensor, M: torch.Tensor) -> torch.Tensor:
    """:func:`prox` but for the entries with conditions of their own, on any device."""
    return (P - C - M).clamp_(min=0).mul_(RELAXATION).add_(P, alpha=1 - RELAXATION).add_(M)


def prox_entries_by_row(P: torch.Tensor, C: torch.Tensor, M: torch.Tensor) -> torch.Tensor:
    """The same on the CPU."""
    V = torch.empty_like(P)
    for p, c, m, v in zip(P, C, M, V, strict=True):
        kernel.prox_entries(p.numpy(), c.numpy(), m.numpy(), np.float32(RELAXATION), v.numpy())
    return V


def multipliers_of(P: torch.Tensor, C: torch.Tensor, M: torch.Tensor) -> torch.Tensor:
    """The multipliers of ``T Y T ≥ 0`` in units of the penalty, from what :func:`prox` takes."""
    return (C + M - P).clamp_(min=0)


def pruned_products(X: np.ndarray) -> np.ndarray:
    """``(1, u)(1, u)ᵀ`` of the relaxation from the same in ±1 variables."""
    Y = (1 + X[:1] + X[:, :1] + X) / 4
    Y[0] = Y[:, 0] = (1 + X[0]) / 2
    return Y


def dual_slack(form: RowForm, proof: RowProof, scale: float) -> np.ndarray:
    """``Z`` of the Shor proof less the cost, in ``u``: ``Σ d u (1 - u) - bound`` as a bordered matrix."""
    d = proof.d / scale
    slack = np.diag(np.r_[-(proof.bound - form.offset) / scale, -d])
    slack[0, 1:] = slack[1:, 0] = d / 2
    return slack
