"""The page of guarantees, from ``rows.csv`` and, where it is there, ``lemma.csv``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.first_order.study import ALPHA_ROWS, BLOCK, PUBLISHED
from benchmarks.first_order.study import PATTERN as LAYERS_PATTERN
from benchmarks.shared import command
from benchmarks.shared.csv_lines import read, required
from benchmarks.shared.markdown import table, write_page
from benchmarks.theory.guarantees import condition, parity, ratio
from benchmarks.theory.study import (
    BEST_OF,
    DRAWN,
    LEMMA_CSV,
    MIDDLE,
    PLANTED_ROWS,
    ROWS_CSV,
    SECONDS,
    UP_TO,
    Guarantee,
    Row,
)
from fwbench.report import figures

FAMILIES = {"spectrum": "planted", "correlated": "chain", "mini": "mini"}  # what the tables call them
TRUE = {"topk": "top-k", "drawn": "drawn at random", "expectation": "in pairs (pipage)"}
COLOURS = dict(zip(TRUE, figures.COLOURS, strict=False))
PROMISED = {"topk": ("lemma", "nearest"), "drawn": ("spread",), "expectation": ("pipage",)}
DASHES = {"lemma": (0, (1, 1.5)), "nearest": (0, (4, 2)), "spread": (0, (4, 2)), "pipage": (0, (4, 2))}
LOWEST = 1e-3  # excess drawn
PARITIES = ((2, 1), (16, 7), (64, 31))
DELTAS = (1.0, 1e-2, 1e-4)

HOW = f"""
Single rows whose least error `bnb` proves within {SECONDS:g} seconds, without a target, counted by row. *Planted*:
weights 1 and -1, eigenvalues spread evenly in the logarithm, directions at random, {PLANTED_ROWS} rows each, so that
the inputs' condition is that of `Q`; up to 64 inputs, as larger ones stay open, and from a condition of 2 on: at 1 all
masks are equal and the relaxation's minimum is `r/n` of them. *Chain*: inputs correlated `0.9^|i-j|` with uneven
scales, Gaussian weights. *mini*: up to {UP_TO} inputs, and at 32 and 64 with other shares pruned. The relaxation's
minimum is that of
in-face Frank-Wolfe steps to a gap of 1e-8, float64. *Excess*: of the error over the least one, as a multiple of it,
sums over the rows of a line. A guarantee is of the excess over the relaxation's minimum, which is no less; given here
as a multiple of the least error too. *Drawn*: the mean of {DRAWN} masks by pivotal sampling, the relaxed values as
chances; *best of {BEST_OF}*: `round(method=randomised)`, top-k among them; *in pairs*: `round(method=expectation)`.
*Before solving*: what is known of the same guarantee without the relaxed point.

Lemma 1 is SparseFW's (arXiv 2510.13713) without its term for unfinished iterations; the guarantee of rounding in pairs
is that of `solvers/rounding/pipage.py`; the others are derived in `benchmarks/theory/guarantees.py`, and tests hold all
of them against enumeration. Two papers that this project began with are about other relaxations, and only their
abstracts were read: for random data the relative gap between two-layer ReLU networks and their convex relaxations is
bounded by a factor of O(√log n), n training samples (arXiv 2402.03625); convex gated ReLU models have data-dependent
approximation bounds for ReLU training (arXiv 2202.01331). Neither is about masks, and nothing is made of them here.

