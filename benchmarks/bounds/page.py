"""The page of the bounds: how far the best masks of rows can be from the optimum.

    python -m benchmarks.bounds.page

From ``rows.csv`` in the page's folder and, where they are there, ``sizes.csv`` (both of ``rows``), ``methods.csv``,
``layers.csv``, ``branching.csv`` and ``figures/three-worlds.csv``, each of the study of that name. Every figure of the
page comes from their lines; run it again when there are more. Layers are loaded for their sizes and conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.bounds import tables, worlds_page
from benchmarks.bounds.branching import BRANCHING_CSV, Branched
from benchmarks.bounds.layers import LAYERS_CSV, LayerGaps
from benchmarks.bounds.methods import METHODS_CSV, Method
from benchmarks.bounds.rows import LADDER, ROWS_CSV, SIZES_CSV, Measured
from benchmarks.bounds.tables import SAMPLE, Lines, grouped, part, sampled
from benchmarks.bounds.worlds import WORLDS_CSV, WorldStep
from benchmarks.shared import command
from benchmarks.shared.csv_lines import read, required, write
from benchmarks.shared.markdown import method_cell, write_page
from fwbench.problems.collections import LAYERS
from fwbench.report import figures

MARKERS = dict(zip(LADDER, "os^DP", strict=True))


@dataclass(frozen=True)
class Study:
    """Everything that was measured."""

    rows: Lines
    sizes: Lines = ()
    methods: Sequence[Method] = ()
    layers: Sequence[LayerGaps] = ()
    branched: Sequence[Branched] = ()
    worlds: Sequence[WorldStep] = ()


def read_study(folder: Path) -> Study:
    return Study(
        rows=tables.by_best_masks(required(folder / ROWS_CSV, Measured, "benchmarks.bounds.rows")),
        sizes=tables.by_best_masks(read(folder / SIZES_CSV, Measured)),
        methods=read(folder / METHODS_CSV, Method),
        layers=read(folder / LAYERS_CSV, LayerGaps),
        branched=read(folder / BRANCHING_CSV, Branched),
        worlds=read(folder / WORLDS_CSV, WorldStep),
    )


def draw(folder: Path, lines: Lines, sizes: Lines) -> None:
    """Gaps against seconds by matrix, and gaps against n."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"gap-against-time": (lines, "seconds", "CPU seconds a row"), "gap-against-n": (sizes, "n", "columns n")}
    for name, (some, key, label) in pictures.items():
        if not some:
            continue
        with figures.drawing(name, 3.3) as (figure, axes, finish):
            for colour, layer in zip(figures.COLOURS, LAYERS, strict=False):
                if any(part(line)[1] == layer for line in some):
                    axes.plot([], [], "-", color=colour, label=layer)
                for kind, marker in MARKERS.items():
                    mine = [line for line in some if part(line)[1] == layer and line.kind == kind]
                    split = grouped(mine, lambda line: line.n).values() if key == "n" else [mine] if mine else []
                    points = sorted(tuple(np.median([getattr(x, k) for x in at]) for k in (key, "gap")) for at in split)
                    if points:
                        axes.plot(*zip(*points, strict=True), marker + "-", color=colour)
            for kind, marker in MARKERS.items():
                if any(line.kind == kind for line in some):
                    axes.plot([], [], marker, color="gray", label=kind)
            axes.set_xscale("log")
            if key == "n":
                axes.set_xticks(sorted({line.n for line in some}))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
            axes.set_ylim(bottom=0)
            axes.set_xlabel(label)
            axes.set_ylabel("median gap, (UB − LB) / UB")
            figure.legend(loc="outside right center", fontsize=6)
            (folder / f"{name}.svg").write_text(figures.standalone(finish(label)), encoding="utf-8")


