"""Isolation: whatever a job does, its worker tells the true reason. The jobs are functions of the standard library."""

from __future__ import annotations

import math
import os
import pickle
import time
from multiprocessing.connection import wait

import psutil
import pytest

from fwbench.isolate import Limits, Reply, Worker, WorkerError


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


def call(worker, function, *arguments, **limits):
    """Run a job to its end."""
    until_idle(worker)
    worker.submit(function, *arguments, limits=Limits(**limits))
    while (reply := worker.poll()) is None:
        wait(worker.handles(), timeout=0.05)
    return reply


def until_idle(worker):
    while not worker.idle:
        wait(worker.handles(), timeout=0.05)
        assert worker.poll() is None


def test_answers_and_is_reused(worker):
    first, second = call(worker, "os:getpid"), call(worker, "math:sqrt", 9.0)
    assert (second.value, first.value != os.getpid(), worker.served) == (3.0, True, 2)
    assert first.peak > 1 << 20


def test_an_exception_is_a_reason_and_the_process_lives(worker):
    reply = call(worker, "math:sqrt", -1.0)
    assert (reply.kind, reply.reason) == ("raised", "ValueError: math domain error")
    assert call(worker, "math:sqrt", 4.0).value == 2.0


def test_what_cannot_be_pickled_is_a_reason(worker):
    reply = call(worker, "threading:Lock")
    assert reply.kind == "raised"
    assert "pickle" in reply.reason


def test_it_never_waits_for_a_key(worker):
    assert call(worker, "builtins:input").reason.startswith("EOFError")


@pytest.mark.parametrize(
    ("function", "argument", "reason"),
    [
        ("os:_exit", 3, "the process died: exit code 3"),
        ("ctypes:string_at", 0, "the process died: signal SIGSEGV"),
        ("signal:raise_signal", 9, "the process died: signal SIGKILL, which fwbench did not send"),
        ("signal:raise_signal", 15, "the process died: signal SIGTERM"),
        ("sys:exit", "gone", "the process died: exit code 1; it last printed: gone"),
    ],
)
def test_a_failure_has_its_true_reason(worker, function, argument, reason):
    reply = call(worker, function, argument)
    assert (reply.kind, reply.reason, worker.alive) == ("died", reason, False)


def test_too_slow_in_its_preparations(worker):
    began = time.monotonic()
    reply = call(worker, "time:sleep", 60, setup_seconds=0.2)
    assert (reply.kind, reply.started) == ("setup", False)
    assert time.monotonic() - began < 10


CHILD = "m := __import__('fwbench.child').child"
JUDGED = f"[({CHILD}).started(), m.judging(), __import__('time').sleep({{}})] and 7"


def test_what_is_judged_has_a_limit_of_its_own(worker):
    assert call(worker, "builtins:eval", JUDGED.format(0.5), seconds=0.1, grace=0.1).value == 7
    reply = call(worker, "builtins:eval", JUDGED.format(60), judging_seconds=0.2)
    assert (reply.kind, reply.started, reply.reason) == ("time", True, "killed: it was not judged within 0.2 s")


HANDED = f"[({CHILD}).started(), m.hand_in('a'), m.hand_in('b', True), m.hand_in((1, 2)), {{}}]"


@pytest.mark.parametrize(
    ("ends", "kind", "has"),
    [
        ("__import__('time').sleep(60)", "time", ["b", (1, 2)]),
        ("__import__('os')._exit(3)", "died", ["b", (1, 2)]),
        ("1 / 0", "raised", ["b", (1, 2)]),
        ("m.judging(), __import__('time').sleep(60)", "time", []),  # what is judged is all that it had
    ],
)
def test_what_a_job_handed_in_outlives_it(worker, ends, kind, has):
    code = HANDED.format(ends)
    reply = call(worker, "builtins:eval", code, seconds=0.2, grace=0.1, judging_seconds=0.2)
    assert (reply.kind, list(map(pickle.loads, reply.handed))) == (kind, has)


def test_a_job_that_answers_needs_nothing_that_it_handed_in(worker):
    assert call(worker, "builtins:eval", HANDED.format(7)).value[-1] == 7


def test_memory_taken_bit_by_bit(worker):
    reply = call(worker, "builtins:eval", "[bytearray(b'x') * 4096 for _ in range(1 << 30)]", memory=200 << 20)
    assert reply.kind == "memory"
    assert reply.reason.startswith("memory:")
    assert reply.peak < 1 << 30


def test_memory_taken_at_once_is_refused_before_it_is_used(worker):
    reply = call(worker, "builtins:bytearray", 1 << 34, memory=200 << 20)
    assert (reply.kind, worker.alive) == ("memory", True)
    assert "200 MiB allowed" in reply.reason


def test_children_of_a_job_end_with_it(worker):
    until_idle(worker)
    main = psutil.Process(worker._process.pid)
    worker.submit("subprocess:call", ["sleep", "100"], limits=Limits(setup_seconds=1.0))
    while not (children := main.children()):
        assert worker.poll() is None
        time.sleep(0.02)
    while worker.poll() is None:
        time.sleep(0.02)
    psutil.wait_procs(children, timeout=5)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_endless_output_blocks_nobody(worker):
    reply = call(worker, "builtins:eval", "[print('x' * 1000) for _ in range(20_000)] and 7")
    assert reply.value == 7


def test_threads_are_set_before_libraries_load():
    worker = Worker(threads=1)
    assert call(worker, "os:getenv", "OPENBLAS_NUM_THREADS").value == "1"
    worker.close()


def test_a_worker_that_cannot_start_is_an_error():
    worker = Worker([("math:sqrt", (-1.0,))])
    with pytest.raises(WorkerError, match="math domain error"):
        until_idle(worker)
    assert not worker.alive
    worker.close()


def test_dying_between_jobs_is_quiet(worker):
    assert isinstance(call(worker, "math:sqrt", 1.0), Reply)
    psutil.Process(worker._process.pid).kill()
    while worker.alive:
        assert worker.poll() is None
        time.sleep(0.02)


def test_one_job_at_a_time(worker):
    with pytest.raises(RuntimeError, match="busy"):
        worker.submit("math:sqrt", 1.0)  # still starting
    assert Limits().seconds == math.inf
