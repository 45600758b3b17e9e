"""What a page says, as plain text in plain structures: HTML and Markdown are rendered from the same."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fwbench import presets
from fwbench.report import summary
from fwbench.report.rows import TOLERANCE, Row, failed
from fwbench.report.summary import Budget, Group, Headline, SolverSummary
from fwbench.report.text import NOTHING, clean, clip, number, percent, plural, seconds
from fwbench.result import Status

MAX_RUNS = 1500  # lines of a table of runs; the files beside the page hold all


@dataclass(frozen=True)
class Table:
    """Columns and lines of text; the first column names the line, the others are numbers but for those in ``words``."""

    columns: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]
    words: frozenset[int] = frozenset()
    note: str = ""


_GLOSSARY = f"""
Error: ‖(W − Ŵ)X‖² / tokens, float64, summed over the layer; recomputed from the problem, no solver's word.
Relative error: the error over the error with every weight pruned.
Ratio to Wanda: the error over that of Wanda's mask, geometric mean over the problems. A failed problem is charged the
error of pruning everything, or the worst answer of any solver there if that is worse. A ratio below
{summary.RATIO_FLOOR:g} counts as that.
Gap: (UB − LB) / UB, the largest share of the error that a better mask could still save. The table of solvers gives the
median over verified bounds; a bound counts for every mask of its problem, whoever found it.
Proof: verified, our checker replayed a certificate; claimed, a solver says so, within its tolerances; none, no bound.
Optimal: problems on which the solver's mask is proven optimal by a verified bound, to a relative {TOLERANCE:g}.
Rounding error: (f(rounded) − f(relaxed)) / f(rounded), the share of the error that appears when the relaxed point
becomes a mask; median over the problems.
Seconds: wall time of the stages, geometric mean shifted by {summary.SECONDS_SHIFT:g} s. A failure is charged the
longest run of its table. Runs during which the machine's speed drifted are left out.
Wins: problems on which no solver of the table has a lower error; ties win for all.
Solved: problems with an answer that the judge accepted, of those tried. † not tried on every problem.
To best known: (f − best) / best, with the best mask known from any run or the registry.
Error budget: relaxed optimum (the lowest that any solver reached), what the solver's own iterate adds, what rounding
adds; the arrow is what refinement regains. The proven bound is what no mask can go below.
"""
GLOSSARY = tuple(
    (name, " ".join(meaning.split()))
    for name, meaning in re.findall(r"^([A-Z][\w ]+): (.*?)(?=\n[A-Z][\w ]+: |\Z)", _GLOSSARY, flags=re.M | re.S)
)


def sentences(rows: Sequence[Row]) -> list[str]:
    """Three sentences: what ran, which solver is best and by how much, how far from optimal at most."""
    if not rows:
        return ["There is no run to report on."]
    main = summary.headline(rows)
    doubt = f" {plural(main.contradicted, 'problem')} with contradictory values left out." if main.contradicted else ""
    return [_what_ran(main), _who_won(main), _how_far(main) + doubt]


def _what_ran(main: Headline) -> str:
    where = _some([clip(name, 60) for name in main.collections if name], 4)
    text = f"{plural(main.solvers, 'solver')} ran on {plural(main.problems, 'problem')}"
    text += f" of {where}" if where else ""
    text += f" in {plural(main.runs, 'run')}: "
    text += f"{main.failures:,} failed" if main.failures else "none failed"
    return text + (f" and {main.skipped:,} declined." if main.skipped else ".")


def _who_won(main: Headline) -> str:
    best, second = main.best, main.second
    if best is None:
        return "No solver has a mask that could be compared with Wanda's."
    over = plural(best.problems, "problem")
    text = f"The best masks are those of {clip(best.solver, 90)}: {number(best.ratio)} times Wanda's error over {over}"
    text += "" if best.complete else " (no solver was tried on all)"
    if second is None or not second.ratio:
        return text + "."
    ahead = 1 - best.ratio / second.ratio
    lead = f"{percent(ahead)} below" if ahead > 5e-4 else "level with"
    return f"{text}, {lead} {clip(second.solver, 90)} ({number(second.ratio)})."


def _how_far(main: Headline) -> str:
    if not main.gaps:
        return "No verified lower bound is known, so nothing is proven about how far from optimal they are."
    middle = main.gaps[len(main.gaps) // 2] if len(main.gaps) % 2 else sum(main.gaps[len(main.gaps) // 2 - 1 :][:2]) / 2
    text = f"The best mask of each problem is proven to lie at most {percent(main.gaps[-1])} above the optimum"
    text = text.replace("above the optimum", "of its error above the optimum")
    text += f" (median {percent(middle)}), by verified bounds on {len(main.gaps)} of {main.mask_problems} problems; "
    text += f"{main.optimal or 'none'} {'is' if main.optimal == 1 else 'are'} proven optimal"
    return text + (f", {main.claimed} more by an exact solver's word." if main.claimed else ".")


def facts(rows: Sequence[Row], machine: Mapping[str, Any] | None, registry: Mapping[str, Any] | None) -> list[tuple]:
    """What ran where, as pairs of a name and a text; what no row knows is left out."""
    metas = [row["meta"] or {} for row in rows]
    machines = [machine] if machine else _distinct(row["machine"] for row in rows if row["machine"])
    pairs = [
        ("Problems", _some([_collection(rows, name) for name in _distinct(r["collection"] for r in rows)], 12, "; "))
    ]
    pairs += [(key.capitalize(), _some(_distinct(m.get(key) for m in metas), 4)) for key in ("model", "calibration")]
    shown = {presets.title(row["solver"]).split("+")[0] for row in rows}
    pairs.append(("Presets", "; ".join(f"{name} is {text}" for name, text in presets.PRESETS.items() if name in shown)))
    tokens = _distinct(m.get("tokens") for m in metas)
    pairs.append(("Calibration tokens", _some([f"{int(t):,}" if str(t).isdecimal() else t for t in tokens], 4)))
    for i, item in enumerate(machines[:4]):
        pairs += [(name + ("" if len(machines) == 1 else f" {i + 1}"), value) for name, value in _machine(item)]
    pairs.append(("Devices", _some(_distinct(f"{row['device']} {row['dtype']}" for row in rows), 6)))
    pairs.append(("Seeds", _some(_distinct(row["seed"] for row in rows), 12)))
    days = sorted({str(row["created"])[:16].replace("T", " ") for row in rows if row["created"]})
    pairs.append(("Date (UTC)", " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""))
    if registry:
        known = sum(key in registry for key in summary.problems(rows))
        pairs.append(
            ("Registry", f"best-known values of {known} of these {plural(len(summary.problems(rows)), 'problem')}")
        )
    return [(name, clip(value, 600)) for name, value in pairs if value]


def _collection(rows: Sequence[Row], name: str) -> str:
    own = [row for row in rows if row["collection"] == name]
    patterns = _some(_distinct(row["pattern"] for row in own), 6)
    return f"{clip(name, 60) or 'without a collection'}: {len(summary.problems(own))} (pattern {patterns})"


def _machine(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Machine, versions and commit as text, from whatever a description holds."""
    parts, versions, commit = [], [], ""
    for key, value in machine.items():
        if isinstance(value, Mapping):
            versions += [f"{name} {version}" for name, version in value.items()]
        elif key == "python":
            versions.insert(0, f"Python {value}")
        elif key == "commit":
            commit = re.sub(r"\b([0-9a-f]{10})[0-9a-f]{30}\b", r"\1", str(value))
        elif key == "memory" and isinstance(value, int | float):
            parts.append(f"{value / 2**30:.0f} GiB")
        elif key in ("cores", "threads") and isinstance(value, int):
            parts.append(plural(value, key[:-1]))
        elif value not in (None, "", [], ()):
            parts.append(str(value) if key in ("cpu", "system", "gpu") else f"{key} {value}")
    return [("Machine", ", ".join(parts)), ("Versions", ", ".join(versions)), ("Commit", commit)]


