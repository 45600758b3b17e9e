"""The bound of one row with all four McCormick products of each pair.

``u_i u_j``, ``u_i (1 - u_j)``, ``(1 - u_i) u_j`` and ``(1 - u_i)(1 - u_j)`` are all ``≥ 0``: that is the doubly
nonnegative relaxation in ``(1, u, 1 - u) = F (1, u)``, of twice the size. The alternating direction method is that of
``doubly_nonnegative``; as ``F = O R`` with orthonormal columns in ``O``, ``‖F S Fᵀ - W‖²`` is ``‖R S Rᵀ - Oᵀ W O‖²``
and a constant: the semidefinite step is still one projection of size n + 1. It starts where the doubly nonnegative
bound ends (docs/mathematics.md, "Products of pairs").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fwbench.solvers.semidefinite import doubly_nonnegative as dnn
from fwbench.solvers.semidefinite import lift_numba as kernel
from fwbench.solvers.semidefinite.psd_projection import Projection
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.shor import Shor

PENALTY = 0.1  # in units of sqrt(Q_ii Q_jj)
COMPLEMENT = 0.2  # t of 1 - u beside that of u: their products get a smaller penalty


@dataclass(frozen=True)
class _Lift:
    """``P = F S Fᵀ`` for ``F (2n + 1, n + 1)``, scaled: ``F`` maps ``(1, u)`` to ``(t_0, t u, c t (1 - u))``.

    ``FᵀF`` is a diagonal with a border, and so is its factor ``R``: ``R_00 = corner``, ``R_ii = diagonal``, ``R_i0 =
    border``, zero elsewhere.
    """

    t: torch.Tensor  # (rows, 2n + 1)
    corner: torch.Tensor  # (rows, 1)
    border: torch.Tensor  # (rows, n)
    diagonal: torch.Tensor  # (rows, n)
    project: Projection  # with the counts behind R

    def lift(self, S: torch.Tensor) -> torch.Tensor:
        """``F S Fᵀ``."""
        return kernel.row_by_row(kernel.lifted, S, self.t) if S.device.type == "cpu" else lifted(S, self.t)

    def lower(self, P: torch.Tensor) -> torch.Tensor:
        """``Fᵀ P F``."""
        return kernel.row_by_row(kernel.lowered, P, self.t) if P.device.type == "cpu" else lowered(P, self.t)

    def behind(self, A: torch.Tensor) -> torch.Tensor:
        """``R⁻ᵀ A``."""
        below = A[:, 1:] / self.diagonal[:, :, None]
        first = (A[:, :1] - self.border[:, None] @ below) / self.corner[:, :, None]
        return torch.cat((first, below), dim=1)

    def before(self, A: torch.Tensor) -> torch.Tensor:
        """``R⁻¹ A``."""
        first = A[:, :1] / self.corner[:, :, None]
        return torch.cat((first, (A[:, 1:] - self.border[:, :, None] * first) / self.diagonal[:, :, None]), dim=1)

    def semidefinite(self, P: torch.Tensor) -> torch.Tensor:
        """Nearest ``F S Fᵀ`` with ``S ⪰ 0`` and the counts."""
        W = self.behind(self.behind(self.lower(P)).mT)
        return self.lift(self.before(self.before(self.project(W)).mT))


def lifted(S: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """``F S Fᵀ (rows, 2n + 1, 2n + 1)`` on any device."""
    half = torch.cat((S, S[:, :1] - S[:, 1:]), dim=1)
    whole = torch.cat((half, half[:, :, :1] - half[:, :, 1:]), dim=2)
    return whole * t[:, None] * t[:, :, None]


def lowered(P: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """``Fᵀ P F (rows, n + 1, n + 1)`` on any device."""
    n = t.shape[1] // 2
    P = P * t[:, None] * t[:, :, None]
    half = torch.cat((P[:, :1] + P[:, n + 1 :].sum(dim=1, keepdim=True), P[:, 1 : n + 1] - P[:, n + 1 :]), dim=1)
    first = half[:, :, :1] + half[:, :, n + 1 :].sum(dim=2, keepdim=True)
    return torch.cat((first, half[:, :, 1 : n + 1] - half[:, :, n + 1 :]), dim=2)


class McCormick:
    """The directions (``Directions``), each row's begun where a bound of it ended: the start's multipliers and X."""

    def __init__(
        self,
        forms: Sequence[RowForm],
        starts: Sequence[Shor],
        iterations: int,
        device: str = "cpu",
        each: dnn.RowMap = map,
    ) -> None:
        self.n = n = len(forms[0].Q)
        arrays = dnn.stacked(_prepared, forms, starts, device, each)
        t, corner, border, diagonal, face, self.price, L, S, self.scale = arrays
        self.lift = _Lift(t, corner, border, diagonal, Projection(face))
        self.outer = t[:, :, None] * t[:, None]
        self.P = self.lift.lift(S)
        cost = torch.zeros_like(self.P)
        cost[:, : n + 1, : n + 1] = self.price
        self.M = (L / self.outer - cost) / PENALTY
        self.cost = cost.div_(PENALTY)

    def step(self) -> None:
        V = dnn.prox(self.P, self.cost, self.M, self.lift.t, self.n)
        self.P = self.lift.semidefinite(V)
        self.M = V.sub_(self.P)

    def multipliers(self) -> np.ndarray:
        """``N (rows, 4, n, n)`` float32: at ``i < j`` those of the pair's four products."""
        n, N = self.n, PENALTY * dnn.multipliers_of(self.P, self.cost, self.M)
        M = dnn.in_units(N * self.outer, self.scale)[:, 1:, 1:].cpu().numpy()
        return np.stack((M[:, :n, :n], M[:, :n, n:], M[:, n:, :n], M[:, n:, n:]), axis=1)

    def cuts(self) -> list[dnn.Cuts]:
        return [dnn.NONE] * len(self.P)


def _prepared(form: RowForm, start: Shor) -> tuple[np.ndarray, ...]:
    """A row's parts of the lift, cost, cost and multiplier together, products to start from, and unit of the cost."""
    n = len(form.Q)
    scale = form.unit
    t = np.maximum(form.Q.diagonal() / scale, dnn.SMALLEST) ** 0.25
    c = COMPLEMENT * t
    diagonal = np.sqrt(t**2 + c**2)
    border = -(c**2) / diagonal
    corner = np.sqrt(dnn.BORDER**2 + c @ c - border @ border)
    z = dnn.counts(form)
    z[1:] /= diagonal[:, None]
    z[0] = (z[0] - border @ z[1:]) / corner
    proof = start.proof
    i, j = np.divmod(proof.pair, n)
    kind = proof.kind.astype(np.int64)
    held = np.zeros((2 * n + 1, 2 * n + 1))
    held[1 + i + n * (kind > 1), 1 + j + n * (kind % 2)] = proof.multiplier / scale
    held += held.T
    held[: n + 1, : n + 1] -= dnn.dual_slack(form, proof, scale)
    cost, t = dnn.cost(form, scale), np.r_[dnn.BORDER, t, c]
    parts = (t, np.array([corner]), border, diagonal, np.linalg.qr(z)[0], cost / np.outer(t[: n + 1], t[: n + 1]), held)
    single = (array.astype(np.float32) for array in (*parts, dnn.pruned_products(start.X)))
    return (*single, np.array(scale))
