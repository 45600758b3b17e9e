"""Simulated annealing and tabu search of dwave-samplers, on the penalty form of each row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.external.base import block_error
from fwbench.solvers.external.blocks import QuadraticBlock, blocks
from fwbench.solvers.external.qubo import enough, qubo, repaired
from fwbench.stage import Context, Role, Stage, State, register

METHODS = ("sa", "tabu")
SEEDS = 2**31  # that the samplers take, and milliseconds


@register
@dataclass(frozen=True)
class DWave(Stage):
    """Search by dwave-samplers, the counts as penalties, row by row; the mask before it stays where none is better.

    ``method=sa``: simulated annealing, its own temperatures; ``tabu``: tabu search. ``penalty``: 1 is what is proved to
    be enough for the counts to hold in every minimiser (``solvers/external/qubo.py``); less leaves the search freer.
    Samples with other counts are repaired, the cheapest weights first, and counted (``repaired``, of ``samples``).
    ``sweeps``: proposals (``sa``) or moves (``tabu``) a weight; ``reads``: samples a row, the first from the mask at
    hand, the others from random ones. ``largest``: variables of a block (a row); beyond it the stage declines unless
    told otherwise.
    """

    name: ClassVar[str] = "dwave"
    role: ClassVar[Role] = Role.REFINE
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For seeing what a general QUBO sampler makes of these problems; not for the best masks: `tabu` and `anneal` "
        "exchange two weights at once, where a sampler has to cross the penalty between them."
    )
    requires: ClassVar[tuple[str, ...]] = ("dwave.samplers",)
    source: ClassVar[str] = "D-Wave, dwave-samplers; Palubeckis 2004 (tabu); Glover, Kochenberger, Du 2019 (penalties)"
    method: str = "tabu"
    penalty: float = 0.1
    sweeps: int = 100
    reads: int = 4
    largest: int = 2048

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if not 0 < self.penalty < math.inf:
            raise ValueError(f"penalty must be positive, got {self.penalty}")
        if min(self.sweeps, self.reads) < 1:
            raise ValueError("sweeps and reads must be at least 1")

    def supports(self, problem: Problem) -> str | None:
        if problem.block_size > self.largest:
            return (
                f"{problem.block_size} variables in one dense QUBO; largest={problem.block_size} tries it all the same"
            )
        return None

    def run(self, problem: Problem, state: State, context: Context) -> State:
        pruned, stopped, samples, wrong = ~state.mask, "", 0, 0
        rng = np.random.default_rng(context.seed)
        context.hand_in("start", state.mask)
        for block in blocks(problem):
            if context.expired():
                stopped = "deadline"
                break
            start, seed = pruned[block.rows].ravel(), int(rng.integers(SEEDS))
            if not block.choice or not (abs(block.Q).max() or block.c.any()):
                continue
            found = self._sample(block, start, seed, context)
            stopped = "deadline" if context.expired() else stopped
            best, least = pruned[block.rows], block_error(problem, block, pruned[block.rows])
            for sample in found:
                fixed = repaired(block, sample)
                samples, wrong = samples + 1, wrong + bool((fixed != sample).any())
                mask = fixed.reshape(best.shape)
                if (error := block_error(problem, block, mask)) < least:
                    best, least = mask, error
            pruned[block.rows] = best
            context.hand_in(block.rows.start, best)
        after = replace(state, keep=~pruned, relaxed=None, weights=None, stopped=stopped)
        return after.count(samples=samples, repaired=wrong)

    def salvage(self, problem: Problem, state: State, parts: Mapping[Any, Any]) -> State:
        keep = parts["start"].copy()
        for row, pruned in parts.items():
            if isinstance(row, int):
                keep[row : row + len(pruned)] = ~pruned
        return replace(state, keep=keep, relaxed=None, weights=None)

    def _sample(self, block: QuadraticBlock, start: np.ndarray, seed: int, context: Context) -> np.ndarray:
        """Samples ``(reads or fewer, m)``, bool."""
        import dimod
        from dwave.samplers import SimulatedAnnealingSampler, TabuSampler

        form = qubo(block, self.penalty * enough(block))
        A = form.A / np.abs(form.A).max()  # what the samplers compute with is ordinary
        i, j = np.triu_indices(block.size, 1)
        model = dimod.BinaryQuadraticModel.from_numpy_vectors(A.diagonal(), (i, j, 2 * A[i, j]), 0.0, dimod.BINARY)
        options: dict[str, Any] = {"num_reads": self.reads, "seed": seed, "initial_states": start.astype(np.int8)}
        if self.method == "sa":
            options |= {"interrupt_function": context.expired, "num_sweeps": self.sweeps}
            found = SimulatedAnnealingSampler().sample(model, **options)
        else:
            left = context.left() / self.reads  # a limit that is not reached changes nothing
            options["timeout"] = None if math.isinf(left) else max(1, min(int(1000 * left), SEEDS - 1))
            options |= {"num_restarts": 0, "coefficient_z_first": 1, "lower_bound_z": self.sweeps * block.size}
            found = TabuSampler().sample(model, **options)
        order = np.argsort(np.array(found.variables))
        return found.record.sample[:, order].astype(bool)
