"""What an iteration of Frank-Wolfe costs beside the one product it cannot do without, on whole layers of block 7.

    python -m benchmarks.convergence.iterations         measures the variants that reports/convergence lacks
    python -m benchmarks.convergence.page

One thread, float32, from Wanda's mask, no stop. ``TURNS`` times in turn: the bare product of all rows with G into
memory that is there, and runs of ``SHORT`` and of ``LONG`` iterations, whose difference is that of the iterations
alone. Seconds are the processor's; each is the median of the turns, and so is the ratio, that of what was measured side
by side (the machine's speed drifts from method to method).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.threads import one_thread
from fwbench import machine
from fwbench.problems.collections import one
from fwbench.solvers.frank_wolfe import loop, rules
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

LAYERS = ("smollm2/07.gate_proj", "smollm2/07.down_proj")
OPTIONS = {
    "SparseFW (open step)": loop.LoopOptions(step="open"),
    **{variant: loop.LoopOptions(variant=variant) for variant in rules.DIRECTION_RULES},
    "push": loop.LoopOptions(),
}
PUSHED = 0.3  # push's strength, of the diagonal: about the middle of its rounds
SHORT, LONG, TURNS = 10, 40, 9
ITERATIONS_CSV = "iterations.csv"


@dataclass(frozen=True)
class Iteration:
    """A line of the CSV; milliseconds of one thread."""

    problem: str
    rows: int
    n: int
    method: str
    product_ms: float
    iteration_ms: float
    ratio: float
    machine: str


def main() -> None:
    path = command.study(__spec__, __doc__).parse_args().out / ITERATIONS_CSV
    one_thread()
    done = {(line.problem, line.method) for line in read(path, Iteration)}
    for selector in LAYERS:
        _, problem = one(selector)
        plain = loop.Objective.of(problem, Context())
        start = torch.tensor(~Wanda().run(problem, State(), Context()).keep, dtype=torch.float32)
        for method, options in OPTIONS.items():
            if (problem.name, method) not in done:
                d = PUSHED * plain.W**2 * plain.G.diagonal() if method == "push" else None
                line = measure(loop.Objective(plain.W, plain.G, d, plain.pattern), start, options)
                append(path, [Iteration(problem.name, *problem.shape, method, *line, str(machine.describe()["cpu"]))])


def measure(layer: loop.Objective, start: torch.Tensor, options: loop.LoopOptions) -> tuple[float, float, float]:
    """Milliseconds of a product and of an iteration, and their ratio."""
    out, moved = torch.empty_like(start), layer.W * start

    def products() -> None:
        for _ in range(LONG - SHORT):
            torch.mm(moved, layer.G, out=out)

    def run(steps: int) -> Callable[[], object]:
        return lambda: loop.minimise(layer, start, replace(options, steps=steps), Context(threads=1))

    parts = (products, run(SHORT), run(LONG))
    times: list[list[float]] = [[], [], []]
    for turn in range(TURNS + 1):
        for part, kept in zip(parts, times, strict=True):
            began = time.process_time()
            part()
            if turn:  # the first compiles
                kept.append(1e3 * (time.process_time() - began) / (LONG - SHORT))
    product, short, long = times
    iteration = [after - before for before, after in zip(short, long, strict=True)]
    ratio = median(one / bare for one, bare in zip(iteration, product, strict=True))
    return round(median(product), 3), round(median(iteration), 3), round(ratio, 3)


if __name__ == "__main__":
    main()
