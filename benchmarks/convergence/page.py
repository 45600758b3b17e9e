"""The page of Frank-Wolfe variants and swaps: ``curves.csv``; ``iterations.csv`` and ``swaps.csv`` where they are."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.convergence.curves import CORRECTED, CURVES_CSV, END, EVERY, LEVELS, STEPS, CurvePoint
from benchmarks.convergence.iterations import ITERATIONS_CSV, LONG, SHORT, Iteration
from benchmarks.convergence.swaps import BLOCK, LIMITS, PATTERN, ROWS, SWAPS_CSV, Limited
from benchmarks.shared import command
from benchmarks.shared.csv_lines import read, required
from benchmarks.shared.markdown import table, write_page
from fwbench.metrics import shifted_geometric_mean as mean
from fwbench.report import figures
from fwbench.solvers.frank_wolfe.rules import DIRECTION_RULES

FLOOR = 1e-8  # lowest gap drawn
COLOURS = dict(zip(DIRECTION_RULES, figures.COLOURS, strict=False))


def draw(points: Sequence[CurvePoint]) -> str:
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


def _panel(ax: Axes, points: Sequence[CurvePoint], time_of: str) -> None:
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


def page(points: Sequence[CurvePoint], costs: Sequence[Iteration], swaps: Sequence[Limited]) -> str:
    """Markdown: the figure, for each problem when each variant first reached the gaps; costs; swaps."""
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
        rows = []
        for variant, correct in dict.fromkeys((point.variant, point.correct) for point in here):
            run = [point for point in here if (point.variant, point.correct) == (variant, correct)]
            cells = [cell for level in LEVELS for cell in _first(run, level)]
            last = f"{run[-1].gap:.1e}" if run[-1].gap > END else f"≤ {END:.0e}"
            rows.append([variant, "yes" if correct else "", *cells, last])
        lines.append(table(("variant", "corrected", *heads, "last gap"), rows, left=2).rstrip())
    return "\n".join([*lines, *_costs(costs), *_swaps(swaps)]) + "\n"


def _costs(costs: Sequence[Iteration]) -> list[str]:
    """What an iteration takes, in products of the same layer."""
    layers = list(dict.fromkeys((line.problem, line.rows, line.n) for line in costs))
    lines = [
        "",
        "## What an iteration costs",
        "",
        "An iteration over the one product of all rows with `G` that it cannot do without: whole layers, float32, one",
        f"thread, iterations {SHORT + 1} to {LONG} from Wanda's mask, none stopped or corrected; `push` is one of",
        "its rounds. By `python -m benchmarks.convergence.iterations`; CPU: "
        + ", ".join(dict.fromkeys(line.machine for line in costs))
        + ". Repeated runs differ by a tenth. A dash: longer runs",
        "cost less than the product, as first iterations cost more than later ones.",
        "",
    ]
    rows = []
    for method in dict.fromkeys(line.method for line in costs):
        found = {line.problem: f"{line.ratio:.2f}" for line in costs if line.method == method and line.ratio >= 1}
        rows.append([method, *(found.get(name, "–") for name, _, _ in layers)])
    products = {line.problem: line.product_ms for line in costs}
    rows.append(["*the product, ms*", *(f"{products[name]:.1f}" for name, _, _ in layers)])
    return [*lines, table(("method", *(f"{name}, {rows} × {n}" for name, rows, n in layers)), rows).rstrip()]


def _swaps(found: Sequence[Limited]) -> list[str]:
    """The error against the swaps that a row may make: by start over the start's error and over Wanda's, by layer."""
    if not found:
        return []
    lines = [
        "",
        "## The error of SparseSwaps against swaps a row",
        "",
        f"`swap(limit=T)` on {ROWS} rows of each layer of block {BLOCK}, {PATTERN} of each pruned. A row ends by",
        "itself where no swap lowers its error; *swaps made* to that end are means of the rows. DSnoT's own",
        "exchanges are not among them. Means of the seven layers are geometric.",
    ]
    heads = [*(f"T = {limit}" if limit else "to the end" for limit in LIMITS), "swaps made"]
    for field, what in (("over_start", "the start's error"), ("over_wanda", "the error of Wanda's mask")):
        rows = []
        for start in dict.fromkeys(line.start for line in found):
            own = [line for line in found if line.start == start]
            rows.append([f"`{start}`", *_by_limit(own, field)])
        lines += ["", f"Over {what}:", "", table(("start", *heads), rows).rstrip()]
    rows = []
    for layer in dict.fromkeys(line.layer for line in found):
        own = [line for line in found if (line.layer, line.start) == (layer, "wanda")]
        rows.append([layer, *_by_limit(own, "over_start")])
    return [*lines, "", "From Wanda's mask, layer by layer:", "", table(("layer", *heads), rows).rstrip()]


def _by_limit(lines: Sequence[Limited], field: str) -> list[str]:
    means = [mean(getattr(line, field) for line in lines if line.limit == limit) for limit in LIMITS]
    made = [line.swaps for line in lines if not line.limit]
    return [*(f"{value:.3f}" for value in means), f"{sum(made) / len(made):.1f}"]


def _first(run: Sequence[CurvePoint], level: float) -> tuple[str, str]:
    hit = next((point for point in run if point.gap <= level), None)
    return (str(hit.iterations), f"{hit.seconds:.2g}") if hit else ("—", "—")


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    points = required(out / CURVES_CSV, CurvePoint, "benchmarks.convergence.curves")
    (out / "convergence.svg").write_text(draw(points), encoding="utf-8")
    write_page(out, page(points, read(out / ITERATIONS_CSV, Iteration), read(out / SWAPS_CSV, Limited)))


if __name__ == "__main__":
    main()
