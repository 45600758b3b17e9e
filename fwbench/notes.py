"""Notes: what a person should know of work that goes on, one true sentence each, on the logger ``fwbench``.

Without a listener they appear on standard error, as every warning of Python's ``logging`` does.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

LOG = logging.getLogger("fwbench")


class _Listener(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.tell, self.told = tell, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        sentence = record.getMessage()
        if sentence not in self.told:
            self.told.add(sentence)
            self.tell(sentence)


def note(sentence: str) -> None:
    """Say something to whoever listens."""
    LOG.warning("%s", sentence)


@contextlib.contextmanager
def heard(tell: Callable[[str], None]) -> Iterator[None]:
    """Call ``tell`` with each note of the ``with`` block, once and at once: ``print``, or a list's ``append``."""
    listener = _Listener(tell)
    LOG.addHandler(listener)
    try:
        yield
    finally:
        LOG.removeHandler(listener)
