"""The child's side of :mod:`fwbench.isolate`: the loop that takes jobs, and what a job tells its parent.

A job calls :func:`started` when its preparations are over: the time limit counts from there; :func:`judging` when the
work that is limited is done, and only what the caller makes of it is left; and :func:`hand_in` with whatever shall
outlive it. Outside of a worker the three do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

_answers: Connection | None = None
_sending = threading.Lock()  # a job may hand in from several threads


def started() -> None:
    """Called by a job when its preparations are over: its time and its peak memory count from now."""
    if _answers is not None:
        _reset_peak()
        _say("started")


def judging() -> None:
    """Called by a job when what its time limit is for has ended."""
    _say("judging")


def hand_in(value: Any, afresh: bool = False) -> None:
    """Called by a job with what its parent shall have of it, should it be killed (``Failure.handed``, pickled).

    Args:
        afresh: it takes the place of all that was handed in before.
    """
    if _answers is not None:
        _say("handed", (pickle.dumps(value), afresh))  # as bytes: the parent need not know what it is made of


def _say(kind: str, content: Any = None) -> None:
    if _answers is not None:
        with _sending:
            _answers.send((kind, content))


def serve(commands_fd: int, answers_fd: int) -> None:
    """Main loop of a worker process: take jobs until the parent goes away."""
    global _answers
    commands, _answers = Connection(commands_fd, writable=False), Connection(answers_fd, readable=False)
    parent, setup = commands.recv()
    _die_with(parent)
    try:
        for function, arguments in setup:
            _function(function)(*arguments)
    except Exception as error:
        _say("raised", _one_line(error))
        return
    _say("ready")
    while True:
        try:
            function, arguments, memory = commands.recv()
        except EOFError:
            return
        _answer(function, arguments, memory)
        del arguments  # it may be large


def _answer(function: str, arguments: tuple, memory: int | None) -> None:
    try:
        with _data_limit(memory):
            value = _function(function)(*arguments)
        _say("answer", (value, _peak()))
    except MemoryError as error:
        _say("raised", f"memory: ran out of the {size(memory or 0)} allowed {error}".strip())
    except Exception as error:
        _say("raised", f"{type(error).__name__}: {_one_line(error)}")


def _function(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def size(number: int) -> str:
    """Bytes as a person reads them."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux): a hanging job would not notice."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


@contextlib.contextmanager
def _data_limit(memory: int | None) -> Iterator[None]:
    """Backstop: a single huge allocation raises MemoryError instead of thrashing until the parent looks again."""
    data = _status().get("VmData")
    if memory is None or data is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (min(data + memory, hard if hard >= 0 else data + memory), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _status() -> Mapping[str, int]:
    """Memory lines of /proc/self/status, bytes; empty where there is none."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            parts = [line.split() for line in file if line.startswith("Vm")]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in parts}


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # resets VmHWM


def _peak() -> int:
    return _status().get("VmHWM", 0)
