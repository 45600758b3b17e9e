"""Problem files: what goes in comes out, and what is no problem is refused in one line that names file and reason."""

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fwbench.problem import Problem, ProblemError
from fwbench.problems import files, synthetic


@pytest.fixture
def problem():
    return synthetic.correlated(rows=3, n=8, name="some.layer")


def stored(path, **changes):
    """A file with the tensors of a good problem, changed; None removes one."""
    good = synthetic.correlated(rows=3, n=8)
    tensors = {"W": good.W, "G": good.G} | {key: value for key, value in changes.items() if key in ("W", "G", "counts")}
    meta = {"name": "x", "pattern": "0.5"} | {
        key: value for key, value in changes.items() if key in ("name", "pattern")
    }
    save_file(
        {key: np.ascontiguousarray(value) for key, value in tensors.items() if value is not None},
        path,
        {key: value for key, value in meta.items() if value is not None},
    )
    return path


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.3", "2:4", np.array([0, 3, 8])])
def test_round_trip(tmp_path, problem, pattern):
    problem = Problem("a/b: c", problem.W, problem.G, pattern, {"model": "m", "license": "ß"})
    keeps = {"best": problem.pattern.prune(problem.W)}
    files.write_problem(problem, tmp_path / "new" / "p.safetensors", keeps)
    back = files.read_problem(tmp_path / "new" / "p.safetensors")
    assert (back.name, back.pattern, back.hash, back.meta) == (
        problem.name,
        problem.pattern,
        problem.hash,
        problem.meta,
    )
    keep = load_file(tmp_path / "new" / "p.safetensors")["keep_best"]
    assert keep.dtype == bool
    assert np.array_equal(keep, keeps["best"])
    assert files.read_name(tmp_path / "new" / "p.safetensors") == "a/b: c"


def test_the_library_reads_it(tmp_path, problem):
    files.write_problem(problem, tmp_path / "p.safetensors", {"x": np.zeros(problem.shape, bool)})
    tensors = load_file(tmp_path / "p.safetensors")
    assert np.array_equal(tensors["G"], problem.G)
    assert np.array_equal(tensors["W"], problem.W)
    assert tensors["keep_x"].dtype == bool


