"""The three boards of the field from its lines: means, fronts, distances from the bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.field.methods import MASKS, METHODS, REGROUPED, UPDATES
from benchmarks.field.study import BOUNDED, Bound, Line
from benchmarks.shared.samples import PATTERNS
from fwbench.metrics import optimality_gap
from fwbench.metrics import shifted_geometric_mean as mean

MODELS = {"smollm2": "SmolLM2", "gemma3": "Gemma 3"}
ALL = PATTERNS.split(",")
NEAR = 1.01  # errors within so much of each other are called equal

Where = tuple[str, str, str]  # model, layer, pattern


@dataclass(frozen=True)
class Entry:
    """A method on a board: errors over Wanda's mask's, CPU seconds a row of each model."""

    spec: str
    errors: Mapping[Where, float]
    seconds: Mapping[str, float]

    def error(self, model: str = "", layer: str = "", pattern: str = "") -> float:
        """The geometric mean of a part, NaN where nothing is."""
        wanted = model, layer, pattern
        parts = [e for at, e in self.errors.items() if all(w in ("", a) for w, a in zip(wanted, at, strict=True))]
        return mean(parts)

    @property
    def price(self) -> float:
        """CPU seconds a row, the mean of the models."""
        return mean(self.seconds.values())


def patterns(lines: Sequence[Line]) -> list[str]:
    """Those on the boards: where the last method has run on all layers of both models, as methods go one by one."""
    every = {(line.model, line.layer) for line in lines if line.spec == "wanda"}
    last = UPDATES[-1].spec
    done = {pattern: {(x.model, x.layer) for x in lines if (x.spec, x.pattern) == (last, pattern)} for pattern in ALL}
    return [pattern for pattern in ALL if done[pattern] == every]


def masks(lines: Sequence[Line]) -> list[Entry]:
    """Masks alone."""
    return _board(lines, [method.spec for method in MASKS], lambda line: (line.ratio, line.cpu_seconds))


def updates(lines: Sequence[Line]) -> list[Entry]:
    """With the method's own weights."""
    return _board(lines, [method.spec for method in UPDATES], lambda line: (line.ratio, line.cpu_seconds))


def refitted(lines: Sequence[Line]) -> list[Entry]:
    """The masks of all methods after one common refit."""
    specs = [method.spec for method in METHODS if not method.spec.endswith("+refit")]
    return _board(lines, specs, lambda line: (line.refit_ratio, line.cpu_seconds + line.refit_seconds))


def _board(lines: Sequence[Line], specs: Sequence[str], of: Callable[[Line], tuple[float, float]]) -> list[Entry]:
    """The specs that have run on every problem of the boards' patterns, the least error first."""
    wanted = patterns(lines)
    lines = [line for line in lines if line.pattern in wanted]
    every = {line.problem for line in lines}
    found = []
    for spec in specs:
        own = [line for line in lines if line.spec == spec]
        if not own or {line.problem for line in own} != every:
            continue
        errors = {line.problem: of(line)[0] for line in own}
        seconds = {}
        for model in dict.fromkeys(line.model for line in own):
            part = [line for line in own if line.model == model]
            seconds[model] = sum(of(line)[1] for line in part) / sum(line.rows for line in part)
        found.append(Entry(spec, errors, seconds))
    return sorted(found, key=Entry.error)


def front(entries: Iterable[Entry], model: str) -> list[Entry]:
    """Those that no other beats in error for as little CPU time, by time."""
    found: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: (entry.seconds[model], entry.error(model))):
        if not found or entry.error(model) < found[-1].error(model):
            found.append(entry)
    return found


def cheapest(entries: Sequence[Entry], within: float) -> Entry:
    """The cheapest of those whose error is at most ``within`` times the least on each model."""
    least = {model: min(entry.error(model) for entry in entries) for model in entries[0].seconds}
    near = [entry for entry in entries if all(entry.error(m) <= within * best for m, best in least.items())]
    return min(near or [entries[0]], key=lambda entry: entry.price)


def distances(lines: Iterable[Line], bounds: Iterable[Bound]) -> dict[tuple[str, str], list[float]]:
    """By method and model, for each bounded row what part of the mask's error a better mask could save at most."""
    lower = {(bound.model, bound.layer, bound.pattern, bound.row): bound.lower for bound in bounds}
    found: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        for row, upper in enumerate(map(float, line.row_errors.split())):
            gap = optimality_gap(upper, lower.get((*line.problem, row)))
            if gap is not None:
                found.setdefault((line.spec, line.model), []).append(gap)
    return found


def bounded(lines: Iterable[Line], bounds: Iterable[Bound], pattern: str) -> bool:
    """Whether every layer that was measured at a pattern has its bounds."""
    proved = {(bound.model, bound.layer, bound.row) for bound in bounds if bound.pattern == pattern}
    layers = {(line.model, line.layer) for line in lines if line.pattern == pattern}
    return {(*layer, row) for layer in layers for row in range(BOUNDED)} <= proved


def swapped(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Pairs of which each model prefers another one, by more than ``NEAR``; the clearest first."""
    one, other = MODELS
    found = []
    for a in entries:
        for b in entries:
            here, there = b.error(one) / a.error(one), a.error(other) / b.error(other)
            if min(here, there) > NEAR:
                found.append((min(here, there), a, b))
    return [(a, b) for _, a, b in sorted(found, key=lambda item: -item[0])]


def agreement(entries: Sequence[Entry]) -> float:
    """Spearman's rank correlation of the models' orders."""
    ranks = [np.argsort(np.argsort([entry.error(model) for entry in entries])) for model in MODELS]
    return float(np.corrcoef(np.array(ranks))[0, 1])


def unfinished(lines: Sequence[Line], board: Iterable[Entry]) -> list[str]:
    """Methods that belong on all problems and have not run on all."""
    done = {entry.spec for entry in board}
    wanted = [method.spec for method in METHODS if not method.spec.endswith(REGROUPED)]
    return [spec for spec in wanted if spec not in done and not spec.endswith("+refit")]
