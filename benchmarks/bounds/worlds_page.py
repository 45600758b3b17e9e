"""The section of the bounds' page on the three worlds: lines of ``worlds`` to a figure and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from benchmarks.bounds.worlds import WORLDS, WORLDS_CSV, WorldStep
from benchmarks.shared.markdown import named
from fwbench.report import figures
from fwbench.report.text import percent

COLOURS = {  # of the runs of each world, in their order
    "mask": (figures.NEUTRAL, "#E69F00", "#F0706A", "#D55E00", "#8C2D04"),
    "relaxation": ("#56B4E9", "#8C7AE6"),
    "ladder": ("#0072B2",),
}
PICTURE = PurePosixPath(WORLDS_CSV).with_suffix(".svg")  # both from the page's folder


def section(points: Sequence[WorldStep]) -> str:
    """The section; empty without points."""
    if not points:
        return ""
    return f"## Three worlds on one layer\n\n{caption(points)}\n\n![Three worlds]({PICTURE})\n\n"


def draw(points: Sequence[WorldStep]) -> str:
    """SVG: a step line a run, and the gap between the best of both sides shaded."""
    runs: dict[tuple[str, str], list[WorldStep]] = {}
    for point in points:
        runs.setdefault((point.world, point.solver), []).append(point)
    times = np.array([max(point.cpu_seconds, 1e-3) for point in points])
    grid = np.geomspace(times.min(), times.max() * 1.15, 600)
    upper = np.fmin.reduce([steps(run, grid) for (world, _), run in runs.items() if world == "mask"])
    lower = np.fmax.reduce([steps(run, grid) for (world, _), run in runs.items() if world != "mask"])
    with figures.drawing("three-worlds", 4.4) as (figure, axes, finish):
        axes.fill_between(grid, np.nan_to_num(lower), upper, color=figures.NEUTRAL, alpha=0.16, linewidth=0)
        numbers = dict.fromkeys(WORLDS, 0)
        for (world, solver), run in runs.items():
            colour = COLOURS[world][numbers[world] % len(COLOURS[world])]
            numbers[world] += 1
            style = {"color": colour, "linestyle": "-" if world == "mask" else (0, (5, 1.5)), "linewidth": 1.4}
            axes.step(grid, steps(run, grid), where="post", label=f"{world}: {named(solver)}", **style)
        _annotate(axes, grid, upper, lower)
        figures.log_seconds(axes, grid)
        axes.set_xlim(grid[0], grid[-1] * 2.4)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("CPU seconds, all rows")
        axes.set_ylabel("error of the rows, Wanda's = 1")
        figure.legend(loc="outside lower center", ncols=2, columnspacing=1.2, handlelength=2.4)
        return figures.standalone(finish("Masks falling, bounds rising, and the gap between them"))


def caption(points: Sequence[WorldStep]) -> str:
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
        f"Numbers in [{PurePosixPath(WORLDS_CSV).name}]({WORLDS_CSV})."
    )


def steps(run: Sequence[WorldStep], grid: np.ndarray) -> np.ndarray:
    """The value in force at each time of the grid; NaN before the first."""
    place = np.searchsorted([point.cpu_seconds for point in run], grid, side="right") - 1
    return np.where(place < 0, np.nan, np.array([point.ratio for point in run])[np.maximum(place, 0)])


def _annotate(axes, grid: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> None:
    """The final gap as an arrow at the right, with its part of the best mask's error."""
    high, low, x = upper[-1], lower[-1], grid[-1] * 1.12
    arrow = {"arrowstyle": "<->", "color": figures.INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x, low), (x, high), arrowprops=arrow)
    axes.text(x * 1.08, (high + low) / 2, f"gap\n{percent(1 - low / high)}", va="center", fontsize=8)
