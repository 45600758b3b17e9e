"""What a run tells whoever watches it: starts, ends, progress, and the sum at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fwbench.result import Result, Status

MOST_REASONS = 10  # of Summary.lines


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
    fresh: int = 0  # solved, and ran now
    reasons: Mapping[tuple[Status, bool, str, str], int] = field(default_factory=dict, repr=False)

    def count(self, result: Result, reused: bool) -> Summary:
        """The sum with one row more."""
        reasons = Counter(self.reasons)
        if result.reason:
            reasons[result.status, reused, result.solver, result.reason] += 1
        return Summary(
            self.done + (not reused),
            self.reused + reused,
            self.failed + (result.status is Status.FAILED),
            self.skipped + (result.status is Status.SKIPPED),
            self.solved + result.solved,
            self.fresh + (result.solved and not reused),
            reasons,
        )

    def lines(self) -> list[str]:
        """What the numbers do not say, a line for each solver and reason.

        Why rows were skipped or stopped early, what was dropped of an answer, and why those failed that are not run
        again. Rows that failed now are told of as they end (:class:`JobEnded`).
        """
        grouped: Counter[str] = Counter()
        for (status, reused, solver, reason), count in self.reasons.items():
            if status is Status.SKIPPED:
                grouped[f"skipped by {solver}: {reason}"] += count
            elif status is not Status.FAILED:
                grouped[f"by {solver}: {reason}"] += count
            elif reused:
                grouped[f"failed before by {solver}: {reason}"] += count
        common = grouped.most_common(MOST_REASONS)
        lines = [f"{count} {text}" for text, count in common]
        if more := len(grouped) - len(common):
            lines.append(f"and {more} more reasons; 'fwbench results' has those of all rows")
        if any(status is Status.FAILED and reused for status, reused, *_ in self.reasons):
            lines.append("--retry-failed runs again what failed before")
        return lines