*SparseFW's mask*: open loop, {PUBLISHED} iterations, nothing fixed, whole problems of `mini` and {ALPHA_ROWS} rows of
each layer of block {BLOCK}, {LAYERS_PATTERN} of each pruned. *Guaranteed*: by lemmas 1 and 2; *proved*: that mask's
gap to the bound of `fw(convexify=shared)`; *true*: to the optimum, where it is known; relative to the mask's error. The
numbers are in [rows.csv](rows.csv) and [lemma.csv](lemma.csv). Written by `python -m benchmarks.theory.page`.
"""

Cell = tuple[str, int, str, float]  # family, inputs, pattern, condition (of the planted rows, else 0)


def cells(lines: Iterable[Row]) -> dict[Cell, list[Row]]:
    """The rows with a proved optimum, by what they have in common."""
    found: dict[Cell, list[Row]] = {}
    for line in lines:
        if math.isfinite(line.optimum):
            own = float(f"{line.condition:.1g}") if line.family == "spectrum" else 0.0
            found.setdefault((line.family, line.n, line.pattern, own), []).append(line)
    order = list(FAMILIES)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), *item[0][1:])))


def excess(rows: Iterable[Row], field: str) -> float:
    """Of an error over the least one, or the guarantee of it, as a multiple of the least error."""
    rows = list(rows)
    least = sum(row.optimum for row in rows)
    return sum(getattr(row, field) - (row.optimum if field in (*TRUE, "best") else 0) for row in rows) / least


def short(value: float) -> str:
    """Three digits, and whole numbers from a hundred on."""
    if not math.isfinite(value):
        return "∞"
    if abs(value) < 5e-5:
        return "0"
    return (
        f"{value:.3f}"
        if value < 10
        else f"{value:.1f}"
        if value < 100
        else f"{value:,.0f}"
        if value < 1e6
        else f"{value:.0e}"
    )


def head(cell: Cell, rows: Sequence[Row]) -> list[str]:
    family, n, pattern, _ = cell
    conditions = [row.condition for row in rows]
    low, high = f"{min(conditions):.0e}", f"{max(conditions):.0e}"
    return [FAMILIES[family], f"{len(rows)} × {n}", pattern, low if low == high else f"{low} to {high}"]


def relaxations(found: Mapping[Cell, Sequence[Row]]) -> str:
    lines = []
    for cell, rows in found.items():
        least, relaxed, wanda = (sum(getattr(row, name) for row in rows) for name in ("optimum", "relaxed", "wanda"))
        values = (least / relaxed, max(row.ratio for row in rows), wanda / least, max(row.wanda_ratio for row in rows))
        fractional = sum(row.fractional for row in rows) / len(rows)
        lines.append([*head(cell, rows), f"{fractional:.0f}", *map(short, values)])
    columns = ("fractional", "least / relaxed", "guaranteed", "Wanda / least", "guaranteed")
    return table(("rows", "size", "pruned", "condition", *columns), lines, left=1)


def roundings(found: Mapping[Cell, Sequence[Row]]) -> str:
    fields = ("topk", "nearest", "lemma", "drawn", "spread", "blind", "best", "expectation", "pipage")
    lines = [[*head(cell, rows), *(short(excess(rows, field)) for field in fields)] for cell, rows in found.items()]
    columns = ("top-k", "guaranteed", "Lemma 1", "drawn", "guaranteed", "before solving", f"best of {BEST_OF}")
    return table(("rows", "size", "pruned", "condition", *columns, "in pairs", "guaranteed"), lines, left=1)


def parities() -> str:
    lines = []
    for n, pruned in PARITIES:
        for delta in DELTAS:
            Q, least, relaxed = parity(n, pruned, delta)
            values = (condition(Q), least / relaxed, ratio(condition(Q), n, pruned))
            lines.append([str(n), str(pruned), f"{delta:g}", *map(short, values)])
    return table(("n", "pruned", "δ", "condition", "least / relaxed", "guaranteed"), lines, left=0)


def lemmas(found: Sequence[Guarantee]) -> str:
    lines = []
    for line in found:
        true = f"{line.true:.3f}" if math.isfinite(line.true) else "–"
        size = f"{line.rows} × {line.n}"
        lines.append([line.problem, size, f"{line.guaranteed:,.0f}", f"{line.proved:.3f}", true])
    return table(("problem", "size", "guaranteed", "proved", "true"), lines, left=2)


def draw(lines: Sequence[Row]) -> str:
    """True (solid) and guaranteed (dashed) excess against size, condition and share: planted above, real below."""
    rows = [row for row in lines if math.isfinite(row.optimum)]
    n, middle, pattern = MIDDLE

    def planted(*fixed: str) -> list[Row]:
        own = [row for row in rows if row.family == "spectrum"]
        own = [row for row in own if "n" not in fixed or row.n == n]
        own = [row for row in own if "pattern" not in fixed or row.pattern == pattern]
        return [row for row in own if "condition" not in fixed or math.isclose(row.condition, middle, rel_tol=0.1)]

    real = [row for row in rows if row.family == "mini"]
    usual = [row for row in real if ".as." not in row.problem]
    size, share = (lambda row: row.n), (lambda row: 100 * float(row.pattern))
    with figures.drawing("theory", 5.4) as (figure, axes, finish):
        axes.remove()
        panels = figure.subplots(2, 3, sharey="row")
        _panel(panels[0][0], planted("condition", "pattern"), size, base=2)
        _panel(panels[0][1], planted("n", "pattern"), lambda row: float(f"{row.condition:.1g}"), base=10)
        _panel(panels[0][2], planted("n", "condition"), share)
        _panel(panels[1][0], usual, size, base=2)
        _panel(panels[1][1], usual, lambda row: 10.0 ** round(math.log10(row.condition)), base=10)
        _panel(panels[1][2], [row for row in real if row.n == 2 * n], share)
        for panel, name in zip(panels[:, 0], ("planted", "mini"), strict=True):
            panel.set_ylabel(f"{name}: excess / least error")
        for axis, label in zip(panels[1], ("inputs", "condition of the inputs", "% pruned"), strict=True):
            axis.set_xlabel(label)
        handles = [Line2D([], [], color=COLOURS[field], label=name) for field, name in TRUE.items()]
        handles += [
            Line2D([], [], color=figures.INK, linestyle=DASHES["spread"], label="guaranteed"),
            Line2D([], [], color=figures.INK, linestyle=DASHES["lemma"], label="Lemma 1"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
        return figures.standalone(finish("Guaranteed and true excess of roundings"))


def _panel(ax: Axes, rows: Sequence[Row], at: Callable[[Row], float], base: int = 0) -> None:
    places = sorted({at(row) for row in rows})
    for field, promises in PROMISED.items():
        for name in (field, *promises):
            heights = [max(excess([row for row in rows if at(row) == place], name), LOWEST) for place in places]
            ax.plot(places, heights, color=COLOURS[field], linestyle=DASHES.get(name, "-"), linewidth=1.4, marker=".")
    ax.set_yscale("log")
    if base:
        ax.set_xscale("log", base=base)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value:.0e}"))
        axis.set_minor_formatter(NullFormatter())


def page(lines: Sequence[Row], found: Sequence[Guarantee]) -> str:
    own = cells(lines)
    open_rows = sum(not math.isfinite(line.optimum) for line in lines)
    left = f"Left out, as no optimum was proved in time: {open_rows} of {len(lines)} rows.\n" if open_rows else ""
    parts = [
        f"# What theory guarantees\n\n{HOW.strip()}\n{left}",
        "![Guaranteed and true excess against size, condition and share pruned](theory.svg)\n",
        "## The relaxation, and Wanda's mask\n\nThe least error over the relaxation's minimum is at most "
        "`1 + 2 κ k / r`, with `κ` the condition of `Q`, `k` weights\nkept and `r` pruned; Wanda's error over the "
        "least is at most the condition of the inputs' correlations, whatever the\nweights.\n\n" + relaxations(own),
        "## Roundings\n\nExcess over the least error, as a multiple of it. With `q = diag(Q)`, `λ` the largest "
        "eigenvalue and `f` the relaxation's\nminimum, at `u`: top-k at most `λrk/n + 2 √(f λrk/n)`; drawn, on the "
        "mean, `2 Σ q u (1 - u)`.\n\n" + roundings(own),
        "## Where no ratio is guaranteed\n\n`Q = vvᵀ + δI` with `v` half 1 and half -1, an odd number pruned: no mask "
        "cancels, the relaxation does. As `δ` falls the\nrelaxation's minimum goes to 0 and the least error to 1.\n\n"
        + parities(),
    ]
    if found:
        parts.append("## SparseFW's mask: what its lemmas guarantee, as multiples of its error\n\n" + lemmas(found))
    return "\n".join(parts)


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    lines = required(out / ROWS_CSV, Row, "benchmarks.theory.study")
    (out / "theory.svg").write_text(draw(lines), encoding="utf-8")
    write_page(out, page(lines, read(out / LEMMA_CSV, Guarantee)))


if __name__ == "__main__":
    main()
