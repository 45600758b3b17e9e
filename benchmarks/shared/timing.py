"""Pipelines on one thread with the CPU's time beside the wall's."""

from __future__ import annotations

import time

from fwbench import pipeline
from fwbench.pipeline import Answer, Solver
from fwbench.problem import Problem


def timed(problem: Problem, line: Solver) -> tuple[Answer, float]:
    """What a solver makes of a problem on one thread, compiled before, and its share of a CPU meanwhile."""
    pipeline.warm_up(pipeline.Run(problem, line))
    began, cpu = time.perf_counter(), time.process_time()
    outcome = pipeline.run(problem, line, collection="study", threads=1)
    return outcome, min(1.0, (time.process_time() - cpu) / (time.perf_counter() - began))
