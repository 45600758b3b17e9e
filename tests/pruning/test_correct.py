"""``prune --correct --residual``: what arrives wrong from pruned blocks is a part of the next blocks' target."""

import json
import re
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from hooked import inputs, read
from safetensors.torch import load_file
from small_models import FAMILIES, LENGTH, TOKENS, hashes, options, place, saved

from fwbench.cli import cli
from fwbench.problems import extract, models, structure
from fwbench.problems.text import load_text
from fwbench.pruning import PruneError, engine, load_masks, prune

__all__ = ["place"]  # a fixture


TURNS = (
    ("q_proj", "k_proj", "v_proj", "c_attn"),
    ("o_proj", "attn.c_proj"),
    ("gate_proj", "up_proj", "c_fc"),
    ("down_proj", "mlp.c_proj"),
)


def turns(layers, true_sequential):
    """Names of layers in the order in which they are pruned, those that are pruned at once together."""
    for block in range(3):
        own = [name for name in layers if name.split(".")[1] == f"{block:02}"]
        yield from ([name for name in own if name.endswith(ends)] for ends in TURNS) if true_sequential else [own]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2-mixed"])
@pytest.mark.parametrize("spec", ["wanda+swap", "sparsegpt"])
@pytest.mark.parametrize("true_sequential", [False, True])
def test_errors_are_those_of_the_target(place, tmp_path, family, spec, true_sequential):
    """Each layer's error, from the dense model's inputs, those that arrive, and the weights that were saved."""
    source, strength, ridge = saved(place, family), 0.4, 0.05
    out = tmp_path / "out"
    asked = options(place, spec=spec, correct=strength, ridge=ridge, true_sequential=true_sequential)
    summary = prune(str(source), out, asked)
    assert (summary["correct"], summary["ridge"]) == (strength, ridge)
    text = load_text(place / "text.txt")
    dense, half = models.load_model(str(source)), models.load_model(str(source))
    final = load_file(out / "model.safetensors")
    layers = extract.named_layers(dense)
    records = {record["layer"]: record for record in summary["layers"]}
    assert set(records) == set(layers)
    for own in turns(layers, true_sequential):
        X, reads = (inputs(model, text, TOKENS, LENGTH, own) for model in (dense, half))
        for name in own:
            W, arrived = structure.weight_of(layers[name]).astype(np.float64), reads[name]
            tokens, damping = arrived.shape[1], ridge * (arrived**2).mean() * np.eye(len(arrived))
            wrong = (W @ (X[name] - arrived)) @ arrived.T / tokens
            Y = (W + strength * wrong @ np.linalg.inv(arrived @ arrived.T / tokens + damping)) @ arrived
            weight = final[records[name]["parameter"]].double().numpy()
            saved_weight = weight.T if family == "gpt2" else weight
            error = ((Y - saved_weight @ arrived) ** 2).mean(axis=1).sum()
            assert records[name]["error"] == pytest.approx(error, rel=2e-3), name
        _prune_alike(half, final, records, own)


def _prune_alike(model, final, records, names):
    with torch.no_grad():
        for name in names:
            parameter = records[name]["parameter"]
            model.network.get_parameter(parameter).copy_(final[parameter])


# what reads the hidden states to which a layer adds: a block's first norm and its second
STREAMS = {
    "llama": {"o_proj": "input_layernorm", "down_proj": "post_attention_layernorm"},
    "gpt2": {"attn.c_proj": "ln_1", "mlp.c_proj": "ln_2"},
}


def _streams(model, text, block, readers):
    """By the layer that adds to it, hidden states ``(hidden, tokens)``, float64."""
    found = {
        layer: module
        for layer, reader in readers.items()
        for path, module in model.network.named_modules()
        if path.endswith(f".{block}.{reader}")
    }
    assert set(found) == set(readers)
    return read(model, found, text, TOKENS, LENGTH)


@pytest.mark.parametrize("strength", [0.0, 0.4])
@pytest.mark.parametrize("family", list(STREAMS))
@pytest.mark.parametrize("true_sequential", [False, True])
def test_layers_that_write_to_the_residual_stream_make_good_what_is_wrong_in_it(
    place, tmp_path, family, strength, true_sequential
):
    """Their target by its definition, from the streams of the dense model and of the pruned one before each block."""
    source, residual, ridge, text = saved(place, family), 0.6, 0.05, load_text(place / "text.txt")
    out = tmp_path / "out"
    asked = options(place, spec="wanda+swap", correct=strength, residual=residual, ridge=ridge)
    summary = prune(str(source), out, replace(asked, true_sequential=true_sequential))
    assert (summary["correct"], summary["residual"], summary["ridge"]) == (strength, residual, ridge)
    dense, half = models.load_model(str(source)), models.load_model(str(source))
    final, layers = load_file(out / "model.safetensors"), extract.named_layers(dense)
    records = {record["layer"]: record for record in summary["layers"]}
    for own in turns(layers, true_sequential):
        block = int(own[0].split(".")[1])
        X, reads = (inputs(model, text, TOKENS, LENGTH, own) for model in (dense, half))
        aims, streams = (_streams(model, text, block, STREAMS[family]) for model in (dense, half))
        for name in own:
            W, arrived = structure.weight_of(layers[name]).astype(np.float64), reads[name]
            tokens, damping = arrived.shape[1], ridge * (arrived**2).mean() * np.eye(len(arrived))
            wrong = strength * W @ (X[name] - arrived)
            for layer in STREAMS[family]:
                if name.endswith(layer):
                    wrong = wrong + residual * (aims[layer] - streams[layer])
            made = wrong @ arrived.T / tokens @ np.linalg.inv(arrived @ arrived.T / tokens + damping)
            weight = final[records[name]["parameter"]].double().numpy()
            saved_weight = weight.T if family == "gpt2" else weight
            error = (((W + made - saved_weight) @ arrived) ** 2).mean(axis=1).sum()
            assert records[name]["error"] == pytest.approx(error, rel=2e-3), name
        _prune_alike(half, final, records, own)


