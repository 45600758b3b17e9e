"""Tabu search: the best swap that is not forbidden, even uphill; what moved may not move back for a while.

(Glover 1989; for binary quadratic programs with a cardinality constraint: Wu and Hao 2013, whose restriction to the
most promising weights of either side is used here.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Moment
from fwbench.solvers.threads import numba_threads
from fwbench.stage import Context, Role, Stage, State, register

CHUNK_ROWS = 64  # rows searched together
STEP = 50_000_000  # iterations x rows x weights between two looks at the clock, some 0.1 s on two cores
LAPS = 8  # passes over the layer when there is no time limit: how often the trace is told


@register
@dataclass(frozen=True)
class Tabu(Stage):
    """Tabu search of each row from its 1-swap optimum: best non-tabu swap among the most promising pairs.

    Few ``candidates`` a side do better than many: the search then looks less and leaves valleys more boldly. A weight
    that moved is tabu for ``tenure`` and up to ``spread`` more iterations at random, unless it makes a new best mask;
    longer tenures gain much less, and none at random repeats itself (chosen on five layers of blocks 7 and 18).
    """

    name: ClassVar[str] = "tabu"
    role: ClassVar[Role] = Role.REFINE
    source: ClassVar[str] = "Wu and Hao 2013, after Glover 1989"
    iterations: int = 20_000
    seconds: float = float("inf")
    candidates: int = 2
    tenure: int = 3
    spread: int = 8

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.candidates < 1 or self.tenure < 0 or self.spread < 0:
            raise ValueError("iterations, tenure and spread must not be negative, candidates at least 1")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        if state.keep is None:
            raise ValueError("there is no mask to refine")
        with numba_threads(context.threads):
            return _search(self, problem, state, context)


def _search(stage: Tabu, problem: Problem, state: State, context: Context) -> State:
    from fwbench.solvers import swap_kernel, tabu_kernel
    from fwbench.solvers.anneal_kernel import keys

    end = context.seconds() + stage.seconds
    group = min(problem.pattern.group_size(problem.shape), problem.n)
    descent = swap_kernel.Rows(problem.W, problem.G, group, context.threads)
    unlimited = np.iinfo(np.int64).max
    assert state.keep is not None
    pruned = ~state.keep
    chunks = [slice(first, first + CHUNK_ROWS) for first in range(0, problem.rows, CHUNK_ROWS)]
    counts = {"iterations": 0, "swaps": 0, "swap_evaluations": 0}

    def add(swaps: int, looked: int, iterations: int = 0) -> None:
        counts["swaps"] += swaps
        counts["swap_evaluations"] += looked
        counts["iterations"] += iterations

    def descend() -> None:
        done, looked, _ = descent.descend_all(pruned, unlimited, context.expired)
        add(done, looked)

    descend()
    random = keys(context.seed, np.arange(problem.rows), 0)
    memories = [
        tabu_kernel.Memory.begin(descent.W[chunk], problem.G, pruned[chunk], group, random[chunk]) for chunk in chunks
    ]
    trace = [Moment(context.seconds(), sum(float(m.level[:, 1].sum()) for m in memories))]
    step = max(1, min(-(-stage.iterations // LAPS), STEP // (CHUNK_ROWS * problem.n)))
    stopped = ""
    for first in range(0, stage.iterations, step):
        stop = min(first + step, stage.iterations)
        for memory in memories:
            if context.expired() or context.seconds() >= end:
                stopped = "deadline" if context.expired() else "time"
                break
            done, looked = memory.walk(first, stop, stage.candidates, stage.tenure, stage.spread)
            add(done, looked, (stop - first) * len(memory.W))
        trace.append(Moment(context.seconds(), sum(float(m.level[:, 1].sum()) for m in memories)))
        if stopped:
            break
    pruned = np.concatenate([memory.best for memory in memories])
    descend()
    if not problem.pattern.separable and not context.expired():
        done, looked, cut = descent.exchange(pruned, unlimited, context.expired)
        add(done, looked)
        stopped = stopped or cut
    trace.append(Moment(context.seconds(), problem.error(~pruned)))
    stopped = "deadline" if stopped == "deadline" else ""
    return replace(state, keep=~pruned, stopped=stopped, trace=(*state.trace, *trace)).count(**counts)
