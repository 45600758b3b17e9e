"""Resolve a spec to stages, run and time them, judge what comes out.

The pipeline owns the clock and the checks: stages hold neither. ``run`` never raises for a solver's failure: whatever
a stage does becomes a row with its status, verdict and reason.
"""

from fwbench.pipeline.judging import Answer, failed, wanda_error, wanda_errors
from fwbench.pipeline.resolving import (
    Solver,
    default_set,
    describe,
    key,
    load_file,
    load_solvers,
    presets,
    resolve,
    skip_reason,
)
from fwbench.pipeline.running import StageError, run, salvage, warm_up

__all__ = [
    "Answer",
    "Solver",
    "StageError",
    "default_set",
    "describe",
    "failed",
    "key",
    "load_file",
    "load_solvers",
    "presets",
    "resolve",
    "run",
    "salvage",
    "skip_reason",
    "wanda_error",
    "wanda_errors",
    "warm_up",
]
