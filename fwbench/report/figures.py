"""Figures of the report as SVG text, one function a figure: rows in, SVG out, None where there is nothing to draw.

Drawn with matplotlib's objects, without pyplot and its global state. Text stays text, and what is not data is drawn in
one colour that the page replaces by its own, so that a figure inlined in a page follows its light and dark mode.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fwbench import metrics
from fwbench.report import summary
from fwbench.report.rows import Row
from fwbench.report.text import clip, number, percent
from fwbench.result import RELAXATIONS

INK = "#010203"  # stands for the page's text colour, see ``inline`` and ``standalone``
NEUTRAL = "#767c85"  # readable on white and on black
# Okabe and Ito's colour-blind safe palette, without black and yellow, which vanish on one of the two backgrounds
COLOURS = """
#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00 #8C7AE6 #8F8F8F #A6611A #999933 #DC4C64 #3FB8C5
""".split()  # noqa: SIM905
MARKERS = "osD^vPXhp<>*"
_RUNGS = "#E69F00 #0072B2 #009E73 #56B4E9 #8C7AE6 #DC4C64 #3FB8C5 #CC79A7".split()  # noqa: SIM905
KIND_COLOURS = dict(zip(RELAXATIONS.values(), _RUNGS, strict=True)) | {"exact": "#A6611A", "registry": "#D55E00"}
WIDTH = 6.2  # inches
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.unicode_minus": True,
}
Style = dict[str, tuple[str, str]]  # solver -> (colour, marker)


def styles(rows: Sequence[Row]) -> Style:
    """Colour and marker of each solver, the same in all figures of a report."""
    names = sorted({summary.label(row) for row in rows})
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, name in enumerate(names)
    }


def inline(svg: str) -> str:
    """A figure for the inside of an HTML page: its text takes the page's colour."""
    return svg.replace(INK, "currentColor")


def standalone(svg: str) -> str:
    """A figure for a file of its own, readable on a light and on a dark ground."""
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg.replace(INK, NEUTRAL)


def error_against_time(name: str, group: summary.Group, style: Style) -> str | None:
    """One marker a solver: its mean ratio to Wanda against its mean seconds; the lower left is best."""
    points = [s for s in group.solvers if s.solved and 0 < s.ratio < math.inf and s.seconds < math.inf]
    if not points:
        return None
    with drawing(name, 3.3) as (figure, axes, finish):
        seconds = [max(s.seconds, 1e-4) for s in points]
        for solver, x in zip(points, seconds, strict=True):
            colour, marker = style[solver.solver]
            face = colour if solver.complete and not solver.failures else "none"
            axes.plot(x, solver.ratio, marker, color=colour, markerfacecolor=face, markersize=7.5, clip_on=False)
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.5)
        log_seconds(axes, seconds)
        _ratio_axis(axes, [s.ratio for s in points])
        axes.set_xlabel("seconds a problem (shifted geometric mean)")
        axes.set_ylabel("error, ratio to Wanda")
        _legend(figure, [s.solver for s in points], style, lines=False)
        return finish("Error against time")