def test_it_does_something_in_sequence_alone(place, tmp_path):
    source = str(saved(place, "llama"))
    found = {}
    for name, more in {
        "plain": {},
        "corrected": {"correct": 0.5},
        "one-shot": {"sequential": False},
        "one-shot, corrected": {"sequential": False, "correct": 0.5},
    }.items():
        prune(source, tmp_path / name, options(place, spec="wanda+swap", **more))
        found[name] = load_masks(tmp_path / name)
    first = [name for name in found["plain"] if re.search(r"\.layers\.0\.self_attn\.[qkv]_proj", name)]
    assert all(np.array_equal(found["plain"][name], found["corrected"][name]) for name in first)
    assert any(not np.array_equal(found["plain"][name], found["corrected"][name]) for name in found["plain"])
    for name, keep in found["one-shot"].items():
        assert np.array_equal(keep, found["one-shot, corrected"][name])


def test_killed_and_resumed(place, tmp_path, monkeypatch):
    """The dense model's activations go on from where they were, though the blocks before are pruned by then."""
    source = str(saved(place, "llama"))
    asked = options(place, spec="wanda+swap", correct=0.5)
    prune(source, tmp_path / "whole", asked)
    real = engine._prune_block

    def stopping(plan, at, number, clock):
        if number == 2:
            raise KeyboardInterrupt
        return real(plan, at, number, clock)

    monkeypatch.setattr(engine, "_prune_block", stopping)
    with pytest.raises(KeyboardInterrupt):
        prune(source, tmp_path / "out", asked)
    monkeypatch.setattr(engine, "_prune_block", real)
    with pytest.raises(PruneError, match=r"begun with correct 0.5, not 0.4"):
        prune(source, tmp_path / "out", options(place, spec="wanda+swap", correct=0.4))
    assert prune(source, tmp_path / "out", asked)["blocks_resumed"] == 2
    weights = "model.safetensors"
    assert hashes(tmp_path / "out")[weights] == hashes(tmp_path / "whole")[weights]


@pytest.mark.parametrize(("name", "value"), [("correct", 1.5), ("correct", -0.1), ("residual", 1.5), ("ridge", 0.0)])
def test_what_makes_no_sense_is_refused(place, tmp_path, name, value):
    with pytest.raises(PruneError, match=r"correct and residual must lie between 0 and 1|ridge must lie above 0"):
        prune(str(saved(place, "llama")), tmp_path / "out", options(place, **{name: value}))


@pytest.mark.parametrize(("spec", "expected"), [("wanda+swap", 0.0), ("sparsegpt", 0.3)])
def test_by_default_the_residual_stream_and_layers_in_turn_are_for_weight_updates(place, tmp_path, spec, expected):
    summary = prune(str(saved(place, "llama")), tmp_path / "out", options(place, spec=spec, correct=0.3, residual=None))
    assert (summary["residual"], summary["true_sequential"]) == (expected, expected > 0)
    how = "each layer calibrated with all" if expected else "each block calibrated with the blocks"
    assert f"{how} before it already pruned" in (tmp_path / "out" / "report.md").read_text()


def test_by_command(place, tmp_path):
    out, text = tmp_path / "out", str(place / "text.txt")
    words = ["prune", str(saved(place, "llama")), "-o", str(out), "--pattern", "0.5", "-s", "wanda", "--text", text]
    words += ["--tokens", "200", "--correct", "0.3", "--residual", "0.1", "--ridge", "0.2", "--evaluate", "none"]
    words += ["--true-sequential"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    summary = json.loads((out / "fwbench.json").read_text())
    assert (summary["correct"], summary["residual"], summary["ridge"]) == (0.3, 0.1, 0.2)
    assert summary["true_sequential"]
    said = "makes good 30.0 % of what arrives wrong and 10.0 % of what is wrong in the residual stream (ridge 0.2)"
    assert said in (out / "report.md").read_text()


def test_a_model_whose_layers_add_through_a_norm_is_told_so(place, tmp_path):
    with mock.patch.dict(FAMILIES, {"gemma3": lambda: tiny.t.Gemma3TextConfig(**tiny.GROUPED, head_dim=8)}):
        source = str(saved(place, "gemma3"))
    summary = prune(source, tmp_path / "out", options(place, correct=0.3, residual=0.3))
    assert any("--residual is idle" in note for note in summary["notes"])
