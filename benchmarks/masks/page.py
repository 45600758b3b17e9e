"""The page of the masks: tables, figures and a CSV from a store that ``grid`` has filled.

    python -m benchmarks.masks.page masks.sqlite --rows 24

Errors of single rows are computed anew from the stored masks. A solver enters a table with the problems it has run on,
and their number is shown; means are geometric, over problems (a problem: one layer's sampled rows under one pattern).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.masks.cells import SWAP, Grid, against, best_of_rows, complete, read, resolved, short
from benchmarks.masks.grid import TIERS, VARIANTS
from benchmarks.shared import command
from benchmarks.shared.markdown import method_cell, named, table, write_page
from benchmarks.shared.samples import BLOCKS, PATTERNS, condition, place, sampled
from fwbench.metrics import shifted_geometric_mean as mean
from fwbench.problems.collections import LAYERS
from fwbench.report import figures, summary
from fwbench.report import rows as report_rows
from fwbench.report.text import number, percent

COLUMNS = ["block", "layer", "pattern", "condition", "rows", "solver", "ratio_to_wanda", "error"]
COLUMNS += ["rows_above_wanda_swap", "worst_row_above_best", "mean_row_above_best", "cpu_seconds"]
FAST = "push(rounds=20)+swap"  # the preset, but for its ``safeguard``
TABU = "push+swap+safeguard+tabu(iterations={})"
INGREDIENTS = (  # what is added, without it, with it
    ("swaps after Wanda", "wanda", SWAP),
    ("swaps after SparseFW", "SparseFW", "SparseFW+swap"),
    ("greedy as the start of swaps, in place of Wanda", SWAP, "greedy+swap"),
    ("the relaxation as the start of swaps, in place of Wanda", SWAP, "fw+swap"),
    ("randomised rounding, in place of top-k", "fw+swap", "fw+round(method=randomised)+swap"),
    ("rounding by expectation, in place of top-k", "fw+swap", "fw+round(method=expectation)+swap"),
    ("one e for the layer, in place of none", "fw+swap", "fw(convexify=shared)+swap"),
    ("one e for each row, in place of none", "fw+swap", "fw(convexify=row)+swap"),
    ("pushing to integrality, in place of the relaxation", "fw+swap", "push+swap"),
    ("the same in half the rounds", "push+swap", "push(rounds=20)+swap"),
    ("solving the relaxation before pushing", "push+swap", "fw+push+swap"),
    ("3,000 iterations of tabu search after SparseSwaps", SWAP, "wanda+swap+tabu(iterations=3000)"),
    ("a swap that gains a tenth of the most, in place of the best", SWAP, "wanda+swap(enough=0.1)"),
    ("100 kicks of iterated local search after pushing and swaps", "push+swap", "push+swap+safeguard+ils"),
    ("3,000 iterations of tabu search after pushing and swaps", "push+swap", TABU.format(3000)),
    ("20,000 iterations", "push+swap", TABU.format(20000)),
    ("100,000 iterations", "push+swap", TABU.format(100000)),
    ("annealing after pushing and swaps", "push+swap", "push+swap+safeguard+anneal(rounds=5)"),
    ("20,000 iterations of tabu search and then annealing", "push+swap", "best"),
)


def change(ratio: float) -> str:
    """A ratio of errors as what it adds or takes away."""
    return ("+" if ratio > 1 else "") + percent(ratio - 1)


def ranking(grid: Grid, best: dict[str, np.ndarray]) -> str:
    lines = []
    for solver, cells in grid.items():
        excess = np.concatenate([cell.errors / best[name] - 1 for name, cell in cells.items()])
        shared = [name for name in cells if name in grid[SWAP]]
        above = [cells[name].errors > grid[SWAP][name].errors * (1 + 1e-9) for name in shared]
        to_swap, _ = against(grid, solver, SWAP)
        to_swap_o, _ = against(grid, solver, SWAP, lambda name: ".o_proj." in name)
        cpu = sum(cell.seconds for cell in cells.values()) / len(excess)
        figures_ = (percent(np.mean(np.concatenate(above))), percent(np.mean(excess <= 0.01)), percent(excess.mean()))
        old = sum(not cell.current for cell in cells.values())
        row = (mean(c.ratio for c in cells.values()), to_swap, to_swap_o)
        lines.append(
            (
                row,
                [
                    method_cell(solver),
                    str(len(cells)),
                    str(old),
                    number(row[0]),
                    *map(change, row[1:]),
                    *figures_,
                    ms(cpu),
                ],
            )
        )
    head = [
        "Solver",
        "Problems",
        "Of old versions",
        "Ratio to Wanda",
        "To SparseSwaps",
        "The same, o_proj",
        "Rows above SparseSwaps",
    ]
    head += ["Rows within 1 % of the best", "Mean above the best", "CPU a row"]
    return table(head, [line for _, line in sorted(lines, key=lambda item: item[0][0])])


def ms(seconds: float) -> str:
    return f"{number(1000 * seconds)} ms"


def split(grid: Grid, solvers: Sequence[str], axis: int, label: Callable[[str], str] = str) -> str:
    """Mean ratio to Wanda by block (0), matrix (1) or pattern (2)."""
    kinds = list(dict.fromkeys(place(name)[axis] for name in grid["wanda"]))
    kinds.sort(key=lambda kind: LAYERS.index(kind) if kind in LAYERS else -1)
    present = complete(grid, solvers)

    def value(solver: str, kind: str) -> str:
        return number(mean(cell.ratio for name, cell in grid[solver].items() if place(name)[axis] == kind))

    rows = [[label(kind), *(value(solver, kind) for solver in present)] for kind in kinds]
    return table([("Block", "Matrix", "Pattern")[axis], *map(method_cell, present)], rows)


def ingredients(grid: Grid) -> str:
    lines = []
    for what, without, with_ in INGREDIENTS:
        a, b = resolved(with_), resolved(without)
        (all_, count), (o_proj, _) = against(grid, a, b), against(grid, a, b, lambda name: ".o_proj." in name)
        if count:
            lines.append([what, method_cell(b), method_cell(a), change(all_), change(o_proj), str(count)])
    return table(["Added", "Without", "With", "Error", "Error, o_proj", "Problems"], lines)


def variants(grid: Grid) -> str:
    """Iterates at equal iterations: relaxed error, gap, rounded and refined mask."""
    lines = []
    for spec in TIERS["variants"]:
        cells = list(grid.get(resolved(spec), {}).values())
        if not cells:
            continue
        relaxed = mean(c.result.relaxed_error / c.result.error * c.ratio for c in cells)
        rounded = mean(r.error / c.result.error * c.ratio for c in cells for r in c.result.stages if r.role == "round")
        gap = np.median([1 - c.result.lower_bound / c.result.relaxed_error for c in cells])
        numbers = [number(relaxed), percent(float(gap)), number(rounded), number(mean(c.ratio for c in cells))]
        cpu = sum(c.seconds for c in cells) / sum(c.errors.size for c in cells)
        lines.append((method_cell(spec), *numbers, ms(cpu), str(len(cells))))
    head = ["Solver", "Relaxed", "Relative gap", "Rounded", "With swaps", "CPU a row", "Problems"]
    return table(head, sorted(lines, key=lambda line: line[4]))


def equal_time(grid: Grid) -> str:
    """What the trace of ``best`` holds when another solver has ended."""
    best, lines = grid.get(resolved("best"), {}), []
    for other in (SWAP, "greedy+swap", "SparseFW", "SparseFW+swap", "wanda+swap+tabu(iterations=3000)"):
        pairs, none = [], 0
        for name, cell in grid.get(other, {}).items():
            reached = [ratio for at, ratio in best[name].trace() if at <= cell.seconds] if name in best else []
            none += name in best and not reached
            pairs += [min(reached) / cell.ratio] if reached else []
        if pairs:
            lines.append(
                [method_cell(other), change(mean(pairs)), f"{sum(p <= 1 for p in pairs)}", f"{len(pairs)}", f"{none}"]
            )
    return table(["At the end of", "Error of `best` against it", "Problems not above", "Of", "No mask yet"], lines)


def last_percent(grid: Grid) -> str:
    cells = list(grid.get(resolved("best"), {}).values())
    lines = []
    for above in (0.1, 0.05, 0.02, 0.01, 0.005):
        need = [min(at for at, ratio in c.trace() if ratio <= (1 + above) * c.ratio) / c.errors.size for c in cells]
        lines.append([percent(above), ms(float(np.mean(need))), ms(float(np.median(need)))] if need else [])
    lines.append(["its end", *(ms(float(f([c.seconds / c.errors.size for c in cells]))) for f in (np.mean, np.median))])
    return table(["Within", "CPU a row, mean", "Median"], lines) if cells else ""


def write_csv(path: Path, grid: Grid, best: dict[str, np.ndarray], conditions: dict[str, float]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        for solver, cells in grid.items():
            for name, cell in cells.items():
                swap = grid[SWAP][name].errors
                excess = cell.errors / best[name] - 1
                above = int((cell.errors > swap * (1 + 1e-9)).sum())
                numbers = (cell.ratio, cell.result.error, above, excess.max(), excess.mean(), cell.seconds)
                where = (*place(name), f"{conditions[name]:.3g}", cell.errors.size, solver)
                out.writerow([*where, *(f"{x:.6g}" if isinstance(x, float) else x for x in numbers)])


def draw(folder: Path, path: Path, grid: Grid, chosen: Sequence[str]) -> None:
    """Dolan-Moré profile, and error against CPU time, over all problems at once."""
    seconds = {cell.result.key: cell.seconds for cells in grid.values() for cell in cells.values()}
    rows = [row for row in report_rows.load(path) if row["key"] in seconds]
    for row in rows:
        row.update(solver=short(row["solver"]), pattern="all", drifted=False, seconds=seconds[row["key"]])
    [group] = summary.groups({**row, "solver": named(row["solver"])} for row in rows if row["solver"] in chosen)
    style = figures.styles(group.rows)
    drawn = {
        "profile": figures.performance_profile("profile", group, style),
        "error-against-time": figures.error_against_time("time", group, style),
    }
    folder.mkdir(exist_ok=True)
    for name, svg in drawn.items():
        if svg:
            (folder / f"{name}.svg").write_text(figures.standalone(svg), encoding="utf-8")


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--blocks", default=BLOCKS)
    parser.add_argument("--patterns", default=PATTERNS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    every = list(sampled(options.blocks.split(","), options.patterns.split(","), LAYERS, options.rows))
    spectra: dict[int, float] = {}  # by the identity of a Gram matrix, which a layer's patterns share
    for problem in every:
        spectra.setdefault(hash(problem.G.tobytes()), condition(problem.G))
    conditions = {problem.name: spectra[hash(problem.G.tobytes())] for problem in every}
    grid = read(options.store, every)
    best = best_of_rows(grid)
    variant = {resolved(spec) for spec in TIERS["variants"]} - {resolved(spec) for spec in (FAST, "best")}
    main_lines = {solver: cells for solver, cells in grid.items() if solver not in variant}
    chosen = [resolved(spec) for spec in ("wanda", "SparseFW", "greedy", SWAP, "fw+swap", FAST, "push+swap", "best")]
    draw(options.out / "figures", options.store, grid, complete(grid, chosen))
    write_csv(options.out / "problems.csv", grid, best, conditions)
    page = PAGE.format(
        rows=options.rows,
        blocks=options.blocks.replace(",", ", "),
        patterns=options.patterns.replace(",", ", "),
        problems=len(every),
        best=resolved("best"),
        fast=FAST,
        steps=500,
        variants=len([step for steps in VARIANTS.values() for step in steps]),
        ranking=ranking(main_lines, best),
        ingredients=ingredients(grid),
        by_layer=split(grid, chosen, 1),
        by_pattern=split(grid, chosen, 2),
        by_block=split(grid, chosen, 0),
        conditions=by_condition(grid, chosen, conditions),
        variant_table=variants(grid),
        equal_time=equal_time(grid),
        last_percent=last_percent(grid),
    )
    write_page(options.out, page)


def by_condition(grid: Grid, solvers: Sequence[str], conditions: dict[str, float]) -> str:
    present = complete(grid, solvers)
    edges = (0, 1e4, 1e5, 1e6, 1e7, np.inf)
    lines = []
    for low, high in pairwise(edges):
        names = [name for name in grid["wanda"] if low < conditions[name] <= high]
        if names:
            ratios = [mean(grid[s][name].ratio for name in names) for s in present]
            lines.append([f"{low:.0e} to {high:.0e}", str(len(names)), *map(number, ratios)])
    return table(["Condition of G", "Problems", *map(method_cell, present)], lines)


PAGE = """# Which ingredients find the best masks

