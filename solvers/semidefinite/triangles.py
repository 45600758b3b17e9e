"""The bound of one row with triangle inequalities besides the products of pairs.

For each triple of weights, three of which one is unlike two that are equal, or all are equal: four products of
``fwbench.verify.products``. There are some 4 n³/6 of them, nearly all without effect. So ``mccormick``'s iteration goes
on, every so often the most violated are taken in, and each has a multiplier that rises with its violation (Uzawa's
ascent, a step an iteration). For max-cut bundle methods do that (Rendl, Rinaldi, Wiegele, Math. Program. 121, 2010).
Whatever the multipliers are, the interior point then finds the best diagonal for them, and that is the proof
(docs/mathematics.md, "Triangles and pentagons").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fwbench.solvers.semidefinite import triangles_numba as kernel
from fwbench.solvers.semidefinite.doubly_nonnegative import Cuts, RowMap
from fwbench.solvers.semidefinite.mccormick import PENALTY, McCormick
from fwbench.solvers.semidefinite.row import RowForm, RowProof
from fwbench.solvers.semidefinite.shor import Shor

EVERY = 80  # iterations between two searches for violated triples
NEW = 20  # times n of them are taken in
KEPT = 80  # times n are kept at most in a proof
VIOLATED = 1e-3
STEP = 3.0  # of a multiplier, in the iteration's penalty of its pairs; 8 diverges


class Triangles(McCormick):
    """The directions of one row (``Directions``), from where ``mccormick`` ended."""

    def __init__(
        self,
        forms: Sequence[RowForm],
        starts: Sequence[Shor],
        iterations: int,
        device: str = "cpu",
        each: RowMap = map,
    ) -> None:
        super().__init__(forms, starts, iterations, device, each)
        self.iterations, self.done = iterations, 0
        self.triples = Triples(self.n)
        self.unit = 1 / self.lift.t[0, : self.n + 1]

    def step(self) -> None:
        super().step()
        P = self.relaxed()
        if self.searches(EVERY):
            self.triples.take_in(P / self.outer[0, : self.n + 1, : self.n + 1], self.lift.t[0, 1 : self.n + 1])
        self.triples.ascend(P, self.unit)
        self.triples.lift(self.plain_cost(), self.unit, 1 / PENALTY)
        self.done += 1

    def searches(self, every: int) -> bool:
        """Whether this iteration looks for violated products; the last ones do not, as they would gain nothing."""
        return self.done % every == 0 and self.done + every // 2 < self.iterations

    def relaxed(self) -> torch.Tensor:
        """``(1, u)(1, u)ᵀ / unit / unit[:, None]`` of the relaxation at this iteration."""
        return self.P[0, : self.n + 1, : self.n + 1]

    def plain_cost(self) -> torch.Tensor:
        """The cost, set back to what it is without cuts: to be written to."""
        cost = self.cost[0, : self.n + 1, : self.n + 1]
        return torch.mul(self.price[0], 1 / PENALTY, out=cost)

    def cuts(self) -> list[Cuts]:
        return [self.triples.largest(KEPT * self.n, float(self.scale[0]))]


class Triples:
    """The triples that are held, ``i < j < k`` with a corner, and their multipliers."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.triple = torch.zeros(0, 3, dtype=torch.long)
        self.corner = torch.zeros(0, dtype=torch.long)
        self.multiplier = torch.zeros(0)
        self.step = torch.zeros(0)
        self.threshold = 0.0  # violation of the last triple of those taken in last

    @classmethod
    def of(cls, n: int, proof: RowProof, scale: float) -> Triples:
        """Those of a proof, whose cost had the unit ``scale``."""
        held = cls(n)
        held.triple = torch.from_numpy(proof.triple.astype(np.int64))
        held.corner = torch.from_numpy(proof.corner.astype(np.int64))
        held.multiplier = torch.from_numpy((2 * proof.weight.astype(np.float64) / scale).astype(np.float32))
        held.step = torch.zeros_like(held.multiplier)
        return held

    def take_in(self, Y: torch.Tensor, t: torch.Tensor) -> None:
        """Let go of those with no multiplier, and take in the most violated of ``Y``; ``t`` scales its entries."""
        kept = self.multiplier > 0
        triple, corner, self.threshold = violated(Y, NEW * self.n, self.threshold / 4)
        known = set(self._codes(self.triple[kept], self.corner[kept]).tolist())
        new = torch.tensor([code not in known for code in self._codes(triple, corner).tolist()], dtype=torch.bool)
        self.triple = torch.cat([self.triple[kept], triple[new]])
        self.corner = torch.cat([self.corner[kept], corner[new]])
        self.multiplier = torch.cat([self.multiplier[kept], torch.zeros(int(new.sum()))])
        pairs = self._pairs()
        crowd = torch.bincount(pairs.flatten(), minlength=self.n**2)
        penalty = ((t[:, None] * t) ** 2).flatten() / crowd.clamp(min=1)
        self.step = STEP * PENALTY * penalty[pairs].amin(dim=0) if len(self.triple) else torch.zeros(0)

    def ascend(self, P: torch.Tensor, unit: torch.Tensor, part: float = 1.0) -> None:
        """Part of a step of each multiplier at the relaxed ``(1, u)(1, u)ᵀ = P * unit * unit[:, None]``."""
        arrays = (self.triple, self.corner, part * self.step, self.multiplier)
        kernel.ascend(P.numpy(), unit.numpy(), *(array.numpy() for array in arrays))

    def lift(self, cost: torch.Tensor, unit: torch.Tensor, scale: float) -> None:
        """Take the triples' products, times their multipliers and ``scale``, from the cost."""
        arrays = (self.triple, self.corner, self.multiplier)
        kernel.subtract(cost.numpy(), unit.numpy(), *(array.numpy() for array in arrays), scale)

    def largest(self, count: int, scale: float) -> Cuts:
        """The largest multipliers' triples as a proof holds them; ``scale`` is the unit of the cost."""
        order = torch.argsort(self.multiplier, descending=True, stable=True)[:count]
        order = order[self.multiplier[order] > 0].sort().values
        weight = (self.multiplier[order].double() * scale / 2).float().numpy()
        return Cuts(self.triple[order].numpy().astype(np.uint16), self.corner[order].numpy().astype(np.uint8), weight)

    def _pairs(self) -> torch.Tensor:
        """``(3, triples)``: where ``ij``, ``ik`` and ``jk`` are in a matrix."""
        i, j, k = self.triple.T
        return torch.stack([i * self.n + j, i * self.n + k, j * self.n + k])

    def _codes(self, triple: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
        i, j, k = triple.T
        return ((i * self.n + j) * self.n + k) * 4 + corner


def violated(Y: torch.Tensor, count: int, guess: float = VIOLATED) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The ``count`` triples with the least products below ``-VIOLATED``, the least first: they, their corners, and the
    violation of the last.

    Args:
        guess: at most what that is likely to be, if known: it saves time.
    """
    u, U = Y[0, 1:].contiguous().numpy(), Y[1:, 1:].contiguous().numpy()
    above = max(guess, VIOLATED)
    bins = np.zeros(kernel.BINS, np.int64)
    kernel.count(u, U, above, bins)
    if above > VIOLATED and bins.sum() < count:
        return violated(Y, count)
    from_top = np.cumsum(bins[::-1])
    least = max(kernel.BINS - 1 - int(np.searchsorted(from_top, count)), 0)  # the bin in which the count is reached
    triple = np.empty((int(bins[least:].sum()), 3), np.int64)
    corner, amount = np.empty(len(triple), np.int64), np.empty(len(triple), np.float32)
    kernel.collect(u, U, above, least, triple, corner, amount)
    order = np.argsort(-amount, kind="stable")[:count]
    return torch.from_numpy(triple[order]), torch.from_numpy(corner[order]), least / kernel.BINS
