"""Aggregates of rows: the tables of solvers, the error budget, the main figures of a report.

A *cell* is what one solver did on one problem: the median over its seeds, a failed run counting as infinity. Nothing is
averaged over the successes alone: what a failure costs is said in each docstring, and never less than an honest answer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fwbench import metrics
from fwbench.presets import title
from fwbench.report.rows import TOLERANCE, Row, failed
from fwbench.result import Proof, Status

SECONDS_SHIFT = 1.0  # seconds, of the shifted geometric mean
RATIO_FLOOR = 1e-3  # a ratio to Wanda below it counts as it: one problem solved to zero does not decide a mean


@dataclass(frozen=True)
class SolverSummary:
    """One line of a table of solvers. What is not known is NaN; a mean that failures made infinite is infinite."""

    solver: str
    problems: int  # run, or tried
    solved: int
    failures: int  # runs
    skipped: int  # runs declined
    drifted: int  # runs left out of the seconds
    wins: int  # problems
    optimal: int  # problems on which its mask is proven optimal by a verified bound
    ratio: float  # to Wanda
    rounding: float
    gap: float  # verified
    seconds: float
    complete: bool  # it was tried on every problem of the group


@dataclass(frozen=True)
class Group:
    """The rows that may be compared with each other: one collection, one pattern, masks or changed weights."""

    collection: str
    pattern: str
    updates_weights: bool
    rows: tuple[Row, ...]
    problems: tuple[str, ...]  # hashes
    solvers: tuple[SolverSummary, ...]  # best first; those not tried on every problem after the others


@dataclass(frozen=True)
class Budget:
    """Where a solver's error comes from: means over problems, in units of Wanda's error; None for a step it has not."""

    solver: str
    problems: int
    bound: float | None  # proven: no mask does better
    optimum: float | None  # lowest relaxed error that any solver reached
    iterate: float | None  # relaxed error of this solver's own point
    rounded: float | None  # first mask after it
    final: float


def label(row: Row) -> str:
    """The solver's name in tables and figures: a preset or its spec, and where it ran if not on the CPU in float32."""
    extra = [] if row["device"] == "cpu" else [row["device"]]
    extra += [] if row["dtype"] == "float32" else [row["dtype"]]
    return " @".join([title(row["solver"]), *extra])