def _distinct(values: Iterable[Any]) -> list:
    found: list = []
    for value in values:
        if value not in (None, "") and value not in found:
            found.append(value)
    return found


def _some(values: Sequence[Any], most: int, join: str = ", ") -> str:
    shown = join.join(clip(str(value), 120) for value in values[:most])
    return shown + (f" and {len(values) - most} more" if len(values) > most else "")


def solver_table(group: Group) -> Table:
    """The table of solvers, best first."""
    columns: tuple[str, ...] = (
        "Solver",
        "Ratio to Wanda",
        "Gap",
        "Optimal",
        "Rounding error",
        "Seconds",
        "Wins",
        "Solved",
        "Failures",
    )
    if group.updates_weights:
        columns = tuple(column for column in columns if column not in ("Gap", "Optimal"))
    lines = [tuple(_solver_cells(solver)[column] for column in columns) for solver in group.solvers]
    return Table(columns, lines, note=" ".join(_notes(group)))


def _solver_cells(solver: SolverSummary) -> dict[str, str]:
    return {
        "Solver": clip(solver.solver, 300),
        "Ratio to Wanda": number(solver.ratio),
        "Gap": percent(solver.gap),
        "Optimal": str(solver.optimal),
        "Rounding error": percent(solver.rounding),
        "Seconds": seconds(solver.seconds),
        "Wins": str(solver.wins),
        "Solved": _solved(solver),
        "Failures": str(solver.failures),
    }


