"""The error of SparseSwaps against the swaps that each row may make, from four starts.

    python -m benchmarks.convergence.swaps             measures what reports/convergence lacks
    python -m benchmarks.convergence.page

Sampled rows of the seven layers of block 7. Every limit is a run of its own from the start's mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import sample
from benchmarks.shared.threads import restart_on_one_thread
from fwbench import pipeline
from fwbench.problem import Problem
from fwbench.problems.collections import SHAPES, one
from fwbench.solvers.local_search.swap import Swap
from fwbench.stage import Context, State

SWAPS_CSV = "swaps.csv"
BLOCK, ROWS, PATTERN = 7, 24, "0.6"
STARTS = ("magnitude", "wanda", "ria", "wanda+dsnot")
LIMITS = (1, 2, 5, 10, 20, 50, 100, 200, 0)  # swaps a row; 0: to the end


@dataclass(frozen=True)
class Limited:
    """A line of the CSV: one start's mask after at most so many swaps a row."""

    layer: str
    rows: int
    n: int
    start: str
    limit: int
    swaps: float  # a row, mean
    over_start: float  # error over the start's
    over_wanda: float


def limited(layer: str, problem: Problem, start: str) -> Iterator[Limited]:
    """All limits from one start."""
    keep = run(problem, start).mask
    wanda, before = (problem.error(mask) for mask in (run(problem, "wanda").mask, keep))
    for limit in LIMITS:
        after = Swap(limit=limit).run(problem, State(keep=keep.copy()), Context())
        error = problem.error(after.mask)
        values = (after.counters["swaps"] / problem.rows, error / before, error / wanda)
        yield Limited(layer, *problem.shape, start, limit, *(float(f"{value:.6g}") for value in values))


def run(problem: Problem, spec: str) -> State:
    state = State()
    for stage in pipeline.resolve(spec).stages:
        state = stage.run(problem, state, Context())
    return state


def main() -> None:
    path = command.study(__spec__, __doc__).parse_args().out / SWAPS_CSV
    restart_on_one_thread()
    done = {(line.layer, line.start) for line in read(path, Limited)}
    for layer in SHAPES:
        missing = [start for start in STARTS if (layer, start) not in done]
        if not missing:
            continue
        problem = sample(one(f"smollm2/{BLOCK:02}.{layer}")[1], ROWS).with_pattern(PATTERN)
        for start in missing:
            append(path, list(limited(layer, problem, start)))
            print(layer, start, flush=True)


if __name__ == "__main__":
    main()
