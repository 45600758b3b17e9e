"""The page of the first-order rivals, from ``curves.csv``, and ``alpha.csv`` where it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.first_order.study import (
    ALPHA_CSV,
    ALPHA_ROWS,
    ALPHAS,
    BLOCK,
    CURVES_CSV,
    END,
    METHODS,
    PATTERN,
    PUBLISHED,
    RANKS,
    ROWS,
    STEPS,
    Alpha,
    CurvePoint,
)
from benchmarks.shared import command
from benchmarks.shared.csv_lines import read, required
from benchmarks.shared.markdown import least_bold, table, write_page
from fwbench.report import figures

LEVELS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FLOOR = 1e-8  # lowest gap drawn
STYLES = {name: figures.COLOURS[i % len(figures.COLOURS)] for i, name in enumerate(METHODS)}

HOW = f"""
The relaxation from Wanda's mask, float64, one thread, until the Frank-Wolfe gap of every row is {END:g} of its value,
{STEPS} iterations at most. *Gap*: of the error to the relaxation's minimum, as in-face steps find it, relative to it;
where it was first seen at a look, every 10 iterations, of which some 60 are kept. Seconds are the processor's. Layers
of SmolLM2-135M: {ROWS} rows of block {BLOCK}, {PATTERN} of each pruned. Rivals are in torch and `fw` in compiled
kernels, so products compare methods, and seconds code as well. `mirror` at random counts a block as its part of a
product, and every look at its average as a whole one. Averages are of every tenth iterate.

*The part that is fixed*: SparseFW as published (open loop, {PUBLISHED} iterations) on {ALPHA_ROWS} rows of each layer
of block {BLOCK}, float32, each with its pattern. `floor(alpha k)` of the `k` weights that a group keeps are fixed, of
the two of 2:4 none, one or both. What SparseFW's theory promises is in [theory](../theory/index.md). The numbers are
in curves.csv and alpha.csv.
"""


def draw(points: Sequence[CurvePoint]) -> str:
    """A row of panels for each problem: the error above the minimum against products, and against seconds."""
    names = list(dict.fromkeys(point.problem for point in points))
    with figures.drawing("first_order", 2.2 * len(names) + 0.9) as (figure, axes, finish):
        axes.remove()
        panels = figure.subplots(len(names), 2, squeeze=False, sharey="row", sharex="col")
        for line, name in zip(panels, names, strict=True):
            line[0].set_title(name, loc="left")
            line[0].set_ylabel("gap to the minimum")
            for axis, field in zip(line, ("products", "seconds"), strict=True):
                for method, colour in STYLES.items():
                    run = [p for p in points if (p.problem, p.method) == (name, method) and p.iterations > 0]
                    heights = [max(p.primal, FLOOR / 10) for p in run]
                    axis.plot([getattr(p, field) for p in run], heights, color=colour, linewidth=1.2, label=method)
                axis.set_xscale("log")
                axis.set_yscale("log")
                axis.set_ylim(bottom=FLOOR)
                for one in (axis.xaxis, axis.yaxis):
                    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                    one.set_minor_formatter(NullFormatter())
        for axis, label in zip(panels[-1], ("products with G", "CPU seconds"), strict=True):
            axis.set_xlabel(label)
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figures.standalone(finish("Frank-Wolfe and its first-order rivals"))


def page(points: Sequence[CurvePoint], alphas: Sequence[Alpha]) -> str:
    """Markdown: the figure, what each gap costs, and alpha."""
    figure = "![Gap to the relaxation's minimum against Gram products and against seconds](first_order.svg)"
    lines = ["# Why Frank-Wolfe?", "", HOW.strip(), "", figure]
    for name in dict.fromkeys(point.problem for point in points):
        here = [point for point in points if point.problem == name]
        for field, what in (("products", "products with G"), ("seconds", "CPU seconds")):
            lines += ["", f"## {name}, {here[0].rows} × {here[0].n}: {what} to a gap", ""]
            rows = []
            for method in dict.fromkeys(point.method for point in here):
                run = [point for point in here if point.method == method]
                last = f"{max(run[-1].primal, 0):.0e}"
                rows.append([method, *(_first(run, level, field) for level in LEVELS), last])
            lines.append(table(("method", *(f"{level:g}" for level in LEVELS), "last gap"), rows).rstrip())
    return "\n".join([*lines, *_alphas(alphas)]) + "\n"


def _first(run: Sequence[CurvePoint], level: float, field: str) -> str:
    hit = next((getattr(point, field) for point in run if point.primal <= level), None)
    if hit is None:
        return "–"
    return f"{hit:.0f}" if field == "products" else f"{hit:.2g}"


def _alphas(found: Sequence[Alpha]) -> list[str]:
    lines = []
    for pattern, alphas in ALPHAS.items():
        here = [line for line in found if line.pattern == pattern]
        for field, what in (("error", "error of the mask"), ("swapped", "and after swaps")) if here else ():
            lines += ["", f"## The part that is fixed, {pattern}: {what}, as multiples of Wanda's", ""]
            rows = []
            for layer in dict.fromkeys(line.layer for line in here):
                for rank in RANKS:
                    mine = [line for line in here if (line.layer, line.rank) == (layer, rank)]
                    own = {line.alpha: getattr(line, field) for line in mine}
                    if own:
                        rows.append([layer, rank, *least_bold([own.get(alpha, math.inf) for alpha in alphas], 3)])
            lines.append(table(("layer", "ranked by", *(f"{alpha:g}" for alpha in alphas)), rows, left=2).rstrip())
    return lines


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    points = required(out / CURVES_CSV, CurvePoint, "benchmarks.first_order.study")
    (out / "first_order.svg").write_text(draw(points), encoding="utf-8")
    write_page(out, page(points, read(out / ALPHA_CSV, Alpha)))


if __name__ == "__main__":
    main()