def test_equal_problems_are_equal_bytes(tmp_path, problem):
    other = Problem(problem.name, problem.W, problem.G, problem.pattern, dict(reversed(problem.meta.items())))
    files.write_problem(problem, tmp_path / "a")
    files.write_problem(other, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_float32(tmp_path, problem):
    files.write_problem(problem, tmp_path / "p.safetensors", dtype="float32")
    back = files.read_problem(tmp_path / "p.safetensors")
    assert np.array_equal(back.G, problem.G.astype(np.float32))
    with pytest.raises(ProblemError, match="not float16"):
        files.write_problem(problem, tmp_path / "p.safetensors", dtype="float16")


def test_another_pattern(tmp_path, problem):
    files.write_problem(problem, tmp_path / "p.safetensors")
    assert str(files.read_problem(tmp_path / "p.safetensors", "2:4").pattern) == "2:4"
    assert str(next(files.read_folder(tmp_path, "0.25")).pattern) == "0.25"


def test_a_plain_file_of_two_tensors(tmp_path):
    path = stored(tmp_path / "mine.safetensors", name=None, pattern=None)
    assert files.read_problem(path, "0.5").name == "mine"
    with pytest.raises(ProblemError, match="names no pattern"):
        files.read_problem(path)


NAN = np.full((3, 8), np.nan, np.float32)
G = synthetic.correlated(rows=3, n=8).G
REFUSED = {
    "no tensor G": {"G": None},
    "no tensor W": {"W": None},
    "W has entries that are not finite": {"W": NAN},
    "G has entries that are not finite": {"G": np.full((8, 8), np.inf)},
    "G has shape (8, 7), W (3, 8) asks for (8, 8)": {"G": G[:, :7]},
    "W is empty (0, 8)": {"W": np.zeros((0, 8), np.float32)},
    "W must be a matrix of numbers": {"W": np.zeros(8, np.float32)},
    "tensor W is I64": {"W": np.ones((3, 8), np.int64)},
    "tensor G is F16": {"G": G.astype(np.float16)},
    "G is not symmetric": {"G": G + np.triu(np.ones((8, 8)), 1)},
    "G is not positive semidefinite": {"G": G - np.eye(8) * 2 * np.linalg.eigvalsh(G)[0]},
    "pattern 3:5 does not fit": {"pattern": "3:5"},
    "unknown pattern 'most'": {"pattern": "most"},
    "has 2 counts for a layer of 3 rows": {"counts": np.array([1, 2])},
    "W has entries that are not finite ": {"W": np.full((3, 8), 1e300)},  # beyond float32
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(tmp_path, reason):
    path = stored(tmp_path / "bad.safetensors", **REFUSED[reason])
    with pytest.raises(ProblemError) as error:
        files.read_problem(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason.strip() in str(error.value)
    assert "\n" not in str(error.value)


def test_semidefinite_to_the_rounding_of_what_is_stored(tmp_path):
    problem = synthetic.degenerate(n=32)  # singular: rounding makes it slightly indefinite
    for dtype in ("float32", "float64"):
        files.write_problem(problem, tmp_path / "p.safetensors", dtype=dtype)
        again = files.read_problem(tmp_path / "p.safetensors")
        np.testing.assert_allclose(again.G, problem.G, rtol=1e-6, atol=1e-6 * problem.G.max())


@pytest.mark.parametrize("keep", [0, 7, 50, 300])
def test_truncated(tmp_path, problem, keep):
    path = tmp_path / "cut.safetensors"
    files.write_problem(problem, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ProblemError, match=r"cut\.safetensors: not a readable safetensors file"):
        files.read_problem(path)


def test_no_file(tmp_path):
    with pytest.raises(ProblemError, match="no such file"):
        files.read_problem(tmp_path / "x")
    with pytest.raises(ProblemError, match="a folder"):
        files.read_problem(tmp_path)
    with pytest.raises(ProblemError, match="no problem file"):
        next(files.read_folder(tmp_path))
    with pytest.raises(ProblemError, match="no such folder"):
        next(files.read_folder(tmp_path / "x"))


def test_the_origin_is_the_file(tmp_path, problem, monkeypatch):
    files.write_problem(problem, tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    read = files.read_problem("a.safetensors")
    assert (problem.origin, read.origin, read.hash) == ("", f"{tmp_path}/a.safetensors", problem.hash)
    assert read.with_pattern("2:4").origin == read.origin
    files.write_problem(read, tmp_path / "b.safetensors")  # it says nothing of one's machine
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize("letter", ["x", "й", "\N{MUSICAL SYMBOL G CLEF}", "/", "\ud800"])
def test_long_names_are_files_of_their_own(tmp_path, letter):
    names = [letter * 300, letter * 299 + "y", "y" + letter * 300, letter * 400]
    stems = [files.file_stem(name) for name in names]
    assert len(set(stems)) == len(names)
    assert all(len(stem.encode()) <= files.LONGEST for stem in stems)
    for stem in stems:
        files.write_atomic(tmp_path / f"{stem}{files.SUFFIX}", b"")
    assert files.file_stem("smollm2.07.q_proj/2:4") == "smollm2.07.q_proj-2-4"


def test_a_path_as_long_as_the_system_allows(tmp_path, problem):
    path = tmp_path / f"{'x' * 240}{files.SUFFIX}"
    files.write_problem(problem, path)
    assert files.read_problem(path).hash == problem.hash


def test_a_mask_of_the_wrong_shape(tmp_path, problem):
    for keep in (np.zeros((3, 7), bool), np.zeros((3, 8))):
        with pytest.raises(ProblemError, match="keep_k is"):
            files.write_problem(problem, tmp_path / "p", {"k": keep})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, problem, monkeypatch):
    files.write_problem(problem, tmp_path / "p.safetensors")
    before = (tmp_path / "p.safetensors").read_bytes()

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ProblemError, match=r"p\.safetensors: cannot be written \(No space left on device\)"):
        files.write_problem(problem.with_pattern("2:4"), tmp_path / "p.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
    assert (tmp_path / "p.safetensors").read_bytes() == before


def test_not_a_folder(tmp_path, problem):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProblemError, match="cannot be written"):
        files.write_problem(problem, tmp_path / "file" / "p.safetensors")


def test_a_name_is_one_line_without_control_characters(tmp_path, problem):
    """Names are shown on terminals, in tables and in ``.solu`` files, and come from outside."""
    for name, shown in {"a\nb": "a b", "\x1b[31mred\t\x7f": "[31mred", "\r\n": "p", "": "p", "ü  =1": "ü  =1"}.items():
        files.write_problem(replace(problem, name=name), tmp_path / "p.safetensors")
        assert files.read_problem(tmp_path / "p.safetensors").name == shown
