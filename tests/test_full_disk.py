"""A file that cannot be written, as on a full disk: the sentence names it, and nothing of it is left behind."""

import contextlib
import resource
from pathlib import Path

import pytest
from layers import random_layer

import fwbench as fwb
from fwbench import pipeline
from fwbench.problem import ProblemError
from fwbench.problems import export, files, registry
from fwbench.report import page, trace
from fwbench.report.rows import load
from fwbench.store import Store

PROBLEM = random_layer("0.5", rows=4, n=32)
ANSWER = pipeline.run(PROBLEM, pipeline.resolve("fw(steps=20,rounded=True)"))


def report(folder):
    with Store(folder / "s.sqlite") as store:
        store.add(ANSWER, problem=PROBLEM)
    rows = load(folder / "s.sqlite")
    return lambda: page.write(rows, folder / "page")


WRITERS = {
    "a.safetensors": lambda folder: lambda: files.write_problem(PROBLEM, folder / "a.safetensors"),
    "a.lp": lambda folder: lambda: export.write(PROBLEM, folder / "a.lp"),
    "a.npz": lambda folder: lambda: export.write(PROBLEM, folder / "a.npz"),
    "a.svg": lambda folder: lambda: trace.write(trace.curves([ANSWER.result]), folder / "a.svg"),
    "a.png": lambda folder: lambda: trace.write(trace.curves([ANSWER.result]), folder / "a.png"),
    "proof.npz": lambda folder: lambda: fwb.bound(PROBLEM, "shared").save(folder / "proof.npz"),
    "page/": report,
    "reg/": lambda folder: lambda: registry.save(registry.improve({}, PROBLEM, "me", keep=ANSWER.keep), folder / "reg"),
}


@contextlib.contextmanager
def nothing_fits():
    """No file grows beyond 100 bytes: Linux says so as it says that a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", WRITERS)
def test_it_names_the_file(tmp_path, name):
    write = WRITERS[name](tmp_path)
    with nothing_fits(), pytest.raises(ProblemError, match=r"cannot be written \(File too large\)$") as caught:
        write()
    named, _, _ = str(caught.value).partition(": cannot be written")
    assert named.startswith(f"{tmp_path}/{name}")
    assert not Path(named).exists()
    assert not list(tmp_path.rglob(".*"))  # a part of one
    write()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 100]
