"""How far the best masks of single rows can be from the optimum: one CSV row for each problem, row and kind of bound.

    python -m benchmarks.bounds.rows --problems smollm2/13.v_proj --bound dnn,mccormick --rows all --jobs 2
    python -m benchmarks.bounds.rows --problems 'smollm2/07.*' --rows 24 --sizes 64,128,256,384,576 --csv sizes.csv
    python -m benchmarks.bounds.rows --problems 'smollm2/*' --masks
    python -m benchmarks.bounds.page

A row is one process on one thread. Its mask is by ``PRESET``; its bounds are a ladder (Shor, doubly nonnegative,
McCormick, triangles, pentagons), and a kind's seconds are those of its rung and all below, of the CPU. What is in the
CSV is not computed again, so a killed run goes on; ``--masks`` computes no bounds, but the masks of lines whose upper
is not by ``PRESET``, and writes the file once, at its end. ``--again`` does the same with the bounds of the kinds that
are named, and keeps the masks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read, write
from benchmarks.shared.samples import one_row
from benchmarks.shared.threads import one_thread, restart_on_one_thread
from fwbench import metrics, pipeline
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.solvers.bounds.stage import chosen_rows
from fwbench.solvers.semidefinite.ladder import RUNGS, row_bound

PRESET = "push+swap+safeguard+tabu+anneal(rounds=5)"  # `best`, as the lines of the file have it
LADDER = tuple(RUNGS)  # from the bottom
SAMPLED = LADDER[:3]  # on 24 rows of each layer and more; triangles, which cost some four times as much, on fewer
SAME = 1 + 1e-6  # errors this close are one mask's, on Gram matrices that differ in last bits
ROWS_CSV, SIZES_CSV = "rows.csv", "sizes.csv"


@dataclass(frozen=True)
class Measured:
    """A line of the CSV; ``upper`` and ``lower`` are errors of the row, ``seconds`` the CPU's."""

    problem: str
    hash: str  # of the whole layer, shortened
    row: int
    n: int  # fewer than the layer's: a random choice of its columns
    kind: str
    upper: float
    lower: float
    gap: float
    seconds: float
    converged: bool  # the interior point, of its duality gap
    masks: str  # where upper comes from


Key = tuple[str, int, int, str]


@dataclass(frozen=True)
class Task:
    """One row, with the kinds that are still missing."""

    selector: str
    name: str
    row: int
    n: int
    kinds: tuple[str, ...]
    upper: float | None = None  # where it is known, with ``masks``
    masks: str = PRESET


def solve(task: Task) -> list[Measured]:
    """The bounds of one row: the worker's part."""
    from fwbench.solvers.semidefinite.row import RowForm

    layer = problem_of(task.selector, task.name)
    problem = one_row(layer, task.row, task.n)
    form = RowForm.of(problem, 0)
    if not form.free:
        return []
    upper = best_error(problem) if task.upper is None else task.upper
    began, found, lines = time.process_time(), None, []
    for kind in LADDER[: 1 + max(LADDER.index(kind) for kind in task.kinds)]:
        found = row_bound(kind, form, found)
        seconds, lower = time.process_time() - began, found.proof.bound
        if kind in task.kinds:
            gap = metrics.optimality_gap(upper, lower) or 0.0
            line = (layer.name, layer.hash[:12], task.row, problem.n, kind, upper, lower, gap, seconds)
            lines.append(Measured(*line, found.converged, task.masks))
    return lines


def best_error(problem: Problem) -> float:
    """The error of the mask that ``PRESET`` finds for a row."""
    return problem.error(pipeline.run(problem, pipeline.resolve(PRESET), threads=1).keep)


@cache
def problem_of(selector: str, name: str) -> Problem:
    return next(problem for _, problem in load(selector) if problem.name == name)


def upper(selector: str, name: str, row: int, n: int) -> float:
    """``best_error`` of a row of a layer: a worker's part."""
    return best_error(one_row(problem_of(selector, name), row, n))


# --- the run ---------------------------------------------------------------------------------------------------------


def tasks(options: argparse.Namespace, done: set[Key]) -> Iterator[Task]:
    """What is missing, in the order of the command line."""
    wanted = options.bound.split(",")
    if unknown := set(wanted) - set(LADDER):
        raise SystemExit(f"unknown kind {unknown.pop()!r}; known: {', '.join(LADDER)}")
    for selector in options.problems:
        for _, problem in load(selector):
            if not problem.pattern.separable or str(problem.pattern).startswith("rows"):
                raise SystemExit(f"{problem.name}: only patterns with one count for all rows are studied")
            rows = chosen_rows(options.rows, problem.rows, options.seed)
            sizes = [int(n) for n in options.sizes.split(",")] if options.sizes else [problem.n]
            left = {
                (row, n): tuple(kind for kind in wanted if (problem.name, row, n, kind) not in done)
                for n in sizes
                if n <= problem.n
                for row in rows
            }
            yield from (Task(selector, problem.name, row, n, kinds) for (row, n), kinds in left.items() if kinds)