def _solved(solver: SolverSummary) -> str:
    if solver.skipped and not solver.problems:
        return "declined †"
    return f"{solver.solved}/{solver.problems}{'' if solver.complete else ' †'}"


def _notes(group: Group) -> list[str]:
    found = []
    if any(not solver.complete for solver in group.solvers):
        found.append(f"† not tried on all {plural(len(group.problems), 'problem')}, so ranked after the others.")
    if failures := sum(solver.failures for solver in group.solvers):
        found.append(f"Ratio and seconds charge {plural(failures, 'failed run')} (see the glossary).")
    if drifted := sum(solver.drifted for solver in group.solvers):
        found.append(f"{plural(drifted, 'run')} left out of the seconds: the machine's speed drifted.")
    return found


def problem_table(group: Group) -> Table:
    """The best answer of each problem, and how far from optimal it is at most."""
    columns = (
        "Problem",
        "Rows × n",
        "Best solver",
        "Error",
        "Relative",
        "Ratio to Wanda",
        "Lower bound",
        "Gap",
        "Proof",
    )
    best = summary.best_rows(group.rows)
    lines = []
    for key in group.problems:
        first = next(row for row in group.rows if row["problem_hash"] == key)
        row = best.get(key, {**first, "solver": "none solved it", "device": "cpu", "dtype": "float32"})
        cells = (number(row["error"], 4), percent(row["relative_error"]), number(row["ratio_to_wanda"]))
        bound = (number(row["lower_bound"], 4), percent(row["gap"]), row["proof"])
        size = f"{row['rows']} × {row['n']}"
        lines.append((clip(row["problem"], 200), size, clip(summary.label(row), 200), *cells, *bound))
    return Table(columns, lines, frozenset({2, 8}))


def run_table(group: Group) -> Table:
    """Every run of a group, in the order of the problems and then of the error."""
    columns: tuple[str, ...] = (
        "Problem",
        "Solver",
        "Status",
        "Verdict",
        "Error",
        "Relative",
        "Ratio to Wanda",
        "Rounding error",
        "Gap",
    )
    columns += ("Proof", "To best known", "Seconds", "Seed")
    place = {key: i for i, key in enumerate(group.problems)}
    ordered = sorted(
        group.rows, key=lambda row: (place[row["problem_hash"]], math.inf if row["error"] is None else row["error"])
    )
    lines = []
    for row in ordered[:MAX_RUNS]:
        who = (clip(row["problem"], 200), clip(summary.label(row), 200), row["status"], row["verdict"])
        what = (number(row["error"], 4), percent(row["relative_error"]), number(row["ratio_to_wanda"]))
        bound = (percent(row["rounding_error"]), percent(row["gap"]), row["proof"], percent(row["gap_to_best_known"]))
        took = seconds(row["seconds"]) + (" (drifted)" if row["drifted"] else "")
        lines.append((*who, *what, *bound, took, str(row["seed"])))
    more = len(ordered) - MAX_RUNS
    note = f"{more:,} more runs are in results.csv." if more > 0 else ""
    return Table(columns, lines, frozenset({1, 2, 3, 9}), note)


