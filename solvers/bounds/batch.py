"""The bounds of many rows of a layer at once, for a GPU: the lower rungs of the ladder with a row's parts as one.

The interior point and the alternating directions run in batches on the device; what is a row's own and small (its
multipliers thinned, its proof made safe and its tangent taken) on the host's threads. Proofs are of the same kind, and
their checker knows nothing of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from fwbench.solvers.semidefinite.ladder import LADDER, RUNGS, Rung
from fwbench.solvers.semidefinite.maxcut_batch import interior_points
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.shor import START_MARGIN, Shor, max_cut, proof_of

MOST = 256  # rows at once: enough for any device, and what the host holds beside them
PART = 0.7  # of the device's free memory
DOUBLES, SINGLES = 14, 10  # matrices of n + 1 in float64 in the interior point, of 2n + 1 in float32 in mccormick


def fitting(n: int, device: str) -> int:
    """Rows that the device's free memory holds at once."""
    if not device.startswith("cuda"):
        return MOST
    free, _ = torch.cuda.mem_get_info(device)
    needed = max(8 * DOUBLES * (n + 1) ** 2, 4 * SINGLES * (2 * n + 1) ** 2)
    return max(1, min(MOST, int(PART * free / needed)))


def path_of_batches(name: str, iterations: int | None = None) -> tuple[Rung, ...]:
    """``ladder.path`` for batches: every rung keeps its own number of products, and makes ``iterations`` if given."""
    rungs = LADDER[: 1 + LADDER.index(RUNGS[name])]
    return rungs if iterations is None else tuple(replace(rung, iterations=iterations) for rung in rungs)


@dataclass(frozen=True)
class Device:
    """The machine that bounds many rows at once (``fwbench.solvers.semidefinite.ladder.Machine``)."""

    device: str
    tolerance: float = 3e-4
    threads: int = 1  # of the host

    def shor(self, forms: Sequence[RowForm], deadline: float) -> list[Shor]:
        """Shor's bounds; seconds are each row's share."""
        began = time.monotonic()
        C = torch.from_numpy(np.stack(list(self.map(max_cut, forms)))).to(self.device)
        offset = torch.tensor([form.offset / form.unit for form in forms], dtype=C.dtype, device=self.device)
        found = interior_points(C, START_MARGIN / 4, self.tolerance, deadline, offset)
        proofs = self.map(proof_of, forms, found.y.cpu().numpy(), found.border.cpu().numpy())
        parts = (proofs, found.X.cpu().numpy(), found.steps.tolist(), found.converged.tolist())
        share = (time.monotonic() - began) / len(forms)
        return [Shor(*part, share) for part in zip(*parts, strict=True)]

    def map(self, work: Callable, *rows: Iterable) -> Iterable:
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(work, *rows))
