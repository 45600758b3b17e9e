"""The stage ``resplit``: out of a mask that swaps cannot improve, through ADMM from that mask and a search of its core.

What one round does to all rows at once: a few iterations of ``splitting``, begun with the multiplier of which the mask
at hand is a fixed point, so that only what a small penalty cannot hold melts; a tabu search among the weights that then
may move (``core_numba``; ``band_core_numba`` where rows are tied); 1-swaps to the end. Of this and the mask it began
with, each row keeps the better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from fwbench.problem import Problem
from fwbench.solvers.first_order import band_core_numba, core_numba
from fwbench.solvers.frank_wolfe.splitting import Scaled, alternate
from fwbench.solvers.local_search.anneal_numba import keys
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.numerics.threads import workers
from fwbench.stage import Context, Role, Stage, State, register

CHUNK_ROWS = 128  # rows searched together
LEAST, MOST = 128, 512  # weights of a core: fewer cost no less, and of more the matrix leaves the caches
TENURE, SPREAD = 2, 6  # iterations in which a weight that moved stays, and how many more at random
TIED_TENURE, TIED_SPREAD = 8, 24  # where rows are tied, and an iteration moves two of them
HARD = 0.1  # of its error what a row's first round must take off for another
LONGER = 4  # times as many iterations in each further round, from a penalty that is by this smaller


@register
@dataclass(frozen=True)
class Resplit(Stage):
    """A round of ADMM from the mask at hand, tabu search of each row's most promising weights, then 1-swaps.

    ``iterations`` of ADMM, one Gram product each, with a penalty from ``first`` to ``last`` (``levels`` values, steps
    ``over`` times as long at the first half); then ``turns`` of tabu search, each among ``core`` of a row's weights and
    with as many exchanges as those are. A row whose first round takes off a tenth of its error has far to go: it gets
    further rounds, ``rounds`` in all, each with four times as many iterations from a quarter of the penalty. Rows keep
    the best mask they had, or the layer where the pattern counts over it. In float32, but for the swaps and the
    choice; the tabu search runs on the CPU. Rows of a transposable pattern are searched by the band that it ties:
    among as many columns, by exchanges of two rows and two columns, as many for each row.
    """

    name: ClassVar[str] = "resplit"
    role: ClassVar[Role] = Role.REFINE
    begin: ClassVar[str] = "wanda+swap"
    advice: ClassVar[str] = (
        "After Wanda and swaps for masks about as good as `fast`'s in a fifth of its time; not after `push`, which "
        "leaves it little, nor where minutes are there."
    )
    source: ClassVar[str] = "Boyd et al., Distributed Optimization by ADMM, 2011, section 9.1; Angelelli et al. 2010"
    iterations: int = 25
    levels: int = 5
    first: float = 0.12  # relative to the scaled diagonal
    last: float = 0.6
    over: float = 1.7
    rounds: int = 2
    core: float = 0.5  # of a row's weights
    turns: int = 2

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.levels < 1 or self.rounds < 1:
            raise ValueError("iterations, levels and rounds must be positive")
        if not 0 < self.first <= self.last < float("inf"):
            raise ValueError(f"first must be positive and at most last, got {self.first} and {self.last}")
        if not 1 <= self.over < 2:
            raise ValueError(f"over must be at least 1 and below 2, got {self.over}")
        if not 0 < self.core <= 1 or self.turns < 0:
            raise ValueError(f"core is a part, above 0 and at most 1, and turns not negative; got {self.core}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        layer = Scaled.of(problem, replace(context, dtype="float32"))
        keep, rows = state.mask.copy(), np.arange(problem.rows)
        after = replace(state, stopped="")
        for number in range(self.rounds):
            part, scaled = (problem, layer) if len(rows) == problem.rows else (problem.part(rows), layer.rows(rows))
            iterations = self.iterations * LONGER**number
            penalties = np.geomspace(self.first / LONGER**number, self.last, self.levels)
            start = torch.from_numpy(~keep[rows]).to(context.device)
            pruned, done = alternate(part, scaled, start, penalties, iterations, context, self.over, warm=True)
            after = after.count(iterations=done, gram_products=done)
            if done < iterations:
                return replace(after, keep=keep, stopped="deadline")
            found = self._searched(part, scaled, pruned, keys(context.seed, rows, number), context)
            swapped = Swap().run(part, State(keep=~found), context)
            after = replace(after, stopped=swapped.stopped).count(**swapped.counters)
            old, new = (part.tied(part.mask_errors(mask)) for mask in (keep[rows], swapped.mask))
            better = new < old
            keep[rows[better]] = swapped.mask[better]
            rows = rows[old - new > HARD * np.abs(old)]
            if after.stopped or not len(rows):
                break
        return replace(after, keep=keep)

    def _searched(
        self, problem: Problem, layer: Scaled, pruned: torch.Tensor, random: np.ndarray, context: Context
    ) -> np.ndarray:
        """Pruned mask after the tabu search from ``pruned (rows, n)``, on the CPU."""
        G, W, u = (array.cpu().numpy() for array in (layer.G, layer.w, pruned))
        half = np.zeros((len(W), 0), np.float32)
        if layer.t is not None:
            half = W * layer.t.cpu().numpy()
        core = int(min(max(self.core * problem.n, LEAST), MOST))
        if problem.pattern.grouped:
            kernel, tied, settings = core_numba.search, 1, (core, TENURE, SPREAD)
        else:
            kernel, tied = band_core_numba.search, problem.pattern.tied(problem.shape)
            settings = (max(core * tied // 2, 1), TIED_TENURE, TIED_SPREAD)
        step = tied * -(-CHUNK_ROWS // tied)
        chunks = [slice(first, first + step) for first in range(0, len(W), step)]

        def search(rows: slice) -> None:
            if not context.expired():
                X = ((layer.w[rows] * pruned[rows]) @ layer.G).cpu().numpy()
                kernel(W[rows], G, u[rows], X, half[rows], core, self.turns, *settings, problem.group, random[rows])

        with workers(context.threads, len(chunks)) as over:
            over(search, chunks)
        return u > 0