def budget_table(group: Group) -> Table | None:
    """The error budget in numbers, or None without a relaxation."""
    budgets = summary.budgets(group.rows)
    if not any(budget.optimum is not None for budget in budgets):
        return None
    columns = ("Solver", "Proven bound", "Relaxed optimum", "Relaxed iterate", "Rounded", "Final", "Problems")
    return Table(
        columns, [_budget_cells(budget) for budget in budgets], note="In units of Wanda's error, means over problems."
    )


def _budget_cells(budget: Budget) -> tuple[str, ...]:
    steps = (budget.bound, budget.optimum, budget.iterate, budget.rounded, budget.final)
    return (clip(budget.solver, 300), *map(number, steps), str(budget.problems))


def reason_table(rows: Iterable[Row]) -> Table:
    """Failures (or refusals) with their reasons; the same reason of the same solver on many problems is one line."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        reason = clip(row["reason"] or "no reason given", 500)
        found.setdefault((summary.label(row), row["status"], row["verdict"], reason), []).append(row)
    lines = []
    for (solver, status, verdict, reason), runs in found.items():
        where = _some(_distinct(f"{clip(row['problem'], 80)} ({row['pattern']})" for row in runs), 3)
        lines.append((clip(solver, 300), str(len(runs)), f"{status}, {verdict}", reason, where))
    return Table(("Solver", "Runs", "Status, verdict", "Reason", "Problems"), lines, frozenset({2, 3, 4}))


def failure_table(rows: Iterable[Row]) -> Table:
    return reason_table(row for row in rows if failed(row))


def declined_table(rows: Iterable[Row]) -> Table:
    return reason_table(row for row in rows if row["status"] == Status.SKIPPED)


def contradiction_table(rows: Iterable[Row]) -> Table:
    """Bounds that lie above a judged error, and bounds whose proof was refuted."""
    lines = [
        (clip(r["problem"], 200), clip(summary.label(r), 200), clip(r["contradiction"], 500))
        for r in rows
        if r["contradiction"]
    ]
    return Table(("Problem", "Solver", "What contradicts what"), lines, frozenset({1, 2}))


def record_table(rows: Sequence[Row], registry: Mapping[str, Any] | None) -> Table:
    """Masks and bounds better than the registry's, by more than rounding."""
    lines = []
    for key, row in summary.best_rows(row for row in rows if not row["updates_weights"]).items():
        entry = (registry or {}).get(key)
        upper, lower = getattr(entry, "upper", None), getattr(entry, "lower", None)
        if upper is not None and row["error"] < upper * (1 - 1e-9):
            lines.append(
                (
                    clip(row["problem"], 200),
                    "mask",
                    number(upper, 6),
                    number(row["error"], 6),
                    clip(summary.label(row), 200),
                )
            )
        if lower is not None and row["proof"] == "verified" and row["lower_bound"] > lower + 1e-9 * abs(lower):
            lines.append(
                (
                    clip(row["problem"], 200),
                    "bound",
                    number(lower, 6),
                    number(row["lower_bound"], 6),
                    clip(row["bound_source"] or NOTHING, 200),
                )
            )
    return Table(("Problem", "What", "Registry", "Now", "Found by"), lines, frozenset({1, 4}))


def group_title(group: Group) -> str:
    what = ", changed weights" if group.updates_weights else ""
    return f"{clip(group.collection, 80) or 'Problems'}, pattern {clean(group.pattern)}{what}"
