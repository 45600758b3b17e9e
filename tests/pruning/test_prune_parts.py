"""What prune and extract say about the parts of a model: left out, skipped, not run, not able to generate."""

import json
from unittest import mock

import pytest
import torch
from checkpoints import copied
from small_models import FAMILIES, options, place, saved, tiny_architectures

from fwbench.cli import cli
from fwbench.problems import models
from fwbench.pruning import engine, prune

__all__ = ["place"]  # a fixture


def test_what_is_left_out_and_skipped_is_said(place, tmp_path, capsys):
    """OPT's projections beside its blocks: on standard error, in the summary and in the report."""
    source, text = str(saved(place, "opt")), str(place / "text.txt")
    arguments = [source, "--pattern", "0.5", "-s", "wanda", "--text", text, "--tokens", "250", "--evaluate", "none"]
    cli.main(["prune", *arguments, "-o", str(tmp_path / "out"), "--skip", "fc1"], standalone_mode=False)
    said = "2 weights that text runs through, the first is model.decoder.project_in.weight"
    said = f"opt: left out, besides embeddings and head: {said}"
    assert capsys.readouterr().err.splitlines()[-1] == f"fwbench: note: {said}"
    summary = json.loads((tmp_path / "out" / "fwbench.json").read_text())
    assert summary["left_out"] == ["model.decoder.project_in.weight", "model.decoder.project_out.weight"]
    for kind in ("html", "md"):
        report = (tmp_path / "out" / f"report.{kind}").read_text().replace("&#39;", "'")
        assert "layers that fc1 finds" in report
        assert said in report


def test_extract_on_the_command_line(place, tmp_path, capsys):
    source, text = str(saved(place, "opt")), str(place / "text.txt")
    arguments = ["extract", source, "--text", text, "--tokens", "250", "-o", str(tmp_path / "out")]
    cli.main([*arguments, "--layers", r"self_attn|fc", "--skip", r"layers\.[12]\.|fc2"], standalone_mode=False)
    assert "model.decoder.project_in.weight" in capsys.readouterr().err
    names = {path.name.partition(".")[2] for path in (tmp_path / "out").iterdir()}
    assert names == {f"00.{name}.safetensors" for name in ("k_proj", "v_proj", "q_proj", "out_proj", "fc1")}


def test_no_chain_is_refused_before_the_work(place, tmp_path, monkeypatch):
    """And a layer that does not run: before the perplexity of the dense model."""
    monkeypatch.setattr(engine, "measured", mock.Mock(side_effect=AssertionError("the work began")))
    for family, reason in (("reformer", "more than hidden states"), ("bart", "--skip 'encoder_attn'")):
        with mock.patch.dict(FAMILIES, {family: lambda family=family: tiny_architectures.config(family)}):
            source = str(saved(place, family))
        with pytest.raises(models.ModelError, match=reason) as error:
            prune(source, tmp_path / "out", options(place))
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ["masked model", "short text", "prompt"])
def test_what_cannot_be_measured_is_refused_before_the_work(place, tmp_path, case):
    """Else OUT.partial would hold --evaluate none off the same folder."""
    config = tiny_architectures.config("bert")
    config.is_decoder = case != "masked model"
    with mock.patch.dict(FAMILIES, {case: lambda: config}):
        source = copied(saved(place, case), tmp_path / "in")
    (source / "short.txt").write_text("a" if case == "short text" else "a " * 100)
    words = {"[UNK]": 300 if case == "prompt" else 0, "a": 1, "b": 2, "c": 3}
    tokens = json.loads((source / "tokenizer.json").read_text())
    tokens["model"]["vocab"] = words
    (source / "tokenizer.json").write_text(json.dumps(tokens))
    reason = {
        "masked model": "depends on later ones .*; --evaluate none prunes without one",
        "short text": "perplexity needs windows of two tokens or more",
        "prompt": "the tokenizer gives token 300",
    }
    with pytest.raises(ValueError, match=reason[case]):
        prune(str(source), tmp_path / "out", options(place, evaluate=str(source / "short.txt")))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_model_that_cannot_generate_is_pruned(place, tmp_path):
    """xLSTM's cache does not fit its own states in this version of transformers."""
    with mock.patch.dict(FAMILIES, {"xlstm": lambda: tiny_architectures.config("xlstm")}):
        source = str(saved(place, "xlstm"))
    network = models.load_model(source).network
    with pytest.raises(ValueError, match="wrong shape"):
        network.generate(torch.ones(1, 9, dtype=torch.long), max_new_tokens=2, pad_token_id=0)
    summary = prune(source, tmp_path / "out", options(place))
    assert summary["sample"]["dense"]  # said token by token, without a cache
