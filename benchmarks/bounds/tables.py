"""Tables of the bounds' page, from the lines of its CSV files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from benchmarks.bounds.branching import Branched, child
from benchmarks.bounds.layers import LayerGaps
from benchmarks.bounds.methods import METHODS, Method
from benchmarks.bounds.rows import LADDER, SAMPLED, Measured, best_error
from benchmarks.shared import samples
from benchmarks.shared.markdown import method_cell, table
from benchmarks.shared.samples import one_row, selector_of
from fwbench.problems.collections import LAYERS, one
from fwbench.report.text import number, percent
from fwbench.solvers.bounds.stage import chosen_rows
from fwbench.solvers.semidefinite.ladder import row_bound
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.shor import shor

AIMS = (  # of the issue: which kinds, which matrices, largest median gap
    ("Shor", ("shor",), LAYERS, 0.09),
    ("up to McCormick", SAMPLED, ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), 0.045),
    ("up to McCormick", SAMPLED, ("o_proj",), 0.13),
    ("with triangles", LADDER[:4], ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), 0.045),
    ("with triangles", LADDER[:4], ("o_proj",), 0.13),
    ("with pentagons", LADDER, ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), 0.045),
    ("with pentagons", LADDER, ("o_proj",), 0.13),
)
SAMPLE = 24  # rows of each layer that are compared, of the study's seed 0
Lines = Sequence[Measured]

BRANCHING_SECTION = """## A few levels of branching

One row of each layer: the open node with the least bound is split, and the row's bound is the least of the open nodes'.
By `python -m benchmarks.bounds.branching`, from [branching.csv](branching.csv).

{table}
"""

METHODS_SECTION = """## How far each method's masks are from the optimum

On the {rows} rows that have the bounds up to McCormick (some with triangles and pentagons too): error above the
optimum's, at least (against the best mask known) and at most (against the best bound). Geometric means over a layer's
rows and over layers.
By `python -m benchmarks.bounds.methods`, from [methods.csv](methods.csv).

{table}
"""

DIAGONALS_SECTION = """## Every row, by one diagonal for all rows

Whole layers: the plain relaxation (`fw`), and with one `e` for all rows, reoptimised at the relaxed point
(`fw(convexify=shared)`). These bounds are proved by `fwbench.verify`. Gaps against the masks of `{masks}`, CPU seconds
of one thread for the whole layer. By `python -m benchmarks.bounds.layers`, from [layers.csv](layers.csv).

{table}
"""


def part(line: Measured | LayerGaps) -> tuple[str, str]:
    """(block, matrix) of a line."""
    _, block, layer = line.problem.split(".")[:3]
    return block, layer


def grouped(lines: Iterable[Any], key: Callable[[Any], Hashable]) -> dict:
    found: dict = defaultdict(list)
    for line in lines:
        found[key(line)].append(line)
    return found


def best(lines: Lines, kinds: Sequence[str] = LADDER) -> list[float]:
    """The least gap over ``kinds`` of each row on which all of them were run."""
    rows = grouped([line for line in lines if line.kind in kinds], lambda line: (line.problem, line.row, line.n))
    return [min(line.gap for line in row) for row in rows.values() if {line.kind for line in row} == set(kinds)]


def by_best_masks(lines: Lines) -> list[Measured]:
    """The lines with the least error of their rows: what was run at another time may know a better mask."""
    rows = grouped(lines, lambda line: (line.problem, line.row, line.n))
    least = {key: min(row, key=lambda line: line.upper) for key, row in rows.items()}
    found = []
    for line in lines:
        mask = least[line.problem, line.row, line.n]
        if mask.upper < line.upper:
            line = replace(line, upper=mask.upper, masks=mask.masks, gap=1 - line.lower / mask.upper)
        found.append(line)
    return found


@cache
def row_count(name: str) -> int:
    """Rows of the whole layer."""
    return one(selector_of(name))[1].rows


@cache
def row_length(name: str) -> int:
    """Weights of a whole row."""
    return one(selector_of(name))[1].n


def sampled(lines: Lines) -> list[Measured]:
    """The lines of the first ``SAMPLE`` rows of each layer's seeded sample, so that all layers weigh the same."""
    wanted = {name: set(chosen_rows(SAMPLE, row_count(name))) for name in {line.problem for line in lines}}
    return [line for line in lines if line.row in wanted[line.problem]]


def quartiles(gaps: Sequence[float]) -> str:
    return middle(*np.quantile(gaps, (0.25, 0.5, 0.75)))


def middle(low: float, median: float, high: float) -> str:
    """The median, and the quartiles around it."""
    return f"{percent(median)} ({percent(low)} to {percent(high)})"


