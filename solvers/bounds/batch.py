"""The bounds of many rows of a layer at once, for a GPU: ``shor``, ``dnn`` and ``mccormick`` with a row's parts as one.

The interior point and the alternating directions run in batches on the device; what is a row's own and small (its
multipliers thinned, its proof made safe and its tangent taken) on the host's threads. Proofs are of the same kind, and
their checker knows nothing of this.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from fwbench.solvers.semidefinite import doubly_nonnegative as dnn
from fwbench.solvers.semidefinite import mccormick
from fwbench.solvers.semidefinite.maxcut_batch import interior_points
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.shor import START_MARGIN, Shor, max_cut, proof_of

PRODUCTS = {dnn: 20, mccormick: 30}  # kept at most, times n
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


@dataclass(frozen=True)
class Batch:
    """Where and how exactly; see ``fwbench.solvers.bounds.stage``."""

    device: str
    tolerance: float
    iterations: int | None  # of dnn and mccormick; their own numbers if not given
    threads: int = 1  # of the host

    def prove(
        self, kind: str, forms: Sequence[RowForm], starts: Sequence[Shor | None], deadline: float = math.inf
    ) -> list[Shor]:
        """The bounds of a kind, each from the rung below where it is given and by all rungs where not."""
        if kind == "shor":
            return self.shor(forms, deadline)
        below = {"dnn": "shor", "mccormick": "dnn"}[kind]
        begun = list(starts)
        if new := [row for row, start in enumerate(starts) if start is None]:
            found = self.prove(below, [forms[row] for row in new], [None] * len(new), deadline)
            for row, one in zip(new, found, strict=True):
                begun[row] = one
        return self._raised({"dnn": dnn, "mccormick": mccormick}[kind], forms, begun, deadline)  # type: ignore[arg-type]

    def shor(self, forms: Sequence[RowForm], deadline: float = math.inf) -> list[Shor]:
        """Shor's bounds; seconds are each row's share."""
        began = time.monotonic()
        with ThreadPoolExecutor(self.threads) as pool:
            C = torch.from_numpy(np.stack(list(pool.map(max_cut, forms)))).to(self.device)
            found = interior_points(C, START_MARGIN / 4, self.tolerance, deadline)
            proofs = list(pool.map(proof_of, forms, found.y.cpu().numpy(), found.border.cpu().numpy()))
        parts = (proofs, found.X.cpu().numpy(), found.steps.tolist(), found.converged.tolist())
        share = (time.monotonic() - began) / len(forms)
        return [Shor(*part, share) for part in zip(*parts, strict=True)]

    def _raised(
        self, method: ModuleType, forms: Sequence[RowForm], starts: Sequence[Shor], deadline: float
    ) -> list[Shor]:
        """Each start, or the proof with the multipliers of ``method`` where that is better."""
        reserve = 1.5 * sum(start.seconds for start in starts)  # for the finish
        if time.monotonic() + reserve >= deadline:
            return list(starts)
        limit = PRODUCTS[method] * len(forms[0].Q)
        iterations = method.ITERATIONS if self.iterations is None else self.iterations

        def thinned(form: RowForm, N: np.ndarray) -> tuple[RowForm, Callable[[Shor], Shor]]:
            return dnn.without(form, N, limit)

        with ThreadPoolExecutor(self.threads) as pool:
            rows = method.Iteration(forms, starts, self.device, pool.map)
            N = dnn.multipliers(rows, iterations, deadline - reserve)
            less, into = zip(*pool.map(thinned, forms, N), strict=True)
        found = [write(one) for write, one in zip(into, self.shor(less, deadline), strict=True)]
        pairs = zip(starts, found, strict=True)
        return [max(pair, key=lambda one: one.proof.bound) for pair in pairs]