def gap_by_layer(name: str, group: summary.Group, style: Style) -> str | None:
    """The certified gap of each problem's best mask, by kind of bound; the best bound of all is the large dot."""
    doubted = summary.contradicted(group.rows)
    best = [row for row in summary.best_rows(group.rows).values() if row["error"] and row["bounds"]]
    best = [row for row in best if row["problem_hash"] not in doubted]
    if not best:
        return None
    best.sort(key=lambda row: (row["gap"] is None, row["gap"]), reverse=True)
    named = len(best) <= 40
    with drawing(name, 1.0 + 0.2 * len(best) if named else 3.3) as (figure, axes, finish):
        kinds = sorted({kind for row in best for kind in row["bounds"]}, key=_kind_order)
        for kind in kinds:
            gaps = [metrics.optimality_gap(row["error"], row["bounds"].get(kind)) for row in best]
            at = [(gap, i) for i, gap in enumerate(gaps) if gap is not None and gap <= 1.5]
            _dots(axes, at, named, KIND_COLOURS.get(kind, "#8F8F8F"), 5 if named else 3)
        at = [(row["gap"], i) for i, row in enumerate(best) if row["gap"] is not None]
        _dots(axes, at, named, INK, 9 if named else 6, face="none")
        axis = axes.xaxis if named else axes.yaxis
        axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))
        axes.set_xlim(left=0) if named else axes.set_ylim(bottom=0)
        if named:
            axes.set_yticks(range(len(best)), [_short(row["problem"], 34) for row in best], fontsize=8)
            axes.set_ylim(-0.6, len(best) - 0.4)
        else:
            axes.set_xlabel("problems, sorted by gap")
        (axes.set_xlabel if named else axes.set_ylabel)("gap of the best mask, (UB − LB) / UB")
        handles = [_handle(KIND_COLOURS.get(kind, "#8F8F8F"), "o", 5, kind) for kind in kinds]
        handles.append(_handle(INK, "o", 9, "best joined", face="none"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.1)
        return finish("Gap by problem")


def performance_profile(name: str, group: summary.Group, style: Style) -> str | None:
    """Dolan-Moré profile of the errors: on how many problems a solver is within a factor of the best."""
    names = [solver.solver for solver in group.solvers if solver.solved]
    ratios = (
        metrics.ratios_to_best(summary.costs(group.rows, "error", group.problems, names)) if names else np.array([])
    )
    finite = ratios[np.isfinite(ratios)]
    if len(group.problems) < 3 or len(names) < 2 or not finite.size:
        return None
    top = float(np.clip(finite.max() * 1.05, 1.05, 10))
    taus = np.geomspace(1, top, 400)
    shares = metrics.performance_profile(summary.costs(group.rows, "error", group.problems, names), taus)
    with drawing(name, 3.3) as (figure, axes, finish):
        for solver, share in zip(names, shares.T, strict=True):
            axes.step(taus, share, where="post", color=style[solver][0], linewidth=1.6)
            axes.plot(
                taus[::80], share[::80], style[solver][1], color=style[solver][0], markersize=4.5, linestyle="none"
            )
        axes.set_xscale("log")
        axes.set_xlim(1, top)
        axes.set_ylim(-0.02, 1.02)
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(10, subs=(1, 1.2, 1.5, 2, 3, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))
        axes.set_xlabel("within this factor of the best error")
        axes.set_ylabel("share of the problems")
        _legend(figure, names, style, lines=True)
        return finish("Performance profile of the errors")


def error_budget(name: str, group: summary.Group, style: Style) -> str | None:
    """Where each solver's error comes from: relaxed optimum, its own iterate, rounding, and what refinement regains."""
    budgets = [budget for budget in summary.budgets(group.rows) if math.isfinite(budget.final)][:14]
    if not any(budget.optimum is not None for budget in budgets):
        return None
    parts = (
        ("relaxed optimum", "#56B4E9"),
        ("relaxed iterate", "#0072B2"),
        ("rounding", "#E69F00"),
        ("mask", "#B9BDC3"),
    )
    with drawing(name, 1.15 + 0.27 * len(budgets)) as (figure, axes, finish):
        for y, budget in enumerate(reversed(budgets)):
            _budget_bar(axes, y, budget, dict(parts))
        top = _budget_limit(axes, budgets)
        axes.set_xlim(0, top)
        axes.set_ylim(-0.6, len(budgets) - 0.4)
        axes.set_yticks(range(len(budgets)), [_short(b.solver, 30) for b in reversed(budgets)], fontsize=8)
        axes.grid(False, axis="y")
        axes.set_xlabel("error, in units of Wanda's (mean over problems)")
        handles: list[Any] = [matplotlib.patches.Patch(color=colour, label=part) for part, colour in parts]
        handles += [_handle(INK, "D", 5, "final"), _handle("#D55E00", "|", 10, "proven bound")]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        return finish("Error budget")


def _budget_limit(axes: Axes, budgets: Sequence[summary.Budget]) -> float:
    """End of the axis: twice the middle error at most, what is cut off written beside its bar."""
    ends = [max(budget.final, budget.rounded or 0) for budget in budgets]
    top = min(max(ends) * 1.04, 2 * metrics.median(ends))
    for y, budget in enumerate(reversed(budgets)):
        if budget.final > top:
            axes.text(top * 0.985, y, f"{number(budget.final)} →", ha="right", va="center", fontsize=8, color="#1d2126")
    return top


def _budget_bar(axes: Axes, y: int, budget: summary.Budget, colours: dict[str, str]) -> None:
    if budget.iterate is None:
        axes.barh(y, budget.final, 0.55, color=colours["mask"])
    else:
        start = min(budget.optimum or 0, budget.iterate)
        rounded = budget.final if budget.rounded is None else budget.rounded
        axes.barh(y, start, 0.55, color=colours["relaxed optimum"])
        axes.barh(y, budget.iterate - start, 0.55, left=start, color=colours["relaxed iterate"])
        axes.barh(y, max(rounded - budget.iterate, 0), 0.55, left=budget.iterate, color=colours["rounding"])
        if budget.rounded is not None and abs(budget.final - budget.rounded) > 0.01 * budget.rounded:
            arrow = {"arrowstyle": "->", "color": INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", (budget.final, y), (budget.rounded, y), arrowprops=arrow)
    if budget.bound is not None:
        axes.plot([budget.bound] * 2, [y - 0.38, y + 0.38], color="#D55E00", linewidth=2)
    axes.plot(budget.final, y, "D", color=INK, markersize=4.5)


def anytime(name: str, group: summary.Group, style: Style) -> str | None:
    """Upper bounds (solid) and lower bounds (dashed) over time, medians over the problems with traces."""
    wanda = summary.wanda_errors(group.rows)
    curves: dict[str, list[tuple[float, list]]] = {}
    for row in group.rows:
        points = _moments(row)
        if row["solved"] and points and row["problem_hash"] in wanda:
            curves.setdefault(summary.label(row), []).append((wanda[row["problem_hash"]], points))
    if not curves:
        return None
    times = [point[0] for runs in curves.values() for _, points in runs for point in points]
    grid = np.geomspace(min(times), max(max(times), min(times) * 1.01), 200)
    drawn = []
    with drawing(name, 3.3) as (figure, axes, finish):
        for solver, runs in sorted(curves.items()):
            lines = [_median_curve(runs, grid, which, best) for which, best in ((1, np.minimum), (2, np.maximum))]
            for values, dashes in zip(lines, ("-", (0, (4, 2))), strict=True):
                if np.isfinite(values).any():
                    axes.step(grid, values, where="post", color=style[solver][0], linestyle=dashes, linewidth=1.5)
                    drawn.append(solver)
        log_seconds(axes, times)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds")
        axes.set_ylabel("bounds, in units of Wanda's error")
        _legend(figure, list(dict.fromkeys(drawn)), style, lines=True, markers=False)
        return finish("Anytime curves") if drawn else None


FIGURES: dict[str, tuple[Callable[[str, summary.Group, Style], str | None], str]] = {  # title: how drawn, caption
    "Error against time": (
        error_against_time,
        "One marker a solver; the lower left is best. Hollow: failed or not tried somewhere.",
    ),
    "Gap by layer": (
        gap_by_layer,
        "How much of the best mask's error a better mask could still save, by kind of lower bound.",
    ),
    "Performance profile": (
        performance_profile,
        "On how many problems a solver is within a factor of the best. Failures never count.",
    ),
    "Error budget": (
        error_budget,
        "Where the error comes from; the arrow is what refinement regains after rounding.",
    ),
    "Anytime": (anytime, "Best mask so far (solid) and best bound so far (dashed), medians over the problems."),
}


def _moments(row: Row) -> list:
    """The trace of a run, with the ends of its stages; nothing for a run without a trace."""
    points, clock = list(row["trace"] or ()), 0.0
    for stage in row["stages"] or () if points else ():
        clock += stage["seconds"] or 0.0
        points.append((clock, stage["error"], stage["lower_bound"]))
    return [point for point in points if point[0] is not None and point[0] > 0]


def _median_curve(runs: list[tuple[float, list]], grid: np.ndarray, which: int, best: Callable) -> np.ndarray:
    """Median over runs of the best value so far at each time of the grid; NaN until every run has one."""
    curves = np.full((len(runs), grid.size), np.nan)
    for curve, (unit, points) in zip(curves, runs, strict=True):
        for point in sorted(points, key=lambda item: item[0]):
            if point[which] is not None:
                later = grid >= point[0] * (1 - 1e-9)
                curve[later] = np.fmin(curve[later], point[which] / unit) if best is np.minimum else np.fmax(
                    curve[later], point[which] / unit
                )  # fmt: skip
    return np.median(curves, axis=0)


@contextmanager
def drawing(name: str, height: float):
    """A figure with one pair of axes, and the function that turns it into SVG, given its title.

    Args:
        name: of the figure, unique on its page.
        height: in inches.
    """
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may hold letters that the font lacks, or be wider than the figure
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        yield figure, axes, lambda title: _svg(figure, name, title)


def _svg(figure: Figure, name: str, title: str) -> str:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", svg)  # several figures share one page
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def log_seconds(axes: Axes, seconds: Sequence[float]) -> None:
    """A logarithmic x axis that holds ``seconds``, with plain numbers."""
    low, high = min(seconds), max(seconds)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.6, high * 1.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    if high < 10 * low:  # no power of ten may lie inside
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(10, subs=(1, 2, 5)))


def _ratio_axis(axes: Axes, ratios: Sequence[float]) -> None:
    """Linear where the ratios are close to each other, else logarithmic: one bad solver must not flatten the others."""
    low, high = min([*ratios, 1]), max([*ratios, 1])
    if high > 2.5 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.08, high * 1.08)
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(10, subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8)))
        axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    else:
        pad = 0.06 * (high - low) + 0.01
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(figure: Figure, names: Sequence[str], style: Style, lines: bool, markers: bool = True) -> None:
    """Below the axes, in two columns, shortened so that they do not run into each other."""
    handles = [
        Line2D(
            [], [], color=style[name][0], marker=style[name][1] if markers else "", linestyle="-" if lines else "none",
            markersize=5.5, label=_short(name, 42),
        )
        for name in names
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2, columnspacing=1.2, handlelength=1.6)


def _handle(colour: str, marker: str, size: float, text: str, face: str | None = None) -> Line2D:
    options: Any = {"color": colour, "markerfacecolor": face or colour, "markersize": size, "label": text}
    return Line2D([], [], marker=marker, linestyle="none", **options)


def _dots(axes: Axes, at: list[tuple[float, int]], sideways: bool, colour: str, size: float, face: str | None = None):
    values, places = [gap for gap, _ in at], [place for _, place in at]
    x, y = (values, places) if sideways else (places, values)
    axes.plot(x, y, "o", color=colour, markerfacecolor=face or colour, markersize=size, clip_on=False, linestyle="none")


def _kind_order(kind: str) -> tuple[int, str]:
    known = list(KIND_COLOURS)
    return (known.index(kind) if kind in known else len(known), kind)


def _short(name: str, length: int) -> str:
    return clip(name, length, middle=True)
