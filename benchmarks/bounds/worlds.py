"""Three worlds on one layer, over time: masks falling, bounds rising, and the gap between them.

    python -m benchmarks.bounds.worlds
    python -m benchmarks.bounds.page

Sampled rows of one layer, one thread. Heuristics give masks; relaxations bound all rows at once, the ladder (Shor,
doubly nonnegative, McCormick, triangles, pentagons) row by row. Every value is a sum over the rows, as a multiple of
Wanda's error. The page's figure is drawn from the CSV, which each run replaces.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from benchmarks.shared import command
from benchmarks.shared.csv_lines import write
from benchmarks.shared.samples import sample
from benchmarks.shared.threads import restart_on_one_thread
from fwbench import pipeline
from fwbench.presets import PRESETS
from fwbench.problem import Problem
from fwbench.problems.collections import one
from fwbench.result import Result

WORLDS_CSV = "figures/three-worlds.csv"
WORLDS = {  # world -> specs; the ladder's seconds are given
    "mask": ("wanda", "wanda+swap", "push(rounds=20)+swap", "push+swap", PRESETS["best"]),
    "relaxation": ("fw", "fw(convexify=shared)"),
    "ladder": ("wanda+bound(kind=best,seconds={seconds})",),
}
TICK = 0.01  # seconds between two readings of the CPU's clock


@dataclass(frozen=True)
class WorldStep:
    """A line of the CSV, a step of a curve: an upper bound in the world ``mask``, else a lower one."""

    problem: str
    world: str
    solver: str
    cpu_seconds: float  # since the run's start
    ratio: float  # to Wanda's error on these rows


def measure(problem: Problem, seconds: int) -> list[WorldStep]:
    """Run everything, one after another.

    Args:
        seconds: wall time that the ladder may take.
    """
    found: list[WorldStep] = []
    for world, specs in WORLDS.items():
        for spec in specs:
            points = trace(problem, world, spec.format(seconds=seconds))
            print(f"{points[-1].solver}: {points[-1].ratio:.4f} after {points[-1].cpu_seconds:.2f} s CPU", flush=True)
            found += points
    return found


def trace(problem: Problem, world: str, spec: str) -> list[WorldStep]:
    """The steps of one run; all but the ladder run once before, as the first may compile."""
    solver = pipeline.resolve(spec)
    pipeline.warm_up(pipeline.Run(problem, solver))
    if world != "ladder":
        pipeline.run(problem, solver, threads=1, time_limit=1)
    with cpu_clock() as clock:
        result = pipeline.run(problem, solver, threads=1).result
    if not result.solved or not result.error or not result.ratio_to_wanda:
        raise SystemExit(f"{spec}: {result.status}, {result.reason or result.verdict}")
    unit = result.error / result.ratio_to_wanda
    steps = best_so_far(moments(result, world), np.minimum if world == "mask" else np.maximum)
    at = np.interp([when for when, _ in steps], *np.transpose(clock))
    return [
        WorldStep(problem.name, world, spec, round(float(when), 4), round(value / unit, 6))
        for when, (_, value) in zip(at, steps, strict=True)
    ]


@contextmanager
def cpu_clock() -> Iterator[list[tuple[float, float]]]:
    """Pairs of wall and CPU seconds since now: other processes stretch the former much more than the latter."""
    wall, cpu, over = time.perf_counter(), time.process_time(), threading.Event()
    pairs = [(0.0, 0.0)]

    def read() -> None:
        pairs.append((time.perf_counter() - wall, time.process_time() - cpu))

    def watch() -> None:
        while not over.wait(TICK):
            read()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield pairs
    finally:
        over.set()
        thread.join()
        read()


def moments(result: Result, world: str) -> list[tuple[float, float]]:
    """Wall seconds and errors of the masks, or and lower bounds."""
    if world != "mask":
        return [(moment.seconds, moment.lower) for moment in result.trace if moment.lower is not None]
    found = [(moment.seconds, moment.upper) for moment in result.trace if moment.upper is not None]
    ends = np.cumsum([stage.seconds for stage in result.stages])
    found += [(float(end), s.error) for end, s in zip(ends, result.stages, strict=True) if s.error is not None]
    return sorted(found)


def best_so_far(points: Sequence[tuple[float, float]], better: np.ufunc) -> list[tuple[float, float]]:
    """The points at which the best value improves."""
    best = better.accumulate([value for _, value in points])
    new = np.r_[True, best[1:] != best[:-1]]
    return [(when, float(value)) for (when, _), value, keep in zip(points, best, new, strict=True) if keep]


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--problem", default="smollm2/13.v_proj")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=1200, help="wall time that the ladder may take")
    options = parser.parse_args()
    restart_on_one_thread()
    write(options.out / WORLDS_CSV, measure(sample(one(options.problem)[1], options.rows), options.seconds))


if __name__ == "__main__":
    main()
