"""The store: what is written comes back, good rows stay, and whatever is wrong is one line."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace

import layers
import numpy as np
import pytest
from layers import random_layer

from fwbench import pipeline
from fwbench.problems import files
from fwbench.result import Certificate, Proof, Status, Verdict
from fwbench.schema import SCHEMA, UPGRADES
from fwbench.store import AlreadyStored, Store, StoreError, is_store


@pytest.fixture(scope="module")
def problem():
    return random_layer("0.5")


@pytest.fixture(scope="module")
def outcome(problem):
    return pipeline.run(problem, pipeline.resolve("wanda"), collection="tests")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a #store?.db"  # characters that mean something in an address


def failed(problem, solver="wanda", **changes):
    return replace(pipeline.Run(problem, pipeline.resolve(solver)).failed("why"), **changes)


def certificate(problem, bound, source="fw"):
    u = np.zeros(problem.shape, np.float32)
    return Certificate(problem.hash, bound, "diagonal", {"e": np.zeros(problem.n), "u": u}, source)


def test_everything_comes_back(path, problem, outcome):
    proof = certificate(problem, 0.25, source="")
    row = replace(outcome.result, lower_bound=0.25, proof=Proof.VERIFIED)
    with Store(path) as store:
        assert store.add(row, outcome.keep, proof, problem) == 1
    with Store(path, readonly=True) as store:
        [result] = store.results()
        assert result == store.get(row.key) == row
        assert store.keys() == {row.key: Status.FEASIBLE}
        assert np.array_equal(store.mask(row.key), outcome.keep)
        [found] = store.certificates(problem.hash)
        assert (found.bound, found.source, found.kind) == (0.25, "wanda", "diagonal")
        assert np.array_equal(found.arrays["u"], proof.arrays["u"])
        [known] = store.problems()
        assert (known["hash"], known["total"], known["collection"]) == (problem.hash, problem.total, "tests")


def test_an_empty_store_answers(path):
    with Store(path) as store:
        assert (store.results(), store.keys(), store.problems(), store.certificates("x")) == ([], {}, [], [])
        assert store.get("x") is store.mask("x") is None
        assert store.attempts("x") == 0


def test_a_good_row_is_never_overwritten(path, outcome):
    with Store(path) as store:
        store.add(outcome)
        with pytest.raises(AlreadyStored, match="already stored"):
            store.add(replace(outcome.result, error=0.0))
        assert store.results() == [outcome.result]
        assert store.mask(outcome.result.key) is not None


def test_a_failed_row_is_replaced_and_attempts_are_counted(path, problem, outcome):
    with Store(path) as store:
        assert [store.add(failed(problem)), store.add(failed(problem)), store.add(outcome)] == [1, 2, 3]
        assert store.results() == [outcome.result]
        assert store.attempts(outcome.result.key) == 3


def test_a_timeout_gives_way_to_a_longer_limit_only(path, problem, outcome):
    row = outcome.result
    timeouts = [replace(row, status=Status.TIMEOUT, timing={"time_limit": limit}) for limit in (2.0, 1.0, 4.0)]
    with Store(path) as store:
        store.add(timeouts[0])
        with pytest.raises(AlreadyStored):
            store.add(timeouts[1])
        assert store.add(timeouts[2]) == 2


def test_a_rejected_mask_and_an_unproved_bound_are_not_kept(path, problem, outcome):
    row = replace(
        outcome.result, status=Status.FAILED, verdict=Verdict.INFEASIBLE, lower_bound=9.0, proof=Proof.CLAIMED
    )
    with Store(path) as store:
        store.add(row, outcome.keep, certificate(problem, 9.0))
        assert store.mask(row.key) is None
        assert store.certificates(problem.hash) == []


def test_the_best_certificate_of_each_source_stays(path, problem):
    with Store(path) as store:
        assert store.add_certificate(certificate(problem, 1.0), 1.0, problem)
        assert store.add_certificate(certificate(problem, 9.0), 2.0)  # it claims 9, 2 was verified
        assert not store.add_certificate(certificate(problem, 1.5), 1.5)
        assert store.add_certificate(certificate(problem, 3.0, "other"), 3.0)
        assert [(c.source, c.bound) for c in store.certificates(problem.hash)] == [("other", 3.0), ("fw", 2.0)]


def test_a_reader_sees_what_a_writer_has_committed(path, problem, outcome):
    with Store(path) as writer, Store(path, readonly=True) as reader:
        writer.add(outcome)
        assert len(reader.results()) == 1
        with pytest.raises(StoreError, match="reading only"):
            reader.add(failed(problem, "magnitude"))


# --- problems and where they are from --------------------------------------------------------------------------------


def from_file(folder, problem):
    files.write_problem(problem, folder / "of ours.safetensors")
    return files.read_problem(folder / "of ours.safetensors")


@pytest.mark.parametrize("pattern", ["0.5", "rows"])
def test_a_problem_s_origin_and_counts_come_back(path, tmp_path, pattern):
    problem = from_file(tmp_path, random_layer(pattern))
    with Store(path) as store:
        store.add_problem(problem, "own")
        [known] = store.problems()
    assert known["origin"] == str(tmp_path / "of ours.safetensors")
    assert (known["counts"] is None) == (pattern == "0.5")
    if pattern == "rows":
        assert known["counts"].tolist() == problem.pattern.pruned.tolist()


def test_where_a_problem_was_read_last_is_kept(path, tmp_path, problem, outcome):
    (tmp_path / "later").mkdir()
    first, later = from_file(tmp_path, problem), from_file(tmp_path / "later", problem)
    with Store(path) as store:
        store.add(outcome, problem=first)
        store.add_problem(replace(later, name="another"), "elsewhere")
        [known] = store.problems()
        assert (known["origin"], known["collection"], known["name"]) == (later.origin, "elsewhere", problem.name)
        store.add_certificate(certificate(problem, 1.0), 1.0, later)
        assert store.problems() == [known]


def test_problems_that_were_never_recorded_are_not_forgotten(path, problem, outcome):
    with Store(path) as store:
        store.add(outcome)
        store.add_certificate(replace(certificate(problem, 1.0), problem="ab" * 32), 1.0)
        nameless, known = sorted(store.problems(), key=lambda item: item["name"])
    assert (known["hash"], known["name"], known["collection"]) == (problem.hash, problem.name, "tests")
    assert (known["pattern"], known["rows"], known["n"]) == ("0.5", *problem.shape)
    assert (nameless["hash"], nameless["name"]) == ("ab" * 32, "")


def to_schema_1(path):
    """Make a store what the fwbench before this one wrote."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(
            "ALTER TABLE problems DROP COLUMN origin; ALTER TABLE problems DROP COLUMN counts; PRAGMA user_version = 1"
        )