{problems} problems: the seven matrices of blocks {blocks} of SmolLM2-135M (16,384 calibration tokens), patterns
{patterns}; {rows} rows of each layer, sampled with a seed; one seed of each solver. Every mask was judged by
`fwbench.pipeline`; seconds are CPU seconds of one thread on a machine that others loaded, so up to four times those of
a quiet one, and compare roughly. Means over problems are geometric. Written by `python -m benchmarks.masks.page` from
the store of `python -m benchmarks.masks.grid`; one line a run in
[problems.csv](problems.csv). The best of a row is the best mask that any solver here found: no bound, and it moves as
more is run. Lines with fewer problems than {problems} are unfinished; their means do not compare with the others'.

What was chosen where. Annealing's temperatures: on two layers of block 7, pattern 0.5, one seed, seven settings tried.
Tabu search's tenure: on five layers of blocks 7 and 18, pattern 0.5, 12 rows each, one seed, thirteen settings tried.
The presets `best` (`{best}`) and `fast` (`{fast}`, since then with
`safeguard` after it) were chosen after tables like these of the same problems had been seen: what they reach here is no
held-out result. `safeguard` takes, on each row, what swaps make of Wanda's mask where that is better. "Of old versions"
counts runs made before one of their stages changed; `swap` has changed since, but only with `enough` below 1.

## Solvers

{ranking}
A cost paid once a layer (the shared `e`) is divided by {rows} rows here, and by all rows of a layer in use.

![Performance profile](figures/profile.svg)

![Error against CPU time](figures/error-against-time.svg)

## What each ingredient brings

{ingredients}
## Where

Ratio to Wanda, of the solvers that have run on all problems.

{by_layer}
{by_pattern}
{by_block}
{conditions}
## Variants and step rules at {steps} iterations

From Wanda, in units of Wanda's error: the relaxed error reached, the relative Frank-Wolfe gap (median), the rounded
mask, and the mask after swaps. {variants} lines in all; those not yet run are missing.

{variant_table}
## At equal time

The error that `best` has reached when another solver ends, on the same rows.

{equal_time}
## What the last percent costs

CPU time a row until the masks of `best` are within so much of its own last ones.

{last_percent}"""


if __name__ == "__main__":
    main()
