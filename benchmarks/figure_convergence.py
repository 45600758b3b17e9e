"""How each Frank-Wolfe variant converges on a well- and an ill-conditioned layer: a figure, a table, and their numbers.

    python -m benchmarks.figure_convergence -o reports/convergence
    python -m benchmarks.figure_convergence -o reports/convergence --redraw

Each variant runs as first published (dashed) and, where it has them, with corrections (solid), in float64 on one
thread. The gap is that of the error to Clarabel's optimum; seconds are the processor's. ``--redraw`` runs nothing: it
draws from the CSV, which keeps some ninety points a curve and those that first reach the gaps of the table.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.common import one_thread
from benchmarks.csv_lines import read
from benchmarks.study_iteration import LONG, SHORT, Iteration
from fwbench.problem import Problem
from fwbench.problems.collections import one
from fwbench.report import figures
from fwbench.result import TracePoint
from fwbench.solvers.external.qp import QuadraticProgram
from fwbench.solvers.frank_wolfe.loop import DIRECTION_RULES
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

PROBLEMS = ("mini/n256.o_proj.random.0.6", "mini/n256.gate_proj.top.0.5")
CORRECTED = ("away", "pairwise", "bcg", "bpcg", "dicg")
EVERY = 20  # iterations from one correction to the next
STEPS = 5000
END = 1e-8  # Frank-Wolfe gap at which a run ends
FLOOR = 1e-8  # lowest gap drawn
LEVELS = (1e-3, 1e-6)
SECONDS = 120.0  # wall time for a run
COLOURS = dict(zip(DIRECTION_RULES, figures.COLOURS, strict=False))


class Point(NamedTuple):
    """One look at a run."""

    problem: str
    rows: int
    n: int
    condition: float  # of the Gram matrix
    variant: str
    correct: int
    iterations: int
    seconds: float  # of the processor
    gap: float  # relative to Clarabel's optimum


@dataclass(frozen=True)
class Clock(Context):
    """A context that tells the processor's time; ``started`` is a time of that clock."""

    def seconds(self) -> float:
        return time.process_time() - self.started


def measure(problem: Problem) -> Iterable[Point]:
    """All variants on one problem, from Wanda's mask."""
    exact = Context(dtype="float64")
    start = Wanda().run(problem, State(), exact)
    optimum = problem.row_errors(QuadraticProgram(eps=1e-10).run(problem, start, exact).relaxed).sum()
    spectrum = np.linalg.eigvalsh(problem.G)
    for variant in DIRECTION_RULES:
        for correct in (0, EVERY) if variant in CORRECTED else (0,):
            stage = FrankWolfe(variant=variant, correct=correct, steps=STEPS, gap=END, seconds=SECONDS)
            trace = stage.run(problem, start, Clock(dtype="float64", started=time.process_time())).trace
            for moment in thin(trace, optimum):
                gap = moment.relaxed / optimum - 1
                head = (problem.name, *problem.shape, float(spectrum[-1] / spectrum[0]), variant, correct)
                yield Point(*head, moment.iterations, moment.seconds, gap)


def thin(trace: Sequence[TracePoint], optimum: float) -> list[TracePoint]:
    """Moments at iterations in geometric progression, the last, and the first at each gap of the table."""
    kept = set(10 * np.geomspace(1, STEPS / 10, 90).round().astype(int)) | {0, trace[-1].iterations}
    for level in LEVELS:
        kept |= {next((m.iterations for m in trace if m.relaxed <= optimum * (1 + level)), 0)}
    return [moment for moment in trace if moment.iterations in kept]


def write_points(points: Iterable[Point], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(Point._fields)
        for point in points:
            out.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in point])


def read_points(path: Path) -> list[Point]:
    kinds = (str, int, int, float, str, int, int, float, float)
    with path.open(newline="", encoding="utf-8") as file:
        return [Point(*(kind(x) for kind, x in zip(kinds, line, strict=True))) for line in list(csv.reader(file))[1:]]


