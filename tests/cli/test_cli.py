"""The command line as its user meets it: exit codes, one-line errors, nothing written on bad input."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from fwbench import pipeline
from fwbench.problem import Problem
from fwbench.problems import files, synthetic
from fwbench.problems.registry import best_known
from fwbench.store import Store


def refused(answer, tmp_path, *words):
    """Assert exit code 2, one line that has the words, and nothing written but what was there."""
    code, out, err = answer
    assert code == 2, (out, err)
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("fwbench: ")
    for word in words:
        assert word in err
    assert not list(tmp_path.glob("*.sqlite*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run", "minni"), "mini"),
        (("run", "mini/nothing*"), "no problem of mini matches"),
        (("run", "mini", "-s", "wandda"), "did you mean 'wanda'?"),
        (("run", "mini", "-s", "fw(step=1)"), "expected a str"),
        (("run", "mini", "-s", "fw(stepps=1)"), "did you mean 'steps'?"),
        (("run", "mini", "-s", "wanda++swap"), "cannot read the solver spec"),
        (("run", "mini", "-s", "round"), "no fractional point"),
        (("run", "mini", "--pattern", "half"), "unknown pattern 'half'"),
        (("run", "mini", "--pattern", "3:7"), "7 does not divide"),
        (("run", "smollm2/07.*", "--pattern", "5:7"), "7 does not divide"),
        (("run", "smollm2/77.*"), "no problem of smollm2 matches"),
        (("run", "mini", "--pattern", "rows:nowhere.txt"), "cannot read the counts"),
        (("run", "mini", "--memory-limit", "much"), "is not a size"),
        (("run", "mini", "--file", "nowhere.py"), "not a Python file"),
        (("extract", "no-model-here", "-o", "out"), "no-model-here"),
        (("extract", "smollm2", "-o", "out", "--text", "missing.txt"), "missing.txt"),
        (("extract", "smollm2", "-o", "out", "--blocks", "x"), "'x' is no list of numbers from 0 such as 3,7,100-120"),
        (("extract", "smollm2", "-o", "out", "--blocks", "7-3"), "'7-3' is no list of numbers from 0"),
        (("run", "mini", "--seed", "-1"), "-1 is not in the range 0<=x<=4294967295"),
        (("run", "mini", "--seed", "4294967296"), "4294967296 is not in the range"),
        (("trace", "mini/n016.gate*", "-s", "fw", "-o", "out/a.svg", "--seed", "-1"), "-1 is not in the range"),
        (("prune", "smollm2", "-o", "out", "--pattern", "0.5", "--seed", "-1"), "-1 is not in the range"),
        (("results", "nowhere.sqlite"), "nowhere.sqlite"),
        (("verify", "nowhere.sqlite"), "nowhere.sqlite"),
        (("report", "nowhere.sqlite", "-o", "out"), "nowhere.sqlite"),
        (("certify", "mini", "--rows", "3-1"), "rows must be all, a number or a list such as 3,7,100-120, not '3-1'"),
        (("certify", "mini", "--rows", "none"), "rows must be all"),
        (("certify", "mini", "--rows", "0"), "rows must be all"),
        (("certify", "mini", "--rows", "1,x"), "rows must be all"),
        (("certify", "mini", "--bound", "shorr"), "unknown kind 'shorr'"),
        (("run", "mini", "--device", "cuda:77"), "device 'cuda:77' cannot be used"),
        (("certify", "mini", "--device", "toaster"), "device 'toaster' cannot be used"),
        (("frobnicate",), "Commands: problems"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(fwbench, tmp_path, words, says):
    refused(fwbench(*words), tmp_path, says)
    assert not (tmp_path / "out").exists()


def with_tensors(path, **tensors):
    path.write_bytes(files.serialise(tensors, {"name": "bad", "pattern": "0.5"}))
    return path


def test_bad_problem_files(fwbench, tmp_path):
    rng = np.random.default_rng(0)
    W, X = rng.standard_normal((3, 8)).astype(np.float32), rng.standard_normal((8, 32))
    G = X @ X.T
    nan, crooked, indefinite = G.copy(), G.copy(), G - 3 * np.linalg.eigvalsh(G)[4] * np.eye(8)
    nan[2, 3] = nan[3, 2] = np.nan
    crooked[0, 1] *= 2
    cases = {
        "nan": ({"W": W, "G": nan}, "not finite"),
        "shape": ({"W": W, "G": G[:6, :6].copy()}, "shape"),
        "asymmetric": ({"W": W, "G": crooked}, "not symmetric"),
        "indefinite": ({"W": W, "G": indefinite}, "not positive semidefinite"),
        "without": ({"W": W}, "G"),
    }
    for name, (tensors, says) in cases.items():
        path = with_tensors(tmp_path / f"{name}.safetensors", **tensors)
        refused(fwbench("run", path, "-s", "wanda"), tmp_path, name, says)
    whole = (tmp_path / "nan.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(fwbench("run", tmp_path / "short.safetensors", "-s", "wanda"), tmp_path, "short.safetensors")


def test_bad_texts(fwbench, tmp_path):
    for name, data, says in (("empty", b"", "empty"), ("binary", b"ab\0cd" * 99, "binary")):
        (tmp_path / name).write_bytes(data)
        refused(fwbench("extract", "smollm2", "-o", "out", "--text", tmp_path / name), tmp_path, says)


@pytest.fixture
def folder(tmp_path):
    """A folder with two small problems."""
    made = tmp_path / "own"
    made.mkdir()
    for name, pattern in (("first", "0.5"), ("second", "2:4")):
        layer = synthetic.correlated(rows=3, n=16)
        problem = Problem(name, layer.W, layer.G, pattern)
        files.write_problem(problem, made / f"{name}.safetensors")
    return made


def test_run_report_results_verify(fwbench, tmp_path, folder):
    specs = ("-s", "wanda", "-s", "fw+swap")
    code, out, err = fwbench("run", folder, *specs, "--store", "own.sqlite")
    assert (code, "4 run, 0 reused; 4 solved" in out) == (0, True), err
    code, out, _ = fwbench("run", folder, *specs, "--store", "own.sqlite")
    assert "0 run, 4 reused; 4 solved" in out
    code, out, _ = fwbench("results", "own.sqlite", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 4
    names = "problem collection solver status verdict reason pattern rows n error relative_error ratio_to_wanda"
    names += " relaxed_error rounding_error lower_bound gap proof gap_to_best_known seconds iterations lmo_calls"
    names += " gram_products seed device mask_sha256"
    assert set(names.split()) <= set(rows[0])
    assert all(row["lower_bound"] <= row["error"] and row["proof"] == "verified" for row in rows)
    assert {row["ratio_to_wanda"] for row in rows if row["solver"] == "wanda"} == {1.0}
    code, out, _ = fwbench("report", "own.sqlite", "-o", "page")
    assert out.strip().endswith("index.html")
    assert "second" in (tmp_path / "page" / "index.html").read_text()
    code, out, _ = fwbench("verify", "own.sqlite")
    assert (code, " 0 fail" in out) == (0, True)


def test_a_transposable_pattern_end_to_end(fwbench, tmp_path):
    layer, pattern = synthetic.correlated(rows=4, n=16), "transposable:2:4"
    files.write_problem(Problem("mine", layer.W, layer.G, "2:4"), tmp_path / "mine.safetensors")
    specs = ("-s", "wanda+fw(variant=vanilla,steps=50)+round+swap", "-s", "tabu")
    code, out, err = fwbench("run", "mine.safetensors", "--pattern", pattern, *specs, "--store", "t.sqlite")
    assert (code, "1 solved, 1 skipped" in out) == (0, True), out + err
    rows = [json.loads(line) for line in fwbench("results", "t.sqlite", "--json")[1].splitlines()]
    [solved, skipped] = sorted(rows, key=lambda row: row["status"])
    assert (solved["pattern"], solved["proof"]) == (pattern, "verified")
    assert 0 < solved["lower_bound"] <= solved["error"]
    assert "counts along rows and columns" in skipped["reason"]
    assert fwbench("report", "t.sqlite", "-o", "page")[0] == 0
    assert "mine" in (tmp_path / "page" / "index.html").read_text()
    code, out, _ = fwbench("verify", "t.sqlite")
    assert (code, " 0 fail" in out) == (0, True)
    assert "tsenor" in fwbench("cite", "t.sqlite", "--format", "bibtex")[1]


def test_a_run_in_which_nothing_succeeds_exits_1(fwbench, tmp_path, folder):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "from dataclasses import dataclass\n"
        "from fwbench.stage import Role, Stage, register\n"
        "@register\n@dataclass(frozen=True)\n"
        "class Cli(Stage):\n"
        "    '''Raise.'''\n"
        "    name = 'cli_raises'\n    role = Role.START\n"
        "    def run(self, problem, state, context):\n        raise RuntimeError('as told')\n"
    )
    code, out, err = fwbench("run", folder, "--file", bad, "-s", "cli_raises", "--store", "s.sqlite")
    assert code == 1
    assert "2 failed" in out
    assert "cli_raises raised RuntimeError: as told" in err
    words = ("run", folder, "--file", bad, "-s", "cli_raises", "-s", "bnb(largest=9)", "-s", "wanda")
    code, out, err = fwbench(*words, "--store", "s.sqlite")
    assert code == 0  # wanda's rows are good
    reasons = [line for line in err.splitlines() if "cli_raises" in line or "skipped" in line or "--retry" in line]
    hours = "16 variables in one program, which would take hours; largest=16 tries it all the same"
    assert reasons == [
        "2 failed before by cli_raises: cli_raises raised RuntimeError: as told",
        f"2 skipped by wanda+swap+bnb(largest=9): bnb: {hours}",
        "--retry-failed runs again what failed before",
    ]
    assert out == "s.sqlite: 4 run, 2 reused; 2 solved, 2 skipped, 2 failed\n"
    assert "failed before" not in fwbench(*words, "--store", "s.sqlite", "--retry-failed")[2]


def test_certify_verify_and_registry(fwbench, tmp_path):
    code, out, err = fwbench("certify", "mini/n016.gate_proj*", "--store", "c.sqlite")
    assert code == 0, err
    code, out, _ = fwbench("verify", "c.sqlite")
    assert (code, " 0 fail" in out) == (0, True), out
    with Store(tmp_path / "c.sqlite", readonly=True) as store:
        (item,) = store.problems()
        (certificate,) = store.certificates(item["hash"])
    (tmp_path / "one.npz").write_bytes(certificate.to_bytes())
    code, out, _ = fwbench("verify", "one.npz")
    assert (code, out.startswith("holds")) == (0, True)
    forged = type(certificate)(certificate.problem, certificate.bound * 1.001, "diagonal", certificate.arrays)
    (tmp_path / "two.npz").write_bytes(forged.to_bytes())
    code, out, _ = fwbench("verify", "two.npz")
    assert (code, "can be proved" in out) == (1, True)
    (tmp_path / "reg").mkdir()
    (tmp_path / "reg" / "best_known.csv").write_text(
        "name,hash,rows,n,pattern,upper,upper_by,verified,verified_by,claimed,claimed_by,date\n"
    )
    code, out, _ = fwbench("registry", "update", "c.sqlite", "--folder", "reg")
    assert "1 improved" in out
    code, out, _ = fwbench("registry", "update", "c.sqlite", "--folder", "reg")
    assert "0 improved" in out
    code, out, _ = fwbench("verify", "reg")
    assert (code, "2 hold, 0 fail" in out) == (0, True)


def test_a_registry_takes_the_shorter_of_two_proofs(fwbench, tmp_path):
    (tmp_path / "reg").mkdir()
    table = tmp_path / "reg" / "best_known.csv"
    table.write_text("name,hash,rows,n,pattern,upper,upper_by,verified,verified_by,claimed,claimed_by,date\n")
    sizes, bounds = [], []
    for store, spec in (("long", "bnb(subtree=3)"), ("short", "bnb"), ("long", "bnb(subtree=3)")):
        assert fwbench("run", "mini/n032.up_proj*", "-s", spec, "--store", f"{store}.sqlite")[0] == 0
        code, out, err = fwbench("registry", "update", f"{store}.sqlite", "--folder", "reg")
        assert code == 0, err
        (path,) = (tmp_path / "reg" / "certificates").iterdir()
        sizes.append(path.stat().st_size)
        assert ("the same bound, proved in" in out) == (len(sizes) == 2)
        bounds.append(next(iter(best_known(tmp_path / "reg").values())).verified)
        assert fwbench("verify", "reg")[0] == 0
    assert sizes[1] < sizes[0]
    assert sizes[2] == sizes[1]
    np.testing.assert_allclose(bounds, bounds[0], rtol=1e-12)


@pytest.mark.parametrize(("rows", "own"), [("all", 4), ("3", 3), ("0,2-3", 3), ("1,", 1)])
def test_certify_rows(fwbench, tmp_path, rows, own):
    code, out, err = fwbench(
        "certify", "mini/n016.gate_proj*", "--bound", "shor", "--rows", rows, "--store", "c.sqlite"
    )
    assert (code, "1 certified" in out) == (0, True), err
    with Store(tmp_path / "c.sqlite", readonly=True) as store:
        (result,) = store.results()
    assert sum(stage.counters.get("row_proofs", 0) for stage in result.stages) == own


def test_certify_of_rows_that_are_not_there(fwbench):
    code, out, err = fwbench("certify", "mini/n016.gate_proj*", "--bound", "shor", "--rows", "9000,")
    assert code == 1, (out, err)
    assert "0 certified" in out
    assert "there is no row 9000" in out + err


def test_lists(fwbench):
    assert "mini" in fwbench("problems")[1]
    assert "mini.n016" in fwbench("problems", "mini/n016*")[1]
    out = fwbench("solvers")[1]
    assert all(word in out for word in ("wanda", "arXiv", "relax", "SparseFW"))
    out = fwbench("solvers", "splitting")[1]
    assert all(word in out for word in ("levels=12", "When: In place of", "Source: Boyd"))
    code, out, err = fwbench("solvers", "spliting")
    assert code == 2
    assert "they are: admm" in err


def test_every_stage_says_when_to_use_it():
    for stage in pipeline.load_solvers().values():
        if stage.__module__.startswith("fwbench."):
            assert re.match("(For|In|To|After) .*; (not|never|it|nothing) .*\\.$", stage.advice), stage.name


def test_the_light_import_and_help_stay_light():
    code = "import sys, fwbench.cli; fwbench.cli.cli.main(['--help'], standalone_mode=False)"
    code += "; print([m for m in ('torch', 'numba', 'matplotlib', 'pandas', 'cvxpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
