"""What branching adds to a row's bound, for its time: the open node with the least bound is split, again and again.

    python -m benchmarks.bounds.branching smollm2/13.gate_proj smollm2/23.q_proj
    python -m benchmarks.bounds.page

One row of each layer by Shor's and McCormick's bounds and by that with triangle inequalities. A node fixes some
weights, and its bound is the ladder's on the others; it is split on the weight with the most at stake,
``Q_ii u_i (1 - u_i)``. CSV lines after 1, 3, 7 ... nodes.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from benchmarks.bounds.rows import best_error
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import one_row
from benchmarks.shared.threads import one_thread
from fwbench.problems.collections import one
from fwbench.solvers.bounds.stage import chosen_rows
from fwbench.solvers.semidefinite.ladder import row_bound
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.shor import Shor, shor

BOUNDS = {
    "shor": (shor, 6),
    "mccormick": (partial(row_bound, "mccormick"), 3),
    "triangles": (partial(row_bound, "triangles"), 2),
}  # and levels: 2^(level + 1) - 1 nodes
BRANCHING_CSV = "branching.csv"


@dataclass(frozen=True)
class Branched:
    """A line of the CSV."""

    problem: str
    row: int
    kind: str
    nodes: int
    gap: float
    seconds: float  # of the CPU, for all nodes so far


def child(form: RowForm, i: int, pruned: bool) -> RowForm:
    """A row of one group with weight ``i`` pruned or kept, over the other weights."""
    rest = np.delete(np.arange(len(form.Q)), i)
    linear = np.zeros(len(rest)) if form.linear is None else form.linear[rest]
    less = replace(form, Q=form.Q[np.ix_(rest, rest)], linear=linear)
    if not pruned:
        return less
    own = form.Q[i, i] + (0.0 if form.linear is None else form.linear[i])
    return replace(less, counts=form.counts - 1, linear=linear + 2 * form.Q[i, rest], constant=form.constant + own)


def bounds(form: RowForm, kind: str) -> list[tuple[int, float, float]]:
    """(nodes, bound, CPU seconds) after each level's number of nodes."""
    method, levels = BOUNDS[kind]
    began, count, found = time.process_time(), 0, []

    def node(of: RowForm) -> tuple[float, int, RowForm, Shor]:
        nonlocal count
        count += 1
        solved = method(of)
        return solved.proof.bound, count, of, solved

    queue = [node(form)]
    while True:
        if count + 1 == 1 << (len(found) + 1):
            found.append((count, float(queue[0][0]), time.process_time() - began))
            if len(found) > levels:
                return found
        bound, _, of, solved = heapq.heappop(queue)
        u = solved.proof.u.astype(np.float64).clip(0, 1)
        i = int(np.argmax(of.Q.diagonal() * u * (1 - u)))
        for pruned in (False, True):
            below, *rest = node(child(of, i, pruned))
            heapq.heappush(queue, (max(bound, below), *rest))


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("problems", nargs="+", help="layers, as for 'fwbench run'")
    options = parser.parse_args()
    path = options.out / BRANCHING_CSV
    done = {(line.problem, line.kind) for line in read(path, Branched)}
    one_thread()
    for selector in options.problems:
        _, layer = one(selector)
        [row] = chosen_rows(1, layer.rows)
        problem = one_row(layer, row, layer.n)
        upper = best_error(problem)
        for kind in BOUNDS:
            if (layer.name, kind) not in done:
                found = bounds(RowForm.of(problem, 0), kind)
                lines = [Branched(layer.name, row, kind, nodes, 1 - low / upper, cpu) for nodes, low, cpu in found]
                append(path, lines)
                print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
