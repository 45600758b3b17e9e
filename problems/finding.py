"""Problems found again: where they were read, by their collection's name, or where a person says they are.

What decides is the hash: W, G and the pruned count of every group are the same, whatever the name or the path.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fwbench.patterns import PatternError, Rows
from fwbench.problem import Problem, ProblemError
from fwbench.problems import collections, files
from fwbench.problems.collections import CollectionError


@dataclass(frozen=True)
class Wanted:
    """What is known of a problem that is sought; at least its hash."""

    hash: str
    name: str = ""
    pattern: str = ""
    rows: int = 0
    n: int = 0
    collection: str = ""
    origin: str = ""  # file that it was read from
    counts: np.ndarray | None = field(
        default=None, repr=False, compare=False
    )  # pruned, int64 (rows,), of a pattern ``rows:``

    def under_its_pattern(self, problem: Problem) -> Problem | None:
        """A problem of any pattern under the one that is sought, with its name; None where that does not fit."""
        if self.rows and problem.shape != (self.rows, self.n):
            return None
        name, pattern = self.name or problem.name, str(problem.pattern)
        if (name, self.pattern or pattern) == (problem.name, pattern):
            return problem
        other = Rows(self.counts) if self.counts is not None else self.pattern or problem.pattern
        try:
            return replace(problem, name=name).with_pattern(other)
        except PatternError:  # it does not fit, or is one of ``rows:`` whose counts nobody knows
            return None


@dataclass(frozen=True)
class Found:
    """What became of a search."""

    wanted: Wanted
    problem: Problem | None = None
    reason: str = ""  # why it was not found, and the way out
    twin: Problem | None = None  # of a model, not found: the one of that name, extracted with other last bits
    offline: bool = False  # not found, because its collection cannot be loaded here


def find(wanted: Iterable[Wanted], places: Sequence[str | Path] = ()) -> Iterator[Found]:
    """Find problems again, those at hand first.

    Args:
        wanted: each is sought in the file that it was read from, then by name if it is of a named collection.
        places: files, folders and collections in which those that are not found there are sought, each read once.

    Raises:
        CollectionError, ProblemError: a place that cannot be read.
    """
    for place in places:
        collections.there(place)
    missing: dict[str, Found] = {}
    for found in map(_Home(), wanted):
        if found.problem is not None:
            yield found
        else:
            missing[found.wanted.hash] = found
    for place in places:
        for _, problem in collections.load(place) if missing else ():
            for key, lost in list(missing.items()):
                if (match := _match(lost.wanted, problem)) is not None:
                    del missing[key]
                    yield match
    elsewhere = f"; nor is it in {', '.join(map(str, places))}" if places else ""
    for lost in missing.values():
        yield replace(lost, reason=f"{lost.reason}{elsewhere}; --problem PATH says where it is")


class _Home:
    """Looks where a problem was; keeps the last file, as several patterns of one follow each other."""

    def __init__(self) -> None:
        self.last: tuple[str, Problem] | None = None

    def __call__(self, wanted: Wanted) -> Found:
        if wanted.origin:
            try:
                found = _match(wanted, self._read(wanted.origin))
            except ProblemError as error:
                return Found(wanted, reason=str(error))
            return found or Found(wanted, reason=f"{wanted.origin}: holds another problem now")
        if collections.named(wanted.collection):
            return _by_name(wanted)
        return Found(wanted, reason="where it came from is not written down")

    def _read(self, path: str) -> Problem:
        if self.last is None or self.last[0] != path:
            self.last = path, files.read_problem(path)
        return self.last[1]


def _match(wanted: Wanted, problem: Problem) -> Found | None:
    same = wanted.under_its_pattern(problem)
    return Found(wanted, same) if same is not None and same.hash == wanted.hash else None


def _by_name(wanted: Wanted) -> Found:
    twin = None
    try:
        for problem in _candidates(wanted):
            if found := _match(wanted, problem):
                return found
            if collections.named(wanted.collection) in collections.MODELS:
                twin = twin or wanted.under_its_pattern(problem)
    except ValueError as error:
        return Found(wanted, reason=f"cannot be extracted here: {error}", offline=True)
    return Found(wanted, reason=f"no problem of {wanted.collection} has its hash", twin=twin)


def _candidates(wanted: Wanted) -> Iterator[Problem]:
    """Problems of its collection with its name, or with its name but for the pattern."""
    stem = wanted.name.removesuffix(f".{wanted.pattern}")
    for name in (glob.escape(wanted.name), f"{glob.escape(stem)}*"):
        try:
            for _, problem in collections.load(f"{wanted.collection}/{name}"):
                yield problem
        except CollectionError:
            continue
