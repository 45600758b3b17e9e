"""What a run tells whoever watches it: starts, ends, progress, and the sum at the end."""

from __future__ import annotations

from dataclasses import dataclass

from fwbench.result import Result, Status


@dataclass(frozen=True)
class JobStarted:
    """A worker took a job."""

    collection: str
    problem: str
    solver: str
    seed: int


@dataclass(frozen=True)
class JobEnded:
    """A row is in the store; ``reused`` if it was there before."""

    result: Result
    reused: bool = False


@dataclass(frozen=True)
class Progress:
    """``total`` and ``eta_seconds`` are None while they cannot be known."""

    done: int
    total: int | None
    eta_seconds: float | None


Event = JobStarted | JobEnded | Progress


@dataclass(frozen=True)
class Summary:
    """Jobs of a grid: ``done`` ran now, ``reused`` were in the store; the others count the rows of both."""

    done: int = 0
    reused: int = 0
    failed: int = 0
    skipped: int = 0
    solved: int = 0

    def count(self, result: Result, reused: bool) -> Summary:
        """The sum with one row more."""
        return Summary(
            self.done + (not reused),
            self.reused + reused,
            self.failed + (result.status is Status.FAILED),
            self.skipped + (result.status is Status.SKIPPED),
            self.solved + result.solved,
        )