def masks_anew(options: argparse.Namespace, path: Path) -> None:
    """Give every line of the CSV the mask of ``PRESET``, unless an older one is better."""
    lines = read(path, Measured)
    old: dict[tuple[str, int, int], float] = {}
    for line in lines:
        if line.masks != PRESET:
            at = (line.problem, line.row, line.n)
            old[at] = min(line.upper, old.get(at, np.inf))
    names = {problem.name: selector for selector in options.problems for _, problem in load(selector)}
    todo = [key for key in old if key[0] in names]
    print(f"{len(todo)} masks to find", flush=True)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), one_thread) as pool:
        found = pool.map(upper, (names[key[0]] for key in todo), *zip(*todo, strict=True), chunksize=8) if todo else ()
        new = dict(zip(todo, found, strict=True))
    better = sum(error < old[key] / SAME for key, error in new.items())
    print(f"{better} better, {sum(error > old[key] * SAME for key, error in new.items())} worse, not taken", flush=True)
    rewrite(path, lambda line: _with_mask(line, new.get((line.problem, line.row, line.n))))


def bounds_anew(options: argparse.Namespace, path: Path) -> None:
    """Compute the CSV's bounds of the kinds of ``--bound`` again; masks and other kinds stay."""
    names = {problem.name: selector for selector in options.problems for _, problem in load(selector)}
    old: dict[tuple[str, int, int], list[Measured]] = {}
    for line in read(path, Measured):
        if line.kind in options.bound.split(",") and line.problem in names:
            old.setdefault((line.problem, line.row, line.n), []).append(line)
    todo = [
        Task(names[name], name, row, n, tuple(line.kind for line in lines), lines[0].upper, lines[0].masks)
        for (name, row, n), lines in old.items()
    ]
    print(f"{len(todo)} rows to do", flush=True)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), one_thread) as pool:
        new = {(line.problem, line.row, line.n, line.kind): line for part in pool.map(solve, todo) for line in part}
    rewrite(path, lambda line: new.get((line.problem, line.row, line.n, line.kind), line))


def rewrite(path: Path, changed: Callable[[Measured], Measured]) -> None:
    """Change lines of the CSV, those that another run has appended meanwhile included."""
    write(path, [changed(line) for line in read(path, Measured)])


def _with_mask(line: Measured, error: float | None) -> Measured:
    if error is None or line.masks == PRESET or error > line.upper * SAME:
        return line
    return replace(line, upper=error, gap=metrics.optimality_gap(error, line.lower) or 0.0, masks=PRESET)


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--problems", nargs="+", required=True, help="as for 'fwbench run'")
    parser.add_argument("--bound", default="shor", help=f"of {','.join(LADDER)}; one or more")
    parser.add_argument("--rows", default="24", help="all, N for a seeded sample, or a list such as 3,7,100-120")
    parser.add_argument("--sizes", default="", help="numbers of columns, chosen at random; default: the whole row")
    parser.add_argument("--csv", default=ROWS_CSV, help=f"file in --out; {SIZES_CSV} for the growth with n")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--masks", action="store_true", help="no bounds: the masks of the CSV's rows anew")
    parser.add_argument("--again", action="store_true", help="the CSV's bounds of the named kinds anew")
    options = parser.parse_args()
    restart_on_one_thread()
    path = options.out / options.csv
    if options.masks or options.again:
        (masks_anew if options.masks else bounds_anew)(options, path)
        return
    done = {(line.problem, line.row, line.n, line.kind) for line in read(path, Measured)}
    todo = list(tasks(options, done))
    print(f"{len(todo)} rows to do", flush=True)
    began = time.monotonic()
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), one_thread) as pool:
        running = [pool.submit(solve, task) for task in todo]
        for number, future in enumerate(as_completed(running), 1):
            lines = future.result()
            append(path, lines)
            for line in lines:
                where = (
                    f"{number}/{len(todo)} {time.monotonic() - began:.0f} s  {line.problem} row {line.row} n {line.n}"
                )
                print(f"{where}  {line.kind} gap {line.gap:.2%}  {line.seconds:.2f} s CPU", flush=True)


if __name__ == "__main__":
    main()
