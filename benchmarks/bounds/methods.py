"""How far each method's masks are from the optimum: their errors on the rows that ``rows`` bounded.

    python -m benchmarks.bounds.methods
    python -m benchmarks.bounds.page

The rows are those whose McCormick bound is in the CSV. An error over the row's best bound says how far above the
optimum the mask can be at most, an error over that of the best mask known how far it is at least. What is in
``methods.csv`` is not computed again. Methods solve each row on its own, so a few rows stand for a
layer; RIA, whose scores need all of them, is not here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.bounds.rows import ROWS_CSV, SAMPLED, Measured
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read, required
from benchmarks.shared.samples import selector_of
from benchmarks.shared.threads import one_thread
from fwbench import pipeline
from fwbench.problems.collections import one

METHODS = ("magnitude", "wanda", "sparsefw", "greedy", "wanda+swap", "greedy+swap", "fast", "best")
METHODS_CSV = "methods.csv"


@dataclass(frozen=True)
class Method:
    """A line of the CSV: the error of a method's mask of one row."""

    problem: str
    row: int
    method: str
    error: float


def bounded_rows(lines: Sequence[Measured]) -> dict[str, list[int]]:
    """Rows with the bounds up to McCormick's, by layer."""
    found: dict[str, set[int]] = defaultdict(set)
    for line in lines:
        if line.kind == SAMPLED[-1]:
            found[line.problem].add(line.row)
    return {name: sorted(rows) for name, rows in found.items()}


def solve(name: str, rows: Sequence[int], method: str) -> list[Method]:
    """One method on some rows of a layer."""
    _, layer = one(selector_of(name))
    part = layer.part(list(rows), f"{layer.name}.rows")
    keep = pipeline.run(part, pipeline.resolve(method), threads=1).keep
    if keep is None:
        raise SystemExit(f"{name}: {method} gave no mask")
    errors = part.row_errors(~keep)
    return [Method(name, row, method, float(error)) for row, error in zip(rows, errors, strict=True)]


def main() -> None:
    folder = command.study(__spec__, __doc__).parse_args().out
    out, bounded = folder / METHODS_CSV, required(folder / ROWS_CSV, Measured, "benchmarks.bounds.rows")
    done = {(line.problem, line.row, line.method) for line in read(out, Method)}
    one_thread()
    np.seterr(all="raise", under="ignore")
    for name, rows in bounded_rows(bounded).items():
        for method in METHODS:
            if left := [row for row in rows if (name, row, method) not in done]:
                append(out, solve(name, left, method))
                print(f"{name} {method}: {len(left)} rows", flush=True)


if __name__ == "__main__":
    main()
