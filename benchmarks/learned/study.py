"""What a learned diagonal is worth: its bound beside that of other diagonals, on blocks that it was not trained on.

    python -m benchmarks.learned.study         lines that are missing are added to bounds.csv
    python -m benchmarks.learned.page

Every diagonal begins with the same rough point of the plain relaxation, and every bound is the checker's to prove. One
thread; CPU seconds of the diagonal by itself, and of what all share: the point, and the convexified relaxation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import sample
from benchmarks.shared.threads import restart_on_one_thread
from fwbench import bounds, verify
from fwbench.problem import Problem
from fwbench.problems.collections import one
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.learned.bound import LearnedBound, convexified
from fwbench.solvers.learned.diagonal import inverse_e, learned_e, learned_rows
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.shared_diagonal import shared_e
from fwbench.solvers.semidefinite.shor import shor
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

BOUNDS_CSV = "bounds.csv"
LAYERS = ("15.o_proj", "15.gate_proj", "26.o_proj", "26.q_proj")
WIDE = ("15.down_proj",)  # 1536 inputs: one pattern
PATTERNS = ("0.5", "2:4")
ROWS, SHOR_ROWS = 32, 2
OWN, SHOR = "learned, a row's own", "Shor, a row's own"


@dataclass(frozen=True)
class Line:
    """One diagonal on one layer's rows; ``bound`` and ``bound_of_few`` as parts of the errors of a mask after swaps."""

    layer: str
    pattern: str
    rows: int
    n: int
    method: str
    bound: float
    bound_of_few: float  # on the first ``SHOR_ROWS`` of the rows
    slope: float  # Σ c e, which the shared diagonal maximises
    seconds: float  # CPU, of the diagonal
    seconds_around: float  # CPU, of the rest
    hash: str


METHODS: dict[str, Callable[[Problem, np.ndarray], np.ndarray]] = {
    "none": lambda problem, u: bounds.safe(problem.G),
    "inverse diagonal": lambda problem, u: inverse_e(problem),
    "learned": learned_e,
    "shared, the best": shared_e,
    OWN: learned_rows,
}
ALL = (*METHODS, SHOR)


def measured(problem: Problem, wanted: Collection[str] = ALL) -> Iterator[Line]:
    """A line for each diagonal that is wanted; of Shor's for a few rows."""
    context, stage = Context(threads=1), LearnedBound()
    start = Wanda().run(problem, State(), context)
    keep = Swap().run(problem, start, context).keep
    assert keep is not None
    errors = problem.mask_errors(keep)
    place = problem.name.split(".", 1)[1].partition(".r")[0]
    about = (place, str(problem.pattern), problem.rows, problem.n)
    began = time.process_time()
    u = FrankWolfe(steps=stage.plain_steps, gap=1e-2).run(problem, start, context).relaxed
    around = time.process_time() - began
    assert u is not None
    for name in wanted:
        if name == SHOR:
            continue
        began = time.process_time()
        e = METHODS[name](problem, u)
        spent = time.process_time() - began
        best = convexified(problem, u, e, stage.steps, stage.gap, context).best_u.clamp(0, 1).numpy()
        rest = around + time.process_time() - began - spent
        few = bounds.group_bounds(problem, best, e)[:SHOR_ROWS]
        parts = verified(problem, best, e) / errors.sum(), few.sum() / errors[:SHOR_ROWS].sum()
        yield Line(*about, name, *map(float, parts), slope(problem, u, e), spent, rest, problem.hash[:12])
    if SHOR in wanted:
        began = time.process_time()
        few = np.array([shor(RowForm.of(problem, row)).proof.lower for row in range(SHOR_ROWS)])
        spent = (time.process_time() - began) / SHOR_ROWS * problem.rows
        part = float(few.sum() / errors[:SHOR_ROWS].sum())
        yield Line(*about, SHOR, np.nan, part, np.nan, spent, 0.0, problem.hash[:12])


def verified(problem: Problem, u: np.ndarray, e: np.ndarray) -> float:
    """The layer's bound by a shared ``e (n,)``, or by every row's own, ``(rows, n)``, which the checker proves."""
    if e.ndim == 2:
        return sum(verified(problem.part([row]), u[row : row + 1], own) for row, own in enumerate(e))
    proof = bounds.certificate(problem, u, e)
    assert verify.check(problem, proof).ok
    return proof.bound


def slope(problem: Problem, u: np.ndarray, e: np.ndarray) -> float:
    """``Σ c e``, of a shared ``e (n,)`` or of every row's own, ``(rows, n)``."""
    if e.ndim == 2:
        return sum(slope(problem.part([row]), u[row : row + 1], own) for row, own in enumerate(e))
    return float(bounds.slope(problem, u) @ e)


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    restart_on_one_thread()
    path = options.out / BOUNDS_CSV
    known = {(line.layer, line.pattern, line.method) for line in read(path, Line)}
    for layer in (*LAYERS, *WIDE):
        _, whole = one(f"smollm2/{layer}")
        for pattern in PATTERNS[: 1 if layer in WIDE else None]:
            if wanted := [name for name in ALL if (layer, pattern, name) not in known]:
                problem = replace(sample(whole, options.rows), pattern=pattern)
                append(path, list(measured(problem, wanted)))
                print(layer, pattern, flush=True)


if __name__ == "__main__":
    main()
