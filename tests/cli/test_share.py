"""The commands that exchange with others, as their user meets them."""

import gurobipy
import numpy as np
import pytest
from brute import best_mask

from fwbench.problem import Problem
from fwbench.problems import collections, files, registry, synthetic
from fwbench.store import Store


@pytest.fixture
def file(tmp_path):
    """A problem file, and its problem."""
    layer = synthetic.correlated(rows=2, n=8)
    problem = Problem("tiny", layer.W, layer.G, "0.5")
    files.write_problem(problem, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors", problem


def test_export_solve_import_compare(fwbench, tmp_path, file):
    path, problem = file
    code, out, err = fwbench("export", path, "-o", "row.mps", "--rows", "1")
    assert (code, out) == (0, "row.mps: tiny, 1 of 2 rows\n"), err
    assert fwbench("export", path, "-o", "both.mps", "--rows", "0-1")[1] == "both.mps: tiny, 2 of 2 rows\n"
    assert fwbench("export", path, "-o", "all.lp", "--pattern", "2:4")[0] == 0
    assert "count_3: u_1_4" in (tmp_path / "all.lp").read_text()
    assert fwbench("export", path, "-o", "relaxed.lp", "--relaxed")[0] == 0
    assert "Binary" not in (tmp_path / "relaxed.lp").read_text()
    with gurobipy.Env(params={"OutputFlag": 0}) as env:
        model = gurobipy.read("row.mps", env)
        model.optimize()
        model.write("row.sol")
    np.save("base.npy", ~problem.pattern.prune(np.arange(16.0).reshape(2, 8)))
    code, out, err = fwbench("import-solution", path, "base.npy", "--by", "nobody", "--store", "old.sqlite")
    assert code == 0, err
    words = ("import-solution", path, "row.sol", "--base", "base.npy", "--by", "nobody", "--store", "new.sqlite")
    code, out, err = fwbench(*words)
    assert (code, "of Wanda's, feasible" in out) == (0, True), err
    with Store("new.sqlite", readonly=True) as store:
        (row,) = store.results()
        assert np.array_equal(store.mask(row.key)[1], best_mask(problem)[1][1])
    assert fwbench(*words)[0] == 2  # it is there
    code, out, _ = fwbench("compare", "old.sqlite", "new.sqlite")
    assert (code, "1 row, 1 better, 0 worse" in out) == (0, True)
    code, out, _ = fwbench("compare", "new.sqlite", "old.sqlite")
    assert (code, "worse: tiny  nobody  seed 0: error" in out) == (1, True)
    code, out, err = fwbench("cite", "new.sqlite", "--format", "bibtex")
    assert (code, out.startswith("@misc{fwbench,")) == (0, True), err


def test_into_a_registry(fwbench, tmp_path):
    _, problem = collections.one("mini/n016.gate_proj*")
    np.save("keep.npy", ~problem.pattern.prune(-np.abs(problem.W)))
    registry.save({}, "reg")
    words = ("import-solution", "mini/n016.gate_proj*", "keep.npy", "--by", "me", "--registry", "--folder", "reg")
    assert fwbench(*words)[1].endswith("reg: improved\n")
    assert fwbench(*words)[1].endswith("reg: no better than what is known\n")
    assert not list(tmp_path.glob("*.sqlite"))
    code, out, _ = fwbench("registry", "solu", "--folder", "reg")
    assert (code, out) == (0, f"=best= {problem.name} {problem.error(np.load('keep.npy'))!r}\n")
    assert out == (tmp_path / "reg" / "best_known.solu").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("export", "mini/n016*", "-o", "a.lp"), "and perhaps more: name one problem"),
        (("export", "smollm2/07.*", "-o", "a.lp"), "smollm2.07.down_proj, smollm2.07.gate_proj and perhaps more"),
        (("export", "mini/none", "-o", "a.lp"), "no problem of mini matches"),
        (("export", "mini/n016.gate_proj*", "-o", "a.txt"), "ends with .lp"),
        (("export", "mini/n016.gate_proj*", "-o", "a.lp", "--rows", "x"), "such as 3,7"),
        (("export", "mini/n016.gate_proj*", "-o", "a.lp", "--rows", "2,99-9999"), "has rows 0 to 3, not 99\n"),
        (("import-solution", "mini/n016.gate_proj*", "nowhere.npy", "--by", "x"), "nowhere.npy"),
        (("cite", "nowhere.sqlite"), "no such store"),
        (("cite", "mini/none"), "no problem of mini matches"),
        (("cite", "mini", "--format", "word"), "word"),
        (("compare", "nowhere.sqlite", "there.sqlite"), "no such store"),
    ],
)
def test_bad_input_is_one_line(fwbench, tmp_path, words, says):
    code, out, err = fwbench(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert not list(tmp_path.iterdir())
