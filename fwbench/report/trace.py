"""How runs converge on one problem: a figure for a paper, and its numbers.

Three rows of logarithmic axes, against seconds and against iterations: the primal gap, the Frank-Wolfe gap, and the
error of the masks at hand (a relaxation's rounded iterates, then what refines them), in steps: a mask stands until the
next one.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fwbench import presets, sheet
from fwbench import spec as specs
from fwbench.problems.files import write_atomic
from fwbench.report.figures import COLOURS, MARKERS
from fwbench.report.text import clip
from fwbench.result import Result, TracePoint

FORMATS = (".svg", ".png", ".pdf")
SIZE = (6.8, 6.4)  # inches: the width of a page
MARKED = 9  # markers along a curve
HALF_WIDTH = 44  # letters of a legend's entry that leave room for one beside it
_PAPER: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fwbench-trace",
    "pdf.fonttype": 42,  # text stays text
}


@dataclass(frozen=True)
class Curve:
    """One run's convergence. Gaps and errors are parts of units that :func:`curves` chooses."""

    solver: str
    moments: tuple[TracePoint, ...]
    primal: tuple[float | None, ...]  # (relaxed - reference) / reference
    gap: tuple[float | None, ...]  # (relaxed - lower) / relaxed
    error: tuple[float | None, ...]  # of the mask at hand, as a multiple of Wanda's


def curves(results: Sequence[Result]) -> list[Curve]:
    """What the figure shows of the runs of one problem, in their order.

    The primal gap is taken to the best lower bound among the runs that minimise the same objective, so that it is never
    less than the true one. Runs with ``convexify`` other than ``none`` each have an objective of their own, as each
    chooses its ``e`` by itself.

    Raises:
        ValueError: the results are of several problems, or one run failed, declined, or left no mask.
    """
    if len({result.problem_hash for result in results}) > 1:
        raise ValueError("the results are of several problems: trace one problem at a time")
    for result in results:
        check_run(result)
    traces = [_moments(result) for result in results]
    names = [_objective(result.solver, i) for i, result in enumerate(results)]
    reference: dict[str, float] = {}
    for name, moments in zip(names, traces, strict=True):
        bounds = [m.lower for m in moments if m.lower is not None and m.relaxed is not None]
        reference[name] = max([reference.get(name, 0.0), *bounds])
    return [
        _curve(result, moments, reference[name]) for result, moments, name in zip(results, traces, names, strict=True)
    ]


def check_run(result: Result) -> None:
    """Raise ValueError, of one line, unless the run left a mask."""
    if not result.solved:
        why = " ".join(str(result.reason or result.verdict).split())
        raise ValueError(f"{result.solver} left no mask to trace: {result.status}, {why}")


def _curve(result: Result, moments: tuple[TracePoint, ...], reference: float) -> Curve:
    unit = result.error / result.ratio_to_wanda if result.error and result.ratio_to_wanda else None
    primal = tuple(_part(m.relaxed, reference, reference) for m in moments)
    gap = tuple(_part(m.relaxed, m.lower, m.relaxed) for m in moments)
    return Curve(result.solver, moments, primal, gap, tuple(_part(m.upper, 0.0, unit) for m in moments))


def _part(a: float | None, b: float | None, unit: float | None) -> float | None:
    """``(a - b) / unit``, None where a figure on logarithmic axes cannot show it."""
    if a is None or b is None or not unit or not math.isfinite(part := (a - b) / unit):
        return None
    return part if part > 0 else None


def _moments(result: Result) -> tuple[TracePoint, ...]:
    """The trace, with the masks after each stage, in order of time."""
    clock, moments = 0.0, list(result.trace)
    for stage in result.stages:
        clock += stage.seconds
        moments.append(TracePoint(clock, upper=stage.error))
    moments = [m for m in moments if any(value is not None for value in (m.upper, m.lower, m.relaxed))]
    return tuple(sorted(moments, key=lambda moment: moment.seconds))


def _objective(solver: str, index: int) -> str:
    """Runs with the same answer minimise the same function."""
    own = any(dict(stage.params).get("convexify", "none") != "none" for stage in specs.parse(solver).stages)
    return str(index) if own else "error"


def draw(found: Sequence[Curve], title: str = "") -> Figure:
    """The figure, black on white, in Okabe and Ito's colours with markers."""
    rows: tuple[tuple[str, Callable[[Curve], tuple]], ...] = (
        ("primal gap, relative", lambda curve: curve.primal),
        ("Frank-Wolfe gap, relative", lambda curve: curve.gap),
        ("error of the mask, Wanda's = 1", lambda curve: curve.error),
    )
    columns: tuple[tuple[str, Callable[[TracePoint], float | None]], ...] = (
        ("seconds", lambda moment: moment.seconds),
        ("iterations", lambda moment: moment.iterations),
    )
    with matplotlib.rc_context(_PAPER):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots(len(rows), len(columns), sharex="col", sharey="row", squeeze=False)
        for line, (name, value) in zip(axes, rows, strict=True):
            line[0].set_ylabel(name)
            for ax, (_, time) in zip(line, columns, strict=True):
                _panel(ax, found, value, time, "steps-post" if name == rows[-1][0] else "default")
        for ax, (name, _) in zip(axes[-1], columns, strict=True):
            ax.set_xlabel(name)
        handles, labels = axes[-1][0].get_legend_handles_labels()
        narrow = all(len(label) <= HALF_WIDTH for label in labels)
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=2 if narrow and len(found) > 1 else 1)
        texts = [*legend.get_texts(), figure.suptitle(title, fontsize=9)]
        for text in texts:
            text.set_parse_math(False)  # a name may hold a dollar
    return figure


def _panel(ax: Axes, found: Sequence[Curve], value: Callable[[Curve], tuple], time: Callable, style: str) -> None:
    for i, curve in enumerate(found):
        points = [(time(m), y) for m, y in zip(curve.moments, value(curve), strict=True) if time(m) and y is not None]
        x, y = zip(*points, strict=True) if points else ((), ())
        ax.plot(
            x, y, marker=MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)],
            label=clip(presets.title(curve.solver), 90), linewidth=1.2, markersize=3.5,
            drawstyle=style, markevery=max(1, len(points) // MARKED),
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")


def write(found: Sequence[Curve], path: Path, title: str = "") -> None:
    """Draw to a vector file (``.svg``, ``.pdf``) or a picture (``.png``, 300 dots an inch); its folder is made.

    Raises:
        ValueError: another suffix, or (ProblemError) the file cannot be written.
    """
    check(path)
    suffix, buffer = path.suffix.lower(), io.BytesIO()
    with matplotlib.rc_context(_PAPER):
        fixed = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}[suffix]
        draw(found, title).savefig(buffer, format=suffix.removeprefix("."), dpi=300, metadata=fixed)
    write_atomic(path, buffer.getvalue())


def check(path: Path) -> None:
    """Raise ValueError unless the suffix is one that :func:`write` knows."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the figure's name must end in {', '.join(FORMATS)}")


def to_csv(found: Iterable[Curve]) -> str:
    """A line for each moment, with a header; what is not known is empty. Values are sums over the layer."""
    columns = ["solver", *TracePoint._fields, "primal_gap", "fw_gap", "ratio_to_wanda"]
    parts = ((curve.solver, zip(curve.moments, curve.primal, curve.gap, curve.error, strict=True)) for curve in found)
    return sheet.write(columns, ([solver, *moment, *rest] for solver, points in parts for moment, *rest in points))
