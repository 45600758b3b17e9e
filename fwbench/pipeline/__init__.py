"""Resolve a spec to stages, run and time them, judge what comes out.

A :class:`Run` is one cell: problem, solver, seed, device, precision. The pipeline owns the clock and the checks: stages
hold neither. ``execute`` never raises for a solver's failure: whatever
a stage does becomes a row with its status, verdict and reason.
"""

from fwbench.pipeline.cell import Run
from fwbench.pipeline.judging import Answer, wanda_error, wanda_errors
from fwbench.pipeline.resolving import (
    Solver,
    default_set,
    describe,
    load_file,
    load_solvers,
    package,
    presets,
    resolve,
    skip_reason,
)
from fwbench.pipeline.running import StageError, execute, run, salvage, warm_up

__all__ = [
    "Answer",
    "Run",
    "Solver",
    "StageError",
    "default_set",
    "describe",
    "execute",
    "load_file",
    "load_solvers",
    "package",
    "presets",
    "resolve",
    "run",
    "salvage",
    "skip_reason",
    "wanda_error",
    "wanda_errors",
    "warm_up",
]
