"""Exact solvers beside one another on rows of `mini`: nodes, seconds, gap and status, and the page that shows them.

    python -m benchmarks.study_exact --sizes 64,96 --seconds 60
    python -m benchmarks.study_exact --page

A run is one row of a problem (the layer, where the pattern does not separate) on one thread, from the mask of
``START``. The limit is on the wall's clock, as all these solvers keep it; the CPU's seconds stand beside.
What is in the CSV is not computed again, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path

from threadpoolctl import threadpool_limits

from benchmarks.common import one_thread
from benchmarks.csv_lines import append, read
from fwbench import machine, pipeline
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.report.text import number, percent
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
OUT = Path("reports/exact")
ROWS, FRONTIER, OPTIMA = "rows.csv", "frontier.csv", "optima.csv"
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

Key = tuple[str, int, str, float]


def key(line: Measured) -> Key:
    return line.problem, line.row, line.solver, line.limit


def part(problem: Problem, row: int) -> Problem:
    """A row as a problem, or all of it for -1."""
    if row < 0:
        return problem
    return Problem(f"{problem.name}/{row}", problem.W[row : row + 1], problem.G, problem.pattern)


def rows(problem: Problem, number_of_rows: int) -> list[int]:
    return list(range(min(number_of_rows, problem.rows))) if problem.pattern.separable else [-1]


def solve(
    whole: Problem, row: int, solver: str, limit: float, start: str = START
) -> tuple[Measured, Certificate | None]:
    """One solver on one row, from the mask of ``start``, after it has solved a tiny problem (imports, compilation)."""
    problem = part(whole, row)
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
    stage.run(tiny, State(), Context())
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


# --- the run ---------------------------------------------------------------------------------------------------------


def study(options: argparse.Namespace) -> None:
    path = options.out / ROWS
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


# --- the page --------------------------------------------------------------------------------------------------------


def page(lines: Sequence[Measured], frontier: Sequence[Measured] = (), optima: Sequence[Optimum] = ()) -> str:
    run = [line for line in lines if line.status != "skipped"]
    counts = (
        f"{len(lines)} runs on problems of `mini`: a row (`all`: the whole layer, where the pattern does not separate) "
        f"with every solver on one thread, from the mask of `{START}`. "
        f"Limit: {_listed(f'{line.limit:g} s' for line in lines)} of the wall's clock a run, as the solvers keep it. "
        f"{sum(line.status == 'stopped' for line in run)} runs were stopped before a proof, "
        f"{len(lines) - len(run)} were declined."
    )
    software = (
        f"CPU: {_listed(line.cpu_model for line in lines)}. Versions: {_listed(line.versions for line in lines)}."
    )
    clock = (
        "Seconds are those of the exact stage alone (convexification is in it; imports, compilation and the start are "
        f"not). The machine was shared: a run had {_share(run)} of a core, so a solver that was stopped had less of "
        "the CPU than the limit says, and not all had the same; compare the CPU seconds. `bnb`'s bounds are proofs "
        "that can be checked, Gurobi's and SCIP's are their own claims. Gap: (UB − LB) / UB."
    )
    sizes = _table(("Variables", "Solver", "Runs", "Optimal", "Stopped", "Mean gap", "Nodes", "CPU s"), _by_size(run))
    every = _table(
        ("Problem", "Row", "Variables", "Solver", "Status", "Nodes", "CPU s", "Wall s", "Gap"), map(_run_line, lines)
    )
    text = (
        "# Exact solvers beside one another\n",
        counts + "\n",
        "".join(f"- {line}\n" for line in _conclusions(run)),
        software + "\n",
        clock + "\n",
        "Written by `python -m benchmarks.study_exact --page` from [rows.csv](rows.csv).\n",
        "## By size\n",
        sizes,
        "Nodes and CPU seconds are sums over the runs.\n",
        "## Every run\n",
        every,
        *_frontier(frontier),
        *_optima(optima),
    )
    return "\n".join(text)


def _frontier(lines: Sequence[Measured]) -> Iterable[str]:
    """A section on ``study_frontier``'s runs, the longest of each."""
    longest: dict[tuple[str, str], Measured] = {}
    for line in sorted(lines, key=lambda line: line.limit):
        longest[line.problem, line.solver] = line
    if not longest:
        return
    yield "## The frontier\n"
    yield (
        "Single rows of layers of SmolLM2-135M, whole or cut to columns chosen at random (a problem is "
        "layer/row/columns@pattern), from the mask of the preset `best`, with the wall's limit that is named: which "
        "close, and what gap is left on the others. Rows of block 0's k_proj are those of its 192 on which Shor's "
        "bound leaves the least gap; the other layers' rows are the first of the bounds' seeded sample. "
        "By `python -m benchmarks.study_frontier`, from [frontier.csv](frontier.csv).\n"
    )
    found = sorted(longest.values(), key=lambda line: (line.variables, line.problem, line.solver))
    head = ("Problem", "Variables", "Solver", "Limit s", "Status", "Nodes", "CPU s", "Gap")
    cells = []
    for line in found:
        problem, _, variables, solver, status, nodes, cpu, _, gap = _run_line(line)
        cells.append([problem, variables, solver, f"{line.limit:g}", status, nodes, cpu, gap])
    yield _table(head, cells)