@cache
def condition(name: str) -> float:
    """Of the Gram matrix of the layer of that name."""
    return samples.condition(one(selector_of(name))[1].G)


def main_table(lines: Lines) -> str:
    found = []
    for (block, layer), mine in by_layer(lines):
        conditioning = number(condition(mine[0].problem))
        for kind, some in by_kind(mine):
            cpu = np.median([line.seconds for line in some])
            found.append(
                [layer, block, kind, str(len(some)), quartiles([line.gap for line in some]), number(cpu), conditioning]
            )
    return table(("Matrix", "Block", "Bound", "Rows", "Median gap (quartiles)", "CPU s a row", "Condition of G"), found)


def whole_table(lines: Lines) -> str:
    """The layers of which more rows than the sample were bounded, all of those rows."""
    found = []
    for (block, layer), mine in by_layer(lines):
        for kind, some in by_kind(mine):
            if len(some) > SAMPLE:
                gap = 1 - sum(line.lower for line in some) / sum(line.upper for line in some)
                hours = number(sum(line.seconds for line in some) / 3600)
                rows = f"{len(some)} of {row_count(mine[0].problem)}"
                found.append([layer, block, kind, rows, quartiles([x.gap for x in some]), percent(gap), hours])
    head = ("Matrix", "Block", "Bound", "Rows", "Median gap (quartiles)", "Gap of the sums", "CPU hours")
    return table(head, found) if found else "Not run.\n"


def diagonals(layers: Sequence[LayerGaps]) -> str:
    """Every row of whole layers by one diagonal for all rows; empty without lines."""
    if not layers:
        return ""
    found = []
    for (block, layer), mine in by_layer(layers):
        for line in mine:
            gaps, sums = middle(line.low, line.median, line.high), percent(1 - line.lower / line.upper)
            found.append([layer, block, line.kind, str(line.rows), str(line.n), gaps, sums, number(line.seconds)])
    head = ("Matrix", "Block", "Bound", "Rows", "n", "Median gap (quartiles)", "Gap of the sums", "CPU s a layer")
    return DIAGONALS_SECTION.format(masks=layers[0].masks, table=table(head, found))


def branching(branched: Sequence[Branched]) -> str:
    """What branching adds to the bounds of a row; empty without ``branched``."""
    if not branched:
        return ""
    found = [
        [line.problem, str(line.row), line.kind, str(line.nodes), percent(line.gap), number(line.seconds)]
        for line in sorted(branched, key=lambda line: (line.problem, line.row, LADDER.index(line.kind), line.nodes))
    ]
    return BRANCHING_SECTION.format(table=table(("Layer", "Row", "Bound", "Nodes", "Gap", "CPU s"), found))


def by_layer(lines: Sequence[Any]) -> list[tuple[tuple[str, str], list[Any]]]:
    """((block, matrix), lines), matrix by matrix."""
    return sorted(grouped(lines, part).items(), key=lambda item: (LAYERS.index(item[0][1]), item[0]))


def by_kind(lines: Lines) -> list[tuple[str, list[Measured]]]:
    return sorted(grouped(lines, lambda line: line.kind).items(), key=lambda item: LADDER.index(item[0]))


def aims(lines: Lines) -> str:
    """Each block's median has the same weight, however many of its rows are there."""
    compared = []
    for name, kinds, layers, limit in AIMS:
        for layer in layers:
            blocks = sorted(grouped([line for line in lines if part(line)[1] == layer], lambda x: part(x)[0]).items())
            gaps = {block: found for block, mine in blocks if (found := best(mine, kinds))}
            if gaps:
                middles = {block: float(np.median(some)) for block, some in gaps.items()}
                mean = float(np.mean(list(middles.values())))
                pooled = float(np.median(np.concatenate(list(gaps.values()))))
                each = ", ".join(f"{block}: {percent(gap)} of {len(gaps[block])}" for block, gap in middles.items())
                verdict = "met" if mean <= limit else "missed"
                compared.append([layer, name, percent(limit), percent(mean), percent(pooled), each, verdict])
    count = sum(line[-1] == "met" for line in compared)
    head = ("Matrix", "Bound", "Aim", "Mean of the blocks' medians", "Median of all rows")
    head = (*head, "Median gap of each block, of rows", "Aim is")
    return f"{count} of the {len(compared)} aims are met on the rows measured so far.\n\n{table(head, compared)}"


