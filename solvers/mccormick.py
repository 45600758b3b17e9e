"""The bound of one row with all four McCormick products of each pair (DESIGN section 7).

``u_i u_j``, ``u_i (1 - u_j)``, ``(1 - u_i) u_j`` and ``(1 - u_i)(1 - u_j)`` are all ``≥ 0``: that is the doubly
nonnegative relaxation in ``(1, u, 1 - u) = F (1, u)``, of twice the size. The alternating direction method is that of
``dnn``; as ``F = O R`` with orthonormal columns in ``O``, ``‖F S Fᵀ - W‖²`` is ``‖R S R - Oᵀ W O‖²`` and a constant, so
the semidefinite step is still one projection of size n + 1. It starts where the doubly nonnegative bound ends.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from fwbench.solvers import dnn
from fwbench.solvers.dnn import tensor
from fwbench.solvers.shor import RowForm, Shor

ITERATIONS = 120
PENALTY = 0.1  # in units of sqrt(Q_ii Q_jj)
COMPLEMENT = 0.2  # t of 1 - u beside that of u: their products get a smaller penalty


def mccormick(
    form: RowForm,
    start: Shor | None = None,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = 3e-4,
    products: int = 30,
    deadline: float = math.inf,
) -> Shor:
    """The best of the Shor, doubly nonnegative and McCormick proofs, and where its interior point ended.

    Args:
        start: what ``doubly_nonnegative`` returned for the row, if known.
        products: at most this many times n of the multipliers are kept, the largest.
    """
    start = start or dnn.doubly_nonnegative(form, tolerance=tolerance, products=products, deadline=deadline)
    reserve = 1.5 * start.seconds  # for the finish
    if time.monotonic() + reserve >= deadline:
        return start
    both = multipliers(form, start, iterations, deadline - reserve)
    found = dnn.finish(form, both, products * len(form.Q), tolerance, deadline)
    return max(start, found, key=lambda one: one.proof.bound)


@dataclass(frozen=True)
class _Lift:
    """``P = F S Fᵀ`` for ``F (2n + 1, n + 1)``, scaled: ``F`` maps ``(1, u)`` to ``(t_0, t u, c t (1 - u))``."""

    t: torch.Tensor  # (2n + 1,)
    inverse: torch.Tensor  # (n + 1, n + 1), of R = (FᵀF)^½
    face: torch.Tensor  # (n + 1, groups), orthonormal, of the counts behind R

    @classmethod
    def of(cls, form: RowForm, scale: float) -> _Lift:
        n, groups = len(form.Q), len(form.counts)
        t = np.maximum(form.Q.diagonal() / scale, dnn.SMALLEST) ** 0.25
        c = COMPLEMENT * t
        gram = np.diag(np.r_[dnn.BORDER**2 + c @ c, t**2 + c**2])
        gram[0, 1:] = gram[1:, 0] = -(c**2)
        values, vectors = np.linalg.eigh(gram)
        inverse = (vectors / np.sqrt(values)) @ vectors.T
        face = np.zeros((n + 1, groups))
        face[0] = -form.counts
        face[1 + np.arange(n), np.arange(n) // (n // groups)] = 1
        return cls(tensor(np.r_[dnn.BORDER, t, c]), tensor(inverse), tensor(np.linalg.qr(inverse @ face)[0]))

    def lift(self, S: torch.Tensor) -> torch.Tensor:
        """``F S Fᵀ``."""
        half = torch.cat((S, S[:1] - S[1:]))
        whole = torch.cat((half, half[:, :1] - half[:, 1:]), dim=1)
        return whole * self.t * self.t[:, None]

    def lower(self, P: torch.Tensor) -> torch.Tensor:
        """``Fᵀ P F``."""
        n = len(self.inverse) - 1
        P = P * self.t * self.t[:, None]
        half = torch.cat((P[:1] + P[n + 1 :].sum(dim=0), P[1 : n + 1] - P[n + 1 :]))
        return torch.cat(
            (half[:, :1] + half[:, n + 1 :].sum(dim=1, keepdim=True), half[:, 1 : n + 1] - half[:, n + 1 :]), 1
        )

    def semidefinite(self, P: torch.Tensor) -> torch.Tensor:
        """Nearest ``F S Fᵀ`` with ``S ⪰ 0`` and the counts."""
        W = self.inverse @ self.lower(P) @ self.inverse
        return self.lift(self.inverse @ dnn.project(W, self.face) @ self.inverse)

    def nonnegative(self, W: torch.Tensor) -> torch.Tensor:
        """Nearest ``P ≥ 0`` with ``P_00 = 1``, squares equal to their variables, and ``u_i (1 - u_i) = 0``."""
        n = len(self.inverse) - 1
        P = dnn.nonnegative(W, self.t)
        P.diagonal(n)[1:] = 0
        P.diagonal(-n)[1:] = 0
        return P


def multipliers(form: RowForm, start: Shor, iterations: int, deadline: float = math.inf) -> np.ndarray:
    """``N (4, n, n)``, ``i < j``, of the four products of each pair after some iterations from ``start``."""
    n = len(form.Q)
    scale = float(form.Q.diagonal().mean())
    lift = _Lift.of(form, scale)
    outer = lift.t * lift.t[:, None]
    cost = torch.zeros_like(outer)
    cost[: n + 1, : n + 1] = tensor(dnn.cost(form, scale)) / outer[: n + 1, : n + 1]
    P = lift.lift(tensor(dnn.pruned_products(start.X)))
    L = -cost
    held = dnn.dual_slack(start.proof, scale)
    pair = np.zeros((n, n))
    pair.ravel()[start.proof.pair] = start.proof.multiplier / scale
    held[1:, 1:] -= pair + pair.T
    L[: n + 1, : n + 1] -= tensor(held) / outer[: n + 1, : n + 1]
    N = torch.zeros_like(P)
    for _ in range(iterations):
        if time.monotonic() >= deadline:
            break
        W = P - (cost + L) / PENALTY
        Y = lift.nonnegative(W)
        N = W.clamp(max=0).mul_(-PENALTY)
        V = dnn.RELAXATION * Y + (1 - dnn.RELAXATION) * P + L / PENALTY
        P = lift.semidefinite(V)
        L = PENALTY * (V - P)
    M = (N * outer)[1:, 1:].double().numpy() * scale
    return np.stack((M[:n, :n], M[:n, n:], M[n:, :n], M[n:, n:]))
