"""The whole way of a problem of one's own, as its user walks it: run, verify, certify, report, cite, registry."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brute import best_mask
from layers import random_layer

from fwbench.problem import Problem
from fwbench.problems import files, registry
from fwbench.store import Store

LONG = "layer." + "x" * 294
SPECS = ("-s", "wanda", "-s", "fw(convexify=shared)")


def written(path, name, seed=0, pattern="0.5"):
    problem = replace(random_layer("0.5", rows=2, n=8, seed=seed), name=name, pattern=pattern)
    files.write_problem(problem, path)
    return problem


def one_file(folder):
    written(folder / "a.safetensors", "a")
    return ["a.safetensors"], (), 1


def one_folder(folder):
    for seed, name in enumerate(("a", "b")):
        written(folder / "probs" / f"{name}.safetensors", name, seed)
    return ["probs"], (), 2


def own_rows(folder):
    written(folder / "a.safetensors", "a", pattern=np.array([3, 5]))
    return ["a.safetensors"], (), 1


def rows_of_a_file(folder):
    written(folder / "a.safetensors", "a")
    (folder / "counts.txt").write_text("3\n5\n")
    return ["a.safetensors"], ("--pattern", "rows:counts.txt"), 1


def other_patterns(folder):
    written(folder / "a.0.5.safetensors", "a.0.5")
    return ["a.0.5.safetensors"], ("--pattern", "2:4", "--pattern", "unstructured:0.25", "--pattern", "0.5"), 3


def three_hundred_letters(folder):
    problem = written(folder / "short.safetensors", LONG)
    files.write_problem(problem, folder / "long" / f"{files.file_stem(LONG)}.safetensors")
    return ["long"], (), 1


def odd_names(folder):
    for seed, name in enumerate(("=1+1", "-a b", "mini.n016.gate_proj.random.0.5", "[x]/*?", "smollm2.00.q_proj")):
        written(folder / "mini" / f"{files.file_stem(name)}.safetensors", name, seed)
    return ["./mini"], (), 5


def equal_names(folder):
    for seed, place in enumerate(("one", "two")):
        written(folder / place / "same" / "x.safetensors", "x", seed)
    return ["one/same", "two/same"], (), 2


SHAPES = (
    one_file,
    one_folder,
    own_rows,
    rows_of_a_file,
    other_patterns,
    three_hundred_letters,
    odd_names,
    equal_names,
)


def holds(answer, number):
    """Assert that a verification found as many things, and all hold."""
    code, out, err = answer
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith(f": {number} hold, 0 fail")
    assert out.count("holds") == number


@pytest.fixture(autouse=True)
def _no_progress(monkeypatch):
    monkeypatch.setattr("fwbench.cli.progress.PLAIN_EVERY", float("inf"))  # on a busy machine lines of it would appear


@pytest.fixture
def ran(fwbench, tmp_path, request):
    """The store ``s`` of what a shape of problems ran; then the working directory is another."""
    selectors, options, number = request.param(tmp_path)
    code, out, err = fwbench("run", *selectors, *options, *SPECS, "--store", "s")
    assert (code, err) == (0, "")
    assert out == f"s: {2 * number} run, 0 reused; {2 * number} solved, 0 skipped, 0 failed\n"
    return selectors, options, number


@pytest.mark.parametrize("ran", SHAPES, indirect=True, ids=lambda shape: shape.__name__)
def test_the_whole_chain_from_another_folder(fwbench, tmp_path, ran, monkeypatch):
    _, _, number = ran
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store = tmp_path / "s"
    holds(fwbench("verify", store), 3 * number)  # two masks and one certificate each
    code, out, err = fwbench("certify", store)
    assert (code, err, out) == (0, "", f"{store}: {number} certified, 0 were there, 0 skipped\n")
    assert fwbench("certify", store)[1] == f"{store}: 0 certified, {number} were there, 0 skipped\n"
    holds(fwbench("verify", store), 5 * number)
    assert fwbench("report", store, "-o", "page")[0] == 0
    code, out, err = fwbench("cite", store)
    assert (code, err) == (0, "")
    assert "proved by certificates" in out or "verified: the certificate" in out
    code, out, err = fwbench("registry", "update", store, "--folder", "reg")
    assert (code, err, out.splitlines()[-1]) == (0, "", f"reg: {number} improved")
    assert fwbench("registry", "update", store, "--folder", "reg")[1] == "reg: 0 improved\n"
    known = registry.best_known("reg")
    with Store(store, readonly=True) as opened:
        assert set(known) == {item["hash"] for item in opened.problems()}
    assert all(entry.upper >= entry.verified > 0 for entry in known.values())
    answer = fwbench("verify", "reg")
    assert answer[0] == 1  # a registry holds no paths of one's machine
    assert answer[1].count("--problem PATH says where it is") == number
    places = [word for selector in ran[0] for word in ("--problem", tmp_path / selector)]
    holds(fwbench("verify", "reg", *places), 2 * number)
    lines = fwbench("registry", "--folder", "reg")[1].splitlines()
    assert len({line.split("  best ")[0] for line in lines}) == number  # each has a name of its own
    solu = fwbench("registry", "solu", "--folder", "reg")[1].splitlines()
    assert len(solu) == len({tuple(line.split()[:2]) for line in solu})


@pytest.mark.parametrize("ran", SHAPES, indirect=True, ids=lambda shape: shape.__name__)
def test_what_has_moved(fwbench, tmp_path, ran):
    selectors, _, number = ran
    (tmp_path / "moved").mkdir()
    for i, selector in enumerate(selectors):
        (tmp_path / "moved" / str(i)).mkdir()
        shutil.move(selector, tmp_path / "moved" / str(i))
    code, out, err = fwbench("verify", "s")
    assert (code, out.splitlines()[-1]) == (1, f"s: 0 hold, {number} fail")
    assert out.count("problem: not found: ") == out.count(": no such file; --problem PATH says where it is") == number
    code, out, err = fwbench("certify", "s")
    assert (code, out) == (1, f"s: 0 certified, 0 were there, 0 skipped, {number} not found\n")
    assert err.count("not found: ") == err.count("--problem PATH") == number
    code, out, err = fwbench("registry", "update", "s", "--folder", "reg")
    assert (code, out) == (1, f"reg: 0 improved, {number} not taken\n")
    assert err.count("not taken: ") == err.count("--problem PATH") == number
    now = [str(path) for i, name in enumerate(selectors) for path in [Path("moved") / str(i) / Path(name).name]]
    places = [word for path in now for word in ("--problem", path)]
    holds(fwbench("verify", "s", *places), 3 * number)
    assert fwbench("registry", "update", "s", "--folder", "reg", *places)[1].endswith(f"reg: {number} improved\n")
    assert fwbench("certify", "s", *places)[1] == f"s: {number} certified, 0 were there, 0 skipped\n"
    holds(fwbench("verify", "s"), 5 * number)  # certify wrote down where they are
    code, out, err = fwbench("verify", "s", "--problem", "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere: no such collection, file or folder" in err


def test_running_again_writes_down_where_they_are_now(fwbench, tmp_path):
    one_folder(tmp_path)
    assert fwbench("run", "probs", *SPECS, "--store", "s")[0] == 0
    shutil.move("probs", "other")
    assert fwbench("run", "other", *SPECS, "--store", "s")[1].startswith("s: 0 run, 4 reused")
    holds(fwbench("verify", "s"), 6)


def test_another_problem_in_its_file(fwbench, tmp_path):
    one_file(tmp_path)
    assert fwbench("run", "a.safetensors", *SPECS, "--store", "s")[0] == 0
    written(tmp_path / "a.safetensors", "a", seed=1)
    code, out, _ = fwbench("verify", "s")
    assert code == 1
    assert f"a  problem: not found: {tmp_path}/a.safetensors: holds another problem now; --problem PATH" in out


@pytest.mark.parametrize("words", [("verify",), ("certify",), ("registry", "update")])
def test_one_of_several_is_lost(fwbench, tmp_path, words):
    one_folder(tmp_path)
    assert fwbench("run", "probs", *SPECS, "--store", "s")[0] == 0
    (tmp_path / "probs" / "a.safetensors").unlink()
    code, out, err = fwbench(*words, "s", *(("--folder", "reg") if words[0] == "registry" else ()))
    assert code == 1  # the others are served
    assert "a.safetensors: no such file; --problem PATH says where it is" in out + err
    assert {"verify": "3 hold, 1 fail", "certify": "1 certified", "registry": "1 improved"}[words[0]] in out


def test_certifying_nothing_says_why(fwbench, tmp_path):
    with Store("empty.sqlite"):
        pass
    code, out, err = fwbench("certify", "empty.sqlite")
    assert (code, out) == (1, "empty.sqlite: 0 certified, 0 were there, 0 skipped\n")
    assert err == "empty.sqlite: it holds no problem yet: run solvers on some, or name collections\n"
    code, out, err = fwbench("certify", "nowhere.sqlite")
    assert (code, out, err) == (2, "", "fwbench: nowhere.sqlite: no such store\n")
    assert not Path("nowhere.sqlite").exists()
    code, out, err = fwbench("certify", "mini/n016*", "--problem", "x")
    assert (code, "give a store" in err) == (2, True)


def test_the_suites_registry_takes_no_problem_of_ones_own(fwbench, tmp_path, monkeypatch):
    suite = tmp_path / "suite"
    registry.save({}, suite)
    monkeypatch.setattr(registry, "FOLDER", suite)
    odd_names(tmp_path)  # a folder called mini, with names of the suite's problems
    assert fwbench("run", "./mini", "mini/n016.gate_proj*", "-s", "wanda", "--store", "s")[0] == 0
    code, out, err = fwbench("registry", "update", "s")
    assert (code, out.splitlines()[-1]) == (1, f"{suite}: 1 improved, 5 not taken")
    reason = "the suite's registry keeps mini and smollm2 only; --folder names one of your own"
    assert err.count(f": {reason}") == 5
    np.save("keep.npy", best_mask(files.read_problem(next((tmp_path / "mini").iterdir())))[1])
    code, out, err = fwbench(
        "import-solution", next((tmp_path / "mini").iterdir()), "keep.npy", "--by", "me", "--registry"
    )
    assert (code, out, reason in err) == (2, "", True)


def test_a_new_registry_removes_nothing_of_others(fwbench, tmp_path):
    one_file(tmp_path)
    assert fwbench("run", "a.safetensors", "-s", "wanda", "--store", "s")[0] == 0
    (tmp_path / "reg" / "certificates").mkdir(parents=True)
    (tmp_path / "reg" / "certificates" / "mine.npz").write_bytes(b"mine")
    code, out, err = fwbench("registry", "update", "s", "--folder", "reg")
    assert (code, out) == (2, "")
    assert "reg: holds certificates but no best_known.csv: a new registry begins in a folder without" in err
    assert (tmp_path / "reg" / "certificates" / "mine.npz").exists()


@pytest.mark.parametrize("options", [(), ("--pattern", "2:4"), ("--pattern", "rows:counts.txt")])
def test_imported_solutions(fwbench, tmp_path, options, monkeypatch):
    written(tmp_path / "a.safetensors", "a")
    (tmp_path / "counts.txt").write_text("3\n5\n")
    problem = files.read_problem("a.safetensors", options[1] if options else None)
    np.save("keep.npy", best_mask(problem)[1])
    words = ("import-solution", "a.safetensors", "keep.npy", "--by", "@me", *options, "--store", "s")
    code, out, err = fwbench(*words, "--registry", "--folder", "reg")
    assert (code, err, out.endswith("reg: improved\n")) == (0, "", True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    holds(fwbench("verify", "../s"), 1)
    holds(fwbench("verify", "../reg", "--problem", ".."), 1)
    assert fwbench("certify", "../s")[1] == "../s: 1 certified, 0 were there, 0 skipped\n"
    assert fwbench("registry", "update", "../s", "--folder", "../reg")[1].endswith("../reg: 1 improved\n")
    code, out, _ = fwbench("cite", "../s")
    assert (code, "`@me`" in out) == (0, True)
    assert next(csv.DictReader(fwbench("results", "../s", "--csv")[1].splitlines()))["solver"] == "'@me"
    assert json.loads(fwbench("results", "../s")[1].splitlines()[0])["solver"] == "@me"
    (entry,) = registry.best_known("../reg").values()
    assert (entry.upper_by, entry.upper) == ("@me", pytest.approx(best_mask(problem)[0], rel=1e-12))
    (proof,) = (tmp_path / "reg" / "certificates").iterdir()
    code, out, err = fwbench("verify", proof, "--problem", "..")
    assert (code, "is not found" in err) == ((2, True) if options else (0, False))
    monkeypatch.chdir(tmp_path)
    holds(fwbench("verify", proof, "--problem", ".", *options), 1)


def test_cite_of_a_registry_of_ones_own(fwbench, tmp_path):
    one_folder(tmp_path)
    assert fwbench("run", "probs", *SPECS, "--store", "s")[0] == 0
    assert fwbench("registry", "update", "s", "--folder", "reg")[0] == 0
    code, out, err = fwbench("cite", "probs/a.safetensors", "--folder", "reg")
    assert (code, err) == (0, "")
    assert "for `a` (2 × 8 weights, pattern 0.5" in out
    code, out, err = fwbench("cite", "probs/a.safetensors")
    assert (code, out) == (2, "")
    assert "the registry has no mask of it; run solvers on it and cite their store, or name its --folder" in err
    code, out, err = fwbench("cite", "s", "--folder", "reg")
    assert (code, err) == (0, "")


def test_equal_names_are_told_apart(fwbench, tmp_path):
    equal_names(tmp_path)
    (tmp_path / "own").mkdir()
    for folder in ("one", "two"):
        shutil.copy(tmp_path / folder / "same" / "x.safetensors", tmp_path / "own" / f"{folder}.safetensors")
    hashes = [problem.hash[:12] for problem in files.read_folder("own")]
    assert fwbench("run", "own", *SPECS, "--store", "s")[0] == 0
    names = [f"x (0.5, {digest})" for digest in hashes]
    outputs = {
        "verify": fwbench("verify", "s")[1],
        "cite": fwbench("cite", "s")[1],
        "latex": fwbench("cite", "s", "--format", "latex")[1],
    }
    assert fwbench("report", "s", "-o", "page")[0] == 0
    for name in ("index.html", "index.md"):
        outputs[name] = (tmp_path / "page" / name).read_text()
    for what, text in outputs.items():
        assert all(name in text.replace(r"\allowbreak{}", "") for name in names), (what, text)
    assert fwbench("run", "own", "-s", "random", "--store", "old")[0] == 0
    with Store("old") as old, Store("new") as new:
        for row in old.results():
            new.add(replace(row, error=row.error * 2))
    worse = [line for line in fwbench("compare", "old", "new")[1].splitlines() if line.startswith("worse: ")]
    assert [any(name in line for line in worse) for name in names] == [True, True]
    code, out, err = fwbench("export", "own", "-o", "a.lp")
    assert (code, out) == (2, "")
    assert f"{tmp_path}/own/one.safetensors, {tmp_path}/own/two.safetensors and perhaps more" in err


@pytest.mark.parametrize("shape", [three_hundred_letters, odd_names, own_rows], ids=lambda shape: shape.__name__)
def test_export_and_trace(fwbench, tmp_path, shape):
    shape(tmp_path)
    for path in sorted(tmp_path.rglob("*.safetensors")):
        code, _, err = fwbench("export", path, "-o", "a.mps")
        assert (code, err) == (0, "")
        code, _, err = fwbench("trace", path, "-s", "fw", "-o", "a.svg", "--csv")
        assert (code, err) == (0, "")


def test_a_store_that_was_given_rows_alone(fwbench, tmp_path):
    """By Python, without their problems: none is passed over in silence."""
    from fwbench import pipeline

    problem = Problem("made", random_layer("0.5").W, random_layer("0.5").G, "0.5")
    with Store("s.sqlite") as store:
        store.add(pipeline.run(problem, pipeline.resolve("wanda"), collection="own"))
    code, out, _ = fwbench("verify", "s.sqlite")
    assert (code, out.splitlines()[-1]) == (1, "s.sqlite: 0 hold, 1 fail")
    assert "made  problem: not found: where it came from is not written down; --problem PATH says where it is" in out
    files.write_problem(problem, tmp_path / "made.safetensors")
    holds(fwbench("verify", "s.sqlite", "--problem", "made.safetensors"), 1)
