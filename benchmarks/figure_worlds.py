"""A figure of the three worlds on one layer: masks falling, bounds rising, the gap between them over time.

    python -m benchmarks.figure_worlds -o reports/bounds/figures
    python -m benchmarks.figure_worlds -o reports/bounds/figures --redraw

Sampled rows of one layer, one thread. Heuristics give masks; relaxations bound all rows at once, the ladder (Shor,
doubly nonnegative, McCormick, triangles, pentagons) row by row. Every value is a sum over the rows, as a multiple of
Wanda's error. The figure is drawn from the CSV beside it; ``--redraw`` runs nothing.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.study_masks import ENVIRONMENT, sample
from fwbench import pipeline
from fwbench.problem import Problem
from fwbench.problems.collections import one
from fwbench.report import figures
from fwbench.report.text import percent
from fwbench.result import Result
from fwbench.solvers.presets import PRESETS

NAME = "three-worlds"
WORLDS = {  # world -> specs; the ladder's seconds are given
    "mask": ("wanda", "wanda+swap", "push(rounds=20)+swap", "push+swap", PRESETS["best"]),
    "relaxation": ("fw", "fw(convexify=shared)"),
    "ladder": ("wanda+bound(kind=best,seconds={seconds})",),
}
COLOURS = {  # of the runs of each world, in their order
    "mask": (figures.NEUTRAL, "#E69F00", "#F0706A", "#D55E00", "#8C2D04"),
    "relaxation": ("#56B4E9", "#8C7AE6"),
    "ladder": ("#0072B2",),
}
TICK = 0.01  # seconds between two readings of the CPU's clock
HEAD = ("problem", "world", "solver", "cpu_seconds", "ratio")


@dataclass(frozen=True)
class Point:
    """A step of a curve: an upper bound in the world ``mask``, else a lower one."""

    problem: str
    world: str
    solver: str
    cpu_seconds: float  # since the run's start
    ratio: float  # to Wanda's error on these rows


Curve = Sequence[Point]


# --- the runs --------------------------------------------------------------------------------------------------------


def measure(problem: Problem, seconds: int) -> list[Point]:
    """Run everything, one after another.

    Args:
        seconds: wall time that the ladder may take.
    """
    found: list[Point] = []
    for world, specs in WORLDS.items():
        for spec in specs:
            points = trace(problem, world, spec.format(seconds=seconds))
            print(f"{points[-1].solver}: {points[-1].ratio:.4f} after {points[-1].cpu_seconds:.2f} s CPU", flush=True)
            found += points
    return found


def trace(problem: Problem, world: str, spec: str) -> list[Point]:
    """The steps of one run; all but the ladder run once before, as the first may compile."""
    line = pipeline.resolve(spec)
    pipeline.warm_up(line, problem)
    if world != "ladder":
        pipeline.run(problem, line, threads=1, time_limit=1)
    with cpu_clock() as clock:
        result = pipeline.run(problem, line, threads=1).result
    if not result.solved or not result.error or not result.ratio_to_wanda:
        raise SystemExit(f"{spec}: {result.status}, {result.reason or result.verdict}")
    unit = result.error / result.ratio_to_wanda
    steps = best_so_far(moments(result, world), np.minimum if world == "mask" else np.maximum)
    at = np.interp([when for when, _ in steps], *np.transpose(clock))
    return [
        Point(problem.name, world, spec, float(when), value / unit) for when, (_, value) in zip(at, steps, strict=True)
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


# --- the figure ------------------------------------------------------------------------------------------------------


def draw(points: Sequence[Point]) -> str:
    """SVG: a step line a run, and the gap between the best of both sides shaded."""
    runs: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        runs.setdefault((point.world, point.solver), []).append(point)
    times = np.array([max(point.cpu_seconds, 1e-3) for point in points])
    grid = np.geomspace(times.min(), times.max() * 1.15, 600)
    upper = np.fmin.reduce([steps(run, grid) for (world, _), run in runs.items() if world == "mask"])
    lower = np.fmax.reduce([steps(run, grid) for (world, _), run in runs.items() if world != "mask"])
    with figures.drawing(NAME, 4.4) as (figure, axes, finish):
        axes.fill_between(grid, np.nan_to_num(lower), upper, color=figures.NEUTRAL, alpha=0.16, linewidth=0)
        numbers = dict.fromkeys(WORLDS, 0)
        for (world, solver), run in runs.items():
            colour = COLOURS[world][numbers[world] % len(COLOURS[world])]
            numbers[world] += 1
            style = {"color": colour, "linestyle": "-" if world == "mask" else (0, (5, 1.5)), "linewidth": 1.4}
            axes.step(grid, steps(run, grid), where="post", label=f"{world}: {solver}", **style)
        _annotate(axes, grid, upper, lower)
        figures.log_seconds(axes, grid)
        axes.set_xlim(grid[0], grid[-1] * 2.4)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("CPU seconds, all rows")
        axes.set_ylabel("error of the rows, Wanda's = 1")
        figure.legend(loc="outside lower center", ncols=2, columnspacing=1.2, handlelength=2.4)
        return figures.standalone(finish("Masks falling, bounds rising, and the gap between them"))


def caption(points: Sequence[Point]) -> str:
    """What the figure shows, in words."""
    last = {(point.world, point.solver): point for point in points}  # of each run
    mask = min((point for point in last.values() if point.world == "mask"), key=lambda point: point.ratio)
    relaxed, ladder = (
        max((point for point in last.values() if point.world == world), key=lambda point: point.ratio)
        for world in ("relaxation", "ladder")
    )
    return (
        f"Sampled rows of `{mask.problem}`, one thread; errors and bounds are sums over the rows, Wanda's error is 1. "
        f"The best mask, by `{mask.solver}`, has {mask.ratio:.4f} after {mask.cpu_seconds:.3g} CPU seconds. The best "
        f"relaxation, `{relaxed.solver}`, proves {relaxed.ratio:.4f} after {relaxed.cpu_seconds:.3g}, the ladder "
        f"{ladder.ratio:.4f} after {ladder.cpu_seconds:.3g}: a gap of {percent(1 - ladder.ratio / mask.ratio)}. "
        "The ladder stops at its limit of wall time, `seconds`, finished or not. "
        f"Numbers in [{NAME}.csv](figures/{NAME}.csv)."
    )


def steps(run: Curve, grid: np.ndarray) -> np.ndarray:
    """The value in force at each time of the grid; NaN before the first."""
    place = np.searchsorted([point.cpu_seconds for point in run], grid, side="right") - 1
    return np.where(place < 0, np.nan, np.array([point.ratio for point in run])[np.maximum(place, 0)])


def _annotate(axes, grid: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> None:
    """The final gap as an arrow at the right, with its part of the best mask's error."""
    high, low, x = upper[-1], lower[-1], grid[-1] * 1.12
    arrow = {"arrowstyle": "<->", "color": figures.INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x, low), (x, high), arrowprops=arrow)
    axes.text(x * 1.08, (high + low) / 2, f"gap\n{percent(1 - low / high)}", va="center", fontsize=8)


def write(points: Sequence[Point], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(HEAD)
        out.writerows((p.problem, p.world, p.solver, f"{p.cpu_seconds:.4f}", f"{p.ratio:.6f}") for p in points)


def read(path: Path) -> list[Point]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Point(problem, world, solver, float(seconds), float(ratio))
            for problem, world, solver, seconds, ratio in list(csv.reader(file))[1:]
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="smollm2/13.v_proj")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=1200, help="wall time that the ladder may take")
    parser.add_argument("--redraw", action="store_true", help="from the CSV, without running anything")
    parser.add_argument("-o", "--out", type=Path, default=Path("reports/bounds/figures"))
    options = parser.parse_args()
    table = options.out / f"{NAME}.csv"
    if not options.redraw:
        write(measure(sample(one(options.problem)[1], options.rows), options.seconds), table)
    (options.out / f"{NAME}.svg").write_text(draw(read(table)), encoding="utf-8")


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        again = [sys.executable, "-m", "benchmarks.figure_worlds", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **ENVIRONMENT})
    main()