def draw(points: Sequence[Point]) -> str:
    """A row of panels for each problem: the gap against iterations, and against seconds."""
    names = list(dict.fromkeys(point.problem for point in points))
    with figures.drawing("convergence", 2.5 * len(names) + 0.7) as (figure, axes, finish):
        axes.remove()
        panels = figure.subplots(len(names), 2, squeeze=False, sharey="row", sharex="col")
        for line, name in zip(panels, names, strict=True):
            here = [point for point in points if point.problem == name]
            line[0].set_title(f"{name}, condition {here[0].condition:.0e}", loc="left")
            line[0].set_ylabel("relative primal gap")
            for ax, time_of in zip(line, ("iterations", "seconds"), strict=True):
                _panel(ax, here, time_of)
        for ax, label in zip(panels[-1], ("iterations", "CPU seconds"), strict=True):
            ax.set_xlabel(label)
        handles = [Line2D([], [], color=COLOURS[variant], label=variant) for variant in DIRECTION_RULES]
        handles += [
            Line2D([], [], color=figures.INK, label="with corrections"),
            Line2D([], [], color=figures.INK, linestyle=(0, (3, 2)), linewidth=1, label="as first published"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
        return figures.standalone(finish("Convergence of the Frank-Wolfe variants"))


def _panel(ax: Axes, points: Sequence[Point], time_of: str) -> None:
    for variant, correct in dict.fromkeys((point.variant, point.correct) for point in points):
        run = [p for p in points if (p.variant, p.correct) == (variant, correct) and p.iterations > 0]
        solid = correct or variant not in CORRECTED
        ax.plot(
            [getattr(point, time_of) for point in run], [max(point.gap, FLOOR / 10) for point in run],
            color=COLOURS[variant], linestyle="-" if solid else (0, (3, 2)), linewidth=1.5 if solid else 1,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(bottom=FLOOR)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def page(points: Sequence[Point], costs: Sequence[Iteration]) -> str:
    """Markdown: the figure, for each problem when each variant first reached the gaps, and what an iteration costs."""
    lines = [
        "# How the Frank-Wolfe variants converge",
        "",
        f"The relaxation from Wanda's mask, exact line search, float64, one thread, {STEPS} iterations at most.",
        "The gap is that of the error to Clarabel's optimum, relative to it. Runs are looked at every 10 iterations;",
        f"seconds are the processor's. *Corrected*: a quadratic correction every {EVERY} iterations (for `dicg`",
        "conjugate gradient steps in its face), as `fw` does unless told otherwise. `inface`, its default variant, and",
        "`vanilla` have none.",
        "",
        "![Relative primal gap against iterations and against CPU seconds](convergence.svg)",
    ]
    heads = [f"{what} to {level:.0e}" for level in LEVELS for what in ("iterations", "seconds")]
    for name in dict.fromkeys(point.problem for point in points):
        here = [point for point in points if point.problem == name]
        lines += ["", f"## {name}: {here[0].rows} × {here[0].n}, condition {here[0].condition:.1e}", ""]
        lines += ["| variant | corrected | " + " | ".join(heads) + " | last gap |", "|---|---|" + "--:|" * 5]
        for variant, correct in dict.fromkeys((point.variant, point.correct) for point in here):
            run = [point for point in here if (point.variant, point.correct) == (variant, correct)]
            cells = [cell for level in LEVELS for cell in _first(run, level)]
            last = f"{run[-1].gap:.1e}" if run[-1].gap > END else f"≤ {END:.0e}"
            lines.append(f"| {variant} | {'yes' if correct else ''} | " + " | ".join([*cells, last]) + " |")
    return "\n".join([*lines, *_costs(costs)]) + "\n"


def _costs(costs: Sequence[Iteration]) -> list[str]:
    """What an iteration takes, in products of the same layer."""
    layers = list(dict.fromkeys((line.problem, line.rows, line.n) for line in costs))
    lines = [
        "",
        "## What an iteration costs",
        "",
        "An iteration over the one product of all rows with `G` that it cannot do without: whole layers, float32, one",
        f"thread, iterations {SHORT + 1} to {LONG} from Wanda's mask, none stopped or corrected; `push` is one of",
        "its rounds. By `benchmarks/study_iteration.py`; CPU: "
        + ", ".join(dict.fromkeys(line.machine for line in costs))
        + ". Repeated runs differ by a tenth. A dash: longer runs",
        "cost less than the product, as first iterations cost more than later ones.",
        "",
        "| method | " + " | ".join(f"{name}, {rows} × {n}" for name, rows, n in layers) + " |",
        "|---|" + "--:|" * len(layers),
    ]
    for method in dict.fromkeys(line.method for line in costs):
        found = {line.problem: f"{line.ratio:.2f}" for line in costs if line.method == method and line.ratio >= 1}
        lines.append(f"| {method} | " + " | ".join(found.get(name, "–") for name, _, _ in layers) + " |")
    products = {line.problem: line.product_ms for line in costs}
    return [*lines, f"| *the product, ms* | {' | '.join(f'{products[name]:.1f}' for name, _, _ in layers)} |"]


def _first(run: Sequence[Point], level: float) -> tuple[str, str]:
    hit = next((point for point in run if point.gap <= level), None)
    return (str(hit.iterations), f"{hit.seconds:.2g}") if hit else ("—", "—")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--redraw", action="store_true", help="Run nothing, draw from the CSV.")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    table = options.output / "curves.csv"
    if not options.redraw:
        one_thread()
        problems = [one(selector)[1] for selector in PROBLEMS]
        for variant in DIRECTION_RULES:  # compile
            start = Wanda().run(problems[0], State(), Context())
            FrankWolfe(variant=variant, steps=25).run(problems[0], start, Context(dtype="float64"))
        write_points((point for problem in problems for point in measure(problem)), table)
    points = read_points(table)
    (options.output / "convergence.svg").write_text(draw(points), encoding="utf-8")
    (options.output / "index.md").write_text(
        page(points, read(options.output / "iterations.csv", Iteration)), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
