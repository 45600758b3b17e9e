"""Rows of the report: one plain dict a result, joined with the best bound and the best mask known from any source.

A bound depends on the problem alone, so every mask is measured against the best one that anybody proved: any run in
the store, its certificates, the registry of best-known values. The rows are JSON-safe: no NaN, no infinity.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fwbench import metrics, sheet, spec, timing
from fwbench.result import RELAXATIONS, Certificate, Proof, Result, StageRecord, Status

Row = dict[str, Any]

_COLUMNS = """
problem collection solver status verdict reason pattern rows n error relative_error ratio_to_wanda relaxed_error
rounding_error lower_bound gap proof gap_to_best_known seconds iterations lmo_calls gram_products seed device
mask_sha256 problem_hash dtype updates_weights solved drifted best_known bound_source claimed_lower_bound contradiction
peak_memory created key counters bounds stages trace timing machine meta
"""
COLUMNS = tuple(_COLUMNS.split())
TOLERANCE = 1e-6  # relative: a bound above an error by less is equal to it, by more contradicts it
_OF_AN_ANSWER = ("error", "relative_error", "ratio_to_wanda", "relaxed_error", "rounding_error")
_BOUND_STAGES = ("bound",)  # what stands after a mask to bound it, and makes none


@dataclass(frozen=True)
class Bound:
    """A lower bound on a problem, whoever found it."""

    problem: str  # hash
    value: float
    proof: Proof
    kind: str  # a name of RELAXATIONS, exact, registry, or the stage that claims it: what the figure of gaps calls it
    source: str

    @property
    def least(self) -> float:
        """The value as it is shown: a claim below 0 says that an error is at least 0.

        ``G`` proves that where a problem has no target, and the checker adds it to what it proves. Of a target it is
        not proved, so a bound that is verified below 0 stays there.
        """
        return self.value if self.proof is Proof.VERIFIED else max(self.value, 0.0)


def load(store_paths: Path | str | Iterable[Path | str], best_known: Mapping[str, Any] | None = None) -> list[Row]:
    """Read stores and join them into rows.

    Args:
        store_paths: one store or several; of runs with the same key on the same machine the latest is taken.
        best_known: problem hash -> ``BestKnown`` (attributes ``upper``, ``lower``, ``proof``), the registry.

    Returns:
        One dict a result with the keys ``COLUMNS``, in the order of the stores.
    """
    paths = [store_paths] if isinstance(store_paths, str | Path) else list(store_paths)
    results: list[Result] = []
    bounds: list[Bound] = []
    for path in paths:
        more, proven = _read(Path(path))
        results += more
        bounds += proven
    return join(results, bounds, best_known)


def _read(path: Path) -> tuple[list[Result], list[Bound]]:
    from fwbench.store import Store  # kept here: whoever has Results in hand needs no store

    with Store(path, readonly=True) as store:
        results = store.results()
        hashes = {result.problem_hash for result in results}
        return results, [bound for key in hashes for bound in map(_bound_of, store.certificates(key))]


def _bound_of(certificate: Certificate) -> Bound:
    kind = RELAXATIONS.get(certificate.relaxation, certificate.kind)
    return Bound(certificate.problem, certificate.bound, Proof.VERIFIED, kind, certificate.source or "certificate")


def join(
    results: Iterable[Result], certificates: Iterable[Bound] = (), best_known: Mapping[str, Any] | None = None
) -> list[Row]:
    """Rows of results: ``load`` without the store.

    The lower bound joined with a mask is the best verified one of its problem, from any source; where there is none,
    the best claimed one, and ``proof`` says which. Neither is joined with changed weights, which may do better than
    any mask of the given ones. A run that failed has no error and lends no bound, whatever its solver says.
    """
    results = _latest(list(results))
    best_known = best_known or {}
    bounds: dict[str, list[Bound]] = defaultdict(list)
    uppers: dict[str, float] = {}
    for key, entry in best_known.items():
        _lower(uppers, key, getattr(entry, "upper", None))
        bounds[key] += _registry_bounds(key, entry)
    for bound in certificates:
        bounds[bound.problem].append(bound)
    for result in results:
        if result.status is not Status.FAILED:  # nothing that a refuted run says counts
            bounds[result.problem_hash] += _run_bounds(result)
        if result.solved and not result.updates_weights:
            _lower(uppers, result.problem_hash, result.error)
    drifted = _drifted(results)
    return [
        _row(result, bounds[result.problem_hash], uppers.get(result.problem_hash), id(result) in drifted)
        for result in results
    ]


def _drifted(results: list[Result]) -> set[int]:
    """Which results (by ``id``) have a timing that is not to be ranked, each against the pace of its own machine."""
    machines: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        machines[_text(result.machine)].append(result)
    found: set[int] = set()
    for own in machines.values():
        typical = timing.typical_reference(own)
        found |= {id(result) for result in own if timing.drifted(result, typical)}
    return found


def _latest(results: list[Result]) -> list[Result]:
    newest: dict[tuple[str, str], Result] = {}
    for result in sorted(results, key=lambda item: item.created):
        newest[result.key, _text(result.machine)] = result
    kept = set(map(id, newest.values()))
    return [result for result in results if id(result) in kept]


def _lower(uppers: dict[str, float], key: str, error: float | None) -> None:
    if error is not None and math.isfinite(error):
        uppers[key] = min(error, uppers.get(key, math.inf))


def _registry_bounds(key: str, entry: Any) -> list[Bound]:
    found = []
    for proof in (Proof.VERIFIED, Proof.CLAIMED):
        value, source = getattr(entry, proof, None), getattr(entry, f"{proof}_by", "") or ""
        if value is not None:
            found.append(Bound(key, value, proof, "registry", f"registry: {source}".removesuffix(": ")))
    return found


def _run_bounds(result: Result) -> list[Bound]:
    """Bounds that a run brought: its own with its proof, those of its stages as claims of their kind."""
    found = []
    for record in result.stages:
        if record.lower_bound is not None:
            same = result.lower_bound is not None and record.lower_bound >= result.lower_bound
            proof = result.proof if same else Proof.CLAIMED
            value = result.lower_bound if same and result.lower_bound is not None else record.lower_bound
            found.append(Bound(result.problem_hash, value, proof, _kind(record), result.solver))
    if result.lower_bound is not None and result.proof is not Proof.NONE:
        kind = found[-1].kind if found else "claimed"
        found.append(Bound(result.problem_hash, result.lower_bound, result.proof, kind, result.solver))
    return found


def _kind(record: StageRecord) -> str:
    """What a stage's bound rests on: its certificate's relaxation, else its search or its word."""
    return RELAXATIONS.get(record.relaxation) or ("exact" if record.role == "exact" else record.stage)


def bounds_only(row: Row) -> bool:
    """True for a run that certifies: its mask is another solver's, its bound is what it is for."""
    try:
        return spec.parse(row["solver"]).stages[-1].name in _BOUND_STAGES
    except spec.SpecError:
        return False


