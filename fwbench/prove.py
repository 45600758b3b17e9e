"""Proofs at rest: find the problems of a store, replay its certificates, judge its masks again, keep the registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fwbench import verify
from fwbench.judge import judge
from fwbench.problem import Problem, ProblemError
from fwbench.problems import collections, registry
from fwbench.problems.registry import BestKnown
from fwbench.result import Certificate, Proof
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
    return next((problem for problem in _candidates(collection, name, pattern) if problem.hash == digest), None)


def _candidates(collection: str, name: str, pattern: str) -> Iterator[Problem]:
    """Problems that may be the one of that name and pattern."""
    stem = name.removesuffix(f".{pattern}")
    for selector in (f"{collection}/{name}", f"{collection}/{stem}*"):
        try:
            for _, problem in collections.load(selector):
                yield problem
                if not pattern.startswith("rows:"):
                    yield problem.with_pattern(pattern)
        except collections.CollectionError:
            continue


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


def _same(a: float, b: float, tolerance: float = CLAIM) -> bool:
    return abs(a - b) <= tolerance * max(abs(a), abs(b))


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
    """Judge every mask of a registry again and replay the certificate of every bound it calls verified.

    Problems that are extracted rather than stored (``smollm2``) depend in their last bits on the machine's arithmetic.
    Where only such a twin is at hand, the mask must have the listed error to within ``TWIN``, and the bound stays open.
    """
    entries = registry.best_known(folder)
    stored = {problem.hash: problem for _, problem in collections.load("mini")}
    for digest, entry in entries.items():
        if digest in stored:
            yield from _verify_entry(stored[digest], entry, folder)
        elif entry.name.startswith("mini."):
            yield Finding(entry.name, "problem", False, "its data is not found")
        else:
            yield from _verify_extracted(entry, folder)


def _verify_entry(problem: Problem, entry: BestKnown, folder: Path) -> Iterator[Finding]:
    if entry.upper is not None:
        yield _verify_mask(problem, entry, CLAIM)
    if entry.verified is not None:
        yield check_certificate(problem, registry.certificate(entry, folder))
    if entry.claimed is not None:
        detail = f"claimed only: error >= {entry.claimed:.9g}"
        yield Finding(entry.name, f"bound by {entry.claimed_by}", True, detail)


def _verify_mask(problem: Problem, entry: BestKnown, tolerance: float) -> Finding:
    judged = judge(problem, entry.keep)
    good = judged.error is not None and entry.upper is not None and _same(judged.error, entry.upper, tolerance)
    detail = f"error {judged.error:.9g}" if good else judged.reason or f"error {judged.error}, listed {entry.upper}"
    return Finding(entry.name, f"mask of {entry.upper_by}", good, detail)


def _verify_extracted(entry: BestKnown, folder: Path) -> Iterator[Finding]:
    try:
        problem = _extracted(entry)
    except ValueError as error:
        yield Finding(entry.name, "problem", None, f"cannot be extracted here: {error}")
        return
    if problem is None:
        yield Finding(entry.name, "problem", False, "its data is not found")
    elif problem.hash == entry.hash:
        yield from _verify_entry(problem, entry, folder)
    else:
        if entry.upper is not None:
            yield _verify_mask(problem, entry, TWIN)
        if entry.verified is not None:
            hashes = f"hash {entry.hash[:12]}, here {problem.hash[:12]}"
            detail = f"error >= {entry.verified:.9g} is of another extraction ({hashes})"
            yield Finding(entry.name, f"bound by {entry.verified_by}", None, detail)


def _extracted(entry: BestKnown) -> Problem | None:
    """The problem of an entry, or else its twin."""
    twin = None
    for problem in _candidates(entry.name.partition(".")[0], entry.name, entry.pattern):
        if problem.hash == entry.hash:
            return problem
        if twin is None and str(problem.pattern) == entry.pattern and problem.shape == (entry.rows, entry.n):
            twin = problem
    return twin


def update_registry(store: Store, folder: Path) -> list[str]:
    """Take what a store knows better into a registry: masks judged here, certificates replayed here, claims as claims.

    A proof of the same bound in fewer bytes takes the place of a longer one; the bound is then what it proves, which
    may be lower by ``ROUNDING``.

    Returns:
        One line for each improvement.

    Raises:
        RegistryError: a bound contradicts a mask.
    """
    entries = registry.best_known(folder)
    before = dict(entries)
    certificates: dict[str, Certificate] = {}
    shorter: dict[str, str] = {}
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
            size = len(certificate.to_bytes())
            proof = Proof.VERIFIED if size <= KEPT else Proof.CLAIMED
            after = registry.improve(entries, problem, certificate.source, lower=checked.bound, proof=proof)
            if after != entries and proof is Proof.VERIFIED:
                certificates[problem.hash] = certificate
            elif held := registry.proof_size(entries.get(problem.hash), folder, certificates.get(problem.hash)):
                known = entries[problem.hash]
                if size < held and checked.bound >= (known.verified or 0.0) * (1 - ROUNDING):
                    certificates[problem.hash] = certificate
                    known = replace(known, verified=checked.bound, verified_by=certificate.source)
                    after = {**entries, problem.hash: known}
                    shorter[problem.hash] = f"{known.name}: the same bound, proved in {size} bytes (was {held})"
            entries = after
    registry.save(entries, folder, certificates)
    changed = {key: entry for key, entry in entries.items() if key in shorter or entry != before.get(key)}
    return [shorter.get(key) or _improvement(before.get(key), entry) for key, entry in changed.items()]


def _improvement(old: BestKnown | None, new: BestKnown) -> str:
    def text(value: float | None) -> str:
        return "open" if value is None else f"{value:.9g}"

    was = f" (was {text(old.upper)}, {text(old.lower)})" if old else ""
    return f"{new.name}: error {text(new.upper)}, bound {text(new.lower)} {new.proof}{was}"
