"""What trained steps are worth: `unrolled` beside Frank-Wolfe at equal numbers of products, on blocks not trained on.

    python -m benchmarks.learned.steps         lines that are missing are added to steps.csv
    python -m benchmarks.learned.page

All begin with Wanda's mask. One thread; CPU seconds of the relaxation, and of swaps after its rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.learned import train
from benchmarks.learned.study import LAYERS, PATTERNS, ROWS
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import sample
from benchmarks.shared.threads import restart_on_one_thread
from fwbench.problem import Problem
from fwbench.problems.collections import one
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.learned.unrolled import Unrolled
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

STEPS_CSV = "steps.csv"
PRODUCTS = Unrolled().steps + 2


@dataclass(frozen=True)
class Step:
    """One relaxation on one layer's rows; errors are multiples of that of Wanda's mask."""

    layer: str
    pattern: str
    rows: int
    n: int
    method: str
    products: int
    relaxed: float
    rounded: float
    swapped: float
    seconds: float
    seconds_of_swaps: float
    hash: str


Method = Callable[[Problem, State, Context], State]


def frank_wolfe(times: int = 1, **given: Any) -> Method:
    """Of as many products, or of so many times as many."""
    return FrankWolfe(steps=times * PRODUCTS - 1, gap=0.0, **given).run


def untrained(problem: Problem, start: State, context: Context) -> State:
    """Where the training of ``unrolled`` began."""
    return Unrolled().follow(problem, start, context, np.array([train.BEGIN] * Unrolled().steps, np.float32))


METHODS: dict[str, Method | None] = {
    "none: Wanda's mask": None,
    "unrolled": Unrolled().run,
    "the same steps, before training": untrained,
    "Frank-Wolfe, line search": frank_wolfe(variant="vanilla"),
    "Frank-Wolfe, line search, 4 times as long": frank_wolfe(4, variant="vanilla"),
    "Frank-Wolfe, open loop": frank_wolfe(variant="vanilla", step="open"),
    "Frank-Wolfe, in-face": frank_wolfe(),
    "Frank-Wolfe, in-face, 4 times as long": frank_wolfe(4),
}


def measured(problem: Problem) -> Iterator[Step]:
    context = Context(threads=1)
    start = Wanda().run(problem, State(), context)
    unit = problem.error(start.mask)
    about = (problem.name.split(".", 1)[1].partition(".r")[0], str(problem.pattern), problem.rows, problem.n)
    for name, method in METHODS.items():
        began = time.process_time()
        after = start if method is None else method(problem, start, context)
        seconds = time.process_time() - began
        u = ~start.mask if after.relaxed is None else after.relaxed
        keep = ~problem.pattern.prune(-u.astype(float))
        began = time.process_time()
        swapped = Swap().run(problem, State(keep=keep), context).mask
        swaps = time.process_time() - began
        errors = (problem.row_errors(u).sum(), problem.error(keep), problem.error(swapped))
        products = after.counters.get("gram_products", 0)
        parts = (float(error / unit) for error in errors)
        yield Step(*about, name, products, *parts, seconds, swaps, problem.hash[:12])


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    restart_on_one_thread()
    path = options.out / STEPS_CSV
    known = {(line.layer, line.pattern) for line in read(path, Step)}
    for layer in LAYERS:
        _, whole = one(f"smollm2/{layer}")
        for pattern in PATTERNS:
            if (layer, pattern) not in known:
                problem = replace(sample(whole, options.rows), pattern=pattern)
                list(measured(problem.part(slice(0, 2))))  # kernels are compiled
                append(path, list(measured(problem)))
                print(layer, pattern, flush=True)


if __name__ == "__main__":
    main()
