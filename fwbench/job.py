"""What a worker does with one cell of a grid: run it, or judge what a run that was killed had handed in."""

from __future__ import annotations

import functools
import math
import os
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fwbench import child, pipeline, timing
from fwbench.pipeline import Answer, Run, Solver
from fwbench.problem import Problem

WARM_UP_SECONDS = 60.0
OWN_WARM_UP_SECONDS = 900.0  # our own stages do not hang: they compile, minutes on a busy machine


@dataclass(frozen=True)
class Settings:
    """What all jobs of a grid have in common."""

    jobs: int = 1
    time_limit: float = math.inf  # seconds
    memory_limit: int | None = None  # bytes, resident, of a whole worker
    device: str = "cpu"
    dtype: str = "float32"
    retry_failed: bool = False
    files: tuple[str, ...] = ()  # solver files to load in the workers
    warm_up_limit: float = WARM_UP_SECONDS

    @property
    def threads(self) -> int:
        return 1 if self.jobs > 1 else os.cpu_count() or 1

    @property
    def limited(self) -> bool:
        """Whether a job may be killed for what it takes."""
        return math.isfinite(self.time_limit) or self.memory_limit is not None

    def warm_up_seconds(self, solver: Solver) -> float:
        """How long a solver may take to load and compile; without a time limit nothing is killed for its time."""
        if math.isinf(self.time_limit):
            return math.inf
        return max(self.warm_up_limit, OWN_WARM_UP_SECONDS) if solver.own else self.warm_up_limit


class Order(NamedTuple):
    """Which cell of the grid; the problem comes beside it."""

    collection: str
    spec: str
    seed: int
    warm_up: bool
    settings: Settings

    def run(self, problem: Problem | None) -> Run:
        """The cell, with its problem or that of the job before."""
        place = (self.settings.device, self.settings.dtype, self.collection)
        return Run(_hold(problem), pipeline.resolve(self.spec), self.seed, *place)


_held: list[Problem] = []


def execute(problem: Problem | None, order: Order) -> Answer:
    """Warm up, measure the reference load, run, measure it again.

    Args:
        problem: None for the one of the job before.
    """
    run, settings = order.run(problem), order.settings
    if order.warm_up:
        pipeline.warm_up(run)
    times = {"reference_before": timing.reference(max_age=1.0), "load": timing.load_average()}
    before = checksum(run.problem)
    child.started()
    answer = pipeline.execute(
        run,
        threads=settings.threads,
        time_limit=settings.time_limit,
        on_solved=child.judging,
        hand_in=child.hand_in if settings.limited else None,
    )
    times |= {"reference_after": timing.reference(), "blas_threads": timing.blas_threads()}
    if checksum(run.problem) != before:
        answer = Answer(run.failed("it changed the problem's arrays in place"))
    result = answer.result
    result = replace(result, timing={**result.timing, **times}, machine=_accelerator(settings.device))
    return Answer(result, answer.keep, certificate=answer.certificate)


def salvage(problem: Problem | None, order: Order, handed: Sequence[bytes]) -> Answer:
    """Judge what a run that was killed had handed in.

    Args:
        problem: None for the one of the job before.
        handed: of its :class:`fwbench.isolate.Failure`.
    """
    answer = pipeline.salvage(order.run(problem), map(pickle.loads, handed))
    return Answer(answer.result, answer.keep, certificate=answer.certificate)


def _hold(problem: Problem | None) -> Problem:
    if problem is not None:
        _held[:] = [problem]
    return _held[0]


def checksum(problem: Problem) -> int:
    """Of its arrays; tells whether a solver wrote into them."""
    arrays = (problem.W, problem.G, problem.T, problem.offset)
    return functools.reduce(lambda crc, array: crc if array is None else zlib.crc32(array.data, crc), arrays, 0)


def _accelerator(device: str) -> dict[str, object]:
    if not device.startswith("cuda"):
        return {}
    import torch

    return {"accelerator": torch.cuda.get_device_name(device)}