def groups(rows: Iterable[Row]) -> list[Group]:
    """One group a collection, pattern and kind of answer: masks before changed weights, then larger layers first."""
    parts: dict[tuple[bool, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        parts[bool(row["updates_weights"]), row["collection"], row["pattern"]].append(row)
    return [_group(*key, parts[key]) for key in sorted(parts, key=lambda key: _rank(parts, key))]


def _rank(parts: dict[tuple[bool, str, str], list[Row]], key: tuple[bool, str, str]) -> tuple[bool, int, int, int]:
    weights: dict[str, dict[str, int]] = defaultdict(dict)  # by collection and problem
    for (_, collection, _), rows in parts.items():
        weights[collection] |= {row["problem"]: row["rows"] * row["n"] for row in rows}
    collections = list(weights)
    mean = sum(weights[key[1]].values()) // len(weights[key[1]])
    return key[0], -mean, collections.index(key[1]), list(parts).index(key)


def _group(updates_weights: bool, collection: str, pattern: str, rows: list[Row]) -> Group:
    return Group(collection, pattern, updates_weights, tuple(rows), problems(rows), solvers(rows))


def problems(rows: Iterable[Row]) -> tuple[str, ...]:
    """Hashes of the problems, in the order of their first row."""
    return tuple(dict.fromkeys(row["problem_hash"] for row in rows))


def solvers(rows: Sequence[Row]) -> tuple[SolverSummary, ...]:
    """Summaries of all solvers of comparable rows, best first.

    Ratio to Wanda: geometric mean; a failed problem is charged the error of pruning everything, or the worst answer of
    any solver there if that is worse; a problem that nobody solved counts for nobody. Seconds: geometric mean
    shifted by ``SECONDS_SHIFT``, without drifted runs; a failure is charged the longest run of the group. Rounding
    error and gap: medians over the solved runs that have one; contradictory gaps stay out.
    """
    cells = _cells(rows)
    names = sorted({name for _, name in cells})
    hashes = problems(rows)
    errors = costs(rows, "error", hashes, names)
    won = metrics.wins(errors)
    timed = [row["seconds"] for row in rows if row["seconds"] is not None and not row["drifted"]]
    yard = _Yard(len(hashes), _charges(rows), max(timed, default=math.nan), contradicted(rows))
    found = []
    for name, wins in zip(names, won, strict=True):
        own = {key: cells[key, name] for key in hashes if (key, name) in cells}
        found.append(_solver(name, own, int(wins), yard))
    return tuple(sorted(found, key=lambda s: (not s.complete, _last(s.ratio), _last(s.seconds), s.solver)))


@dataclass(frozen=True)
class _Yard:
    """What the solvers of a group are measured against."""

    problems: int
    charges: dict[str, float]  # ratio to Wanda that failing on a problem costs
    slowest: float  # seconds that failing costs
    doubted: set[str]  # problems with contradictory values


def _solver(name: str, cells: dict[str, list[Row]], wins: int, yard: _Yard) -> SolverSummary:
    runs = [row for cell in cells.values() for row in cell]
    tried = {key: live for key, cell in cells.items() if (live := [r for r in cell if r["status"] != Status.SKIPPED])}
    ratios = [_charged(_median(cell, "ratio_to_wanda"), yard.charges.get(key)) for key, cell in tried.items()]
    times = [
        _charged(_median(timed, "seconds", fail=True), yard.slowest)
        for cell in tried.values()
        if (timed := [row for row in cell if not row["drifted"] and (row["seconds"] is not None or failed(row))])
    ]
    times = [value for value in times if value is not None and not math.isnan(value)]
    good = [row for row in runs if row["solved"]]
    verified = [row for row in good if _certified(row, yard.doubted)]
    return SolverSummary(
        solver=name,
        problems=len(tried),
        solved=sum(any(row["solved"] for row in cell) for cell in tried.values()),
        failures=sum(map(failed, runs)),
        skipped=sum(row["status"] == Status.SKIPPED for row in runs),
        drifted=sum(bool(row["drifted"]) for row in runs),
        wins=wins,
        optimal=len({row["problem_hash"] for row in verified if row["gap"] <= TOLERANCE}),
        ratio=metrics.shifted_geometric_mean([r for r in ratios if r is not None], floor=RATIO_FLOOR),
        rounding=metrics.median(row["rounding_error"] for row in good if row["rounding_error"] is not None),
        gap=metrics.median(row["gap"] for row in verified),
        seconds=metrics.shifted_geometric_mean(times, SECONDS_SHIFT),
        complete=len(tried) == yard.problems,
    )


def costs(rows: Iterable[Row], field: str, hashes: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Matrix ``(problems, solvers)`` of cells, infinity for a failure and for what was not run."""
    cells = _cells(rows)
    matrix = np.full((len(hashes), len(names)), math.inf)
    for i, key in enumerate(hashes):
        for j, name in enumerate(names):
            matrix[i, j] = _median(cells.get((key, name), []), field)
    return matrix


def _cells(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    cells: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row["problem_hash"], label(row)].append(row)
    return cells


def _median(cell: Sequence[Row], field: str, fail: bool = False) -> float:
    """Median over seeds; infinite for a failure (with ``fail`` even where the field is known) or an empty cell."""
    return metrics.median(None if fail and failed(row) else row[field] for row in cell) if cell else math.inf


def _charged(value: float, charge: float | None) -> float | None:
    return charge if math.isinf(value) else value


def _charges(rows: Iterable[Row]) -> dict[str, float]:
    """What failing on a problem costs, as a ratio to Wanda; no entry where nobody has a ratio."""
    charges: dict[str, float] = {}
    for row in rows:
        if (ratio := row["ratio_to_wanda"]) is None:
            continue
        everything = ratio / row["relative_error"] if row["relative_error"] else 1.0
        charges[row["problem_hash"]] = max(charges.get(row["problem_hash"], 0.0), ratio, everything)
    return charges


def _last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def wanda_errors(rows: Iterable[Row]) -> dict[str, float]:
    """Wanda's error on each problem where a row knows it and it is above zero."""
    return {
        row["problem_hash"]: row["error"] / row["ratio_to_wanda"]
        for row in rows
        if row["ratio_to_wanda"] and row["error"]
    }


def contradicted(rows: Iterable[Row]) -> set[str]:
    """Hashes of the problems whose joined bound lies above a judged error: their gaps mean nothing."""
    return {row["problem_hash"] for row in rows if row["gap"] is not None and row["gap"] < 0}


def _certified(row: Row, doubted: set[str]) -> bool:
    return row["gap"] is not None and row["proof"] == Proof.VERIFIED and row["problem_hash"] not in doubted


def best_rows(rows: Iterable[Row]) -> dict[str, Row]:
    """The solved row of least error for each problem; the first among equals."""
    best: dict[str, Row] = {}
    for row in rows:
        if row["error"] is not None and row["error"] < best.get(row["problem_hash"], {"error": math.inf})["error"]:
            best[row["problem_hash"]] = row
    return best


def budgets(rows: Sequence[Row]) -> list[Budget]:
    """The error budget of each solver, best final error first: bound, relaxed optimum, iterate, rounded, final.

    Only problems where Wanda's error is known and above zero, and only solved runs. All numbers of a solver are means
    over the same problems, those on which it has every step that it has anywhere.
    """
    wanda = wanda_errors(rows)
    optimum: dict[str, float] = {}
    for row in rows:
        for value in _relaxed(row):
            optimum[row["problem_hash"]] = min(value, optimum.get(row["problem_hash"], math.inf))
    lines: dict[str, list[tuple]] = defaultdict(list)
    for row in rows:
        if row["solved"] and row["error"] is not None and (unit := wanda.get(row["problem_hash"])):
            iterate, rounded = _steps(row)
            best = optimum.get(row["problem_hash"])
            steps = (row["lower_bound"], best, iterate, rounded, row["error"])
            lines[label(row)].append(tuple(None if step is None else step / unit for step in steps))
    found = [_budget(name, steps) for name, steps in lines.items()]
    return sorted(found, key=lambda budget: (budget.final, budget.solver))


def _budget(name: str, lines: list[tuple]) -> Budget:
    has = [any(line[i] is not None for line in lines) for i in range(5)]
    full = [line for line in lines if all(line[i] is not None for i in range(5) if has[i])]
    if not full:  # no problem has all its steps: the final error alone
        has, full = [False] * 4 + [True], lines
    means = [float(np.mean([line[i] for line in full])) if has[i] else None for i in range(5)]
    return Budget(name, len(full), *means)  # type: ignore[arg-type]


def _relaxed(row: Row) -> list[float]:
    values = [stage["relaxed_error"] for stage in row["stages"] or ()] + [row["relaxed_error"]]
    return [value for value in values if value is not None]


def _steps(row: Row) -> tuple[float | None, float | None]:
    """The last relaxed error of a run, and the first error of a mask after it."""
    iterate = rounded = None
    for stage in row["stages"] or ():
        if stage["relaxed_error"] is not None:
            iterate, rounded = stage["relaxed_error"], None
        elif iterate is not None and rounded is None:
            rounded = stage["error"]
    return iterate, rounded


@dataclass(frozen=True)
class Headline:
    """The main figures of a report; counts, and the best solvers among those tried on every problem with masks."""

    runs: int
    problems: int
    solvers: int
    collections: tuple[str, ...]
    failures: int
    skipped: int
    best: SolverSummary | None
    second: SolverSummary | None
    gaps: tuple[float, ...]  # verified, of the best mask of each problem that has a bound
    optimal: int
    claimed: int  # more that are optimal if an exact solver is believed
    contradicted: int
    mask_problems: int


def headline(rows: Sequence[Row]) -> Headline:
    """The main figures, over all collections and patterns together; changed weights stay out of the comparison."""
    masks = [row for row in rows if not row["updates_weights"]]
    ranked = [line for line in solvers(masks) if line.solved and math.isfinite(line.ratio)]
    doubted = contradicted(masks)
    winners = best_rows(masks).values()
    gaps = [row["gap"] for row in winners if _certified(row, doubted)]
    exact = [row for row in winners if row["bounds"].get("exact", -math.inf) >= row["error"] * (1 - TOLERANCE)]
    optimal = sum(gap <= TOLERANCE for gap in gaps)
    best, second = [*ranked[:2], None, None][:2]
    return Headline(
        runs=len(rows),
        problems=len(problems(rows)),
        solvers=len({label(row) for row in rows}),
        collections=tuple(dict.fromkeys(row["collection"] for row in rows)),
        failures=sum(map(failed, rows)),
        skipped=sum(row["status"] == Status.SKIPPED for row in rows),
        best=best,
        second=second if second and best and second.complete == best.complete else None,
        gaps=tuple(sorted(gaps)),
        optimal=optimal,
        claimed=sum(not (_certified(row, doubted) and row["gap"] <= TOLERANCE) for row in exact),
        contradicted=len(doubted),
        mask_problems=len(problems(masks)),
    )
