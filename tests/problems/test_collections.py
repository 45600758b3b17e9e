"""Selectors: what they find, in which order, and what is refused; ``smollm2`` with a tiny model in its place."""

import subprocess
import sys

import numpy as np
import pytest

from fwbench.patterns import PatternError
from fwbench.problem import ProblemError
from fwbench.problems import collections, files, synthetic
from fwbench.problems.collections import CollectionError, load


def names(selector, **options):
    return [problem.name for _, problem in load(selector, **options)]


def test_catalog_counts():
    for item in collections.catalog():
        assert item.sentence.endswith(".")
        if item.name not in collections.MODELS:
            assert item.problems == len(names(item.name))
    counts = {item.name: item.problems for item in collections.catalog()}
    assert (counts["smollm2"], counts["gemma3"]) == (210, 126)


def test_globs():
    assert names("synthetic/planted.n048") == ["synthetic.planted.n048"]
    assert names("synthetic/synthetic.ties*") == ["synthetic.ties.n032"]
    assert names("synthetic/*correlated*") == sorted(name for name in synthetic.CASES if "correlated" in name)
    assert {name for name, _ in load("synthetic/ties*")} == {"synthetic"}
    assert names("mini/n016.*") == sorted(name for name in names("mini") if name.startswith("mini.n016."))


def test_patterns_replace_the_problem_s_own():
    found = names("synthetic/correlated.n064.*", patterns=["0.5", "2:4"])
    assert found == [
        "synthetic.correlated.n064.0.5",
        "synthetic.correlated.n064.2:4",
        "synthetic.correlated.n064.0.5",
        "synthetic.correlated.n064.2:4",
    ]
    (_, problem), *_ = load("synthetic/ties*", patterns=["0.25"])
    assert (problem.name, str(problem.pattern)) == ("synthetic.ties.n032", "0.25")
    with pytest.raises(PatternError, match="does not divide"):
        names("synthetic/ties*", patterns=["2:5"])


def test_paths(tmp_path):
    folder = tmp_path / "mine"
    for name in ("b", "a"):
        files.write_problem(synthetic.ties(name=name), folder / f"{name}.safetensors")
    assert [(where, problem.name) for where, problem in load(folder)] == [("mine", "a"), ("mine", "b")]
    assert [(where, problem.name) for where, problem in load(folder / "b.safetensors")] == [("b", "b")]
    with pytest.raises(ProblemError, match="no problem file"):
        names(tmp_path)
    with pytest.raises(ProblemError, match="no such file"):
        names(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("selector", "reason"),
    [
        ("minni", "did you mean mini"),
        ("zzz", "did you mean mini or smollm2 or gemma3 or synthetic"),
        ("mini@7", "no such collection"),
        ("mini/nothing*", "no problem of mini matches; names are like mini."),
        ("smollm2/30.*", "no problem of smollm2 matches; names are like smollm2.00.q_proj"),
        ("smollm2@many/07.*", "'many' is not a number of tokens"),
        ("smollm2@0", "'0' is not a number of tokens"),
        ("gemma3/18.*", "no problem of gemma3 matches; names are like gemma3.00.q_proj"),
        ("gemma3@0", "'0' is not a number of tokens; write gemma3@65536"),
    ],
)
def test_refusals(selector, reason):
    with pytest.raises(CollectionError) as error:
        names(selector)
    assert reason in str(error.value)
    assert selector in str(error.value)
    assert "\n" not in str(error.value)


def test_mini_and_synthetic_need_no_torch():
    code = (
        "import sys; from fwbench.problems.collections import load, catalog; catalog()\n"
        "assert sum(1 for _ in load('mini')) and sum(1 for _ in load('synthetic'))\n"
        "assert not {'torch', 'transformers', 'pip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Named models as llamas of three tiny blocks; counts how often one is loaded."""
    import tiny

    from fwbench.problems import models, text

    loads = []

    def load_model(name):
        loads.append(name)
        model = tiny.model("llama")
        return models.Model(name, model.network, model.tokenizer, "tiny", "none")

    monkeypatch.setenv("FWBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "load_model", load_model)
    monkeypatch.setattr(collections, "load_text", lambda name: text.Text(name, "The quick brown fox. " * 40))
    return loads


def test_smollm2_extracts_what_is_asked_for_and_reuses_it(small, tmp_path):
    seen = []
    first = [problem for _, problem in load("smollm2@256/01.[qk]_proj", progress=lambda *args: seen.append(args))]
    assert [problem.name for problem in first] == ["smollm2.01.k_proj", "smollm2.01.q_proj"]
    assert seen[-1][:2] == (256, 256)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    again = [problem for _, problem in load("smollm2@256/01.[qk]_proj")]
    assert [problem.hash for problem in again] == [problem.hash for problem in first]
    assert len(small) == 1
    assert names("smollm2@256/01.[qkv]_proj")[-1] == "smollm2.01.v_proj"
    assert len(small) == 2
    (_, other), *_ = load("smollm2@128/01.q_proj")
    assert other.hash != again[1].hash
    assert {where for where, _ in load("smollm2@128/01.q_proj")} == {"smollm2@128"}


def test_gemma3_has_problems_of_its_own(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FWBENCH_ACCEPT", "gemma")
    found = {selector: list(load(selector)) for selector in ("gemma3@256/01.v_proj", "smollm2@256/01.v_proj")}
    assert small == ["gemma3", "smollm2"]
    assert [(where, problem.name) for ((where, problem),) in found.values()] == [
        ("gemma3@256", "gemma3.01.v_proj"),
        ("smollm2@256", "smollm2.01.v_proj"),
    ]
    assert len({path.parent for path in tmp_path.rglob("*.safetensors")}) == 2
    assert collections.one("gemma3@256/01.v_proj")[1].hash == found["gemma3@256/01.v_proj"][0][1].hash
    collections.check("gemma3/*.down_proj", ["0.5", "2:4"])
    with pytest.raises(PatternError, match="does not divide"):
        collections.check("gemma3/*", ["2:5", "3:7"])


def test_smollm2_repairs_its_cache(small, tmp_path):
    (before,) = [problem for _, problem in load("smollm2@256/02.q_proj")]
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    (after,) = [problem for _, problem in load("smollm2@256/02.q_proj")]
    assert np.array_equal(before.G, after.G)


@pytest.mark.slow
def test_the_real_smollm2(tmp_path):
    found = {problem.name: problem for _, problem in load("smollm2@1024/00.*")}
    assert len(found) == 7
    assert found["smollm2.00.down_proj"].shape == (576, 1536)


@pytest.mark.slow
def test_the_real_gemma3(monkeypatch):
    """Sliding windows, norms of queries and keys, four queries' heads to one of keys: its layers are as announced."""
    monkeypatch.setenv("FWBENCH_ACCEPT", "gemma")
    found = {problem.name: problem for _, problem in load("gemma3@1024/00.*")}
    assert {name.rpartition(".")[2]: problem.shape for name, problem in found.items()} == collections.MODELS[
        "gemma3"
    ].shapes
    assert "bos" in found["gemma3.00.q_proj"].meta["calibration"]
    for problem in found.values():
        problem.check_psd()
