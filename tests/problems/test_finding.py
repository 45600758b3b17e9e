"""Finding a problem again: by where it was, by name, by where it is now; what decides is its content."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from layers import random_layer

from fwbench.patterns import Rows
from fwbench.problem import Problem
from fwbench.problems import collections, files, resources
from fwbench.problems.finding import Wanted, find


def wanted(problem, **changes):
    counts = problem.pattern.pruned if isinstance(problem.pattern, Rows) else None
    place = (problem.hash, problem.name, str(problem.pattern), problem.rows, problem.n)
    return replace(Wanted(*place, collection="own", origin=problem.origin, counts=counts), **changes)


def written(path, problem):
    files.write_problem(problem, path)
    return files.read_problem(path)


OTHERS = ("0.5", "0.25", "2:4", "unstructured:0.4", np.array([1, 5, 12]))


@pytest.mark.parametrize("pattern", OTHERS, ids=str)
def test_under_every_pattern_in_its_file(tmp_path, pattern):
    problem = written(tmp_path / "a.safetensors", random_layer("0.75")).with_pattern(
        Rows(pattern) if isinstance(pattern, np.ndarray) else pattern
    )
    [found] = find([wanted(problem)])
    assert (found.problem.hash, str(found.problem.pattern)) == (problem.hash, str(problem.pattern))
    assert np.array_equal(found.problem.W, problem.W)


def test_the_name_that_is_known_stays(tmp_path):
    problem = written(tmp_path / "a.safetensors", random_layer("0.5"))
    [found] = find([wanted(problem, name="as it was called")])
    assert found.problem.name == "as it was called"


@pytest.mark.parametrize("places", [["moved"], ["moved/deep.safetensors"], ["mini/n016*", "moved"]])
def test_where_it_is_now(tmp_path, monkeypatch, places):
    monkeypatch.chdir(tmp_path)
    problem = written("deep.safetensors", random_layer("0.5")).with_pattern("2:4")
    (tmp_path / "moved").mkdir()
    shutil.move("deep.safetensors", "moved/deep.safetensors")
    [lost] = find([wanted(problem)])
    assert lost.problem is None
    assert lost.reason == f"{tmp_path}/deep.safetensors: no such file; --problem PATH says where it is"
    [found] = find([wanted(problem)], places)
    assert (found.problem.hash, found.problem.origin) == (problem.hash, f"{tmp_path}/moved/deep.safetensors")


def test_another_problem_under_the_old_path(tmp_path):
    problem = written(tmp_path / "a.safetensors", random_layer("0.5"))
    written(tmp_path / "a.safetensors", random_layer("0.5", seed=1))
    [lost] = find([wanted(problem)], ["synthetic/ties*"])
    assert lost.problem is None
    assert "a.safetensors: holds another problem now; nor is it in synthetic/ties*; --problem PATH" in lost.reason


def test_equal_names_in_two_folders(tmp_path):
    first, second = (
        written(tmp_path / name / "x.safetensors", replace(random_layer("0.5", seed=seed), name="x"))
        for seed, name in enumerate(("one", "two"))
    )
    for place in ([], [tmp_path / "one", tmp_path / "two"]):
        known = [wanted(item, origin="" if place else item.origin) for item in (first, second)]
        found = {item.wanted.hash: item.problem for item in find(known, place)}
        assert all(np.array_equal(found[item.hash].W, item.W) for item in (first, second))


def test_each_place_is_read_once(tmp_path, monkeypatch):
    layer = written(tmp_path / "a" / "x.safetensors", random_layer("0.5"))
    reads = []
    read = files.read_problem
    monkeypatch.setattr(files, "read_problem", lambda path, *more: reads.append(path) or read(path, *more))
    sought = [wanted(layer.with_pattern(pattern)) for pattern in ("0.5", "0.25", "2:4")]
    assert all(found.problem for found in find(sought))
    assert len(reads) == 1
    assert all(found.problem for found in find([replace(item, origin="") for item in sought], [tmp_path / "a"]))
    assert len(reads) == 2


def test_by_the_name_of_its_collection():
    [(_, problem), *_] = collections.load("synthetic/correlated.n064.2:4", ["0.5"])
    assert problem.name == "synthetic.correlated.n064.0.5"
    for item in (problem, collections.repattern(problem, Rows(np.arange(4)))):
        [found] = find([wanted(item, collection="synthetic")])
        assert found.problem.hash == item.hash
    [lost] = find([wanted(problem, collection="synthetic", hash="0" * 64)])
    assert "no problem of synthetic has its hash" in lost.reason
    assert (lost.twin, lost.offline) == (None, False)  # it is no extraction: other bits are another problem


def test_a_folder_that_is_called_like_a_collection(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("mini/x.safetensors", random_layer("0.5"))
    for selector in ("./mini", "mini/x.safetensors"):
        [(label, problem)] = collections.load(selector)
        assert (label, problem.name) == ({"./mini": "mini"}.get(selector, "x"), "random 0")
        [found] = find([wanted(problem, collection=label)])
        assert found.problem.origin == f"{tmp_path}/mini/x.safetensors"
    assert len(list(collections.load("mini/n016*"))) > 1


def test_what_cannot_be_extracted_here(monkeypatch):
    def load(*_):
        raise resources.ResourceError("pip cannot download it")
        yield

    monkeypatch.setattr(collections, "load", load)
    [lost] = find([wanted(random_layer("0.5"), collection="smollm2@512")])
    assert lost.offline
    assert lost.reason.startswith("cannot be extracted here: pip cannot download it; --problem")


def test_a_pattern_of_rows_whose_counts_nobody_knows(tmp_path):
    problem = written(tmp_path / "a.safetensors", random_layer("0.5")).with_pattern(Rows(np.array([1, 2, 3])))
    [lost] = find([wanted(problem, counts=None)])
    assert lost.problem is None
    same = written(tmp_path / "b.safetensors", problem)  # a file of that pattern knows them
    [found] = find([wanted(problem, counts=None, origin=same.origin)])
    assert found.problem.hash == problem.hash


def test_by_the_hash_alone(tmp_path):
    problem = written(tmp_path / "a.safetensors", random_layer("0.5"))
    [found] = find([Wanted(problem.hash)], [tmp_path])
    assert found.problem.name == problem.name
    [found] = find([Wanted(problem.with_pattern("2:4").hash, pattern="2:4")], [tmp_path])
    assert str(found.problem.pattern) == "2:4"


def test_a_problem_made_in_memory():
    made = Problem("made", np.ones((1, 4)), np.eye(4), "0.5")
    [lost] = find([wanted(made)])
    assert lost.reason == "where it came from is not written down; --problem PATH says where it is"
