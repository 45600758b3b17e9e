"""The better of a mask and of what 1-swaps make of Wanda's, row by row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fwbench.problem import Problem
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context, Role, Stage, State, register


@register
@dataclass(frozen=True)
class Safeguard(Stage):
    """Take what swaps make of Wanda's mask wherever that is better: on no row is the mask then above Wanda + swap.

    Row by row; where the pattern counts over the layer, the better of the two whole masks. A deadline leaves the
    swaps, and so the promise, unfinished.
    """

    name: ClassVar[str] = "safeguard"
    role: ClassVar[Role] = Role.REFINE
    advice: ClassVar[str] = (
        "After another search, so that no row is worse than Wanda and swaps; not alone, it only chooses."
    )
    source: ClassVar[str] = Swap.source

    def run(self, problem: Problem, state: State, context: Context) -> State:
        start = State(keep=~problem.pattern.prune(wanda_score(problem.W, problem.G)))
        rival = Swap().run(problem, start, context)
        keep = ~problem.better(~state.mask, ~rival.mask)
        return replace(state, keep=keep, stopped=rival.stopped).count(**rival.counters)
