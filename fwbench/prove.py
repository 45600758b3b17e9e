"""Proofs at rest: find the problems of a store, replay its certificates, judge its masks again, keep the registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fwbench import verify
from fwbench.judge import judge
from fwbench.problem import Problem, ProblemError
from fwbench.problems import collections, registry
from fwbench.problems.registry import BestKnown
from fwbench.result import Certificate, Proof
from fwbench.store import Store

CLAIM = 1e-9  # relative: how closely a stored error must be reproduced
KEPT = 4_000_000  # bytes of a certificate that a registry commits; a larger proof is listed as a claim, to be run again


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    problem: str
    what: str
    ok: bool
    detail: str


def problems_of(store: Store) -> Iterator[tuple[str, Problem | None, str]]:
    """The problems a store has rows of, loaded again: (name, problem or None, collection).

    A problem is found by its collection, name and pattern, and is right only if its hash is the stored one.
    """
    for item in store.problems():
        name, collection, digest = str(item["name"]), str(item["collection"]), str(item["hash"])
        try:
            yield name, _load(collection, name, str(item["pattern"]), digest), collection
        except (ValueError, ProblemError):
            yield name, None, collection


def _load(collection: str, name: str, pattern: str, digest: str) -> Problem | None:
    stem = name.removesuffix(f".{pattern}")
    for selector in (f"{collection}/{name}", f"{collection}/{stem}*"):
        try:
            for _, problem in collections.load(selector):
                if problem.hash == digest:
                    return problem
                if not pattern.startswith("rows:") and (other := problem.with_pattern(pattern)).hash == digest:
                    return other
        except collections.CollectionError:
            continue
    return None


def verify_store(store: Store) -> Iterator[Finding]:
    """Replay every certificate of a store and judge every mask again."""
    results = store.results()
    for name, problem, _ in problems_of(store):
        if problem is None:
            yield Finding(name, "problem", False, "its data is not found again: nothing of it can be verified")
            continue
        for certificate in store.certificates(problem.hash):
            yield check_certificate(problem, certificate)
        for row in results:
            if row.problem_hash != problem.hash or not row.solved or row.updates_weights:
                continue
            keep = store.mask(row.key)
            found = judge(problem, keep)
            good = found.error is not None and row.error is not None and _same(found.error, row.error)
            detail = f"error {found.error:.9g}" if good else found.reason or f"error {found.error}, stored {row.error}"
            yield Finding(name, f"mask of {row.solver}", good, detail)


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= CLAIM * max(abs(a), abs(b))


def check_certificate(problem: Problem, certificate: Certificate) -> Finding:
    """Replay one certificate."""
    found = verify.check(problem, certificate)
    what = f"bound by {certificate.source or 'unknown'}"
    return Finding(problem.name, what, found.ok, f"error >= {found.bound:.9g}" if found.ok else found.reason)


def find_problem(digest: str, selectors: tuple[str, ...] = ("mini",)) -> Problem | None:
    """The problem with this hash among collections, files or folders."""
    for selector in selectors:
        for _, problem in collections.load(selector):
            if problem.hash == digest:
                return problem
    return None


def verify_registry(folder: Path) -> Iterator[Finding]:
    """Judge every mask of a registry again and replay the certificate of every bound it calls verified."""
    entries = registry.best_known(folder)
    found: set[str] = set()
    for problem in _registered(entries):
        entry = entries[problem.hash]
        found.add(problem.hash)
        judged = judge(problem, entry.keep)
        good = judged.error is not None and entry.upper is not None and _same(judged.error, entry.upper)
        detail = f"error {judged.error:.9g}" if good else judged.reason or f"error {judged.error}, listed {entry.upper}"
        yield Finding(problem.name, f"mask of {entry.upper_by}", good, detail)
        if entry.verified is not None:
            yield check_certificate(problem, registry.certificate(entry, folder))
        if entry.claimed is not None:
            yield Finding(
                problem.name, f"bound by {entry.claimed_by}", True, f"claimed only: error >= {entry.claimed:.9g}"
            )
    for digest in entries.keys() - found:
        yield Finding(entries[digest].name, "problem", False, "its data is not found")


def _registered(entries: dict[str, BestKnown]) -> Iterator[Problem]:
    names = [entry.name for entry in entries.values()]
    if any(name.startswith("mini.") for name in names):
        yield from (p for _, p in collections.load("mini") if p.hash in entries)
    for entry in entries.values():
        if not entry.name.startswith("mini."):
            problem = _load(entry.name.partition(".")[0], entry.name, entry.pattern, entry.hash)
            if problem is not None:
                yield problem


def update_registry(store: Store, folder: Path) -> list[str]:
    """Take what a store knows better into a registry: masks judged here, certificates replayed here, claims as claims.

    Returns:
        One line for each improvement.

    Raises:
        RegistryError: a bound contradicts a mask.
    """
    entries = registry.best_known(folder)
    before = dict(entries)
    certificates: dict[str, Certificate] = {}
    results = store.results()
    for _, problem, collection in problems_of(store):
        if problem is None or collection not in ("mini", "smollm2"):
            continue
        for row in results:
            if row.problem_hash != problem.hash or not row.solved or row.updates_weights:
                continue
            keep = store.mask(row.key)
            if keep is not None:
                entries = registry.improve(entries, problem, row.solver, keep=keep)
            if row.proof is Proof.CLAIMED and row.lower_bound is not None:
                entries = registry.improve(entries, problem, row.solver, lower=row.lower_bound, proof=Proof.CLAIMED)
        for certificate in store.certificates(problem.hash):
            checked = verify.check(problem, certificate)
            if not checked.ok:
                continue
            proof = Proof.VERIFIED if len(certificate.to_bytes()) <= KEPT else Proof.CLAIMED
            after = registry.improve(entries, problem, certificate.source, lower=checked.bound, proof=proof)
            if after != entries and proof is Proof.VERIFIED:
                certificates[problem.hash] = certificate
            entries = after
    registry.save(entries, folder, certificates)
    return [_improvement(before.get(key), entry) for key, entry in entries.items() if entry != before.get(key)]


def _improvement(old: BestKnown | None, new: BestKnown) -> str:
    def text(value: float | None) -> str:
        return "open" if value is None else f"{value:.9g}"

    was = f" (was {text(old.upper)}, {text(old.lower)})" if old else ""
    return f"{new.name}: error {text(new.upper)}, bound {text(new.lower)} {new.proof}{was}"
