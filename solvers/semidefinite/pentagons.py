"""The bound of one row with pentagonal inequalities, above that with triangle inequalities.

Of five weights and signs ``b = ±1``, ``(bᵀx)² ≥ 1`` on masks ``x = ±1``: a sum of five odd numbers is odd (Deza and
Laurent, Geometry of Cuts and Metrics, 1997). There are some n⁵ of them; some are found near triples that carry a
multiplier and near single weights, by adding weights and exchanging one at a time. The iteration is that of
``triangles``, goes on from where that ended, and any multipliers give a proof.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fwbench.solvers.semidefinite import pentagons_numba as kernel
from fwbench.solvers.semidefinite.doubly_nonnegative import Cuts, RowMap
from fwbench.solvers.semidefinite.mccormick import PENALTY, McCormick
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.shor import Shor
from fwbench.solvers.semidefinite.triangles import Triangles, Triples

EVERY = 20  # iterations between two searches
SEEDS = 8000  # triples that a search starts from, those with the largest multipliers
NEW = 4  # times n fives are taken in
KEPT = 40  # times n are kept at most in a proof
VIOLATED = 5e-3
STEP = 0.6  # of a multiplier at first, in the iteration's penalty of its pairs
DECAY = 0.9  # the last steps of all multipliers are so much shorter: where they swing they prove little


class Pentagons(Triangles):
    """The directions of one row (``Directions``), from where ``triangles`` ended."""

    def __init__(
        self,
        forms: Sequence[RowForm],
        starts: Sequence[Shor],
        iterations: int,
        device: str = "cpu",
        each: RowMap = map,
    ) -> None:
        super().__init__(forms, starts, iterations, device, each)
        self.triples, self.fives = Triples.of(self.n, starts[0].proof, float(self.scale[0])), Fives(self.n)
        M = self.M[0, : self.n + 1, : self.n + 1]
        self.triples.lift(M, self.unit, -1 / PENALTY)  # the multiplier of Z ⪰ 0 knows of the triples

    def step(self) -> None:
        cost = self.plain_cost()
        self.triples.lift(cost, self.unit, 1 / PENALTY)
        self.fives.lift(cost, self.unit, 1 / PENALTY)
        McCormick.step(self)
        P = self.relaxed()
        if self.searches(EVERY):
            Y, t = P * self.unit * self.unit[:, None], self.lift.t[0, 1 : self.n + 1]
            self.triples.take_in(Y, t)
            self.fives.take_in(Y, t, self.triples)
        part = 1 - DECAY * self.done / self.iterations
        self.triples.ascend(P, self.unit, part)
        self.fives.ascend(P, self.unit, part)
        self.done += 1

    def cuts(self) -> list[Cuts]:
        [cuts] = super().cuts()
        five, sign, share = self.fives.largest(KEPT * self.n, float(self.scale[0]))
        return [cuts._replace(five=five, sign=sign, share=share)]


class Fives:
    """The fives that are held, ascending weights with the first sign 1, and their multipliers."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.five = np.zeros((0, 5), np.int64)
        self.sign = np.zeros((0, 5), np.float32)
        self.multiplier = np.zeros(0, np.float32)
        self.step = np.zeros(0, np.float32)

    def take_in(self, Y: torch.Tensor, t: torch.Tensor, seeds: Triples) -> None:
        """Let go of those with no multiplier, and take in violated ones near triples; ``t`` scales the entries of Y."""
        kept = self.multiplier > 0
        five, sign = violated(Y, seeds)
        known = set(self._codes(self.five[kept], self.sign[kept]))
        new: list[int] = []
        for at, code in enumerate(self._codes(five, sign)):
            if code not in known and len(new) < NEW * self.n:
                known.add(code)
                new.append(at)
        self.five = np.concatenate([self.five[kept], five[new]])
        self.sign = np.concatenate([self.sign[kept], sign[new]])
        self.multiplier = np.concatenate([self.multiplier[kept], np.zeros(len(new), np.float32)])
        first, second = np.triu_indices(5, 1)
        pairs = self.five[:, first] * self.n + self.five[:, second]
        crowd = np.bincount(pairs.ravel(), minlength=self.n**2)
        weight = np.outer(t.numpy(), t.numpy()).ravel() ** 2 / np.maximum(crowd, 1)
        self.step = (STEP * PENALTY * weight[pairs].min(axis=1, initial=np.inf)).astype(np.float32)

    def ascend(self, P: torch.Tensor, unit: torch.Tensor, part: float) -> None:
        """Part of a step of each multiplier at the relaxed ``(1, u)(1, u)ᵀ = P * unit * unit[:, None]``."""
        step = np.float32(part) * self.step
        kernel.ascend(P.numpy(), unit.numpy(), self.five, self.sign, step, self.multiplier)

    def lift(self, cost: torch.Tensor, unit: torch.Tensor, scale: float) -> None:
        """Take the products, times their multipliers and ``scale``, from the cost."""
        kernel.subtract(cost.numpy(), unit.numpy(), self.five, self.sign, self.multiplier, scale)

    def largest(self, count: int, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The largest multipliers' fives as a proof holds them; ``scale`` is the unit of the cost."""
        order = np.argsort(-self.multiplier, kind="stable")[:count]
        order = np.sort(order[self.multiplier[order] > 0])
        bits = ((self.sign[order, 1:] < 0) << np.arange(4)).sum(axis=1)
        share = (self.multiplier[order].astype(np.float64) * scale / 2).astype(np.float32)
        return self.five[order].astype(np.uint16), bits.astype(np.uint8), share

    def _codes(self, five: np.ndarray, sign: np.ndarray) -> list[bytes]:
        return [row.tobytes() for row in np.concatenate([five, sign.astype(np.int64)], axis=1)]


def violated(Y: torch.Tensor, seeds: Triples) -> tuple[np.ndarray, np.ndarray]:
    """Fives with products below ``-VIOLATED`` near ``seeds`` and near single weights, the least first; their signs."""
    u, n = Y[0, 1:], len(Y) - 1
    X = (4 * Y[1:, 1:] - 2 * u - 2 * u[:, None] + 1).fill_diagonal_(1).numpy()
    largest = torch.argsort(seeds.multiplier, descending=True, stable=True)[:SEEDS]
    triple, corner = seeds.triple[largest].numpy(), seeds.corner[largest].numpy()
    single = np.zeros((n, 3), np.int64)
    single[:, 0] = np.arange(n)
    seed = np.concatenate([triple, single])
    lead = np.ones(seed.shape, np.float32)
    lead[: len(triple)][corner[:, None] == np.arange(1, 4)] = -1
    given = np.repeat([3, 1], [len(triple), n])
    five, sign = np.empty((len(seed), 5), np.int64), np.empty((len(seed), 5), np.float32)
    amount = np.empty(len(seed), np.float32)
    found = kernel.search(X, seed, lead, given, VIOLATED, five, sign, amount)
    order = np.argsort(-amount[:found], kind="stable")
    return five[order], sign[order]
