"""The page of learned bounds and steps, from ``bounds.csv`` and ``steps.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from benchmarks.learned import steps, study, train
from benchmarks.learned.steps import STEPS_CSV, Step
from benchmarks.learned.study import BOUNDS_CSV, Line
from benchmarks.shared import command
from benchmarks.shared.csv_lines import required
from benchmarks.shared.markdown import table, write_page
from fwbench.metrics import shifted_geometric_mean

HEAD = """# What learning brings

Trained on parts of 48, 96 and 192 inputs of blocks {trained} of SmolLM2-135M, tested on {rows} rows of layers of blocks
15 and 26 with all their inputs; patterns {patterns}. The net of `learned_bound` and the steps of `unrolled` are a few
kB each, in `solvers/learned`; `python -m benchmarks.learned.train` makes them again, minutes of one thread. One thread,
CPU seconds, on a machine that others loaded. Every bound is verified by the checker. Numbers are in
[bounds.csv](bounds.csv) and [steps.csv](steps.csv). Written by `python -m benchmarks.learned.page`.

"""

VERDICT = """## What was found

**The diagonal: yes, for its price.** On layers of 576 inputs that it was not trained on, the net's diagonal takes 0.04
CPU seconds, a twenty-fifth of the best shared one's, and gains 87 % of what that adds to the plain bound; the net's own
formula without a net (the inverse diagonal) costs as much and gains 69 %. It does not replace Shor's: of two rows it
proves 0.633 where Shor proves 0.769, in 3 % of the time (the relaxation included). At 1536 inputs, eight times what it
was trained on, the formula without a net is best of the three: a diagonal that is best to first order at one point is
not the best, and the net has learned to be like it.

**A row's own diagonal: more, in the time of the best shared one.** What is safe is the same for all rows, what is best
among it is not. Asked once a row, for the row's own slope (`own=true`), the same net takes 29 ms a row, an eigenvalue
and a proof each, so 0.92 CPU seconds for 32 rows of 576 inputs, where the best shared diagonal takes 0.99. It proves
0.663 of the error, that 0.646, and is above it on six of the eight problems, all four of 2:4 among them. The same time
spent on Shor's bound of single rows, the others left to the layer's net, would do for 2.6 of the 32 rows and prove
0.640. Of two rows it proves 0.667 and Shor, in twelve times the time, 0.769. At 1536 inputs it does not pay: its
`Σ c e` is 121 % of the best shared one's, and it proves 0.564, less than the layer's net and than the formula without
one. To be best to first order at one point helps the bound of a single row even less.

**The steps: no.** Trained on 192 inputs, at 576 they have 2 % to 9 % less relaxed error than the steps before training
on seven problems and 80 % more on one (o_proj of block 15 at 0.5, whose curvature the longer steps do not bear), 3 %
more on the mean. Against Frank-Wolfe with line search both have the lower relaxed error at equal products, which is
their momentum's doing, and the higher one at equal time. Their rounded mask has 22 % less error than Wanda's, from
which they begin, but swaps from Wanda's take a ninth of the time for 46 % less. After swaps all but the open loop are
within 4 % of each other. All descent constraints held all along, so no multiplier ever left 0.

"""


def page(bounds: Sequence[Line], found: Sequence[Step]) -> str:
    head = HEAD.format(trained=", ".join(map(str, train.TRAINED)), rows=study.ROWS, patterns=", ".join(study.PATTERNS))
    parts = [head, VERDICT, "## The bound of a diagonal\n\n"]
    for n in sorted({line.n for line in bounds}):
        own = [line for line in bounds if line.n == n]
        parts.append(_bounds(own, f"Problems: {len(_places(own))}, of {n} inputs"))
    parts += ["## Trained steps\n\n", _steps(found)]
    return "".join(parts)


def _places(lines: Sequence[Line]) -> set[tuple[str, str]]:
    return {(line.layer, line.pattern) for line in lines}


def _bounds(lines: Sequence[Line], what: str) -> str:
    """Means over the problems; gained: of what the best shared diagonal adds to the plain bound."""
    value = {(line.layer, line.pattern, line.method): line for line in lines}

    def cells(method: str) -> list[str]:
        own = [line for line in lines if line.method == method]
        first, last = "none", "shared, the best"
        gained = [
            (value[*place, method].bound - value[*place, first].bound)
            / (value[*place, last].bound - value[*place, first].bound)
            for place in _places(lines)
        ]
        slopes = [value[*place, method].slope / value[*place, last].slope for place in _places(lines)]
        whole = method != study.SHOR
        return [
            method,
            f"{mean(line.bound for line in own):.4f}" if whole else "–",
            f"{100 * mean(gained):.1f} %" if whole else "–",
            f"{100 * mean(slopes):.1f} %" if whole and method != first else "–",
            f"{mean(line.bound_of_few for line in own):.4f}",
            f"{mean(line.seconds for line in own):.3f}",
            f"{mean(line.seconds_around for line in own):.3f}" if whole else "–",
        ]

    head = ("diagonal", "bound", "gained", "Σ c e", f"bound of {study.SHOR_ROWS} rows", "CPU s", "CPU s around it")
    note = (
        f"{what}, {lines[0].rows} rows. *Bound*: part of the error of a mask after swaps, on the mean. *Gained*: of\n"
        "what the best shared diagonal adds to the plain relaxation. *Σ c e*: what that diagonal maximises, as a part\n"
        "of its own. *Around it*: the rough point and the convexified relaxation, the same for all.\n"
        "*A row's own*: the same net, asked once a row.\n"
        f"Shor's seconds are those of {study.SHOR_ROWS} rows times {lines[0].rows} / {study.SHOR_ROWS}.\n\n"
    )
    there = {line.method for line in lines}
    return note + table(head, [cells(method) for method in study.ALL if method in there]) + "\n"


def _steps(found: Sequence[Step]) -> str:
    def cells(method: str) -> list[str]:
        own = [line for line in found if line.method == method]
        errors = [
            f"{shifted_geometric_mean(getattr(line, what) for line in own):.4f}"
            for what in ("relaxed", "rounded", "swapped")
        ]
        return [
            method,
            f"{mean(line.products for line in own):.0f}",
            *errors,
            f"{mean(line.seconds for line in own):.3f}",
            f"{mean(line.seconds_of_swaps for line in own):.3f}",
        ]

    head = ("relaxation", "products", "relaxed", "rounded", "after swaps", "CPU s", "CPU s of swaps")
    note = (
        f"{len({(line.layer, line.pattern) for line in found})} problems, {found[0].rows} rows. Errors are multiples "
        "of that of Wanda's mask, geometric means.\n\n"
    )
    return note + table(head, map(cells, steps.METHODS))


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    bounds = required(out / BOUNDS_CSV, Line, "benchmarks.learned.study")
    write_page(out, page(bounds, required(out / STEPS_CSV, Step, "benchmarks.learned.steps")))


if __name__ == "__main__":
    main()
