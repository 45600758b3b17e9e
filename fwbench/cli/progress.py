"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere; and problems read under it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from fwbench.events import Summary
    from fwbench.problem import Problem

PLAIN_EVERY = 15.0  # seconds between two lines where there is no terminal


class Report(Protocol):
    def __call__(self, done: int, total: int | None, what: str, left: float | None = None) -> None:
        """Say how far the work is; ``left`` in seconds."""


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

        def report(done: int, total: int | None, what: str, left: float | None = None) -> None:
            bar.update(task, completed=done, total=total, description=escape(what[:60]), left=_left(left))

        yield report


def _plain() -> Report:
    last = time.monotonic()

    def report(done: int, total: int | None, what: str, left: float | None = None) -> None:
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


def loaded(selectors: tuple[str, ...], patterns: tuple[str, ...], report: Report) -> Iterator[tuple[str, Problem]]:
    """The problems of selectors with their collections, read one by one."""
    from fwbench.problems.collections import load

    for selector in selectors:
        yield from load(selector, patterns or None, report)


def one(selector: str, pattern: str | None) -> tuple[str, Problem]:
    """The one problem that a selector finds, with its collection."""
    from fwbench.problems.collections import one as load_one

    with progress() as report:
        return load_one(selector, pattern, report)


def listener(report: Report) -> Callable[[object], None]:
    """What the runner's events say: the job at hand to ``report``, failures to standard error."""
    from fwbench.events import JobEnded, JobStarted, Progress

    done, total, what, left = 0, None, "", None

    def listen(event: object) -> None:
        nonlocal done, total, what, left
        if isinstance(event, JobStarted):
            what = f"{event.problem} {event.solver}"
        elif isinstance(event, Progress):
            done, total, left = event.done, event.total, event.eta_seconds
        elif isinstance(event, JobEnded) and event.result.status == "failed" and not event.reused:
            click.echo(f"failed: {event.result.problem} {event.result.solver}: {event.result.reason}", err=True)
        report(done, total, what, left)

    return listen


def say_reasons(summary: Summary) -> None:
    for sentence in summary.lines():
        click.echo(sentence, err=True)
