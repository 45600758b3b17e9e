"""Two stores, row against row: what got better, what got worse, how much faster. Times are told, never judged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fwbench.presets import title
from fwbench.problem import labels
from fwbench.report import text
from fwbench.report.rows import Row, load
from fwbench.result import Status

TOLERANCE = 1e-9  # relative: an error that rises by more is worse
_ORDER = [Status.OPTIMAL, Status.FEASIBLE, Status.TIMEOUT, Status.SKIPPED, Status.FAILED]  # best first


class CompareError(ValueError):
    """Stores that have nothing to compare; the message is one line."""


@dataclass(frozen=True)
class Pair:
    """The same solver on the same problem with the same seed, before and after."""

    old: Row
    new: Row

    @property
    def change(self) -> float | None:
        """Of the error, relative to the old one: below 0 is better; None unless both have one."""
        old, new = self.old["error"], self.new["error"]
        if old is None or new is None:
            return None
        return (new - old) / abs(old) if old else (0.0 if new == 0 else math.inf)

    @property
    def time_ratio(self) -> float | None:
        """New seconds by old ones; None where a row has no answer or its timing drifted."""
        times = [row["seconds"] for row in (self.old, self.new) if row["solved"] and not row["drifted"]]
        return times[1] / times[0] if len(times) == 2 and all(times) else None

    @property
    def better(self) -> bool:
        return self.change is not None and self.change < -TOLERANCE

    @property
    def regression(self) -> str:
        """What got worse, or an empty text."""
        if _ORDER.index(self.new["status"]) > _ORDER.index(self.old["status"]):
            reason = text.clip(self.new["reason"], 120)
            return f"{self.old['status']} before, {self.new['status']} now" + (f" ({reason})" if reason else "")
        if self.old["error"] is not None and self.new["error"] is None:
            return f"error {self.old['error']:.9g} before, none now"
        if self.change is not None and self.change > TOLERANCE:
            return f"error {self.old['error']:.9g} before, {self.new['error']:.9g} now ({self.change:+.2e})"
        return ""


@dataclass(frozen=True)
class Comparison:
    """Pairs in the order of the old store, and how many rows have no partner."""

    pairs: tuple[Pair, ...]
    only_old: int
    only_new: int

    @property
    def regressions(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.regression]


def compare(old: Iterable[Row], new: Iterable[Row]) -> Comparison:
    """Match rows by problem, solver and seed; of several with the same, the last counts.

    Args:
        old, new: rows of :func:`fwbench.report.rows.load`.

    Raises:
        CompareError: no row has a partner.
    """
    before, after = _by_identity(old), _by_identity(new)
    pairs = tuple(Pair(row, after[key]) for key, row in before.items() if key in after)
    if not pairs:
        raise CompareError(f"the stores have {len(before)} and {len(after)} rows, and none in common")
    return Comparison(pairs, len(before) - len(pairs), len(after) - len(pairs))


def compare_stores(old: Path | str, new: Path | str) -> Comparison:
    """:func:`compare` of two stores' rows. Raises CompareError, with the paths."""
    try:
        return compare(load(old), load(new))
    except CompareError as error:
        raise CompareError(f"{old}, {new}: {error}") from None


def lines(comparison: Comparison) -> list[str]:
    """The comparison for a terminal: a line for each solver, then every regression, then the total."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in comparison.pairs:
        groups[pair.new["solver"]].append(pair)
    found = [f"{text.clip(title(solver), 80)}: {_line(pairs)}" for solver, pairs in groups.items()]
    news = [pair.new for pair in comparison.pairs]
    names = labels((row["problem_hash"], row["problem"], row["pattern"]) for row in news)
    for pair in comparison.regressions:
        row = pair.new
        who = f"{names[row['problem_hash']]}  {text.clip(title(row['solver']), 80)}  seed {row['seed']}"
        found.append(f"worse: {who}: {pair.regression}")
    alone = f"; {comparison.only_old} only in the first store, {comparison.only_new} only in the second"
    return [*found, f"{_line(comparison.pairs)}{alone}"]


def _line(pairs: Sequence[Pair]) -> str:
    better, worse = sum(pair.better for pair in pairs), sum(bool(pair.regression) for pair in pairs)
    ratios = [pair.time_ratio for pair in pairs if pair.time_ratio]
    answer = f"{text.plural(len(pairs), 'row')}, {better} better, {worse} worse"
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        answer += f", {mean:.3g} times as long (geometric mean of {len(ratios)})"
    return answer


def _by_identity(rows: Iterable[Row]) -> dict[tuple, Row]:
    return {(row["problem_hash"], row["solver"], row["seed"]): row for row in rows}
