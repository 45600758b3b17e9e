"""Proofs at rest: find the problems of a store, replay its certificates, judge its masks again, keep the registry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fwbench import patterns, verify
from fwbench.judge import judge
from fwbench.problem import Problem, labels
from fwbench.problems import registry
from fwbench.problems.finding import Found, Wanted, find
from fwbench.problems.registry import BestKnown
from fwbench.result import Certificate, Proof, Result
from fwbench.store import Store

CLAIM = 1e-9  # relative: how closely a stored error must be reproduced
TWIN = 1e-3  # the same, on a problem that was extracted with other last bits
ROUNDING = 1e-12  # relative: bounds this close differ by the order of their sums
KEPT = 4_000_000  # bytes of a certificate that a registry commits; a larger proof is listed as a claim, to be run again


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    problem: str
    what: str
    ok: bool | None  # None: it cannot be decided here
    detail: str


def problems_of(store: Store, places: Sequence[str | Path] = ()) -> Iterator[Found]:
    """The problems of a store, found again; see :func:`fwbench.problems.finding.find`.

    Raises:
        CollectionError, ProblemError: a place that cannot be read.
    """
    sought = ("hash", "name", "pattern", "rows", "n", "collection", "origin", "counts")
    return find([Wanted(**{key: item[key] for key in sought}) for item in store.problems()], places)


def verify_store(store: Store, places: Sequence[str | Path] = ()) -> Iterator[Finding]:
    """Replay every certificate of a store and judge every mask again.

    Args:
        places: where problems are that are no longer where they were.
    """
    names = labels((item["hash"], item["name"], item["pattern"]) for item in store.problems())
    rows: dict[str, list[Result]] = defaultdict(list)
    for row in store.results():
        rows[row.problem_hash].append(row)
    for found in problems_of(store, places):
        name, problem = names[found.wanted.hash] or found.wanted.hash[:12], found.problem
        if problem is None:
            yield Finding(name, "problem", False, f"not found: {found.reason}")
            continue
        problem = replace(problem, name=name)
        for certificate in store.certificates(problem.hash):
            yield check_certificate(problem, certificate)
        for row in rows[problem.hash]:
            if row.solved and not row.updates_weights:
                yield _check_mask(problem, f"mask of {row.solver}", store.mask(row.key), row.error, CLAIM)


def _check_mask(problem: Problem, what: str, keep: np.ndarray | None, error: float | None, tolerance: float) -> Finding:
    """Judge a mask again; ``error`` is what is said of it."""
    found = judge(problem, keep)
    good = found.error is not None and error is not None and _same(found.error, error, tolerance)
    detail = (
        f"error {found.error:.9g}" if good else found.reason or f"error {found.error}, not the {error} that is kept"
    )
    return Finding(problem.name, what, good, detail)


def _same(a: float, b: float, tolerance: float = CLAIM) -> bool:
    return abs(a - b) <= tolerance * max(abs(a), abs(b))


def check_certificate(problem: Problem, certificate: Certificate) -> Finding:
    """Replay one certificate."""
    found = verify.check(problem, certificate)
    what = f"bound by {certificate.source or 'unknown'}"
    return Finding(problem.name, what, found.ok, f"error >= {found.bound:.9g}" if found.ok else found.reason)


def find_problem(digest: str, places: Sequence[str | Path] = ("mini",), pattern: str | None = None) -> Found:
    """The problem with this hash among collections, files and folders, under their own patterns or another."""
    chosen = None if pattern is None else patterns.parse(pattern)
    counts = chosen.pruned if isinstance(chosen, patterns.Rows) else None
    [found] = find([Wanted(digest, pattern=str(chosen or ""), counts=counts)], places)
    return found


def verify_registry(folder: Path, places: Sequence[str | Path] = ()) -> Iterator[Finding]:
    """Judge every mask of a registry again and replay the certificate of every bound it calls verified.

    Problems that are extracted rather than stored (``smollm2``) depend in their last bits on the machine's arithmetic.
    Where only such a twin is at hand, the mask must have the listed error to within ``TWIN``, and the bound stays open.

    Args:
        places: where problems are that are of no named collection.
    """
    entries = registry.best_known(folder)
    names = registry.names_of(entries)
    for found in find(map(_wanted, entries.values()), places):
        name, entry = names[found.wanted.hash], entries[found.wanted.hash]
        if found.problem is not None:
            yield from _verify_entry(replace(found.problem, name=name), entry, folder)
        elif found.twin is not None:
            yield from _verify_twin(replace(found.twin, name=name), entry)
        else:
            yield Finding(name, "problem", None if found.offline else False, f"not found: {found.reason}")


def _wanted(entry: BestKnown) -> Wanted:
    """What a registry knows of a problem; the counts of a pattern ``rows:`` are those of its mask."""
    keep = entry.keep if entry.pattern.startswith("rows:") else None
    counts = None if keep is None else (~keep).sum(axis=1)
    place = (entry.hash, entry.name, entry.pattern, entry.rows, entry.n)
    return Wanted(*place, collection=entry.name.partition(".")[0], counts=counts)


def _verify_entry(problem: Problem, entry: BestKnown, folder: Path) -> Iterator[Finding]:
    if entry.upper is not None:
        yield _check_mask(problem, f"mask of {entry.upper_by}", entry.keep, entry.upper, CLAIM)
    if entry.verified is not None:
        yield check_certificate(problem, registry.certificate(entry, folder))
    if entry.claimed is not None:
        detail = f"claimed only: error >= {entry.claimed:.9g}"
        yield Finding(problem.name, f"bound by {entry.claimed_by}", True, detail)


def _verify_twin(problem: Problem, entry: BestKnown) -> Iterator[Finding]:
    if entry.upper is not None:
        yield _check_mask(problem, f"mask of {entry.upper_by}", entry.keep, entry.upper, TWIN)
    if entry.verified is not None:
        hashes = f"hash {entry.hash[:12]}, here {problem.hash[:12]}"
        detail = f"error >= {entry.verified:.9g} is of another extraction ({hashes})"
        yield Finding(problem.name, f"bound by {entry.verified_by}", None, detail)


@dataclass(frozen=True)
class Update:
    """What became of an update of a registry, a line for each problem."""

    improved: list[str]
    left: list[str]  # not taken, with the reason


def update_registry(store: Store, folder: Path, places: Sequence[str | Path] = ()) -> Update:
    """Take what a store knows better into a registry: masks judged here, certificates replayed here, claims as claims.

    A proof of the same bound in fewer bytes takes the place of a longer one; the bound is then what it proves, which
    may be lower by ``ROUNDING``.

    Args:
        folder: of the registry; a new one begins where there is none.
        places: where problems are that are no longer where they were.

    Raises:
        RegistryError: a bound contradicts a mask, or the registry cannot be read.
    """
    entries = registry.to_improve(folder)
    taking, left = _Taking(folder, dict(entries)), []
    results = store.results()
    for found in problems_of(store, places):
        problem, name = found.problem, found.wanted.name or found.wanted.hash[:12]
        if problem is None:
            left.append(f"{name}: not found: {found.reason}")
        elif reason := registry.refusal(problem, found.wanted.collection, folder):
            left.append(f"{name}: {reason}")
        else:
            own = [row for row in results if row.problem_hash == problem.hash]
            taking.masks(problem, [(row, store.mask(row.key)) for row in own if row.solved and not row.updates_weights])
            taking.proofs(problem, store.certificates(problem.hash))
    after, shorter = taking.entries, taking.shorter
    registry.save(after, folder, taking.certificates)
    changed = {key: entry for key, entry in after.items() if key in shorter or entry != entries.get(key)}
    return Update([shorter.get(key) or _improvement(entries.get(key), entry) for key, entry in changed.items()], left)


@dataclass
class _Taking:
    """A registry that takes in what is better."""

    folder: Path
    entries: dict[str, BestKnown]
    certificates: dict[str, Certificate] = field(default_factory=dict)  # new ones
    shorter: dict[str, str] = field(default_factory=dict)  # what is said of those that replace a longer one

    def masks(self, problem: Problem, rows: Iterable[tuple[Result, np.ndarray | None]]) -> None:
        for row, keep in rows:
            if keep is not None:
                self.entries = registry.improve(self.entries, problem, row.solver, keep=keep)
            if row.proof is Proof.CLAIMED and row.lower_bound is not None:
                claim = {"lower": row.lower_bound, "proof": Proof.CLAIMED}
                self.entries = registry.improve(self.entries, problem, row.solver, **claim)  # type: ignore[arg-type]

    def proofs(self, problem: Problem, certificates: Iterable[Certificate]) -> None:
        for certificate in certificates:
            checked = verify.check(problem, certificate)
            if not checked.ok:
                continue
            size = len(certificate.to_bytes())
            proof = Proof.VERIFIED if size <= KEPT else Proof.CLAIMED
            after = registry.improve(self.entries, problem, certificate.source, lower=checked.bound, proof=proof)
            new = self.certificates.get(problem.hash)
            if after != self.entries and proof is Proof.VERIFIED:
                self.certificates[problem.hash] = certificate
            elif held := registry.proof_size(self.entries.get(problem.hash), self.folder, new):
                known = self.entries[problem.hash]
                verified = known.verified or 0.0
                if size < held and checked.bound >= verified - ROUNDING * abs(verified):
                    self.certificates[problem.hash] = certificate
                    known = replace(known, verified=checked.bound, verified_by=certificate.source)
                    after = {**self.entries, problem.hash: known}
                    line = f"{known.name}: the same bound, proved in {size} bytes (was {held})"
                    self.shorter[problem.hash] = line
            self.entries = after


def _improvement(old: BestKnown | None, new: BestKnown) -> str:
    def text(value: float | None) -> str:
        return "open" if value is None else f"{value:.9g}"

    was = f" (was {text(old.upper)}, {text(old.lower)})" if old else ""
    return f"{new.name}: error {text(new.upper)}, bound {text(new.lower)} {new.proof}{was}"