def _row(result: Result, bounds: Sequence[Bound], best: float | None, drifted: bool) -> Row:
    row = {**asdict(result), "solved": result.solved, "drifted": drifted}
    if not result.solved:
        row |= dict.fromkeys(_OF_AN_ANSWER)
    row |= {name: result.counters.get(name) for name in ("iterations", "lmo_calls", "gram_products")}
    row |= dict.fromkeys(("lower_bound", "gap", "gap_to_best_known", "best_known", "bound_source"))
    row |= {"proof": Proof.NONE, "claimed_lower_bound": result.lower_bound, "bounds": {}}
    row["contradiction"] = result.reason if result.proof is Proof.REFUTED else ""
    if not result.updates_weights:
        row |= _bounded(row["error"], best, [bound for bound in bounds if math.isfinite(bound.value)])
    return {name: plain(row[name]) for name in COLUMNS}


def _bounded(error: float | None, best: float | None, bounds: Sequence[Bound]) -> Row:
    row: Row = {"best_known": best, "gap_to_best_known": metrics.gap_to_best(error, best)}
    kinds: dict[str, float] = {}
    for bound in bounds:
        kinds[bound.kind] = max(kinds.get(bound.kind, -math.inf), bound.least)
    row["bounds"] = kinds
    proven = [b for b in bounds if b.proof is Proof.VERIFIED] or [b for b in bounds if b.proof is Proof.CLAIMED]
    if not proven:
        return row
    bound = max(proven, key=lambda b: b.value)
    lower = bound.least
    gap = metrics.optimality_gap(error, lower)
    if gap is not None and gap < 0 and _same(error, lower):
        gap = 0.0
    row |= {"lower_bound": lower, "gap": gap, "proof": bound.proof, "bound_source": bound.source}
    worst = max((b for b in bounds if b.proof is not Proof.NONE), key=lambda b: b.value)
    if error is not None and worst.value > error and not _same(error, worst.value):
        row["contradiction"] = (
            f"the {worst.proof} lower bound {worst.value:.9g} of {worst.source} exceeds the judged error {error:.9g}"
        )
    return row


def _same(error: float | None, lower: float) -> bool:
    return error is not None and lower <= error + TOLERANCE * abs(error) + 1e-300


def plain(value: Any) -> Any:
    """The value as JSON can hold it: no NaN, no infinity, no enum, no array; what is none of these as text."""
    if value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return plain(value.item()) if hasattr(value, "item") and getattr(value, "size", 0) == 1 else str(value)


def to_json(rows: Iterable[Row]) -> str:
    """JSON lines, one object a row; what is not finite is ``null``."""
    return "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)


def to_csv(rows: Iterable[Row]) -> str:
    """CSV with a header line; what is not known is empty, and what is nested is JSON. Stages and traces stay out."""
    columns = [name for name in COLUMNS if name not in ("stages", "trace")]
    return sheet.write(columns, ([_cell(plain(row.get(name))) for name in columns] for row in rows))


def _cell(value: Any) -> Any:
    return _text(value) if isinstance(value, dict | list) else value


def _text(value: Any) -> str:
    return json.dumps(plain(value), sort_keys=True, ensure_ascii=False)


def failed(row: Row) -> bool:
    """True if a run gave no answer that the judge accepted; declining a problem is not failing."""
    return not row["solved"] and row["status"] != Status.SKIPPED
