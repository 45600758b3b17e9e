"""How each Frank-Wolfe variant converges on a well- and an ill-conditioned layer.

    python -m benchmarks.convergence.curves
    python -m benchmarks.convergence.page

Each variant runs as first published (dashed) and, where it has them, with corrections (solid), in float64 on one
thread. The gap is that of the error to Clarabel's optimum; seconds are the processor's. The CSV, which a run replaces,
keeps some ninety points a curve and those that first reach the gaps of the page's table.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.shared import command
from benchmarks.shared.csv_lines import write
from benchmarks.shared.samples import condition
from benchmarks.shared.threads import one_thread
from fwbench.problem import Problem
from fwbench.problems.collections import one
from fwbench.result import TracePoint
from fwbench.solvers.external.qp import QuadraticProgram
from fwbench.solvers.frank_wolfe.rules import DIRECTION_RULES
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

CURVES_CSV = "curves.csv"
PROBLEMS = ("mini/n256.o_proj.random.0.6", "mini/n256.gate_proj.top.0.5")
CORRECTED = ("away", "pairwise", "bcg", "bpcg", "dicg")
EVERY = 20  # iterations from one correction to the next
STEPS = 5000
END = 1e-8  # Frank-Wolfe gap at which a run ends
LEVELS = (1e-3, 1e-6)
SECONDS = 120.0  # wall time for a run


@dataclass(frozen=True)
class CurvePoint:
    """A line of the CSV: one look at a run."""

    problem: str
    rows: int
    n: int
    condition: float  # of the Gram matrix
    variant: str
    correct: int
    iterations: int
    seconds: float  # of the processor
    gap: float  # relative to Clarabel's optimum


@dataclass(frozen=True)
class Clock(Context):
    """A context that tells the processor's time; ``started`` is a time of that clock."""

    def seconds(self) -> float:
        return time.process_time() - self.started


def measure(problem: Problem) -> Iterable[CurvePoint]:
    """All variants on one problem, from Wanda's mask."""
    exact = Context(dtype="float64")
    start = Wanda().run(problem, State(), exact)
    optimum = problem.row_errors(QuadraticProgram(eps=1e-10).run(problem, start, exact).relaxed).sum()
    conditioning = digits(condition(problem.G))
    for variant in DIRECTION_RULES:
        for correct in (0, EVERY) if variant in CORRECTED else (0,):
            stage = FrankWolfe(variant=variant, correct=correct, steps=STEPS, gap=END, seconds=SECONDS)
            trace = stage.run(problem, start, Clock(dtype="float64", started=time.process_time())).trace
            for moment in thin(trace, optimum):
                gap = moment.relaxed / optimum - 1
                head = (problem.name, *problem.shape, conditioning, variant, correct)
                yield CurvePoint(*head, moment.iterations, digits(moment.seconds), digits(gap))


def digits(value: float) -> float:
    """The six of them that the CSV keeps."""
    return float(f"{value:.6g}")


def thin(trace: Sequence[TracePoint], optimum: float) -> list[TracePoint]:
    """Moments at iterations in geometric progression, the last, and the first at each gap of the table."""
    kept = set(10 * np.geomspace(1, STEPS / 10, 90).round().astype(int)) | {0, trace[-1].iterations}
    for level in LEVELS:
        kept |= {next((m.iterations for m in trace if m.relaxed <= optimum * (1 + level)), 0)}
    return [moment for moment in trace if moment.iterations in kept]


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    one_thread()
    problems = [one(selector)[1] for selector in PROBLEMS]
    for variant in DIRECTION_RULES:  # compile
        start = Wanda().run(problems[0], State(), Context())
        FrankWolfe(variant=variant, steps=25).run(problems[0], start, Context(dtype="float64"))
    write(out / CURVES_CSV, [point for problem in problems for point in measure(problem)])


if __name__ == "__main__":
    main()
