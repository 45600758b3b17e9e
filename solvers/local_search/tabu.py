"""Tabu search: the best swap that is not forbidden, even uphill; what moved may not move back for a while.

(Glover 1989; for binary quadratic programs with a cardinality constraint: Wu and Hao 2013, whose restriction to the
most promising weights of either side is used here.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.local_search.swap import descent_on_device
from fwbench.solvers.numerics.threads import numba_threads
from fwbench.stage import Context, Role, Stage, State, register

CHUNK_ROWS = 64  # rows searched together
STEP = 50_000_000  # iterations x rows x weights between two looks at the clock, some 0.1 s on two cores
LAUNCH = 4000  # iterations between them on a GPU, where rows run side by side
LAPS = 8  # passes over the layer when there is no time limit: how often the trace is told


@register
@dataclass(frozen=True)
class Tabu(Stage):
    """Tabu search of each row from its 1-swap optimum: best non-tabu swap among the most promising pairs.

    Few ``candidates`` a side do better than many: the search then looks less and leaves valleys more boldly. A weight
    that moved is tabu for ``tenure`` and up to ``spread`` more iterations at random, unless it makes a new best mask;
    longer tenures gain much less, and none at random repeats itself (chosen on five layers of blocks 7 and 18).
    On CUDA each row is a program of one kernel.
    """

    name: ClassVar[str] = "tabu"
    role: ClassVar[Role] = Role.REFINE
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = "For the last half per cent of error after `push` and swaps; not where seconds count."
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
        with numba_threads(context.threads):
            return _search(self, problem, state, context)


def _runs_on(device: str, n: int, group: int) -> bool:
    """Whether the search runs on the device, a CUDA one: it needs Triton, and rows that fit into a program."""
    if not (device.startswith("cuda") and find_spec("triton")):
        return False
    from fwbench.solvers.local_search import swap_triton

    return swap_triton.fits(n, group)


def _states(
    problem: Problem, pruned: np.ndarray, group: int, context: Context, on_device: bool
) -> tuple[list[Any], int]:
    """The states of all rows, in parts, and the most iterations between two looks at the clock."""
    from fwbench.solvers.local_search import tabu_numba
    from fwbench.solvers.local_search.anneal_numba import keys

    random = keys(context.seed, np.arange(problem.rows), 0)
    if on_device:
        from fwbench.solvers.local_search import tabu_triton

        target = problem.T, problem.offset
        return [
            tabu_triton.TabuState.begin(problem.W, problem.G, pruned, group, random, context.device, *target)
        ], LAUNCH
    W = problem.W.astype(np.float64)
    chunks = [slice(first, first + CHUNK_ROWS) for first in range(0, problem.rows, CHUNK_ROWS)]
    targets: list[tuple] = [()] * len(chunks)
    if problem.T is not None and problem.offset is not None:
        targets = [(problem.T[part], problem.offset[part]) for part in chunks]
    states = [
        tabu_numba.TabuState.begin(W[part], problem.G, pruned[part], group, random[part], *target)
        for part, target in zip(chunks, targets, strict=True)
    ]
    return states, STEP // (CHUNK_ROWS * problem.n)


def _search(stage: Tabu, problem: Problem, state: State, context: Context) -> State:
    from fwbench.solvers.local_search.swap_numba import Descent

    end = context.seconds() + stage.seconds
    group = problem.group
    on_device = _runs_on(context.device, problem.n, group)
    unlimited = np.iinfo(np.int64).max
    pruned = ~state.mask
    rows = None if on_device else Descent(problem.W, problem.G, group, context.threads, linear=problem.linear)
    counts = {"iterations": 0, "swaps": 0, "swap_evaluations": 0}

    def add(swaps: int, evaluated: int, iterations: int = 0) -> None:
        counts["swaps"] += swaps
        counts["swap_evaluations"] += evaluated
        counts["iterations"] += iterations

    def descend() -> None:
        if rows is None:
            descent = descent_on_device(problem.n, group)
            rest = (context.device, context.expired, problem.linear)
            found = descent(problem.W, problem.G, pruned, group, unlimited, 1.0, *rest)
        else:
            found = rows.descend_all(pruned, unlimited, context.expired)
        add(*found[:2])

    descend()
    start = pruned.copy()
    states, most = _states(problem, pruned, group, context, on_device)
    trace = [context.point(sum(float(m.least.sum()) for m in states))]
    step = max(1, min(-(-stage.iterations // LAPS), most))
    stopped = ""
    for first in range(0, stage.iterations, step):
        stop = min(first + step, stage.iterations)
        for part in states:
            if context.expired() or context.seconds() >= end:
                stopped = "deadline" if context.expired() else "time"
                break
            done, evaluated = part.walk(first, stop, stage.candidates, stage.tenure, stage.spread)
            add(done, evaluated, (stop - first) * len(part.W))
        trace.append(context.point(sum(float(m.least.sum()) for m in states)))
        if stopped:
            break
    pruned = np.concatenate([part.best for part in states])
    descend()
    if not problem.pattern.separable and not context.expired():
        between = rows or Descent(problem.W, problem.G, group, context.threads, linear=problem.linear)
        done, evaluated, cut = between.exchange(pruned, unlimited, context.expired)
        add(done, evaluated)
        stopped = stopped or cut
    pruned = problem.better(start, pruned)  # on rows of terms that dwarf the error its sums may have drifted
    trace.append(context.point(problem.error(~pruned)))
    stopped = "deadline" if stopped == "deadline" else ""
    return replace(state, keep=~pruned, stopped=stopped, trace=(*state.trace, *trace)).count(**counts)
