"""The stage ``resplit``: out of a mask that swaps cannot improve, through ADMM from that mask and a search of its core.

What one round does to all rows at once: a few iterations of ``splitting``, begun with the multiplier of which the mask
at hand is a fixed point, so that only what a small penalty cannot hold melts; a tabu search among the weights that then
may move (``core_numba``); 1-swaps to the end. Of this and the mask it began with, each row keeps the better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from fwbench.problem import Problem
from fwbench.solvers.first_order import core_numba
from fwbench.solvers.frank_wolfe.splitting import Scaled, alternate
from fwbench.solvers.local_search.anneal_numba import keys
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.numerics.threads import workers
from fwbench.stage import Context, Role, Stage, State, register

CHUNK_ROWS = 64  # rows searched together
CORE = 512  # weights of a core at most: what the caches hold
HARD = 0.1  # of its error what a row's first round must take off for another
LONGER = 4  # as many iterations in each further round, from a penalty that is by this smaller


@register
@dataclass(frozen=True)
class Resplit(Stage):
    """Rounds of ADMM from the mask at hand, tabu search of each row's most promising weights, and 1-swaps.

    ``iterations`` of ADMM with a penalty from ``first`` to ``last`` (``levels`` values, over-relaxed at the first
    half), each one Gram product; then ``turns`` cores of ``core`` weights, ``exchanges`` of tabu search in each. Rows
    whose first round takes off a tenth of their error have far to go: they get further rounds, ``rounds`` in all, each
    with twice as many iterations. Where a pattern counts over the layer, all rows or none.
    """

    name: ClassVar[str] = "resplit"
    role: ClassVar[Role] = Role.REFINE
    begin: ClassVar[str] = "wanda+swap"
    advice: ClassVar[str] = (
        "After Wanda and swaps, for masks like `push`'s in a fifth of its time; where minutes are there, `best`."
    )
    source: ClassVar[str] = "Boyd et al. 2011, section 9.1; Angelelli, Mansini, Speranza 2010; Glover 1989"
    iterations: int = 25
    levels: int = 5
    first: float = 0.12  # relative to the scaled diagonal
    last: float = 0.6
    over: float = 1.7
    rounds: int = 2
    core: float = 0.5  # of a row's weights
    turns: int = 2
    exchanges: int = 1  # in each core, for each of its weights
    tenure: int = 2
    spread: int = 6

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.levels < 1 or self.rounds < 1:
            raise ValueError("iterations, levels and rounds must be positive")
        if not 0 < self.first <= self.last < float("inf"):
            raise ValueError(f"first must be positive and at most last, got {self.first} and {self.last}")
        if not 1 <= self.over < 2:
            raise ValueError(f"over is in [1, 2), got {self.over}")
        if not 0 < self.core <= 1:
            raise ValueError(f"core is in (0, 1], got {self.core}")
        if self.turns < 0 or self.exchanges < 1 or self.tenure < 0 or self.spread < 0:
            raise ValueError("turns, tenure and spread must not be negative, exchanges at least 1")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        layer = Scaled.of(problem, replace(context, dtype="float32"))
        keep, rows = state.mask.copy(), np.arange(problem.rows)
        after = replace(state, stopped="")
        for number in range(self.rounds):
            part, scaled = (problem, layer) if len(rows) == problem.rows else (problem.part(rows), layer.rows(rows))
            iterations = self.iterations * LONGER**number
            penalties = np.geomspace(self.first / LONGER**number, self.last, self.levels)
            pruned, done = alternate(
                part, scaled, torch.from_numpy(~keep[rows]), penalties, iterations, context, self.over, True
            )
            after = after.count(iterations=done, gram_products=done)
            if done < iterations:
                return replace(after, keep=keep, stopped="deadline")
            found = self._searched(part, scaled, pruned, keys(context.seed, rows, number), context)
            swapped = Swap().run(part, State(keep=~found), context)
            after = replace(after, stopped=swapped.stopped).count(**swapped.counters)
            old, new = part.mask_errors(keep[rows]), part.mask_errors(swapped.mask)
            if not part.pattern.separable:
                old, new = (np.full(part.rows, errors.sum()) for errors in (old, new))
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
        X = ((layer.w * pruned) @ layer.G).cpu().numpy()
        G, W, u = (array.cpu().numpy() for array in (layer.G, layer.w, pruned))
        half = np.zeros((len(W), 0), np.float32)
        if layer.t is not None:
            half = W * layer.t.cpu().numpy()
        chunks = [slice(first, first + CHUNK_ROWS) for first in range(0, len(W), CHUNK_ROWS)]
        core = int(min(max(self.core * problem.n, 2), CORE))
        settings = (core, self.turns, self.exchanges * core, self.tenure, self.spread, problem.group)

        def search(rows: slice) -> None:
            if not context.expired():
                core_numba.search(W[rows], G, u[rows], X[rows], half[rows], *settings, random[rows])

        with workers(context.threads, len(chunks)) as over:
            over(search, chunks)
        return u > 0

