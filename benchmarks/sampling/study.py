"""Stages that draw at random beside their like that do not: `bernoulli`, `momentum`, `dwave`, on rows of `mini`.

    python -m benchmarks.sampling.study        lines that are missing are added to sampling.csv
    python -m benchmarks.sampling.page

CPU seconds of the whole pipeline, judging included; one thread, one seed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.threads import restart_on_one_thread
from fwbench import pipeline
from fwbench.problem import Problem
from fwbench.problems import collections

SAMPLING_CSV = "sampling.csv"
SELECTORS = ("mini/*n064*", "mini/*n128*", "mini/*n192*")
DWAVE = tuple(
    f"wanda+dwave(method={method},penalty={penalty},sweeps={sweeps})"
    for method, sweeps in (("tabu", 100), ("sa", 1000))
    for penalty in (1.0, 0.1, 0.01)
)
RELAXED = (
    "wanda+fw(variant=vanilla,steps=1000)",
    "wanda+fw(variant=vanilla,step=open,steps=1000)",
    "wanda+momentum(steps=1000)",
    "wanda+momentum(steps=1000,alpha=0.1)",
    "wanda+bernoulli",
)
SPECS = ("wanda", "wanda+swap", "wanda+tabu(iterations=3000)", "wanda+anneal(rounds=2)", *DWAVE, *RELAXED)


@dataclass(frozen=True)
class Line:
    """One spec on one problem; ``relaxed``: of the point before rounding, 0 where there is none; both by Wanda's."""

    problem: str
    rows: int
    n: int
    spec: str
    ratio: float
    relaxed: float
    samples: int
    repaired: int
    seconds: float
    hash: str


def measured(problem: Problem, spec: str) -> Line:
    solver = pipeline.resolve(spec)
    pipeline.warm_up(pipeline.Run(problem, solver))
    began = time.process_time()
    result = pipeline.run(problem, solver, seed=1, threads=1).result
    seconds = time.process_time() - began
    if not result.solved or result.ratio_to_wanda is None or result.error is None:
        raise SystemExit(f"{problem.name}: {spec} failed ({result.reason})")
    relaxed = (result.relaxed_error or 0.0) * result.ratio_to_wanda / result.error
    counts = (result.counters.get(name, 0) for name in ("samples", "repaired"))
    return Line(
        problem.name, problem.rows, problem.n, spec, result.ratio_to_wanda, relaxed, *counts, seconds, problem.hash[:12]
    )


def main() -> None:
    options = command.study(__spec__, __doc__).parse_args()
    restart_on_one_thread()
    path = options.out / SAMPLING_CSV
    known = {(line.problem, line.spec) for line in read(path, Line)}
    for selector in SELECTORS:
        for _, problem in collections.load(selector):
            if not problem.pattern.separable:
                continue
            for spec in SPECS:
                if (problem.name, spec) not in known:
                    append(path, [measured(problem, spec)])
            print(problem.name, flush=True)


if __name__ == "__main__":
    main()
