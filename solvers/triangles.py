"""The bound of one row with triangle inequalities besides the products of pairs (DESIGN section 7).

For each triple of weights, three of which one is unlike two that are equal, or all are equal: four products of
``fwbench.verify_products``. There are some 4 n³/6 of them, nearly all without effect. So ``mccormick``'s iteration goes
on, every so often the most violated are taken in, and each has a multiplier that rises with its violation (Uzawa's
ascent, a step an iteration). For max-cut bundle methods do that (Rendl, Rinaldi, Wiegele, Math. Program. 121, 2010).
Whatever the multipliers are, the interior point then finds the best diagonal for them, and that is the proof.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from fwbench.solvers.dnn import Triples, finish
from fwbench.solvers.jit import njit
from fwbench.solvers.mccormick import PENALTY, Iteration, mccormick
from fwbench.solvers.shor import RowForm, Shor
from fwbench.verify_products import SIGNS

ITERATIONS = 640  # half as many leave some 0.4 points of a gap of 5 %, twice as many gain 0.15
EVERY = 40  # iterations between two searches for violated triples
NEW = 20  # times n of them are taken in
VIOLATED = 1e-3
BINS = 4096  # of violations
STEP = 3.0  # of a multiplier, in the iteration's penalty of its pairs; 8 diverges


def triangles(
    form: RowForm,
    start: Shor | None = None,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = 3e-4,
    products: int = 30,
    triples: int = 80,
    deadline: float = math.inf,
) -> Shor:
    """The best of the proofs of ``mccormick`` and with triangles, and where its interior point ended.

    Args:
        start: what ``mccormick`` returned for the row, if known.
        products, triples: at most this many times n of the multipliers are kept, the largest.
    """
    start = start or mccormick(form, tolerance=tolerance, products=products, deadline=deadline)
    reserve = 1.5 * start.seconds  # for the finish
    n = len(form.Q)
    if time.monotonic() + reserve >= deadline or not 3 <= n <= 2**16:
        return start
    row, held = Iteration([form], [start]), _Triples(n)
    for step in range(iterations):
        if time.monotonic() + reserve >= deadline:
            break
        row.step()
        Y = row.P[0, : n + 1, : n + 1] / row.outer[0, : n + 1, : n + 1]
        if step % EVERY == 0 and step + EVERY // 2 < iterations:
            held.take_in(Y, row.lift.t[0, 1 : n + 1])
        held.ascend(Y)
        row.cost[0, : n + 1, : n + 1] = row.price[0] - held.matrix() / row.outer[0, : n + 1, : n + 1]
    [N] = row.multipliers()
    found = finish(form, N, products * n, tolerance, deadline, held.largest(triples * n, float(row.scale[0])))
    return max(start, found, key=lambda one: one.proof.bound)


class _Triples:
    """The triples that are held, ``i < j < k`` with a corner, and their multipliers."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.triple = torch.zeros(0, 3, dtype=torch.long)
        self.corner = torch.zeros(0, dtype=torch.long)
        self.multiplier = torch.zeros(0)
        self.step = torch.zeros(0)

    def take_in(self, Y: torch.Tensor, t: torch.Tensor) -> None:
        """Let go of those with no multiplier, and take in the most violated of ``Y``; ``t`` scales its entries."""
        kept = self.multiplier > 0
        triple, corner = violated(Y, NEW * self.n)
        known = set(self._codes(self.triple[kept], self.corner[kept]).tolist())
        new = torch.tensor([code not in known for code in self._codes(triple, corner).tolist()], dtype=torch.bool)
        self.triple = torch.cat([self.triple[kept], triple[new]])
        self.corner = torch.cat([self.corner[kept], corner[new]])
        self.multiplier = torch.cat([self.multiplier[kept], torch.zeros(int(new.sum()))])
        pairs = self._pairs()
        crowd = torch.bincount(pairs.flatten(), minlength=self.n**2)
        penalty = ((t[:, None] * t) ** 2).flatten() / crowd.clamp(min=1)
        self.step = STEP * PENALTY * penalty[pairs].amin(dim=0) if len(self.triple) else torch.zeros(0)

    def ascend(self, Y: torch.Tensor) -> None:
        self.multiplier = (self.multiplier - self.step * value(Y, self.triple, self.corner)).clamp(min=0)

    def matrix(self) -> torch.Tensor:
        """``T (n + 1, n + 1)``: ``⟨T, (1, u)(1, u)ᵀ⟩`` is the sum of the products times their multipliers."""
        n, m = self.n, self.multiplier
        signs = torch.tensor(SIGNS, dtype=m.dtype)[self.corner].T
        T = torch.zeros(n + 1, n + 1)
        quadratic = torch.zeros(n * n).scatter_add_(0, self._pairs().flatten(), (signs * m).flatten()).view(n, n)
        T[1:, 1:] = (quadratic + quadratic.T) / 2
        linear = torch.where(self.corner == torch.tensor([[1], [2], [3]]), m, 0) - torch.where(self.corner == 0, m, 0)
        T[0, 1:] = T[1:, 0] = torch.zeros(n).scatter_add_(0, self.triple.T.flatten(), linear.flatten()) / 2
        T[0, 0] = m[self.corner == 0].sum()
        return T

    def largest(self, count: int, scale: float) -> Triples:
        """The largest multipliers' triples as a proof holds them; ``scale`` is the unit of the cost."""
        order = torch.argsort(self.multiplier, descending=True, stable=True)[:count]
        order = order[self.multiplier[order] > 0].sort().values
        weight = (self.multiplier[order].double() * scale / 2).float().numpy()
        return self.triple[order].numpy().astype(np.uint16), self.corner[order].numpy().astype(np.uint8), weight

    def _pairs(self) -> torch.Tensor:
        """``(3, triples)``: where ``ij``, ``ik`` and ``jk`` are in a matrix."""
        i, j, k = self.triple.T
        return torch.stack([i * self.n + j, i * self.n + k, j * self.n + k])

    def _codes(self, triple: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
        i, j, k = triple.T
        return ((i * self.n + j) * self.n + k) * 4 + corner


def value(Y: torch.Tensor, triple: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
    """Each triple's product in the relaxed ``Y = (1, u)(1, u)ᵀ``, without its multiplier; on masks 0 or 1."""
    u, U = Y[0, 1:], Y[1:, 1:]
    i, j, k = triple.T
    signs = torch.tensor(SIGNS, dtype=Y.dtype)[corner]
    single = torch.stack([1 - u[i] - u[j] - u[k], u[i], u[j], u[k]], 1).gather(1, corner[:, None])[:, 0]
    return single + signs[:, 0] * U[i, j] + signs[:, 1] * U[i, k] + signs[:, 2] * U[j, k]


def violated(Y: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` triples with the least products below ``-VIOLATED``, and the corners of these, the least first."""
    u, U = Y[0, 1:].contiguous().numpy(), Y[1:, 1:].contiguous().numpy()
    bins = np.zeros(BINS, np.int64)
    _count(u, U, VIOLATED, bins)
    from_top = np.cumsum(bins[::-1])
    least = max(BINS - 1 - int(np.searchsorted(from_top, count)), 0)  # the bin in which the count is reached
    triple = np.empty((int(bins[least:].sum()), 3), np.int64)
    corner, amount = np.empty(len(triple), np.int64), np.empty(len(triple), np.float32)
    _collect(u, U, VIOLATED, least, triple, corner, amount)
    order = np.argsort(-amount, kind="stable")[:count]
    return torch.from_numpy(triple[order]), torch.from_numpy(corner[order])


@njit(nogil=True)
def _least(u: np.ndarray, U: np.ndarray, i: int, j: int, k: int) -> tuple[int, float]:
    """The corner of a triple with the least product, and that product's negative.

    Two of a triple's products add up to two of a pair's, which McCormick's multipliers push above zero: so one at most
    is violated by much.
    """
    a, b, c = U[i, j], U[i, k], U[j, k]
    corner, amount = 0, u[i] + u[j] + u[k] - 1 - a - b - c
    for other, value in ((1, a + b - c - u[i]), (2, a + c - b - u[j]), (3, b + c - a - u[k])):
        if value > amount:
            corner, amount = other, value
    return corner, amount


@njit(nogil=True)
def _count(u: np.ndarray, U: np.ndarray, above: float, bins: np.ndarray) -> None:
    """How many triples are violated by how much: by more than ``above``, in bins of equal width up to 1."""
    n = len(u)
    for i in range(n):
        for j in range(i + 1, n):
            for k in range(j + 1, n):
                _, amount = _least(u, U, i, j, k)
                if amount > above:
                    bins[min(int(amount * len(bins)), len(bins) - 1)] += 1


@njit(nogil=True)
def _collect(
    u: np.ndarray, U: np.ndarray, above: float, least: int, triple: np.ndarray, corner: np.ndarray, amount: np.ndarray
) -> None:
    """Write those of the bins from ``least`` on."""
    n, found = len(u), 0
    for i in range(n):
        for j in range(i + 1, n):
            for k in range(j + 1, n):
                of, by = _least(u, U, i, j, k)
                if by > above and min(int(by * BINS), BINS - 1) >= least:
                    triple[found, 0], triple[found, 1], triple[found, 2] = i, j, k
                    corner[found], amount[found] = of, by
                    found += 1
