"""Trust in a timing: a short fixed load before and after each job shows whether the machine kept its speed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import cache
from statistics import median

import numpy as np

from fwbench.result import Result

DRIFT = 1.25  # a reference load may take this many times another's time
_REPEATS = 3


def reference(max_age: float = 0.0) -> float:
    """Seconds of a fixed load (a matrix product and a pass over memory, some 5 ms), the median of three.

    Args:
        max_age: seconds; a measurement no older than this is good enough.
    """
    if _last and time.monotonic() - _last[0] <= max_age:
        return _last[1]
    a, memory = _arrays()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        a @ a
        memory.sum()
        seconds.append(time.perf_counter() - started)
    _last[:] = [time.monotonic(), median(seconds)]
    return _last[1]


_last: list[float] = []  # when, and what


@cache
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    a, memory = np.full((512, 512), 1e-3), np.ones(1 << 20)
    a @ a  # the first product loads the library
    return a, memory


def load_average() -> float:
    """Processes that want a core, over the last minute; 0 where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0


def blas_threads() -> int:
    """Threads of the linear algebra library as it reports them itself, the most of any loaded; 0 if none is found."""
    from threadpoolctl import threadpool_info

    return max((int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"), default=0)


def drifted(result: Result, typical: float | None = None) -> bool:
    """True if the machine's speed changed during or around a run: its timing is not to be ranked.

    Args:
        typical: median reference load of the whole run, seconds; see :func:`typical_reference`.
    """
    if result.timing.get("drifted"):
        return True
    loads = [result.timing.get(key) for key in ("reference_before", "reference_after")]
    found = [float(load) for load in [*loads, typical] if load]
    return len(found) > 1 and max(found) > DRIFT * min(found)


def typical_reference(results: Iterable[Result]) -> float | None:
    """Median reference load of many results, seconds; None if none has one."""
    keys = ("reference_before", "reference_after")
    loads = [float(result.timing[key]) for result in results for key in keys if result.timing.get(key)]
    return median(loads) if loads else None