def _optima(lines: Sequence[Optimum]) -> Iterable[str]:
    """A section on the whole rows that are solved: their proofs, and the methods' distances from the optimum."""
    if not lines:
        return
    yield "## Whole real rows, solved\n"
    yield (
        "Rows of all 576 weights whose optimum `bnb` found and `fwbench.verify`, which imports no solver, proved again "
        "from the certificate (its size and the checker's CPU seconds). The rest is how far each method's mask of that "
        "row is above the optimum. These rows are the easiest of their layer: a few of their weights hold most of what "
        "is at stake, so they say nothing about a typical row. From [optima.csv](optima.csv), by `study_frontier`.\n"
    )
    head = ("Problem", "Optimum", "Gap of the proof", "Nodes", "MB", "Check s", *(f"`{name}`" for name in METHODS))
    cells = []
    for line in sorted(lines, key=lambda line: line.problem):
        above = (percent(getattr(line, name) / line.optimum - 1) for name in METHODS)
        proof = (f"{line.optimum:.6g}", f"{max(0.0, 1 - line.proved / line.optimum):.1e}", str(line.nodes))
        cells.append([line.problem, *proof, number(line.megabytes), number(line.check_cpu), *above])
    yield _table(head, cells)


def _by_size(lines: Sequence[Measured]) -> Iterable[list[str]]:
    for size in sorted({line.variables for line in lines}):
        for solver in SOLVERS:
            if mine := [line for line in lines if (line.variables, line.solver) == (size, solver)]:
                optimal = sum(line.status == "optimal" for line in mine)
                gap = sum(line.gap for line in mine) / len(mine)
                yield [
                    str(size), f"`{solver}`", str(len(mine)), str(optimal), str(len(mine) - optimal), percent(gap),
                    str(sum(line.nodes for line in mine)), number(sum(line.cpu for line in mine)),
                ]  # fmt: skip


RATIOS = (  # what is compared: of which solver to which
    ("nodes", "gurobi", "gurobi(convexify=shared)"),
    ("nodes", "gurobi", "gurobi(convexify=row)"),
    ("cpu", "gurobi", "bnb"),
    ("cpu", "bnb", "gurobi(convexify=shared)"),
)


def _conclusions(lines: Sequence[Measured]) -> Iterable[str]:
    """Ratios of two solvers' sums by size, over the runs that both closed."""
    for what, one, other in RATIOS:
        found = []
        for size in sorted({line.variables for line in lines}):
            closed = [
                {(line.problem, line.row): line for line in lines if _closed(line, size, solver)}
                for solver in (one, other)
            ]
            both = closed[0].keys() & closed[1].keys()
            sums = [sum(getattr(mine[run], what) for run in both) for mine in closed]
            if both and sums[1] > 0:
                found.append(f"n = {size}: {number(sums[0] / sums[1])} ({len(both)} runs)")
        unit = {"nodes": "Nodes", "cpu": "CPU seconds"}[what]
        yield f"{unit} of `{one}` over those of `{other}`, on runs that both closed: {', '.join(found) or 'none'}."


def _closed(line: Measured, size: int, solver: str) -> bool:
    return (line.variables, line.solver, line.status) == (size, solver, "optimal")


def _run_line(line: Measured) -> list[str]:
    row = "all" if line.row < 0 else str(line.row)
    status = line.status + (f" ({line.reason})" if line.reason else "")
    start = [line.problem, row, str(line.variables), f"`{line.solver}`", status]
    if line.status == "skipped":
        return [*start, "", "", "", ""]
    return [*start, str(line.nodes), number(line.cpu), number(line.wall), percent(line.gap)]


def _share(lines: Sequence[Measured]) -> str:
    """How much of a core the longer runs had, least to most."""
    shares = sorted(line.cpu / line.wall for line in lines if line.wall > 1) or [1.0]
    return f"{percent(shares[0])} to {percent(shares[-1])}"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted({part for word in words for part in word.split(", ")}))


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="64,96,128,192", help="numbers of columns")
    parser.add_argument("--rows", type=int, default=1, help="rows of each problem, the first ones")
    parser.add_argument("--solvers", nargs="+", help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of a run")
    parser.add_argument("--total", type=float, default=float("inf"), help="seconds after which no run is begun")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    if not options.page:
        one_thread()
        with threadpool_limits(1):
            study(options)
    lines, frontier = (read(options.out / name, Measured) for name in (ROWS, FRONTIER))
    (options.out / "index.md").write_text(page(lines, frontier, read(options.out / OPTIMA, Optimum)))


if __name__ == "__main__":
    main()
