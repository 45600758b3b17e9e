"""Run functions in a process of their own, under limits of time and memory that are enforced from outside.

A :class:`Worker` is one child process that takes one job after another, a job being a function named
``module:function`` with pickled arguments. Whatever the child does (hang, eat memory, crash) ends as a :class:`Failure`
with its true reason, and nobody else notices. Nothing here knows what the jobs are about.

The child's side, and what a job may tell its parent, is :mod:`fwbench.child`.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import psutil

from fwbench.child import size

POLL_SECONDS = 0.05
BOOT_SECONDS = 300.0
_TAIL = 4096  # bytes of output kept
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class WorkerError(RuntimeError):
    """A worker process could not be started at all; the message is one line."""


@dataclass(frozen=True)
class Limits:
    """Of one job. ``seconds`` is what the job knows of; it is killed ``grace`` later, unless it is being judged."""

    seconds: float = math.inf
    grace: float = 2.0
    setup_seconds: float = math.inf  # until the job says that it has started
    judging_seconds: float = math.inf  # from when it says that it is being judged
    memory: int | None = None  # bytes, resident, of the process and its children


@dataclass(frozen=True)
class Reply:
    """A job's return value."""

    value: Any
    peak: int  # bytes, the resident maximum since the job started
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A job that gave no answer. ``kind``: time, setup, memory, died, raised (the process lives on)."""

    kind: str
    reason: str
    peak: int = 0
    seconds: float = 0.0
    started: bool = False  # False: it died during its preparations
    handed: tuple[bytes, ...] = field(default=(), repr=False)  # pickled, see child.hand_in; none once it was judged


@dataclass
class _Job:
    limits: Limits
    submitted: float
    oom_kills: int  # of the system, when it was submitted
    started: float | None = None
    judging: float | None = None
    peak: int = 0
    handed: list[bytes] = field(default_factory=list, repr=False)
    message: tuple[str, Any] | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float:
        """Since it has started, or else since it was submitted."""
        return time.monotonic() - (self.started or self.submitted)


class Worker:
    """A child process, starting in the background; :attr:`idle` turns True when it can take a job.

    Args:
        setup: functions to call once, in order: ``(name, arguments)``.
        threads: for numerical libraries, set before any is imported; None leaves the environment as it is.
    """

    def __init__(self, setup: Sequence[tuple[str, tuple]] = (), threads: int | None = None) -> None:
        self.idle = False
        self.alive = True
        self.served = 0  # jobs it has answered
        self._job: _Job | None = None
        self._tail = b""
        self._born = self._polled = time.monotonic()
        self._family: list[psutil.Process] = []
        self._listed = -math.inf
        # threads that spin while they wait make the pools of numpy, torch and numba slow each other tenfold
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ} | (
            dict.fromkeys(_THREAD_VARIABLES, str(threads)) if threads else {}
        )
        (command_in, command_out), (answer_in, answer_out) = os.pipe(), os.pipe()
        # the parent's own path: -c alone would put the current folder first, which may hold another fwbench
        main = f"from fwbench.child import serve; serve({command_in}, {answer_out})"
        code = f"import sys; sys.path[:] = {sys.path!r}\n{main}"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(command_in, answer_out),
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to handle; and the group can be killed as one
            )
        except OSError as error:
            for end in (command_out, answer_in):
                os.close(end)
            raise WorkerError(f"cannot start a worker process: {error.strerror}") from error
        finally:
            os.close(command_in)
            os.close(answer_out)
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._send = Connection(command_out, readable=False)
        self._receive = Connection(answer_in, writable=False)
        self._post((os.getpid(), tuple(setup)))

    def handles(self) -> list[Any]:
        """What to wait on (``multiprocessing.connection.wait``) before calling :meth:`poll`."""
        return [self._receive, self._process.stdout] if self.alive else []

    def submit(self, function: str, *arguments: Any, limits: Limits | None = None) -> None:
        """Hand over a job: ``function`` is ``module:name``, the arguments are pickled. Only when :attr:`idle`."""
        if not self.idle:
            raise RuntimeError("the worker is busy")
        self.idle = False
        self._tail = b""
        self._job = _Job(limits or Limits(), time.monotonic(), _oom_kills())
        self._post((function, arguments, self._job.limits.memory))

    def poll(self) -> Reply | Failure | None:
        """Look after the process without waiting: its answer, its failure, or None; enforces the limits.

        Raises:
            WorkerError: the process died or hung before it was ready for its first job.
        """
        if not self.alive:
            return None
        self._read_output()
        ended = self._receive_messages()
        if self._job is not None and self._job.message is not None:
            return self._take_answer()
        if ended or self._process.poll() is not None:
            if self.idle:  # something an earlier job left behind ended it; nobody is waiting
                self.close()
                return None
            return self._died()
        if self._job is None:
            if not self.idle and time.monotonic() - self._born > BOOT_SECONDS:
                return self._end("setup", f"not ready within {BOOT_SECONDS:g} s")
            return None
        return self._over_limits(self._job)

    def resident(self) -> int:
        """Bytes resident, of the process and its children."""
        if time.monotonic() > self._listed + 1:  # listing the children looks at every process there is
            self._listed = time.monotonic()
            with contextlib.suppress(psutil.Error):
                main = psutil.Process(self._process.pid)
                self._family = [main, *main.children(recursive=True)]
        total = 0
        for process in self._family:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def close(self) -> None:
        """End the process and its children; harmless when repeated."""
        if not self.alive:
            return
        self.alive = self.idle = False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._read_output()
        for end in (self._send, self._receive, self._process.stdout):
            assert end is not None
            end.close()

    def _post(self, message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died: poll will say how
            self._send.send(message)

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for _ in range(64):  # somebody who prints without end shall not keep us here
            chunk = self._process.stdout.read(1 << 16)
            if not chunk:
                return
            self._tail = (self._tail + chunk)[-_TAIL:]

    def _receive_messages(self) -> bool:
        """Take in what the child says; True if it can say nothing more."""
        try:
            while self._receive.poll():
                kind, content = self._receive.recv()
                if kind == "ready":
                    self.idle = True
                elif self._job is None:
                    raise WorkerError(f"a worker process cannot start: {content}")
                elif kind == "started":
                    self._job.started = time.monotonic()
                    self._job.peak = 0
                elif kind == "judging":
                    self._job.judging = time.monotonic()
                elif kind == "handed":
                    data, afresh = content
                    if afresh:
                        self._job.handed.clear()
                    self._job.handed.append(data)
                else:
                    self._job.message = (kind, content)
        except (EOFError, OSError):
            return True
        except WorkerError:
            self.close()
            raise
        return False

    def _take_answer(self) -> Reply | Failure:
        job = self._job
        assert job is not None
        assert job.message is not None
        kind, content = job.message
        self._job, self.idle = None, True
        self.served += 1
        if kind == "answer":
            value, peak = content
            return Reply(value, max(peak, job.peak) or self.resident(), job.seconds)
        return _failure(job, "memory" if content.startswith("memory") else "raised", content)

    def _over_limits(self, job: _Job) -> Failure | None:
        now, limits = time.monotonic(), job.limits
        if now >= self._polled + POLL_SECONDS:
            self._polled = now
            used = self.resident()
            job.peak = max(job.peak, used)
            if limits.memory is not None and used > limits.memory:
                return self._end("memory", f"memory: used {size(used)} of {size(limits.memory)} allowed")
        if job.started is None:
            if now > job.submitted + limits.setup_seconds:
                return self._end("setup", f"killed: its preparations did not end within {limits.setup_seconds:g} s")
        elif job.judging is not None:
            if now > job.judging + limits.judging_seconds:
                return self._end("time", f"killed: it was not judged within {limits.judging_seconds:g} s")
        elif now > job.started + limits.seconds + limits.grace:
            reason = f"killed: did not stop {limits.grace:g} s after its limit of {limits.seconds:g} s"
            return self._end("time", reason)
        return None

    def _died(self) -> Failure:
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return self._end("died", "the process closed its connection")
        self._read_output()
        if code >= 0:
            reason = f"the process died: exit code {code}"
        elif code == -signal.SIGKILL and self._job is not None and _oom_kills() > self._job.oom_kills:
            return self._end("memory", "memory: the kernel's out-of-memory killer ended it")
        else:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            reason = f"the process died: signal {name}{', which fwbench did not send' * (code == -signal.SIGKILL)}"
        last = _last_line(self._tail)
        return self._end("died", f"{reason}; it last printed: {last}" if last else reason)

    def _end(self, kind: str, reason: str) -> Failure:
        job, self._job = self._job, None
        self.close()
        if job is None:
            raise WorkerError(f"a worker process cannot start: {reason}")
        return _failure(job, kind, reason)


def _failure(job: _Job, kind: str, reason: str) -> Failure:
    handed = () if job.judging is not None else tuple(job.handed)
    return Failure(kind, reason, job.peak, job.seconds, job.started is not None, handed)


def _last_line(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _oom_kills() -> int:
    """Processes that the kernel's out-of-memory killer has ended since the system started; 0 if it does not say."""
    try:
        with open("/proc/vmstat", encoding="utf-8") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0
