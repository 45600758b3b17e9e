"""Tasks of lm-eval on a pruned model and the dense one: against accuracies by transformers alone, and what is kept."""

import importlib.util
import json
import math
import random
import re
import statistics

import pytest
import torch
from checkpoints import configure, copied, edit, with_opening
from small_models import options, place, saved

from fwbench.problems.models import load_model
from fwbench.pruning import page, prune, tasks

__all__ = ["place"]  # a fixture

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not INSTALLED, reason="lm_eval, the extra eval, is not installed")
TASK = """task: letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {place}/docs.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3.0}}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a task of one's own, and its samples."""
    folder, rng = tmp_path_factory.mktemp("tasks"), random.Random(5)
    samples = [
        {
            "question": " ".join(rng.choice("abc") for _ in range(rng.randint(3, 9))),
            "choices": ["a b", "c a", "b c", "b b"],  # as long: the shortest is not always the likeliest
            "answer": rng.randrange(4),
        }
        for _ in range(40)
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (folder / "letters.yaml").write_text(TASK.format(place=folder))
    return folder, samples


@pytest.fixture
def pruned(place, tmp_path, monkeypatch):
    """A dense model that is sure of itself, and beside it a pruned one that errs otherwise."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    dense = copied(saved(place, "llama"), tmp_path / "dense")
    edit(dense, lambda tensors: {name: 10 * x if "proj" in name else x for name, x in tensors.items()})
    with_opening(dense)
    configure(dense, "tokenizer_config.json", bos_token="<bos>", eos_token="<eos>")
    prune(str(dense), tmp_path / "pruned", options(place, pattern="0.7", spec="magnitude"))
    return tmp_path / "pruned"


def correct(folder, samples):
    """Of each sample, whether the right choice is the likeliest after the question."""
    model, found = load_model(folder), []
    for sample in samples:
        sums = []
        for choice in sample["choices"]:
            before, ids = (
                model.tokenizer(text)["input_ids"] for text in (sample["question"], f"{sample['question']} {choice}")
            )
            with torch.no_grad():
                logs = model.network(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            sums.append(sum(float(logs[place - 1, ids[place]]) for place in range(len(before), len(ids))))
        found.append(float(max(range(4), key=sums.__getitem__) == sample["answer"]))
    return found


def error(values):
    return statistics.stdev(values) / math.sqrt(len(values))


@needs_lm_eval
def test_accuracy_beside_the_dense_models(pruned, own, fwbench):
    folder, samples = own
    words = ("evaluate", "pruned", "--tasks", "letters", "--include-path", folder)
    code, said, heard = fwbench(*words)
    assert (code, re.sub(r"^\d/2 pruned: .*\n", "", heard)) == (0, "")  # progress, on a slow machine
    own_ones, dense = correct(pruned, samples), correct(pruned.with_name("dense"), samples)
    assert own_ones != dense
    kept = json.loads((pruned / "tasks.json").read_text())["tasks"]["letters"]
    assert (kept["samples"], kept["of"], kept["version"], kept["dense"]) == (40, 40, 3.0, "dense")
    expected = {"pruned": own_ones, "dense": dense, "difference": [a - b for a, b in zip(own_ones, dense, strict=True)]}
    for kind, values in expected.items():
        assert kept["metrics"]["acc"][kind]["value"] == pytest.approx(statistics.fmean(values), abs=1e-12)
        assert kept["metrics"]["acc"][kind]["stderr"] == pytest.approx(error(values), rel=1e-9)
    cells = [f"{statistics.fmean(v):.4f} ± {error(v):.4f}".replace("-", "−") for v in expected.values()]
    assert said.splitlines()[1].split("  ")[-3:] == cells
    assert f"| letters | acc | 40 of 40 | {' | '.join(cells)} |" in (pruned / "report.md").read_text()
    assert cells[0] in (pruned / "report.html").read_text()
    code, said, _ = fwbench(*words, "--limit", 10, "--batch-size", 4, "--json")  # in the place of what was there
    found = json.loads(said)["tasks"]
    assert found == json.loads((pruned / "tasks.json").read_text())["tasks"]
    assert found["letters"]["metrics"]["acc"]["pruned"]["value"] == pytest.approx(statistics.fmean(own_ones[:10]))
    assert (found["letters"]["samples"], found["letters"]["of"], found["letters"]["limit"]) == (10, 40, 10)


@needs_lm_eval
def test_a_dense_model_alone_keeps_nothing(pruned, own, fwbench):
    before = {path.name for path in pruned.with_name("dense").iterdir()}
    code, said, _ = fwbench("evaluate", "dense", "--tasks", "letters", "--include-path", own[0], "--limit", 3)
    assert (code, said.splitlines()[0].split()) == (0, ["task", "metric", "samples", "dense"])
    assert {path.name for path in pruned.with_name("dense").iterdir()} == before


@needs_lm_eval
def test_refused(pruned, own, fwbench, tmp_path, monkeypatch):
    code, _, said = fwbench("evaluate", "pruned", "--tasks", "nothing")
    assert (code, said.count("\n")) == (2, 1)
    assert "nothing: lm-eval has no such task; " in said
    code, _, said = fwbench("evaluate", "pruned", "--tasks", "letters", "--include-path", own[0], "--dense", "gone")
    assert (code, "gone: no such model folder" in said) == (2, True)
    copied(tmp_path / "dense", tmp_path / "other")
    configure(tmp_path / "other", "tokenizer_config.json", bos_token=None, eos_token=None)
    code, _, said = fwbench("evaluate", "other", "--tasks", "letters", "--include-path", own[0])
    assert (code, "its tokenizer has no BOS and no EOS, of which lm-eval needs one" in said) == (2, True)
    import lm_eval

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach 'letters' on the Hub")

    monkeypatch.setattr(lm_eval, "simple_evaluate", offline)
    code, _, said = fwbench("evaluate", "pruned", "--tasks", "letters", "--include-path", own[0])
    assert (code, said.count("\n")) == (2, 1)
    assert "letters: the data cannot be had (Couldn't reach 'letters' on the Hub); run the same command where" in said
    assert not (pruned / "tasks.json").exists()


def test_without_lm_eval(fwbench, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, said = fwbench("evaluate", "pruned", "--tasks", "arc_easy")
    sentence = "fwbench: evaluate measures by lm-eval, which is not installed; pip install 'fwbench[eval]'\n"
    assert (code, said) == (2, sentence)


def figures(value):
    return {"value": value, "stderr": 0.25}


def test_what_is_kept(place, tmp_path):
    """Other tasks stay; without tasks the report is as prune wrote it; a metric without an error shows none."""
    summary = prune(str(saved(place, "llama")), tmp_path / "out", options(place))
    before = {name: (tmp_path / "out" / name).read_text() for name in ("report.html", "report.md")}
    assert page.render(json.loads((tmp_path / "out" / "fwbench.json").read_text())) == before
    task = {
        "samples": 1200,
        "of": 1200,
        "metrics": {"acc": {"pruned": figures(-0.5), "dense": None, "difference": None}},
    }
    tasks._keep(tmp_path / "out", summary, {"b": task})
    alone = {"pruned": {"value": 7.0, "stderr": None}, "dense": None, "difference": None}
    tasks._keep(tmp_path / "out", summary, {"a": {"samples": None, "of": None, "metrics": {"word": alone}}})
    said = (tmp_path / "out" / "report.md").read_text()
    lines = ["| a | word |  | 7.0000 |  |  |", "| b | acc | 1,200 of 1,200 | −0.5000 ± 0.2500 |  |  |"]
    assert "\n".join(lines) in said
    assert list(tasks.said(tasks.kept(tmp_path / "out"), "out")) == [
        "task  metric         samples               out",
        "a       word                            7.0000",
        "b        acc  1,200 of 1,200  −0.5000 ± 0.2500",
    ]
    (tmp_path / "out" / "tasks.json").write_text("{")
    with pytest.raises(ValueError, match=r"tasks.json: cannot be read \(.*\); remove it to begin anew"):
        tasks.kept(tmp_path / "out")
