"""Our ``fw`` on all rows of a layer against general-purpose QP solvers row by row, to the same relative gap.

    python -m benchmarks.peers.qp smollm2/07.gate_proj

Each back end solves a sample of rows at the loosest of its tolerances that reaches the gap on all of them; a row's cost
is the difference of two samples, so that what is paid once a layer (our certificate) is not counted against it, while
all of it is counted for ``fw``. CPU seconds of the process, one thread, in turns; the gap is measured in float64 from a
bound that ``fw`` at a tighter gap gives.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.shared import command
from benchmarks.shared.threads import one_thread
from fwbench import bounds
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.solvers.external.qp import BACKENDS, QuadraticProgram
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, Stage, State

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)  # of a back end, from the loosest


def part(problem: Problem, rows: np.ndarray) -> Problem:
    return problem.part(rows)


def timed(stage: Stage, problem: Problem, context: Context) -> tuple[float, np.ndarray]:
    """CPU seconds from Wanda's mask, and the point ``(rows, n)``."""
    state = Wanda().run(problem, State(), context)
    began = time.process_time()
    after = stage.run(problem, state, context)
    seconds = time.process_time() - began
    assert after.relaxed is not None
    return seconds, after.relaxed


def worst_gap(problem: Problem, u: np.ndarray, lower: np.ndarray) -> float:
    """The largest relative gap over rows, ``(f - lower) / f``."""
    value = problem.row_errors(u)
    return float(((value - lower) / value).max())


def row_seconds(backend: str, problem: Problem, lower: np.ndarray, gap: float, few: int) -> tuple[float, float, float]:
    """A row's CPU seconds, the tolerance that it took, and the gap reached; NaN where none reaches it."""
    for eps in TOLERANCES:
        stage, context = QuadraticProgram(backend, eps), Context(dtype="float64")
        try:
            long, u = timed(stage, problem, context)
        except RuntimeError:
            continue  # no answer at this tolerance
        reached = worst_gap(problem, u, lower)
        if reached <= gap:
            short, _ = timed(stage, part(problem, np.arange(few)), context)
            return (long - short) / (problem.rows - few), eps, reached
    return float("nan"), float("nan"), float("nan")


def compare(problem: Problem, gap: float, sample: int, few: int) -> None:
    fw, context = FrankWolfe(gap=gap), Context()
    timed(fw, part(problem, np.arange(4)), context)  # compile
    rows = np.linspace(0, problem.rows - 1, sample).astype(int)
    lower, layer = _bounds(problem, rows), []
    costs: dict[str, tuple[float, float, float]] = {}
    for backend in [name for name, found in BACKENDS.items() if found.installed]:
        seconds, u = timed(fw, problem, context)
        layer.append((seconds, worst_gap(part(problem, rows), u[rows], lower)))
        costs[backend] = row_seconds(backend, part(problem, rows), lower, gap, few)
    own = min(seconds for seconds, _ in layer)
    print(f"{problem.name} {problem.rows} x {problem.n}: fw {own:.3f} s, gap {layer[0][1]:.1e} on {sample} rows")
    for backend, (seconds, eps, reached) in costs.items():
        whole = seconds * problem.rows
        print(
            f"  {backend:10s} {seconds:.4f} s a row at eps {eps:.0e} (gap {reached:.1e}),"
            f" {whole:.1f} s a layer: {whole / own:.1f} times fw",
            flush=True,
        )


def _bounds(problem: Problem, rows: np.ndarray) -> np.ndarray:
    """Lower bounds of some rows, ``(rows,)``, from a Frank-Wolfe run to a gap of 1e-6."""
    some = part(problem, rows)
    _, u = timed(FrankWolfe(gap=1e-6, steps=20_000), some, Context(dtype="float64"))
    return bounds.group_bounds(some, u)


def main() -> None:
    parser = command.parser(__spec__, __doc__)
    parser.add_argument("problems", nargs="+", help="as for 'fwbench run'")
    parser.add_argument("--gap", type=float, default=1e-3)
    parser.add_argument("--sample", type=int, default=24, help="rows that the back ends solve")
    parser.add_argument("--few", type=int, default=8, help="rows of the smaller sample")
    options = parser.parse_args()
    one_thread()
    for selector in options.problems:
        for _, problem in load(selector):
            compare(problem, options.gap, options.sample, options.few)


if __name__ == "__main__":
    main()
