"""Run a grid of (problem, spec, seed) in isolated workers, each row written to the store as it ends.

A job's key decides whether it has to run: what the store holds is reused, so a killed run goes on where it was. A
worker that hangs, eats memory or crashes costs its own row alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import statistics
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from fwbench import child, machine, pipeline, timing
from fwbench.events import Event, JobEnded, JobStarted, Progress, Summary
from fwbench.isolate import POLL_SECONDS, Answer, Death, Limits, Worker
from fwbench.pipeline import Outcome, Pipeline
from fwbench.problem import Problem
from fwbench.result import Result, Status
from fwbench.store import AlreadyStored, Store, outlasts

WARM_UP_SECONDS = 60.0
OWN_WARM_UP_SECONDS = 900.0  # our own stages do not hang: they compile, minutes on a busy machine
_SECONDS_PER_FLOP = 1e-10  # of a slow core, for the time a judge or one matrix product may take past the limit


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

    def warm_up_seconds(self, line: Pipeline) -> float:
        """How long a pipeline may take to load and compile; without a time limit nothing is killed for its time."""
        if math.isinf(self.time_limit):
            return math.inf
        return max(self.warm_up_limit, OWN_WARM_UP_SECONDS) if line.own else self.warm_up_limit


@dataclass(frozen=True)
class Job:
    """One cell of the grid."""

    collection: str
    problem: Problem
    line: Pipeline
    seed: int
    key: str
    attempt: int = 1  # on this run; a worker that a former job broke is no fault of this one


def run_grid(
    problems: Iterable[tuple[str, Problem]],
    pipelines: Sequence[Pipeline | str],
    store: Store,
    *,
    seeds: Sequence[int] = (0,),
    jobs: int = 1,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    retry_failed: bool = False,
    files: Sequence[Path | str] = (),
    on_event: Callable[[Event], None] | None = None,
    warm_up_limit: float = WARM_UP_SECONDS,
) -> Summary:
    """Run every pipeline on every problem with every seed.

    Args:
        problems: ``(collection, problem)``; taken one by one as workers get free, so a generator is welcome.
        pipelines: resolved, or specs.
        jobs: workers at a time; with more than one, each has one thread.
        time_limit: seconds a job; stages stop themselves, and are killed a little later if they do not.
        memory_limit: bytes resident of a worker; beyond it the job is killed.
        retry_failed: run failed rows again; else they are reused like the others.
        files: Python files that register solvers.
        on_event: told of every start, end and progress, in this process.
        warm_up_limit: seconds for loading and compiling on a tiny problem; our own stages have more.

    Raises:
        SpecError: a spec that cannot be resolved, before anything has run.
        WorkerError: no worker process can be started.
        StoreError: the store cannot be written; what was written before stays.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; the workers are ended, and what had ended is in the store.
    """
    for file in files:
        pipeline.load_file(file)
    lines = [line if isinstance(line, Pipeline) else pipeline.resolve(line) for line in pipelines]
    limit = math.inf if time_limit is None else float(time_limit)
    paths = tuple(str(Path(file).resolve()) for file in files)
    settings = Settings(max(1, jobs), limit, memory_limit, device, dtype, retry_failed, paths, warm_up_limit)
    total = len(problems) * len(lines) * len(seeds) if isinstance(problems, Sequence) else None
    grid = _Grid(store, settings, _cells(problems, lines, seeds, settings), total, on_event or (lambda event: None))
    with _sigterm_raises():
        try:
            return grid.run()
        finally:
            grid.close()


def _cells(
    problems: Iterable[tuple[str, Problem]], lines: Sequence[Pipeline], seeds: Sequence[int], settings: Settings
) -> Iterator[Job]:
    for collection, problem in problems:
        for line in lines:
            for seed in seeds:
                key = pipeline.key(problem.hash, line, seed, settings.device, settings.dtype)
                yield Job(collection, problem, line, seed, key)


@dataclass
class _Slot:
    """A worker, its job, and the problem it holds."""

    worker: Worker
    job: Job | None = None
    problem_hash: str = ""


@dataclass
class _Grid:
    store: Store
    settings: Settings
    cells: Iterator[Job]
    total: int | None
    tell: Callable[[Event], None]
    summary: Summary = field(default_factory=Summary)
    slots: list[_Slot] = field(default_factory=list)
    again: deque[Job] = field(default_factory=deque)
    seen: set[str] = field(default_factory=set)  # keys of this run
    no_warm_up: set[str] = field(default_factory=set)  # solvers whose warm-up never ended
    references: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def run(self) -> Summary:
        waiting = self._next()
        while waiting or any(slot.job for slot in self.slots):
            self.slots = [slot for slot in self.slots if slot.worker.alive]
            idle = next((slot for slot in self.slots if slot.worker.idle and slot.job is None), None)
            if waiting and idle:
                self._submit(idle, waiting)
                waiting = self._next()
                continue
            if waiting and len(self.slots) < min(self.settings.jobs, self._left()):
                self.slots.append(_Slot(_worker(self.settings)))
            wait([handle for slot in self.slots for handle in slot.worker.handles()], timeout=POLL_SECONDS)
            for slot in self.slots:
                reply = slot.worker.poll() if slot.worker.alive else None
                if reply is not None:
                    self._ended(slot, reply)
            waiting = waiting or self._next()
        return self.summary

    def _left(self) -> float:
        """Jobs that have not ended, at most."""
        return math.inf if self.total is None else self.total - self.summary.done - self.summary.reused

    def close(self) -> None:
        for slot in self.slots:
            slot.worker.close()

    def _next(self) -> Job | None:
        """The next job that has to run; those that need not are reported on the way."""
        if self.again:
            return self.again.popleft()
        for job in self.cells:
            if job.key in self.seen:  # the same problem in two collections, the same solver written twice
                self.total = self.total - 1 if self.total is not None else None
                continue
            self.seen.add(job.key)
            old = self.store.get(job.key)
            if old is None or not self._reusable(old, job):
                return job
            self._record(old, reused=True)
        return None

    def _reusable(self, old: Result, job: Job) -> bool:
        if old.status is Status.FAILED:
            return not self.settings.retry_failed
        if old.status is Status.SKIPPED:  # what was missing may be installed by now
            with contextlib.suppress(Exception):
                return pipeline.skip_reason(job.problem, job.line) == old.reason
            return False
        return not (old.status is Status.TIMEOUT and outlasts(old, self.settings.time_limit))

    def _submit(self, slot: _Slot, job: Job) -> None:
        warm_up = job.line.text not in self.no_warm_up
        fresh = slot.problem_hash != job.problem.hash
        slot.job, slot.problem_hash = job, job.problem.hash
        self.tell(JobStarted(job.collection, job.problem.name, job.line.text, job.seed))
        limits = Limits(
            self.settings.time_limit,
            grace(self.settings.time_limit, job.problem),
            setup_seconds=self.settings.warm_up_seconds(job.line),
            judging_seconds=judging_seconds(self.settings.time_limit),
            memory=self.settings.memory_limit,
        )
        order = (job.collection, job.line.text, job.seed, warm_up, self.settings)
        slot.worker.submit("fwbench.runner:execute", job.problem if fresh else None, order, limits=limits)

    def _ended(self, slot: _Slot, reply: Answer | Death) -> None:
        job, slot.job = slot.job, None
        assert job is not None
        if isinstance(reply, Death) and self._try_again(slot, job, reply):
            return
        outcome = self._outcome(job, reply)
        if not _clean(outcome.result, slot.worker, self.settings):
            slot.worker.close()
        with contextlib.suppress(AlreadyStored):  # another run on the same store was faster
            self.store.add(outcome, problem=job.problem)
        self._record(outcome.result, reused=False)

    def _try_again(self, slot: _Slot, job: Job, death: Death) -> bool:
        if death.kind == "setup" and job.line.text not in self.no_warm_up:
            self.no_warm_up.add(job.line.text)  # without it the time limit will tell the true story
        elif death.kind == "died" and not death.started and slot.worker.served and job.attempt == 1:
            job = replace(job, attempt=2)  # perhaps what a former job left behind killed the worker
        else:
            return False
        self.again.append(job)
        return True

    def _outcome(self, job: Job, reply: Answer | Death) -> Outcome:
        outcome = (
            reply.value
            if isinstance(reply, Answer)
            else self._fail(job, reply.reason, reply.seconds if reply.started else None)
        )
        if outcome.result.key != job.key:
            reason = "the solver's code is not the same in the worker: it was changed during the run"
            outcome = self._fail(job, reason)
        times = dict(outcome.result.timing)
        loads = [times[key] for key in ("reference_before", "reference_after") if key in times]
        self.references += loads
        if loads and timing.drifted(outcome.result, statistics.median(self.references)):
            times["drifted"] = 1.0
        if math.isfinite(self.settings.time_limit):
            times["time_limit"] = self.settings.time_limit
        origin = {**machine.describe(), **outcome.result.machine}
        result = replace(outcome.result, timing=times, machine=origin, peak_memory=reply.peak or None)
        return replace(outcome, result=result)

    def _fail(self, job: Job, reason: str, seconds: float | None = None) -> Outcome:
        return Outcome(
            pipeline.failed(
                job.problem,
                job.line,
                reason,
                collection=job.collection,
                seed=job.seed,
                device=self.settings.device,
                dtype=self.settings.dtype,
                seconds=seconds,
            )
        )

    def _record(self, result: Result, reused: bool) -> None:
        self.summary = self.summary.count(result, reused)
        self.tell(JobEnded(result, reused))
        done, eta = self.summary.done + self.summary.reused, None
        if self.total is not None and self.summary.done:
            eta = (time.monotonic() - self.began) / self.summary.done * self._left()
        self.tell(Progress(done, self.total, eta))


def grace(limit: float, problem: Problem) -> float:
    """Seconds past its limit after which a job is killed: at least 2, a tenth, and what judging a mask takes."""
    flops = 4.0 * problem.rows * problem.n**2 + problem.n**3
    return max(2.0, 0.1 * limit if math.isfinite(limit) else 0.0) + flops * _SECONDS_PER_FLOP


def judging_seconds(limit: float) -> float:
    """Seconds for checking a mask and its proof: a tree's proof takes a part of the time of its search."""
    return 60.0 + 10.0 * limit


