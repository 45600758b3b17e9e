"""The store: one SQLite file with results, masks, certificates and what problems they belong to.

Every row is one transaction in WAL mode with ``synchronous = FULL``: a kill -9 or a power cut loses nothing that was
written. A good row is never overwritten; a failed one may be, by a retry, and its attempts are counted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import numpy as np

from fwbench import schema
from fwbench.patterns import Rows
from fwbench.problem import Problem
from fwbench.result import Answer, Certificate, Proof, Result, Status, pack_mask, unpack_mask
from fwbench.schema import SCHEMA

SUFFIXES = (".sqlite", ".db")
LAYERS = "layers.sqlite"  # in the folder of a pruned model: a row for each of its layers


class StoreError(Exception):
    """The store cannot be read or written; one line: what, where, what to do."""


class AlreadyStored(StoreError):
    """The key has a good result, which is not overwritten."""


def is_store(path: Path | str) -> bool:
    """Whether a path means a store: an SQLite file, a name that ends in one of ``SUFFIXES``, or a pruned model."""
    path = _file(path)
    if path.suffix in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def _file(path: Path | str) -> Path:
    """The store that a path means: the file itself, or the one in the folder of a pruned model."""
    path = Path(path)
    return path / LAYERS if (path / LAYERS).is_file() else path


class Store:
    """An open store; a context manager.

    Args:
        path: the file, or the folder of a pruned model; made (its folder must exist) unless ``readonly``.
        readonly: no change to the file, which must exist.

    Raises:
        StoreError: a missing file or folder, no permission, not a store, or a store of a newer fwbench.
    """

    def __init__(self, path: Path | str, readonly: bool = False) -> None:
        self.path = _file(path)
        self.readonly = readonly
        if self.path.is_dir():
            raise StoreError(f"{self.path}: is a folder, not a store")
        if not self.path.exists():
            if readonly:
                raise StoreError(f"{self.path}: no such store")
            if not self.path.parent.is_dir():
                raise StoreError(f"{self.path}: the folder {self.path.parent} does not exist")
        with self._errors():
            self._db = self._open()
        try:
            self._check_or_create()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        self._db.close()

    # --- writing

    def settle(self) -> None:
        """Make it one file that is read alone, such as to be copied: no journal beside it until it is written again.

        Raises:
            StoreError: it cannot be written, or another process has it open.
        """
        self._one("PRAGMA journal_mode = DELETE")

    def add(
        self,
        outcome: Answer | Result,
        keep: np.ndarray | None = None,
        certificate: Certificate | None = None,
        problem: Problem | None = None,
    ) -> int:
        """Write a result, with its mask and its certificate, in one transaction.

        Args:
            outcome: with the mask and certificate in it; or a Result, and those as the next two arguments.
            keep: bool ``(rows, n)``, True = the weight stays.
            certificate: one that the checker has replayed; it claims what was proved (an Answer's does).
            problem: recorded beside the row, if given.

        Returns:
            The number of this attempt: 1, or more where failed rows were retried.

        Raises:
            AlreadyStored: the key has a result that :func:`replaceable` does not give up.
            StoreError: the disk is full or the store cannot be written; nothing of the row is then in it.
        """
        if isinstance(outcome, Result):
            result = outcome
        else:
            result, keep, certificate = outcome.result, outcome.keep, outcome.certificate
        with self._transaction():
            old = self.get(result.key)
            if old is not None and not replaceable(old, result):
                raise AlreadyStored(
                    f"{self.path}: {result.solver} on {result.problem} is already stored ({result.key})"
                )
            attempts = 1 + (self.attempts(result.key) if old else 0)
            row = (
                result.key,
                result.problem_hash,
                result.collection,
                result.solver,
                str(result.status),
                result.created,
            )
            self._db.execute("REPLACE INTO results VALUES (?,?,?,?,?,?,?,?)", (*row, attempts, result.to_json()))
            self._db.execute("DELETE FROM masks WHERE key = ?", (result.key,))
            if keep is not None and result.solved:
                bits = zlib.compress(pack_mask(keep))
                self._db.execute("INSERT INTO masks VALUES (?,?,?,?)", (result.key, *keep.shape, bits))
            if certificate is not None and result.solved:
                self._put_certificate(replace(certificate, source=result.solver), certificate.bound)
            if problem is not None:
                self._put_problem(problem, result.collection)
        return attempts

    def add_certificate(self, certificate: Certificate, bound: float, problem: Problem | None = None) -> bool:
        """Keep a certificate whose verified bound is ``bound``, the best of its problem and source; True if it is.

        Raises:
            StoreError: the store cannot be written.
        """
        with self._transaction():
            if problem is not None:
                self._put_problem(problem, "")
            return self._put_certificate(certificate, bound)

    def add_problem(self, problem: Problem, collection: str) -> None:
        """Record what a problem's hash stands for, and where it was read last; its first name stays."""
        known = self._one("SELECT collection, origin FROM problems WHERE hash = ?", (problem.hash,))
        if known != (collection, problem.origin):
            with self._transaction():
                self._put_problem(problem, collection)

    def _put_certificate(self, certificate: Certificate, bound: float) -> bool:
        bound = float(bound)
        where = (certificate.problem, certificate.source)
        best = self._one("SELECT bound FROM certificates WHERE problem_hash = ? AND source = ?", where)
        if best is not None and best[0] >= bound:
            return False
        data = replace(certificate, bound=bound).to_bytes()  # it claims what was verified, no more
        row = (*where, bound, str(Proof.VERIFIED), datetime.now(UTC).isoformat(timespec="seconds"), data)
        self._db.execute("REPLACE INTO certificates VALUES (?,?,?,?,?,?)", row)
        return True

    def _put_problem(self, problem: Problem, collection: str) -> None:
        row = (problem.hash, problem.name, collection, str(problem.pattern), problem.rows, problem.n)
        meta = json.dumps(dict(problem.meta), default=str)
        counts = problem.pattern.pruned.astype("<i8").tobytes() if isinstance(problem.pattern, Rows) else None
        packed = None if counts is None else zlib.compress(counts)
        self._db.execute(schema.PUT_PROBLEM, (*row, meta, problem.total, problem.origin, packed))

    # --- reading

    def results(self) -> list[Result]:
        """All rows, in the order they were written."""
        return [Result.from_json(text) for (text,) in self._all("SELECT json FROM results ORDER BY rowid")]

    def get(self, key: str) -> Result | None:
        """The row of a key, or None."""
        row = self._one("SELECT json FROM results WHERE key = ?", (key,))
        return Result.from_json(row[0]) if row else None

    def attempts(self, key: str) -> int:
        """How often a key was tried; 0 if never."""
        row = self._one("SELECT attempts FROM results WHERE key = ?", (key,))
        return row[0] if row else 0

    def keys(self) -> dict[str, Status]:
        """Status of each key."""
        return {key: Status(status) for key, status in self._all("SELECT key, status FROM results ORDER BY rowid")}

    def mask(self, key: str) -> np.ndarray | None:
        """The mask of a solved row, bool ``(rows, n)``, True = the weight stays; or None."""
        row = self._one("SELECT bits, rows, n FROM masks WHERE key = ?", (key,))
        return unpack_mask(zlib.decompress(row[0]), (row[1], row[2])) if row else None

    def certificates(self, problem_hash: str) -> list[Certificate]:
        """Certificates of a problem, the best bound of each source, best first; ``bound`` is the verified one.

        Raises:
            StoreError: a certificate is damaged.
        """
        query = "SELECT data FROM certificates WHERE problem_hash = ? ORDER BY bound DESC, source"
        try:
            return [Certificate.from_bytes(data) for (data,) in self._all(query, (problem_hash,))]
        except ValueError as error:
            raise StoreError(f"{self.path}: problem {problem_hash[:12]}: {error}") from None

    def problems(self) -> list[dict[str, Any]]:
        """What is known of each problem: hash, name, collection, pattern, rows, n, meta, total, origin, counts.

        ``origin`` is the file it was read from, empty if of none; ``counts`` what a pattern ``rows:`` prunes of each
        row, int64 ``(rows,)``, else None. Of a problem that was never recorded, what its first row says.
        """
        names = [column for _, column, *_ in self._all("PRAGMA table_info(problems)")]
        rows = self._all("SELECT * FROM problems ORDER BY rowid")
        blank: dict[str, Any] = {"origin": "", "counts": None}
        found = [blank | dict(zip(names, row, strict=True)) for row in rows]
        found += [_unrecorded(*other) for other in self._all(schema.UNRECORDED)]
        for item in found:
            item["meta"] = json.loads(item["meta"])
            if item["counts"] is not None:
                item["counts"] = np.frombuffer(zlib.decompress(item["counts"]), "<i8").astype(np.int64)
            elif item["pattern"].startswith("rows:"):  # an older fwbench did not keep them, but any mask shows them
                item["counts"] = self._counts(item["hash"])
        return found

    def _counts(self, problem_hash: str) -> np.ndarray | None:
        query = "SELECT key FROM masks JOIN results USING (key) WHERE problem_hash = ? LIMIT 1"
        key = self._one(query, (problem_hash,))
        return None if key is None else (~self.mask(key[0])).sum(axis=1)  # type: ignore[operator]

    # --- the file

    def _open(self) -> sqlite3.Connection:
        if not self.readonly:
            # autocommit: transactions are ours alone
            return sqlite3.connect(self.path, isolation_level=None, timeout=30)
        address = f"file:{quote(str(self.path.resolve()))}"
        # in a folder we cannot write to, sqlite reads a file in WAL mode only when told that nobody changes it
        settled = not os.access(self.path.parent, os.W_OK) and not Path(f"{self.path}-wal").exists()
        mode = "immutable=1" if settled else "mode=ro"
        return sqlite3.connect(f"{address}?{mode}", uri=True, isolation_level=None, timeout=30)

    def _check_or_create(self) -> None:
        with self._errors():
            application = self._one("PRAGMA application_id")[0]
            version = self._schema()
            blank = not self._one("SELECT count(*) FROM sqlite_master")[0]
        if application == 0 and blank and not self.readonly:
            self._create()
        elif application != schema.APPLICATION:
            raise StoreError(f"{self.path}: is a database, but not a store of fwbench")
        elif version > SCHEMA:
            raise StoreError(
                f"{self.path}: was written by a newer fwbench (schema {version}, known {SCHEMA}): upgrade fwbench"
            )
        if not self.readonly:
            with self._errors():
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
            self._upgrade()

    def _create(self) -> None:
        with self._transaction():
            if self._one("SELECT count(*) FROM sqlite_master")[0]:
                return  # another process was faster
            for statement in schema.TABLES.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {schema.APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    def _upgrade(self) -> None:
        """Give a store of an older fwbench what it lacks; its rows stay as they are."""
        if self._schema() == SCHEMA:
            return
        with self._transaction():
            for version in range(self._schema(), SCHEMA):  # none, if another process was faster
                for statement in schema.UPGRADES[version].split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    def _schema(self) -> int:
        return self._one("PRAGMA user_version")[0]

    def _one(self, query: str, values: tuple = ()) -> tuple:
        with self._errors():
            return self._db.execute(query, values).fetchone()

    def _all(self, query: str, values: tuple = ()) -> list[tuple]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        if self.readonly:
            raise StoreError(f"{self.path}: was opened for reading only")
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what sqlite says into one line that says what to do."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: {_reason(error, self.path)}") from error


def _unrecorded(problem_hash: str, row: str | None) -> dict[str, Any]:
    """A problem that only rows, or only certificates, are of."""
    result = Result.from_json(row) if row else None
    known = {"hash": problem_hash, "meta": "{}", "total": None, "origin": "", "counts": None}
    if result is None:
        return known | {"name": "", "collection": "", "pattern": "", "rows": 0, "n": 0}
    shape = {"rows": result.rows, "n": result.n}
    return known | {"name": result.problem, "collection": result.collection, "pattern": result.pattern} | shape


def replaceable(old: Result, new: Result) -> bool:
    """True if ``new`` may take the place of ``old``: it failed or was skipped, or timed out under a shorter limit."""
    if old.status in (Status.FAILED, Status.SKIPPED):
        return True
    return old.status is Status.TIMEOUT and outlasts(old, float(new.timing.get("time_limit", 0.0)))


def outlasts(old: Result, time_limit: float) -> bool:
    """True if ``time_limit`` (seconds) is longer than the one under which ``old`` ran."""
    return time_limit > float(old.timing.get("time_limit", np.inf))


def _reason(error: sqlite3.Error | OSError, path: Path) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return "is not a store of fwbench (not an SQLite database)"
    if code == sqlite3.SQLITE_CORRUPT:
        return f"the store is damaged ({error}): restore it from a copy, or start a new one"
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EFBIG):
        return "the disk is full: this row was not written, all earlier ones are; make room and run again"
    if code == sqlite3.SQLITE_IOERR:
        return f"reading or writing failed ({error}): this row was not written; is the disk full?"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another process has kept it locked for 30 seconds"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        writable = os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
        return f"cannot be opened ({error})" if writable else "cannot be written: the file or its folder is read-only"
    return str(error)
