"""Where exact solution ends today: rows of real layers, whole or cut to random columns, minutes to hours each.

    python -m benchmarks.exact.frontier --layers smollm2/03.gate_proj smollm2/13.o_proj --sizes 256,384 --seconds 600
    python -m benchmarks.exact.frontier --layers smollm2/03.gate_proj --sizes 576 --patterns 0.05,0.1
    python -m benchmarks.exact.frontier --layers smollm2/00.k_proj --sizes 576 --patterns 2:4 --easiest 6
    python -m benchmarks.exact.page

As in ``rows``, one row and one thread a run, but from the mask of the preset ``best``, so that what is left is
the proof. The rows are the first of the seeded sample that the bounds' study measures, or with ``--easiest`` those of
the layer where Shor's bound leaves the least gap to the preset ``fast``. A run in the CSV is not made again; one with a
longer limit is another run, and the page shows the longest. Where ``bnb`` solves a whole row, the checker replays its
proof, and the methods' masks are held against the optimum (a second CSV).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, fields, replace
from itertools import product

from benchmarks.exact.rows import Measured, key, solve
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import one_row
from benchmarks.shared.threads import one_thread
from fwbench import pipeline, verify
from fwbench.presets import PRESETS
from fwbench.problem import Problem
from fwbench.problems.collections import one
from fwbench.result import Certificate
from fwbench.solvers.bounds.stage import chosen_rows
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.shor import shor

FRONTIER_CSV, OPTIMA_CSV = "frontier.csv", "optima.csv"
PRESET = PRESETS["best"]


@dataclass(frozen=True)
class Optimum:
    """A whole row whose optimum is proved: what the checker made of the proof, and the errors of the methods' masks."""

    problem: str
    proved: float  # the checker's bound
    optimum: float  # the error of bnb's mask
    nodes: int
    megabytes: float  # of the certificate's arrays
    check_cpu: float  # seconds
    magnitude: float
    wanda: float
    ria: float
    sparsefw: float
    sparseswaps: float
    fast: float
    best: float


METHODS = tuple(item.name for item in fields(Optimum))[6:]


def study(options: argparse.Namespace) -> None:
    path = options.out / FRONTIER_CSV
    done = {key(line) for line in read(path, Measured)}
    grid = product(map(int, options.sizes.split(",")), options.patterns.split(","), options.layers)
    for size, pattern, selector in grid:
        _, whole = one(selector)
        layer = whole.with_pattern(pattern)
        for row in easiest(layer, options.easiest) if options.easiest else chosen_rows(options.rows, layer.rows):
            problem = one_row(layer, row, min(size, layer.n))
            problem = replace(problem, name=f"{problem.name}@{pattern}")
            for solver in options.solvers:
                if (problem.name, 0, solver, options.seconds) in done:
                    continue
                line, certificate = solve(problem, 0, solver, options.seconds, start=PRESET)
                append(path, [line])
                shown = f"{line.nodes} nodes, {line.cpu:.0f} s CPU, gap {line.gap:.2%}"
                print(f"{line.problem} n {line.variables} {solver}: {line.status}, {shown}", flush=True)
                if size >= layer.n and line.status == "optimal" and certificate is not None:
                    append(options.out / OPTIMA_CSV, [optimum(problem, line, certificate)])


def optimum(problem: Problem, line: Measured, certificate: Certificate) -> Optimum:
    """What the checker says of a proof, and the methods' errors.

    Raises:
        ValueError: the checker refuses it.
    """
    began = time.process_time()
    checked = verify.check(problem, certificate)
    seconds = time.process_time() - began
    if not checked.ok:
        raise ValueError(f"{problem.name}: {checked.reason}")
    errors = {name: problem.error(pipeline.run(problem, pipeline.resolve(name), threads=1).keep) for name in METHODS}
    megabytes = sum(array.nbytes for array in certificate.arrays.values()) / 1e6
    return Optimum(problem.name, checked.bound, line.upper, line.nodes, megabytes, seconds, **errors)


def easiest(layer: Problem, count: int) -> list[int]:
    """The rows with the least gaps, the least first."""
    upper = layer.row_errors(~pipeline.run(layer, pipeline.resolve("fast"), threads=1).keep)
    gaps = {}
    for row in range(layer.rows):
        form = RowForm.of(layer, row)
        if form.free:
            gaps[row] = 1 - shor(form, tolerance=2e-3).proof.bound / upper[row]
    return sorted(gaps, key=gaps.__getitem__)[:count]


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--layers", nargs="+", required=True, help="one layer each, as smollm2/03.gate_proj")
    parser.add_argument("--sizes", default="256", help="numbers of columns; the layer's own for a whole row")
    parser.add_argument("--patterns", default="0.5", help="as for 'fwbench run', one or more")
    parser.add_argument("--rows", default="1", help="N of the seeded sample, or a list such as 3,7,100-120")
    parser.add_argument("--easiest", type=int, default=0, metavar="N", help="in place of --rows")
    parser.add_argument("--solvers", nargs="+", default=["bnb(largest=2000)", "gurobi(convexify=shared)"])
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of a run")
    options = parser.parse_args()
    one_thread()
    study(options)


if __name__ == "__main__":
    main()
