"""The page of exact solution, from ``rows.csv`` and, where they are there, ``frontier.csv`` and ``optima.csv``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.exact.frontier import FRONTIER_CSV, METHODS, OPTIMA_CSV, Optimum
from benchmarks.exact.rows import ROWS_CSV, SOLVERS, START, Measured
from benchmarks.shared import command
from benchmarks.shared.csv_lines import read, required
from benchmarks.shared.markdown import method_cell, table, write_page
from fwbench.report.text import number, percent


def page(lines: Sequence[Measured], frontier: Sequence[Measured] = (), optima: Sequence[Optimum] = ()) -> str:
    run = [line for line in lines if line.status != "skipped"]
    counts = (
        f"{len(lines)} runs on problems of `mini`: a row (`all`: the whole layer, where the pattern does not separate) "
        f"with every solver on one thread, from the mask of {method_cell(START)}. "
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
    sizes = table(
        ("Variables", "Solver", "Runs", "Optimal", "Stopped", "Mean gap", "Nodes", "CPU s"), _by_size(run), left=2
    )
    every = table(
        ("Problem", "Row", "Variables", "Solver", "Status", "Nodes", "CPU s", "Wall s", "Gap"),
        map(_run_line, lines),
        left=5,
    )
    text = (
        "# Exact solvers beside one another\n",
        counts + "\n",
        software + "\n",
        clock + "\n",
        "Written by `python -m benchmarks.exact.page` from [rows.csv](rows.csv).\n",
        "## Side by side\n",
        "".join(f"- {line}\n" for line in _conclusions(run)),
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
    """A section on ``frontier``'s runs, the longest of each."""
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
        "By `python -m benchmarks.exact.frontier`, from [frontier.csv](frontier.csv).\n"
    )
    found = sorted(longest.values(), key=lambda line: (line.variables, line.problem, line.solver))
    head = ("Problem", "Variables", "Solver", "Limit s", "Status", "Nodes", "CPU s", "Gap")
    cells = []
    for line in found:
        problem, _, variables, solver, status, nodes, cpu, _, gap = _run_line(line)
        cells.append([problem, variables, solver, f"{line.limit:g}", status, nodes, cpu, gap])
    yield table(head, cells, left=5)


def _optima(lines: Sequence[Optimum]) -> Iterable[str]:
    """A section on the whole rows that are solved: their proofs, and the methods' distances from the optimum."""
    if not lines:
        return
    yield "## Whole real rows, solved\n"
    yield (
        "Rows of all 576 weights whose optimum `bnb` found and `fwbench.verify`, which imports no solver, proved again "
        "from the certificate (its size and the checker's CPU seconds). The rest is how far each method's mask of that "
        "row is above the optimum. These rows are the easiest of their layer: a few of their weights hold most of what "
        "is at stake, so they say nothing about a typical row. From [optima.csv](optima.csv), by "
        "`python -m benchmarks.exact.frontier`.\n"
    )
    head = ("Problem", "Optimum", "Gap of the proof", "Nodes", "MB", "Check s", *map(method_cell, METHODS))
    cells = []
    for line in sorted(lines, key=lambda line: line.problem):
        above = (percent(getattr(line, name) / line.optimum - 1) for name in METHODS)
        proof = (f"{line.optimum:.6g}", f"{max(0.0, 1 - line.proved / line.optimum):.1e}", str(line.nodes))
        cells.append([line.problem, *proof, number(line.megabytes), number(line.check_cpu), *above])
    yield table(head, cells)


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


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    lines = required(out / ROWS_CSV, Measured, "benchmarks.exact.rows")
    write_page(out, page(lines, read(out / FRONTIER_CSV, Measured), read(out / OPTIMA_CSV, Optimum)))


if __name__ == "__main__":
    main()
