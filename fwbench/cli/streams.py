"""The standard streams of a command: closed, full, read by nobody or unable to encode, they never end its work.

What is said on standard error is dropped where nobody can take it. Standard output is what was asked for: if it cannot
be written the command ends, with a reason, or quietly where its reader has gone.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 200  # columns of a table where the output is no terminal


class Unread(Exception):
    """Nobody reads standard output any more. No OSError, or libraries would take it for their own."""


def prepare() -> None:
    """Make the process's own streams safe to write to; to be called once, before anything is opened or printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file opened, such as a store, would get the number and what is printed there
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = _safe(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _safe(sys.stderr, sys.__stderr__, 2)


def _safe(stream: TextIO | None, own: TextIO | None, number: int) -> TextIO:
    if stream is not own:
        return stream  # type: ignore[return-value]  # whoever replaced it looks after it
    raw = getattr(stream.buffer, "raw", stream.buffer) if stream else io.FileIO(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(raw, needed=number == 1)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )


def console() -> Console:
    """Where tables are printed."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=WIDE)


class _Raw(io.RawIOBase):
    """Bytes to a stream until that fails; afterwards to nowhere."""

    def __init__(self, stream: Any, needed: bool) -> None:
        self._stream, self._needed, self._lost = stream, needed, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, data: Any) -> int:
        if self._lost:
            return len(data)
        try:
            while (written := self._stream.write(data)) is None:  # a pipe that does not block, and is full
                select.select([], [self._stream], [])
            return written
        except OSError as error:
            self._lost = True
            if not self._needed:
                return len(data)
            if error.errno == errno.EPIPE:
                raise Unread from None
            raise OSError(error.errno, error.strerror, "standard output") from None
