"""The page of the whole field, from ``methods.csv``, ``bounds.csv`` and ``memory.csv``: three boards and their fronts.

python -m benchmarks.field.page
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.field import boards
from benchmarks.field.boards import MODELS, Entry
from benchmarks.field.methods import MASKS, METHODS, OTHER
from benchmarks.field.study import (
    BLOCKS,
    BOUNDED,
    BOUNDS_CSV,
    FIRST,
    MEASURED,
    MEMORY_CSV,
    METHODS_CSV,
    OTHER_PATTERNS,
    ROWS,
    Bound,
    Line,
    Peak,
)
from benchmarks.shared import command
from benchmarks.shared.csv_lines import read, required
from benchmarks.shared.markdown import least_bold, method_cell, named, table, write_page
from benchmarks.shared.samples import PATTERNS
from fwbench.metrics import shifted_geometric_mean as mean
from fwbench.problems.collections import LAYERS
from fwbench.report import figures

BOARDS = {"Masks alone": boards.masks, "With weight update": boards.updates, "After one common refit": boards.refitted}
CHOSEN = (  # by layer
    "magnitude",
    "wanda",
    "ria",
    "wanda+dsnot",
    "greedy",
    "SparseFW",
    "SparseSwaps",
    "splitting+round+swap+safeguard",
    "fast",
    "sparsegpt",
    "admm",
    "alps",
    "SparseSwaps+reswap",
)
PAIRS = 8  # shown of a board
UNAWARE = {method.spec for method in MASKS}  # these leave the weights as they are
CHEAPER = 1.1  # a price so many times another's is told
WITHIN = 1.01  # of the least error, for the cheapest method that is as good

Distances = Mapping[tuple[str, str], Sequence[float]]


def answer(title: str, entries: Sequence[Entry], found: Distances) -> str:
    """Who leads a board, at which price, what is as good for less, and how far SparseSwaps is from it."""
    best, near = entries[0], boards.cheapest(entries, WITHIN)
    text = f"**{title}**: `{named(best.spec)}` has the least error, {both(best.error(m) for m in MODELS)} of Wanda's"
    text += f"{loss(best, found)}, for {price(best)}"
    if best.price / near.price > CHEAPER:
        text += f"; within {100 * (WITHIN - 1):.0f} % of it on both models is `{named(near.spec)}` for {price(near)}"
        text += f", {best.price / near.price:.1f} times less"
    unaware = next((entry for entry in entries if entry.spec in UNAWARE), None)
    if unaware is not None and unaware.spec != best.spec:
        text += f"; of methods that do not know of the refit `{named(unaware.spec)}` has the least"
        text += f", {both(unaware.error(m) for m in MODELS)}"
    swaps = next((entry for entry in entries if entry.spec == "SparseSwaps"), None)
    if swaps is not None and swaps.spec not in (best.spec, near.spec):
        above = both(100 * (swaps.error(m) / best.error(m) - 1) for m in MODELS)
        text += f"; `SparseSwaps` is {above} % above the least{loss(swaps, found)}, for {price(swaps)}"
    return f"- {text}.\n"


def loss(entry: Entry, found: Distances) -> str:
    """How far a mask can be from the best one, where bounds are."""
    gaps = [found[entry.spec, model] for model in MODELS if (entry.spec, model) in found]
    if len(gaps) < len(MODELS):
        return ""
    return f" (half of the bounded rows can lose at most {both(100 * float(np.median(gap)) for gap in gaps)} % of it)"


def both(values: Iterable[float]) -> str:
    """Figures of the models as text, three digits."""
    return " and ".join(f"{value:.3g}" for value in values)


def digits(error: float) -> str:
    return "–" if np.isnan(error) else f"{error:.3f}"


def price(entry: Entry) -> str:
    return f"{both(1000 * entry.seconds[model] for model in MODELS)} ms a row"


def board(entries: Sequence[Entry], patterns: Sequence[str], found: Distances, peaks: Mapping[str, Peak]) -> str:
    """All methods of a board, the least error first; of those on a model's front the time is bold."""
    fronts = {model: {entry.spec for entry in boards.front(entries, model)} for model in MODELS}
    lines = []
    for entry in entries:
        cells = [digits(entry.error(model, pattern=part)) for part in ("", *patterns) for model in MODELS]
        for model in MODELS:
            own = found.get((entry.spec, model), ())
            cells += [f"{100 * np.median(own):.1f} %"] if len(own) and found else []
        for model in MODELS:
            milliseconds = f"{1000 * entry.seconds[model]:.3g}"
            cells.append(f"**{milliseconds}**" if entry.spec in fronts[model] else milliseconds)
        peak = peaks.get(entry.spec)
        lines.append([method_cell(entry.spec), *cells, f"{max(peak.peak, 0) / 2**20:.0f}" if peak else "–"])
    head = [f"{part}, {name}" for part in ("all", *patterns) for name in MODELS.values()]
    head += [f"distance, {name}" for name in MODELS.values()] if found else []
    head += [f"CPU ms, {name}" for name in MODELS.values()]
    return table(["Method", *head, "MiB"], lines)