PAGE = """# How far the best masks can be from the optimum

{rows} rows of {layers} layers of SmolLM2-135M (16,384 calibration tokens, pattern 0.5), each bounded from below by the
ladder Shor, doubly nonnegative, McCormick, triangles, pentagons of the stage `bound`. The gap is (UB − LB) / UB
against the row's mask by {masks}.
A row is one process with one thread of BLAS; seconds are CPU seconds, those of a kind with all below it. Contention
for caches and memory raises them, and layers were measured under different loads. Shor's seconds at n = 576 and all
seconds of rows with triangles are those of version 7 of `bound`; the other rows' rungs above Shor are older, and took
two to three times as long as they do now.
{unconverged} of {bounds} interior points did not reach their tolerance; their bounds
hold all the same. Lower bounds here are computed in float64; those of `fwbench certify` are proved by `fwbench verify`.
Written by `python -m benchmarks.bounds.page`; one line a bound in [rows.csv](rows.csv){sizes_link}.

{worlds}{methods}## By matrix and block

The first {sample} rows of a seeded sample of each layer, or as many of them as are measured.

{main}
![Gap against time](figures/gap-against-time.svg)

## Whole layers

{whole}
{diagonals}## Against the aims

On the sampled rows. An aim is met if the mean of the blocks' medians meets it, so each block has the same weight. The
best bound of a row is the best of its ladder: up to McCormick, with triangle inequalities, and with pentagonal ones,
which cost some ten and twenty times as much and are on fewer rows.

{aims}
## Which layers resist

{resisting}

## Growth with n

Random choices of columns of block {size_blocks}, each with a mask of its own; powers are least-squares fits of the
logarithms of the medians.

{fits}{size_figure}
{branching}{fixing}"""


FIXING = """## Weights that the gap fixes

A kept weight is fixed if the bound with it pruned exceeds the mask's error, and could be left out. Rows of block 7's
gate_proj: the heaviest kept weights, one Shor solution each. The rise is that of the Shor bound; against the doubly
nonnegative slack it is an estimate, not a proof. The tangent of the bound itself fixes none: at the relaxed optimum its
slope is the same for all weights.

"""


def page(study: Study, weights: int = 0) -> str:
    """The page's Markdown.

    Args:
        weights: of the table of fixed weights, for each of its rows; 0 for none, as it takes minutes.
    """
    lines, sizes = study.rows, study.sizes
    some = sampled(lines)
    return PAGE.format(
        rows=len({(line.problem, line.row) for line in lines}),
        layers=len({line.problem for line in lines}),
        masks=" or ".join(method_cell(name) for name in sorted({line.masks for line in lines})),
        unconverged=sum(not line.converged for line in lines),
        bounds=len(lines),
        sizes_link=" and [sizes.csv](sizes.csv)" if sizes else "",
        worlds=worlds_page.section(study.worlds),
        methods=tables.above_optimum(lines, study.methods),
        sample=SAMPLE,
        main=tables.main_table(some),
        whole=tables.whole_table(lines),
        diagonals=tables.diagonals(study.layers),
        aims=tables.aims(some),
        resisting=tables.resisting(some),
        size_blocks=", ".join(sorted({part(line)[0] for line in sizes})),
        fits=tables.fits(sizes),
        branching=tables.branching(study.branched),
        fixing=FIXING + tables.fixing(weights=weights) if weights else "",
        size_figure="\n![Gap against n](figures/gap-against-n.svg)\n" if sizes else "",
    )


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--fixing", type=int, default=0, help="weights tried for the table of fixed weights")
    options = parser.parse_args()
    out, study = options.out, read_study(options.out)
    write(out / ROWS_CSV, study.rows)
    write(out / SIZES_CSV, study.sizes)
    draw(out / "figures", sampled(study.rows), study.sizes)
    if study.worlds:
        (out / worlds_page.PICTURE).write_text(worlds_page.draw(study.worlds), encoding="utf-8")
    write_page(out, page(study, options.fixing))


if __name__ == "__main__":
    main()
