"""The doubly nonnegative bound of one row: Shor's, with ``u_i u_j ≥ 0`` for all pairs (DESIGN section 7).

The alternating direction method on ``Y = (1, u)(1, u)ᵀ`` splits it in two: ``Y ≥ 0`` with ``diag U = u`` has an
entrywise projection, ``Y ⪰ 0`` with ``Y z = 0`` for each count one by an eigendecomposition (``project``), or on a GPU
by products alone. It starts at the Shor solution. Its multipliers ``N ≥ 0`` of ``Y ≥ 0`` need not converge: the
interior point finds the best diagonal for ``Q - N``, whatever N is, and that is the proof.

Rows of one layer are one batch, tensors ``(rows, n + 1, n + 1)`` of float32; on the CPU a batch is one row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from fwbench.solvers.project import project
from fwbench.solvers.shor import RowForm, RowProof, Shor, shor
from fwbench.verify_products import OwnProof, products

Each = Callable[..., Iterable]
Triples = tuple[np.ndarray, np.ndarray, np.ndarray]  # (i, j, k) (triples, 3), corner and multiplier of each
NONE: Triples = (np.zeros((0, 3), np.uint16), np.zeros(0, np.uint8), np.zeros(0, np.float32))

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
    form: RowForm, N: np.ndarray, limit: int, tolerance: float, deadline: float = math.inf, triples: Triples = NONE
) -> Shor:
    """The interior point for the multipliers ``N (kinds, n, n)``, of which the ``limit`` largest are kept.

    ``N[kind, i, j]``, ``i < j``, is the multiplier of the pair's product of that kind (``fwbench.verify_products``).
    """
    less, thin = without(form, N, limit, triples)
    return thin(shor(less, tolerance=tolerance, deadline=deadline))


def without(
    form: RowForm, N: np.ndarray, limit: int, triples: Triples = NONE
) -> tuple[RowForm, Callable[[Shor], Shor]]:
    """The row less the ``limit`` largest products of pairs and the triples, and what writes them into its proof."""
    kinds, n = N.shape[:2]
    i, j = np.triu_indices(n, 1)
    value = N[:, i, j].T.astype(np.float32).ravel()  # by pair, then by kind
    order = np.argsort(-value, kind="stable")[:limit]
    chosen = np.sort(order[value[order] > 0])
    kind, value = (chosen % kinds).astype(np.uint8), value[chosen]
    i, j = i[chosen // kinds], j[chosen // kinds]
    triple, corner, weight = triples
    taken = products(OwnProof(np.zeros(n), 0.0, i * n + j, kind, value, triple.astype(np.int64), corner, weight), n)
    linear = (0 if form.linear is None else form.linear) - taken.linear
    less = replace(form, Q=form.Q - taken.matrix, linear=linear, constant=form.constant - taken.constant)

    def write(found: Shor) -> Shor:
        own = {"pair": i * n + j, "kind": kind, "multiplier": value}
        own |= {"triple": triple, "corner": corner, "weight": weight}
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
        self.t, self.cost, self.face, self.S, self.L, self.scale = stacked(_prepared, forms, starts, device, each)
        self.N = torch.zeros_like(self.S)

    def step(self) -> None:
        W = self.S - (self.cost + self.L) / PENALTY
        Y = nonnegative(W, self.t)
        self.N = W.clamp(max=0).mul_(-PENALTY)
        V = RELAXATION * Y + (1 - RELAXATION) * self.S + self.L / PENALTY
        self.S = project(V, self.face)
        self.L = PENALTY * (V - self.S)

    def multipliers(self) -> np.ndarray:
        N = self.N * (self.t[:, :, None] * self.t[:, None])
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


def nonnegative(W: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Nearest ``T Y T`` with ``Y ≥ 0``, ``Y_00 = 1`` and a diagonal that equals the border; ``T = diag(t)``."""
    border, t = t[:, :1], t[:, 1:]
    u = (2 * border * W[:, 0, 1:] + t * W.diagonal(dim1=1, dim2=2)[:, 1:]) / (t * (2 * border**2 + t**2))
    u = u.clamp(0, 1)
    Y = W.clamp(min=0)
    Y[:, 0, :1] = border**2
    Y[:, 0, 1:] = Y[:, 1:, 0] = border * t * u
    Y.diagonal(dim1=1, dim2=2)[:, 1:] = t**2 * u
    return Y


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
