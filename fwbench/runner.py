"""Run a grid of (problem, spec, seed) in isolated workers, each row written to the store as it ends.

A job's key decides whether it has to run: what the store holds is reused, so a killed run goes on where it was. A
worker that hangs, eats memory or crashes costs its own row alone.
"""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType

from fwbench import machine, pipeline, timing
from fwbench.events import Event, JobEnded, JobStarted, Progress, Summary
from fwbench.isolate import POLL_SECONDS, Failure, Limits, Reply, Worker
from fwbench.job import WARM_UP_SECONDS, Order, Settings
from fwbench.pipeline import Answer, Run, Solver
from fwbench.problem import Problem
from fwbench.result import Result, Status
from fwbench.spec import SEEDS
from fwbench.store import AlreadyStored, Store, outlasts

_SECONDS_PER_FLOP = 1e-10  # of a slow core, for the time a judge or one matrix product may take past the limit


@dataclass(frozen=True)
class Job:
    """One run of the grid, and what has become of it so far."""

    run: Run
    attempt: int = 1  # on this run; a worker that a former job broke is no fault of this one
    failure: Failure | None = None  # it was killed; what it had handed in is to be judged


def run_grid(
    problems: Iterable[tuple[str, Problem]],
    solvers: Sequence[Solver | str],
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
    """Run every solver on every problem with every seed.

    Args:
        problems: ``(collection, problem)``; taken as workers get free, so a generator is welcome. If it raises, what it
            gave before runs first.
        solvers: resolved, or specs.
        jobs: workers at a time; with more than one, each has one thread.
        time_limit: seconds a job; stages stop themselves, and are killed a little later if they do not.
        memory_limit: bytes resident of a worker; beyond it the job is killed.
        retry_failed: run failed rows again; else they are reused like the others.
        files: Python files that register solvers.
        on_event: told of every start, end and progress, in this process.
        warm_up_limit: seconds for loading and compiling on a tiny problem; our own stages have more.

    Raises:
        SpecError: a spec that cannot be resolved, before anything has run.
        ValueError: a seed out of ``fwbench.spec.SEEDS``, likewise.
        WorkerError: no worker process can be started.
        StoreError: the store cannot be written; what was written before stays.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; the workers are ended, and what had ended is in the store.
    """
    for file in files:
        pipeline.load_file(file)
    resolved = [solver if isinstance(solver, Solver) else pipeline.resolve(solver) for solver in solvers]
    if wrong := [seed for seed in seeds if seed not in SEEDS]:
        raise ValueError(f"seed {wrong[0]} is not in {SEEDS.start}..{SEEDS.stop - 1}")
    limit = math.inf if time_limit is None else float(time_limit)
    paths = tuple(str(Path(file).resolve()) for file in files)
    settings = Settings(max(1, jobs), limit, memory_limit, device, dtype, retry_failed, paths, warm_up_limit)
    total = len(problems) * len(resolved) * len(seeds) if isinstance(problems, Sequence) else None
    grid = _Grid(store, settings, _cells(problems, resolved, seeds, settings), total, on_event or (lambda event: None))
    with _sigterm_raises():
        try:
            return grid.run()
        finally:
            grid.close()


def _cells(
    problems: Iterable[tuple[str, Problem]], solvers: Sequence[Solver], seeds: Sequence[int], settings: Settings
) -> Iterator[Job]:
    for collection, problem in problems:
        for solver in solvers:
            for seed in seeds:
                yield Job(Run(problem, solver, seed, settings.device, settings.dtype, collection))


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
    waiting: deque[Job] = field(default_factory=deque)  # taken from the cells, and those that are tried again
    seen: set[str] = field(default_factory=set)  # keys of this run
    placed: set[str] = field(default_factory=set)  # hashes of problems whose rows are reused
    no_warm_up: set[str] = field(default_factory=set)  # solvers whose warm-up never ended
    references: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    error: Exception | None = None  # of the cells

    def run(self) -> Summary:
        while True:
            self.slots = [slot for slot in self.slots if slot.worker.alive]
            free = [slot for slot in self.slots if slot.job is None]
            more = len(self.slots) < self.settings.jobs
            self._look_ahead(max(1, len(free) + more))
            if not self.waiting and len(free) == len(self.slots):
                break
            for slot in free:
                if slot.worker.idle and self.waiting:
                    self._submit(slot, self.waiting.popleft())
            starting = sum(slot.job is None for slot in self.slots)
            if more and len(self.waiting) > starting:
                self.slots.append(_Slot(_worker(self.settings)))
            wait([handle for slot in self.slots for handle in slot.worker.handles()], timeout=POLL_SECONDS)
            for slot in self.slots:
                reply = slot.worker.poll() if slot.worker.alive else None
                if reply is not None:
                    self._ended(slot, reply)
        if self.error is not None:
            raise self.error
        return self.summary

    def _look_ahead(self, count: int) -> None:
        """Have as many jobs waiting, if there are so many: a worker is started only for a job that is there."""
        while len(self.waiting) < count and (job := self._next()) is not None:
            self.waiting.append(job)

    def close(self) -> None:
        for slot in self.slots:
            slot.worker.close()

    def _next(self) -> Job | None:
        """The next cell that has to run; those that need not are reported on the way."""
        while (job := self._cell()) is not None:
            if job.run.key in self.seen:  # the same problem in two collections, the same solver written twice
                self.total = self.total - 1 if self.total is not None else None
                continue
            self.seen.add(job.run.key)
            old = self.store.get(job.run.key)
            if old is None or not self._reusable(old, job):
                return job
            if job.run.problem.hash not in self.placed:
                self.placed.add(job.run.problem.hash)
                self.store.add_problem(job.run.problem, job.run.collection)  # it may have moved since
            self._record(old, reused=True)
        return None

    def _cell(self) -> Job | None:
        try:
            cell = next(self.cells, None)
        except Exception as error:
            cell, self.error = None, error
        if cell is None and self.total is None:  # of a generator: now it is known
            running = sum(slot.job is not None for slot in self.slots)
            self.total = self.summary.done + self.summary.reused + len(self.waiting) + running
        return cell

    def _reusable(self, old: Result, job: Job) -> bool:
        if old.status is Status.FAILED:
            return not self.settings.retry_failed
        if old.status is Status.SKIPPED:  # what was missing may be installed by now
            with contextlib.suppress(Exception):
                return pipeline.skip_reason(job.run.problem, job.run.solver) == old.reason
            return False
        return not (old.status is Status.TIMEOUT and outlasts(old, self.settings.time_limit))

    def _submit(self, slot: _Slot, job: Job) -> None:
        warm_up = job.run.solver.text not in self.no_warm_up
        fresh = slot.problem_hash != job.run.problem.hash
        slot.job, slot.problem_hash = job, job.run.problem.hash
        problem = job.run.problem if fresh else None
        order = Order(job.run.collection, job.run.solver.text, job.run.seed, warm_up, self.settings)
        if job.failure is not None:
            judging = Limits(setup_seconds=judging_seconds(self.settings.time_limit), memory=self.settings.memory_limit)
            slot.worker.submit("fwbench.job:salvage", problem, order, job.failure.handed, limits=judging)
            return
        self.tell(JobStarted(job.run.collection, job.run.problem.name, job.run.solver.text, job.run.seed))
        limits = Limits(
            self.settings.time_limit,
            grace(self.settings.time_limit, job.run.problem),
            setup_seconds=self.settings.warm_up_seconds(job.run.solver),
            judging_seconds=judging_seconds(self.settings.time_limit),
            memory=self.settings.memory_limit,
        )
        slot.worker.submit("fwbench.job:execute", problem, order, limits=limits)

    def _ended(self, slot: _Slot, reply: Reply | Failure) -> None:
        job, slot.job = slot.job, None
        assert job is not None
        if isinstance(reply, Failure) and self._try_again(slot, job, reply):
            return
        outcome = self._outcome(job, reply)
        if not _clean(outcome.result, slot.worker, self.settings):
            slot.worker.close()
        with contextlib.suppress(AlreadyStored):  # another run on the same store was faster
            self.store.add(outcome, problem=job.run.problem)
        if outcome.certificate is not None and not outcome.result.solved:  # of a run that died: it holds all the same
            proof = replace(outcome.certificate, source=outcome.result.solver)
            self.store.add_certificate(proof, proof.bound)
        self._record(outcome.result, reused=False)

    def _try_again(self, slot: _Slot, job: Job, failure: Failure) -> bool:
        if job.failure is not None:
            return False
        if failure.kind == "setup" and job.run.solver.text not in self.no_warm_up:
            self.no_warm_up.add(job.run.solver.text)  # without it the time limit will tell the true story
        elif failure.kind == "died" and not failure.started and slot.worker.served and job.attempt == 1:
            job = replace(job, attempt=2)  # perhaps what a former job left behind killed the worker
        elif failure.handed:
            job = replace(job, failure=failure)
        else:
            return False
        self.waiting.appendleft(job)
        return True

    def _outcome(self, job: Job, reply: Reply | Failure) -> Answer:
        if job.failure is not None:
            outcome, reply = self._salvaged(job, job.failure, reply), job.failure
        elif isinstance(reply, Reply):
            outcome = reply.value
        else:
            outcome = Answer(job.run.failed(reply.reason, seconds=reply.seconds if reply.started else None))
        if outcome.result.key != job.run.key:
            reason = "the solver's code is not the same in the worker: it was changed during the run"
            outcome = Answer(job.run.failed(reason))
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

    def _salvaged(self, job: Job, failure: Failure, reply: Reply | Failure) -> Answer:
        """The row of a job that was killed, and what it had by then: an answer if the clock ended it, else a proof."""
        nothing = Answer(job.run.failed(failure.reason, seconds=failure.seconds))
        had = reply.value if isinstance(reply, Reply) else nothing
        if had.result.status is Status.FAILED:
            return nothing
        if failure.kind == "time":
            reason = f"{failure.reason}; what it had by then is kept"
            return replace(had, result=replace(had.result, reason=reason, seconds=failure.seconds))
        if had.certificate is None:
            return nothing
        reason = f"{failure.reason}; the proof that it had by then is kept"
        return replace(nothing, result=replace(nothing.result, reason=reason), certificate=had.certificate)

    def _record(self, result: Result, reused: bool) -> None:
        self.summary = self.summary.count(result, reused)
        self.tell(JobEnded(result, reused))
        done, eta = self.summary.done + self.summary.reused, None
        if self.total is not None and self.summary.done:
            eta = (time.monotonic() - self.began) / self.summary.done * (self.total - done)
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