def draw(found: Mapping[str, Sequence[Entry]]) -> str:
    """A row of panels for each board: error against CPU time, the front drawn and its methods numbered."""
    fronts = [boards.front(entries, model) for entries in found.values() for model in MODELS]
    numbers = {spec: i for i, spec in enumerate(dict.fromkeys(e.spec for front in fronts for e in front), 1)}
    with figures.drawing("field", 2.3 * len(found) + 0.1 * len(numbers) + 0.4) as (figure, axes, finish):
        axes.remove()
        panels = figure.subplots(len(found), len(MODELS), squeeze=False, sharex=True, sharey="row")
        for line, (title, entries) in zip(panels, found.items(), strict=True):
            for axis, (model, name), colour in zip(line, MODELS.items(), figures.COLOURS, strict=False):
                _panel(axis, entries, model, colour, numbers)
                axis.set_title(f"{title}, {name}", loc="left", fontsize=8)
            line[0].set_ylabel("error over Wanda's")
        for axis in panels[-1]:
            axis.set_xlabel("CPU ms a row")
        names = [Line2D([], [], linestyle="none", label=f"{i}  {named(spec)}") for spec, i in numbers.items()]
        figure.legend(handles=names, loc="outside lower center", ncols=2, fontsize=7, handlelength=0, handletextpad=0)
        return figures.standalone(finish("Error against CPU time, with the fronts of the three boards"))