@pytest.mark.parametrize("pattern", ["0.5", "rows"])
def test_an_old_store_opens_and_is_upgraded_when_it_is_written(path, tmp_path, pattern):
    problem = random_layer(pattern)
    row = pipeline.run(problem, pipeline.resolve("wanda"), collection="own")
    with Store(path) as store:
        store.add(row, problem=problem)
        before = store.results(), store.problems()
    to_schema_1(path)
    old = path.read_bytes()
    with Store(path, readonly=True) as store:
        [item], [known] = store.problems(), before[1]
        assert {key: item[key] for key in known if key != "counts"} == {k: known[k] for k in known if k != "counts"}
        assert np.array_equal(item["counts"], known["counts"])  # of a pattern rows: by its mask
        assert (store.results(), np.array_equal(store.mask(row.result.key), row.keep)) == (before[0], True)
    assert path.read_bytes() == old
    with Store(path) as store:
        assert store.results() == before[0]
        store.add_problem(from_file(tmp_path, problem), "own")
        assert store.problems()[0]["origin"].endswith("of ours.safetensors")
        assert store._one("PRAGMA user_version") == (SCHEMA,)
    Store(path).close()


def test_two_who_upgrade_at_once(path):
    with Store(path):
        pass
    to_schema_1(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        script = f"from fwbench.store import Store; Store({str(path)!r}).close()"
        with subprocess.Popen([sys.executable, "-c", script]) as late:
            for statement in UPGRADES[1].split(";"):
                other.execute(statement)
            other.execute("PRAGMA user_version = 2")
            with pytest.raises(subprocess.TimeoutExpired):
                late.wait(timeout=3)  # it waits for the lock
            other.execute("COMMIT")
            assert late.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.sqlite", None, True),
        ("a.db", b"no database", True),  # opening it says what it is
        ("s", b"SQLite format 3\0 and more", True),
        ("s", b"SQLite", False),
        ("s", None, False),
        ("x.safetensors", b"\0" * 100, False),
    ],
)
def test_what_means_a_store(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert is_store(tmp_path / name) is says
    assert not is_store(tmp_path)


# --- bad files -------------------------------------------------------------------------------------------------------


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize("readonly", [True, False])
def test_not_a_database(path, readonly):
    path.write_text("no database at all, but long enough for a header of an SQLite file, which has 100 bytes" * 9)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not an SQLite database") as error:
        Store(path, readonly=readonly)
    assert one_line(error)
    assert path.read_bytes() == before


def test_somebody_elses_database(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE results (x)")
    with pytest.raises(StoreError, match="not a store of fwbench"):
        Store(path)


def test_a_newer_schema(path):
    with Store(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    with pytest.raises(StoreError, match="newer fwbench"):
        Store(path)


def test_a_damaged_file(path, outcome):
    with Store(path) as store:
        store.add(outcome)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"), Store(path) as store:
        store.results()


def test_missing_file_missing_folder_and_a_folder(tmp_path):
    with pytest.raises(StoreError, match="no such store"):
        Store(tmp_path / "none.db", readonly=True)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(StoreError, match="does not exist"):
        Store(tmp_path / "none" / "a.db")
    with pytest.raises(StoreError, match="is a folder"):
        Store(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 256 KiB; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_folder(small_disk, problem, outcome):
    with Store(small_disk / "a.db") as store:
        store.add(outcome)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    with Store(small_disk / "a.db", readonly=True) as store:
        assert store.results() == [outcome.result]
    with pytest.raises(StoreError, match="read-only"), Store(small_disk / "a.db") as store:
        store.add(failed(problem, "magnitude"))
    with pytest.raises(StoreError, match="read-only"):
        Store(small_disk / "b.db")


def fill(store, problem):
    """Write rows until the disk is full; the number that were written."""

    def write_all():
        for index in range(10_000):
            store.add(failed(problem, key=str(index), reason="x" * 5000))

    with pytest.raises(StoreError, match="disk is full") as error:
        write_all()
    assert one_line(error)
    return len(store.keys())


def test_a_full_disk_loses_no_earlier_row(small_disk, problem):
    path = small_disk / "a.db"
    with Store(path) as store:
        written = fill(store, problem)
        assert written > 5
    with Store(path, readonly=True) as store:
        assert [row.key for row in store.results()] == [str(i) for i in range(written)]


def test_a_full_database_loses_no_earlier_row_and_recovers(path, problem, outcome):
    with Store(path) as store:
        store._db.execute("PRAGMA max_page_count = 40")  # sqlite then says the same as on a full disk
        written = fill(store, problem)
        assert written > 5
        store._db.execute("PRAGMA max_page_count = 4000")
        store.add(outcome, problem=problem)
        assert len(store.results()) == written + 1


def test_kill_9_loses_no_committed_row(path, tmp_path):
    script = tmp_path / "writer.py"
    script.write_text(
        textwrap.dedent("""
        import itertools, sys
        from dataclasses import replace
        from fwbench import pipeline
        from fwbench.store import Store
        sys.path.insert(0, sys.argv[2])
        from layers import random_layer
        row = pipeline.Run(random_layer("0.5"), pipeline.resolve("wanda")).failed("why")
        with Store(sys.argv[1]) as store:
            for index in itertools.count():
                store.add(replace(row, key=str(index)))
                print(index, flush=True)
        """)
    )
    tests = os.path.dirname(layers.__file__)
    with subprocess.Popen([sys.executable, str(script), str(path), tests], stdout=subprocess.PIPE, text=True) as writer:
        for line in writer.stdout:
            if int(line) == 30:
                os.kill(writer.pid, signal.SIGKILL)
                break
        told = [int(line) for line in writer.stdout]
    with Store(path) as store:
        keys = list(map(int, store.keys()))
    assert keys == list(range(len(keys)))
    assert len(keys) > max([30, *told])
