"""The doubly nonnegative bound of one row: Shor's, with ``u_i u_j ≥ 0`` for all pairs (DESIGN section 7).

The alternating direction method on ``Y = (1, u)(1, u)ᵀ`` splits it in two: ``Y ≥ 0`` with ``diag U = u`` has an
entrywise projection, ``Y ⪰ 0`` with ``Y z = 0`` for each count one by an eigendecomposition. It starts at the Shor
solution. Its multipliers ``N ≥ 0`` of ``Y ≥ 0`` need not converge: the interior point finds the best diagonal for
``Q - N``, whatever N is, and that is the proof.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from fwbench.solvers.shor import RowForm, RowProof, Shor, shor

RELAXATION = 1.6
PENALTY = 0.2  # in units of sqrt(Q_ii Q_jj) for the entry ij
BORDER = 3.0  # the border's t, where the mean weight has 1
SMALLEST = 1e-4  # of the mean diagonal: below it entries are scaled alike


def doubly_nonnegative(
    form: RowForm,
    *,
    iterations: int = 60,
    tolerance: float = 3e-4,
    products: int = 20,
    start: Shor | None = None,
    deadline: float = math.inf,
) -> RowProof:
    """The better proof of Shor's and the doubly nonnegative bound.

    Args:
        products: at most this many times n of the multipliers are kept, the largest.
        start: the row's Shor solution, if known.
    """
    began = time.monotonic()
    start = start or shor(form, tolerance=tolerance, deadline=deadline)
    reserve = 1.5 * (time.monotonic() - began)  # for the finish
    if time.monotonic() + reserve >= deadline:
        return start.proof
    N = multipliers(form, start, iterations, deadline - reserve)
    return max(start.proof, finish(form, N, products * len(N), tolerance, deadline), key=lambda proof: proof.bound)


def finish(form: RowForm, N: np.ndarray, limit: int, tolerance: float, deadline: float = math.inf) -> RowProof:
    """The proof with the multipliers ``N (n, n)``, symmetric, thinned to the ``limit`` largest pairs."""
    i, j = np.triu_indices(len(N), 1)
    value = N[i, j].astype(np.float32)
    order = np.argsort(-value, kind="stable")[:limit]
    chosen = np.sort(order[value[order] > 0])
    i, j, value = i[chosen], j[chosen], value[chosen]
    thinned = np.zeros_like(form.Q)
    thinned[i, j] = value
    proof = shor(replace(form, Q=form.Q - thinned - thinned.T), tolerance=tolerance, deadline=deadline).proof
    kind = np.zeros(len(chosen), np.uint8)
    return replace(proof, pair=i * len(N) + j, kind=kind, multiplier=value)


@dataclass(frozen=True)
class _Scaled:
    """Everything in ``Ỹ = T Y T``, ``T = diag(t)``: with penalties in proportion to ``t_i² t_j² = sqrt(Q_ii Q_jj)``.

    With one penalty for all entries an ill-conditioned row wanders for hundreds of iterations.
    """

    t: torch.Tensor  # (n + 1,)
    cost: torch.Tensor  # (n + 1, n + 1)
    face: torch.Tensor  # (n + 1, groups), orthonormal

    def nonnegative(self, W: torch.Tensor) -> torch.Tensor:
        """Nearest ``Y ≥ 0`` with ``Y_00 = 1`` and ``diag U = u``."""
        t0, t = self.t[0], self.t[1:]
        u = (2 * t0 * W[0, 1:] + t * W.diagonal()[1:]) / (t * (2 * t0**2 + t**2))
        u = u.clamp(0, 1)
        Y = W.clamp(min=0)
        Y[0, 0] = t0**2
        Y[0, 1:] = Y[1:, 0] = t0 * t * u
        Y.diagonal()[1:] = t**2 * u
        return Y

    def semidefinite(self, W: torch.Tensor) -> torch.Tensor:
        """Nearest ``Y ⪰ 0`` with the counts."""
        W = W - self.face @ (self.face.T @ W)
        W = W - (W @ self.face) @ self.face.T
        values, vectors = torch.linalg.eigh((W + W.T) / 2)
        first = int(torch.searchsorted(values, 0.0))
        if first > len(values) // 2:
            part = vectors[:, first:] * values[first:].sqrt()
            return part @ part.T
        part = vectors[:, :first] * (-values[:first]).sqrt()
        return (W + W.T) / 2 + part @ part.T

    @classmethod
    def of(cls, form: RowForm, scale: float) -> _Scaled:
        n, groups = len(form.Q), len(form.counts)
        t = np.r_[BORDER, np.maximum(form.Q.diagonal() / scale, SMALLEST) ** 0.25]
        face = np.zeros((n + 1, groups))
        face[0] = -form.counts
        face[1 + np.arange(n), np.arange(n) // (n // groups)] = 1
        cost = np.zeros((n + 1, n + 1))
        cost[1:, 1:] = form.Q / scale
        if form.linear is not None:
            cost[0, 1:] = cost[1:, 0] = form.linear / (2 * scale)
        return cls(_tensor(t), _tensor(cost / np.outer(t, t)), _tensor(np.linalg.qr(face / t[:, None])[0]))


def multipliers(form: RowForm, start: Shor, iterations: int, deadline: float = math.inf) -> np.ndarray:
    """``N (n, n)``, symmetric and nonnegative, of ``u_i u_j ≥ 0`` after some iterations from the Shor solution."""
    scale = float(form.Q.diagonal().mean())
    scaled = _Scaled.of(form, scale)
    outer = scaled.t * scaled.t[:, None]
    S = _tensor(_pruned_products(start.X)) * outer
    L = -(scaled.cost + _tensor(_dual_slack(start.proof, scale)) / outer)  # exactly consistent: no ρ in it
    N = torch.zeros_like(S)
    for _ in range(iterations):
        if time.monotonic() >= deadline:
            break
        W = S - (scaled.cost + L) / PENALTY
        Y = scaled.nonnegative(W)
        N = W.clamp(max=0).mul_(-PENALTY)
        V = RELAXATION * Y + (1 - RELAXATION) * S + L / PENALTY
        S = scaled.semidefinite(V)
        L = PENALTY * (V - S)
    return (N * outer)[1:, 1:].double().numpy() * scale


def _pruned_products(X: np.ndarray) -> np.ndarray:
    """``(1, u)(1, u)ᵀ`` of the relaxation from the same in ±1 variables."""
    Y = (1 + X[:1] + X[:, :1] + X) / 4
    Y[0] = Y[:, 0] = (1 + X[0]) / 2
    return Y


def _dual_slack(proof: RowProof, scale: float) -> np.ndarray:
    """``Z`` of the Shor proof less the cost, in ``u``: ``Σ d u (1 - u) - bound`` as a bordered matrix."""
    d = proof.d / scale
    slack = np.diag(np.r_[-proof.bound / scale, -d])
    slack[0, 1:] = slack[1:, 0] = d / 2
    return slack


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32)  # the finish repairs what is lost
