"""Exact solvers beside one another on rows of ``mini``: nodes, seconds, gap and status.

    python -m benchmarks.exact.rows --sizes 64,96 --seconds 60
    python -m benchmarks.exact.page

A run is one row of a problem (the layer, where the pattern does not separate) on one thread, from the mask of
``START``. The limit is on the wall's clock, as all these solvers keep it; the CPU's seconds stand beside.
What is in the CSV is not computed again, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from importlib import metadata

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import one_row
from benchmarks.shared.threads import one_thread
from fwbench import machine, pipeline
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.result import Certificate
from fwbench.stage import Context, State

SOLVERS = (
    "bnb",
    "gurobi",
    "gurobi(convexify=shared)",
    "gurobi(convexify=row)",
    "scip",
    "scip(convexify=shared)",
    "scip(convexify=row)",
)
START = "wanda+swap"
ROWS_CSV = "rows.csv"
PACKAGES = ("gurobipy", "pyscipopt")


@dataclass(frozen=True)
class Measured:
    """A line of the CSV; ``upper`` and ``lower`` are errors, the seconds those of the exact stage alone."""

    problem: str
    row: int  # -1: the whole layer
    variables: int
    solver: str
    limit: float  # seconds of the wall
    nodes: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    upper: float = 0.0
    lower: float = 0.0
    status: str = "skipped"  # or optimal, stopped
    reason: str = ""
    cpu_model: str = ""
    versions: str = ""

    @property
    def gap(self) -> float:
        return 1 - self.lower / self.upper if self.upper > 0 else 0.0


Key = tuple[str, int, str, float]


def key(line: Measured) -> Key:
    return line.problem, line.row, line.solver, line.limit


def rows(problem: Problem, number_of_rows: int) -> list[int]:
    return list(range(min(number_of_rows, problem.rows))) if problem.pattern.separable else [-1]


def solve(
    whole: Problem, row: int, solver: str, limit: float, start: str = START
) -> tuple[Measured, Certificate | None]:
    """One solver on one row, from the mask of ``start``, after it has solved a tiny problem (imports, compilation)."""
    problem = whole if row < 0 else one_row(whole, row, whole.n)
    resolved = pipeline.resolve(solver)
    software = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    blank = Measured(
        problem=whole.name,
        row=row,
        variables=problem.W.size,
        solver=solver,
        limit=limit,
        cpu_model=str(machine.describe()["cpu"]),
        versions=f"{software}, fwbench {str(machine.describe().get('commit', ''))[:10]}",
    )
    if reason := pipeline.skip_reason(problem, resolved):
        return replace(blank, reason=reason), None
    stage = resolved.stages[-1]
    keep = pipeline.run(problem, pipeline.resolve(start), threads=1).keep
    tiny = Problem("tiny", problem.W[:1, :4], problem.G[:4, :4], "0.5")
    pipeline.run(tiny, resolved, threads=1)
    cpu, wall = time.process_time(), time.monotonic()
    after = stage.run(problem, State(keep=keep), Context(deadline=wall + limit))
    line = replace(
        blank,
        nodes=after.counters.get("nodes", 0),
        cpu=time.process_time() - cpu,
        wall=time.monotonic() - wall,
        upper=problem.error(after.keep),
        lower=max(0.0, after.lower or 0.0),
        status="optimal" if after.proven else "stopped",
        reason=after.stopped,
    )
    return line, after.certificate


def study(options: argparse.Namespace) -> None:
    path = options.out / ROWS_CSV
    done = {key(line) for line in read(path, Measured)}
    began = time.monotonic()
    for size in options.sizes.split(","):
        for _, problem in load(f"mini/n{int(size):03}*"):
            for row in rows(problem, options.rows):
                for solver in options.solvers or SOLVERS:
                    if (problem.name, row, solver, options.seconds) in done:
                        continue
                    if time.monotonic() - began > options.total:
                        return
                    line, _ = solve(problem, row, solver, options.seconds)
                    append(path, [line])
                    shown = f"{line.nodes} nodes, {line.cpu:.2f} s CPU, gap {line.gap:.2%}"
                    print(f"{line.problem} {row} {solver}: {line.status}, {shown}", flush=True)


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--sizes", default="64,96,128,192", help="numbers of columns")
    parser.add_argument("--rows", type=int, default=1, help="rows of each problem, the first ones")
    parser.add_argument("--solvers", nargs="+", help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of a run")
    parser.add_argument("--total", type=float, default=float("inf"), help="seconds after which no run is begun")
    options = parser.parse_args()
    one_thread()
    study(options)


if __name__ == "__main__":
    main()