def above_optimum(lines: Lines, methods: Sequence[Method]) -> str:
    """The section on methods: how far their masks are above the optimum, at least and at most; empty without them.

    Geometric means over a layer's rows, and over layers, so that all layers weigh the same.
    """
    rows = grouped(
        [line for line in lines if line.n == row_length(line.problem)], lambda line: (line.problem, line.row)
    )
    bounded = {
        key: some
        for key, some in rows.items()
        if {line.kind for line in some} >= set(SAMPLED) and max(line.lower for line in some) > 0
    }
    errors = {(line.problem, line.row, line.method): line.error for line in methods}
    known = {
        key: min([line.upper for line in some] + [errors[*key, name] for name in METHODS if (*key, name) in errors])
        for key, some in bounded.items()
    }
    matrix = {some[0].problem: part(some[0])[1] for some in bounded.values()}
    matrices = [name for name in LAYERS if name in matrix.values()]
    found = []
    for method in METHODS:
        logs = defaultdict(list)
        for key, some in bounded.items():
            if error := errors.get((*key, method)):
                logs[key[0]].append(np.log([error / known[key], error / max(line.lower for line in some)]))
        if not logs or len(logs) < len(matrix):
            continue  # not on every layer yet
        means = {name: np.mean(mine, axis=0) for name, mine in logs.items()}
        cells = []
        for wanted in (*([name] for name in matrices), matrices):
            least, most = np.expm1(np.mean([mean for name, mean in means.items() if matrix[name] in wanted], axis=0))
            cells.append(f"{percent(least)} to {percent(most)}")
        found.append([method_cell(method), *cells])
    return METHODS_SECTION.format(rows=len(bounded), table=table(("Method", *matrices, "All"), found)) if found else ""


def resisting(lines: Lines) -> str:
    """Layers by the median of their best gap, the largest first, and the rank correlation with the condition."""
    layers = grouped(lines, lambda line: line.problem)
    gaps = {name: float(np.median(found)) for name, mine in layers.items() if (found := best(mine))}
    order = sorted(gaps, key=gaps.__getitem__, reverse=True)
    head = ", ".join(f"{name} ({percent(gaps[name])}, condition {number(condition(name))})" for name in order[:4])
    text = f"Largest median gaps of the best bound: {head}."
    if len(order) > 2:
        ranks = [np.argsort(np.argsort(values)) for values in ([gaps[n] for n in order], [condition(n) for n in order])]
        text += (
            f" Spearman's correlation of gap and condition over {len(order)} layers: {np.corrcoef(ranks)[0, 1]:.2f}."
        )
    return text


def fits(lines: Lines) -> str:
    """Power of n of the median gap and of the median time, by matrix and kind."""
    found = []
    for (layer, kind), mine in grouped(lines, lambda line: (part(line)[1], line.kind)).items():
        sizes = sorted(grouped(mine, lambda line: line.n).items())
        if len(sizes) < 3:
            continue
        n = np.log([size for size, _ in sizes])
        medians = [
            [np.median([getattr(line, key) for line in some]) for _, some in sizes] for key in ("gap", "seconds")
        ]
        powers = [np.polyfit(n, np.log(values), 1)[0] if min(values) > 0 else float("nan") for values in medians]
        gap, cpu = (f"{show(v[0])} to {show(v[-1])}" for show, v in zip((percent, number), medians, strict=True))
        span = f"{sizes[0][0]} to {sizes[-1][0]}"
        found.append([layer, kind, span, gap, f"{powers[0]:.2f}", cpu, f"{powers[1]:.2f}"])
    head = ("Matrix", "Bound", "n", "Median gap", "Power of n", "CPU s", "Power of n")
    return table(head, found) if found else "Not run.\n"


def fixing(chosen: str = "smollm2/07.gate_proj", count: int = 2, weights: int = 48) -> str:
    """How many of the heaviest kept weights must be kept: pruned, the row's bound passes its mask; computed here.

    The tangent says nothing of it: at the relaxed optimum its slope is the same for all weights. So the Shor bound is
    solved again with the weight pruned.
    """
    layer = one(chosen)[1]
    found = []
    for row in chosen_rows(count, layer.rows):
        problem = one_row(layer, row, layer.n)
        form, upper = RowForm.of(problem, 0), best_error(problem)
        first = shor(form, tolerance=1e-3)
        second = row_bound("dnn", form, first)
        heaviest = [i for i in np.argsort(-form.Q.diagonal()) if first.proof.u[i] < 0.5][:weights]
        without = [shor(child(form, i, pruned=True), tolerance=1e-3).proof.bound for i in heaviest]
        rise = np.array(without) - first.proof.bound
        for kind, proof in (("shor", first.proof), ("dnn", second.proof)):
            parts = rise / (upper - proof.bound)
            cells = (number(part) for part in (parts.max(), float(np.median(parts)), parts[-1]))
            found.append([str(row), kind, f"{int((parts > 1).sum())} of {len(parts)}", *cells])
    return table(("Row", "Slack of", "Fixed", "Largest rise, of the slack", "Median", "Lightest tried"), found)
