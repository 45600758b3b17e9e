"""What a run knows while it runs, line by line: primal, dual and gap, as the tables of Frank-Wolfe codes show them."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

from fwbench import metrics
from fwbench.result import TracePoint

EVERY = 0.2  # seconds between two lines of one stage


class Table:
    """Prints a line for a point, at most one every ``EVERY`` seconds of a stage; a listener for ``pipeline.run``."""

    def __init__(self, out: TextIO | None = None, every: float = EVERY) -> None:
        self.out, self.every = out or sys.stderr, every
        self.stage, self.last = "", -float("inf")
        self.begun = False
        self.lock = threading.Lock()  # branch and bound tells from the threads of its rows

    def __call__(self, stage: str, point: TracePoint) -> None:
        with self.lock:
            now = time.monotonic()
            if stage == self.stage and now - self.last < self.every:
                return
            self.stage, self.last = stage, now
            if not self.begun:
                self.begun = True
                print(
                    f"{'seconds':>9}  {'stage':<10} {'iteration':>9}  {'primal':>12}  {'dual':>12}  {'gap':>9}",
                    file=self.out,
                )
            print(line(stage, point), file=self.out, flush=True)


def line(stage: str, point: TracePoint) -> str:
    """One line of the table: the primal is a mask's error where there is one, else the relaxation's objective."""
    primal = point.upper if point.upper is not None else point.relaxed
    gap = metrics.optimality_gap(primal, point.lower)
    shown = [f"{point.seconds:9.2f}", f" {stage:<10}", f"{'' if point.iterations is None else point.iterations:>9}"]
    shown += [f" {_number(primal):>12}", f" {_number(point.lower):>12}", f" {'' if gap is None else f'{gap:.2%}':>9}"]
    return " ".join(shown)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