def _worker(settings: Settings) -> Worker:
    setup = [
        ("fwbench.pipeline:load_solvers", ()),
        *(("fwbench.pipeline:load_file", (file,)) for file in settings.files),
    ]
    return Worker(setup, threads=1 if settings.jobs > 1 else None)


def _clean(result: Result, worker: Worker, settings: Settings) -> bool:
    """True if the worker may take the next job: nothing failed in it, and it holds no memory that others would miss."""
    roomy = settings.memory_limit is None or worker.resident() < settings.memory_limit / 2
    return worker.alive and result.status is not Status.FAILED and roomy


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM becomes SystemExit, so that workers are ended; only the main thread can arrange that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- in the worker ---------------------------------------------------------------------------------------------------

_held: list[Problem] = []


def execute(problem: Problem | None, order: tuple[str, str, int, bool, Settings]) -> Outcome:
    """One job, in the worker: warm up, measure the reference load, run, measure it again.

    Args:
        problem: None for the one of the job before.
        order: collection, spec, seed, whether to warm up, settings.
    """
    if problem is not None:
        _held[:] = [problem]
    problem, (collection, text, seed, warm_up, settings) = _held[0], order
    line = pipeline.resolve(text)
    common: dict[str, Any] = {
        "device": settings.device,
        "dtype": settings.dtype,
        "seed": seed,
        "collection": collection,
    }
    if warm_up:
        pipeline.warm_up(line, problem, device=settings.device, dtype=settings.dtype)
    times = {"reference_before": timing.reference(max_age=1.0), "load": timing.load_average()}
    before = checksum(problem)
    child.started()
    limits: dict[str, Any] = {"threads": settings.threads, "time_limit": settings.time_limit}
    outcome = pipeline.run(problem, line, on_solved=child.judging, **limits, **common)
    times |= {"reference_after": timing.reference(), "blas_threads": timing.blas_threads()}
    result = outcome.result
    if checksum(problem) != before:
        result = pipeline.failed(problem, line, "it changed the problem's arrays in place", **common)
        outcome = Outcome(result)
    result = replace(result, timing={**result.timing, **times}, machine=_accelerator(settings.device))
    return Outcome(result, outcome.keep, certificate=outcome.certificate)


def checksum(problem: Problem) -> int:
    """Of W and G; tells whether a solver wrote into them."""
    return zlib.crc32(problem.G.data, zlib.crc32(problem.W.data))


def _accelerator(device: str) -> dict[str, object]:
    if not device.startswith("cuda"):
        return {}
    import torch

    return {"accelerator": torch.cuda.get_device_name(device)}