def _panel(axis: Axes, entries: Sequence[Entry], model: str, colour: str, numbers: Mapping[str, int]) -> None:
    def points(some: Iterable[Entry]) -> list[tuple[float, ...]]:
        return list(zip(*((1000 * entry.seconds[model], entry.error(model)) for entry in some), strict=True))

    best = boards.front(entries, model)
    axis.plot(*points(entries), "o", color=figures.NEUTRAL, markersize=3)
    axis.step(*points(best), "o-", color=colour, where="post", markersize=4, linewidth=1.2)
    for turn, (entry, *point) in enumerate(zip(best, *points(best), strict=True)):
        shift = (0, -10) if turn % 2 else (0, 5)  # neighbours beside each other
        axis.annotate(
            str(numbers[entry.spec]), point, xytext=shift, textcoords="offset points", fontsize=6, ha="center"
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(which="both", labelsize=6)


def order(title: str, entries: Sequence[Entry]) -> str:
    """How far the models agree on a board, and the clearest of the pairs on which they do not."""
    pairs = boards.swapped(entries)
    count = len(entries) * (len(entries) - 1) // 2
    text = f"*{title}*: Spearman's correlation of the two orders is {boards.agreement(entries):.3f}; of {count} pairs "
    text += f"{len(pairs)} are in another order by more than {100 * (boards.NEAR - 1):.0f} % on both models"
    text += f", the clearest {PAIRS} of them below.\n" if len(pairs) > PAIRS else ".\n"
    lines = [
        [f"{method_cell(a.spec)} against {method_cell(b.spec)}", *(f"{a.error(m) / b.error(m):.3f}" for m in MODELS)]
        for a, b in pairs[:PAIRS]
    ]
    return text + ("\n" + table(["Error over error", *MODELS.values()], lines) if lines else "")


def by_layer(entries: Mapping[str, Entry]) -> str:
    """Of the main methods, masks alone or with their own weights."""
    chosen = [entries[spec] for spec in CHOSEN if spec in entries]
    lines = []
    for model, name in MODELS.items():
        for layer in LAYERS:
            cells = least_bold([entry.error(model, layer) for entry in chosen], 3)
            lines.append([name, layer, *cells])
    return table(["Model", "Matrix", *(method_cell(entry.spec) for entry in chosen)], lines, left=2)


def others(lines: Sequence[Line], patterns: Sequence[str]) -> list[str]:
    """The patterns of the main methods alone, where any ran."""
    found = {line.pattern for line in lines}
    return [
        part for part in (*PATTERNS.split(","), *OTHER_PATTERNS.split(",")) if part in found and part not in patterns
    ]


def other_patterns(lines: Sequence[Line], patterns: Sequence[str]) -> str:
    """The main methods at 2:4, for comparison, and at those patterns."""
    columns = [(part, model) for part in dict.fromkeys(("2:4", *patterns)) for model in MODELS]
    rows = []
    for spec in OTHER:
        cells = []
        for pattern, model in columns:
            own = [x.ratio for x in lines if (x.spec, x.model, x.pattern) == (spec, model, pattern)]
            cells.append(f"{mean(own):.3f}" if len(own) == len(LAYERS) else "–")
        rows.append([method_cell(spec), *cells])
    return table(["Method", *(f"{part}, {MODELS[model]}" for part, model in columns)], rows)


def faithful() -> str:
    head = ["Method", "Of", "As published", "What differs, or could not be sourced"]
    return table(head, [[method_cell(m.spec), m.source, m.faithful, m.differs] for m in METHODS], left=len(head))


def page(lines: Sequence[Line], bounds: Sequence[Bound], peaks: Sequence[Peak]) -> str:
    """Markdown: the answer, the fronts, the boards, where the models differ, layers, patterns, what is faithful."""
    found = {title: make(lines) for title, make in BOARDS.items()}
    patterns = boards.patterns(lines)
    bounded = [pattern for pattern in patterns if boards.bounded(lines, bounds, pattern)]
    gaps = boards.distances([line for line in lines if line.pattern in bounded], bounds)
    masks = next(iter(found))
    sizes = {peak.spec: peak for peak in peaks}
    own = {entry.spec: entry for entries in list(found.values())[:2] for entry in entries}
    missing = boards.unfinished(lines, own.values())
    note = f"Not run on all problems, so not here: {', '.join(map(method_cell, missing))}.\n\n" if missing else ""
    parts = [
        HEAD.format(
            rows=ROWS,
            blocks=f"block {BLOCKS['smollm2']} of SmolLM2-135M and block {BLOCKS['gemma3']} of Gemma 3 270M",
            patterns=", ".join(patterns),
            others=", ".join(others(lines, patterns)),
            bounded=BOUNDED,
            proved=", ".join(bounded),
            layer=MEASURED[1],
            first=FIRST,
        ),
        "## The least of each board\n\nErrors are of SmolLM2-135M and Gemma 3 270M.\n\n",
        *(answer(title, entries, gaps if title == masks else {}) for title, entries in found.items() if entries),
        f"\n{note}![Error against CPU time on three boards, fronts drawn](field.svg)\n",
    ]
    for title, entries in found.items():
        shown = board(entries, patterns, gaps if title == masks else {}, sizes)
        parts.append(f"\n## {title}\n\n{NOTES[title].format(proved=', '.join(bounded) or 'none')}\n\n{shown}")
    parts.append("\n## Where the order differs between the models\n")
    parts += [f"\n{order(title, entries)}" for title, entries in found.items() if len(entries) > 1]
    parts.append(f"\n## Where\n\nError over Wanda's, means of the boards' patterns.\n\n{by_layer(own)}")
    rest = other_patterns(lines, others(lines, patterns))
    parts.append(f"\n## Other patterns\n\nError over Wanda's, means of seven matrices.\n\n{rest}")
    parts.append(f"\n## What is faithful\n\n{FAITHFUL}\n\n{faithful()}")
    return "".join(parts)


NOTES = {
    "Masks alone": (
        "The kept weights stay as they were. *Distance*: the median over bounded rows (patterns: {proved}) of what "
        "part of the mask's error a better mask could save at most. *Bold times* are on the model's front."
    ),
    "With weight update": (
        "Over Wanda's mask without update. No bound is known of the best mask with weights of its own, so there is no "
        "distance. `alps` ends with a refit of its own, `reswap` with `refit`."
    ),
    "After one common refit": (
        "Every method's mask, its own weights thrown away, and least squares with one ridge (`refit`) on it; CPU time "
        "of both."
    ),
}
FAITHFUL = (
    "At 0.5 and 0.6 every row keeps as many weights as any other, as in Wanda's paper, also of methods whose papers "
    "count over a layer or over a block of columns. What is no more than a combination of stages has no paper."
)

HEAD = """# The whole field

{rows} rows of each of the seven matrices of {blocks}, at like depths, sampled as for [masks](../masks/index.md) and
[models](../models/index.md); 16,384 calibration tokens of `lee`; patterns {patterns}, and {others} for the main
methods. One seed; every mask and all weights judged by `fwbench.pipeline`. Errors are over that of Wanda's mask
without update, means over problems geometric. CPU time is of the whole pipeline, judging included, sums over sums
of rows, on one thread of a machine that others loaded, after a run on a small problem, so that nothing is compiled
in it: it compares roughly. What a layer pays once, as the inverse of a Gram matrix, is shared by {rows} rows here
and by all in use, which flatters masks alone. A diagonal for the whole layer (`fw(convexify=shared)`) is left to
[masks](../masks/index.md), and exact solvers, which end at smaller rows, to [exact](../exact/index.md). Bounds are
Shor's, of the first {bounded} sampled rows of each matrix, patterns {proved}. Memory is what a run adds at its peak
to a process of its own that has compiled the method, on the {rows} rows of SmolLM2's {layer} at {first}, beside the
problem itself. `ria`, regrouped, has its inputs dealt to groups by the scores of the whole layer's rows; a bound of
it would be another problem's. The temperatures of `anneal` and the tenure of `tabu` were chosen on layers of
SmolLM2's block 7, among others. Gemma is used under the [Gemma Terms of Use](https://ai.google.dev/gemma/terms); no
weights, Gram matrices or masks of it are here. Written by `python -m benchmarks.field.page` from
[methods.csv](methods.csv), [bounds.csv](bounds.csv) and [memory.csv](memory.csv).

"""


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    lines = required(out / METHODS_CSV, Line, "benchmarks.field.study methods")
    if found := {title: entries for title, make in BOARDS.items() if (entries := make(lines))}:
        (out / "field.svg").write_text(draw(found), encoding="utf-8")
    write_page(out, page(lines, read(out / BOUNDS_CSV, Bound), read(out / MEMORY_CSV, Peak)))


if __name__ == "__main__":
    main()
