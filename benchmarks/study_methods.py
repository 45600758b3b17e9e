"""How far each method's masks are from the optimum: their errors on the rows that ``study_bounds`` bounded.

    python -m benchmarks.study_methods reports/bounds/rows.csv
    python -m benchmarks.report_bounds reports/bounds/rows.csv reports/bounds/sizes.csv

The rows are those whose McCormick bound is in the CSV. An error over the row's best bound says how far above the
optimum the mask can be at most, an error over that of the best mask known how far it is at least. What is in
``methods.csv`` beside the rows is not computed again. Methods solve each row on its own, so a few rows stand for a
layer; RIA, whose scores need all of them, is not here.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.common import one_thread
from benchmarks.csv_lines import append, read
from benchmarks.study_bounds import SAMPLED, Measured, selector_of
from fwbench import pipeline
from fwbench.problem import Problem
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
    part = Problem(f"{layer.name}.rows", layer.W[list(rows)], layer.G, layer.pattern)
    keep = pipeline.run(part, pipeline.resolve(method), threads=1).keep
    if keep is None:
        raise SystemExit(f"{name}: {method} gave no mask")
    errors = part.row_errors(~keep)
    return [Method(name, row, method, float(error)) for row, error in zip(rows, errors, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    options = parser.parse_args()
    out = options.rows.parent / METHODS_CSV
    done = {(line.problem, line.row, line.method) for line in read(out, Method)}
    one_thread()
    np.seterr(all="raise", under="ignore")
    with threadpool_limits(1):
        for name, rows in bounded_rows(read(options.rows, Measured)).items():
            for method in METHODS:
                if left := [row for row in rows if (name, row, method) not in done]:
                    append(out, solve(name, left, method))
                    print(f"{name} {method}: {len(left)} rows", flush=True)


if __name__ == "__main__":
    main()
