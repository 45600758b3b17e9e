"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

PLAIN_EVERY = 15.0  # seconds between two lines where there is no terminal

Report = Callable[[int, int | None, str, float | None], None]  # done, total, what, seconds left


@contextmanager
def progress() -> Iterator[Report]:
    """A function to call with (done, total, what, seconds left), as often as one likes; all on standard error."""
    if not sys.stderr.isatty():
        yield _plain()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, left="")

        def report(done: int, total: int | None, what: str, left: float | None) -> None:
            bar.update(task, completed=done, total=total, description=escape(what[:60]), left=_left(left))

        yield report


def _plain() -> Report:
    last = time.monotonic()

    def report(done: int, total: int | None, what: str, left: float | None) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_EVERY:
            last = time.monotonic()
            of = f"/{total}" if total else ""
            click.echo(f"{done}{of} {what} {_left(left)}".rstrip(), err=True)

    return report


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"about {seconds:.0f} s left" if seconds < 120 else f"about {seconds / 60:.0f} min left"
