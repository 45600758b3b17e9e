"""The production path on tiny models of every family: what is pruned, what is not, resuming, and every refusal."""

import errno
import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import FAMILIES, LENGTH, TOKENS, hashes, options, place, saved, t, tiny
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from fwbench import pipeline
from fwbench.cli import cli
from fwbench.problems import extract, gram, models, structure
from fwbench.problems.text import load_text
from fwbench.pruning import Options, PruneError, engine, load_masks, page, prune, walk
from fwbench.store import Store

__all__ = ["place"]  # a fixture


def timeless(folder):
    """Everything in a summary that must repeat."""
    summary = json.loads((folder / "fwbench.json").read_text())
    for key in ("seconds", "peak_memory", "blocks_resumed", "machine"):
        del summary[key]
    for record in summary["layers"]:
        del record["seconds"]
    return summary


def oracle_masks(source, text, done, block, pattern="0.5"):
    """Masks of a block by plain extraction from a model into which the weights ``done`` were put."""
    model = models.load_model(source)
    with torch.no_grad():
        for name, weight in done.items():
            model.network.get_parameter(name).copy_(weight)
    problems = extract.extract(model, text, [block], TOKENS, pattern, length=LENGTH)
    solver = pipeline.resolve("wanda")
    return {problem.name: pipeline.run(problem, solver).keep for problem in problems}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mixture"])
def test_every_family(place, tmp_path, family):
    source = saved(place, family)
    before, text = hashes(source), load_text(place / "text.txt")
    dense = load_file(source / "model.safetensors")
    found = {}
    for mode in ("sequential", "one-shot"):
        out = tmp_path / mode
        summary = prune(str(source), out, options(place, sequential=mode == "sequential"))
        network = t.AutoModelForCausalLM.from_pretrained(out)
        assert t.AutoTokenizer.from_pretrained(out)("a b")["input_ids"] == [1, 2]
        assert (out / "generation_config.json").is_file()
        pruned, masks = load_file(out / "model.safetensors"), load_masks(out)
        assert {name for name in dense if not torch.equal(dense[name], pruned[name])} == set(masks)
        assert {record["parameter"] for record in summary["layers"]} == set(masks)
        names = {parameter: layer for layer, parameter in _parameters(network, family)}
        assert set(names) == set(masks)
        for record in summary["layers"]:
            keep, weight = masks[record["parameter"]], pruned[record["parameter"]].numpy()
            assert np.array_equal(weight, np.where(keep, dense[record["parameter"]].numpy(), 0))
            by_row = (keep.T if family == "gpt2" else keep).sum(1)
            assert set(by_row.tolist()) == {record["n"] - round(0.5 * record["n"])}
            assert record["ratio_to_wanda"] == pytest.approx(1)
        found[mode] = (masks, pruned, {record["layer"]: record["parameter"] for record in summary["layers"]})
    assert hashes(source) == before
    for block in range(3):
        for mode in found:
            masks, pruned, parameter = found[mode]
            earlier = {p: pruned[p] for layer, p in parameter.items() if int(layer.split(".")[1]) < block}
            wanted = oracle_masks(source, text, earlier if mode == "sequential" else {}, block)
            for layer, keep in wanted.items():
                mask = masks[parameter[layer]]
                assert np.array_equal(mask.T if family == "gpt2" else mask, keep), (mode, layer)
    first = [p for layer, p in found["one-shot"][2].items() if ".00." in layer]
    assert all(np.array_equal(found["sequential"][0][p], found["one-shot"][0][p]) for p in first)
    assert any(not np.array_equal(found["sequential"][0][p], found["one-shot"][0][p]) for p in found["one-shot"][0])


def _parameters(network, label):
    """Problem names and state names of a model's layers, by the model's own listing of its modules."""
    for block in structure.find_blocks(network):
        for name, layer in structure.find_layers(block).items():
            [path] = [path for path, module in network.named_modules() if module is layer]
            yield f"{label}.{name}.{path}", f"{path}.weight"


def test_what_blocks_get_is_what_the_model_gives_them(place):
    """Activations of the walk are the model's own hidden states, for every block and batch."""
    for family in ("qwen2-mixed", "gpt2", "gemma"):
        model = models.load_model(saved(place, family))
        batches = [torch.randint(3, tiny.VOCABULARY, shape, generator=torch.Generator()) for shape in ((2, 20), (1, 9))]
        streams = [model.network(input_ids=ids, output_hidden_states=True).hidden_states for ids in batches]
        found = walk.begin(model.network, batches)
        for number in range(3):
            for hidden, stream in zip(found.hidden, streams, strict=True):
                torch.testing.assert_close(hidden, stream[number])
            found.advance(number)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2-mixed"])
def test_a_block_runs_wholly_on_its_device(place, family):
    """Without a GPU: on torch's ``meta`` device, an operation that mixes devices raises."""
    model = models.load_model(saved(place, family))
    found = walk.begin(model.network, [torch.ones(2, 9, dtype=torch.long)], device="meta")
    for number, block in enumerate(found.blocks):
        recorder = gram.Recorder(structure.find_layers(block.to("meta")))
        with recorder.recording():
            assert {output.device.type for output in found.run(number)} == {"meta"}
        assert {item.G.device.type for item in recorder.sums.values()} == {"meta"}


@pytest.mark.parametrize("sequential", [True, False])
def test_killed_and_resumed(place, tmp_path, monkeypatch, sequential):
    source = str(saved(place, "llama"))
    asked = options(place, spec="wanda+refit", sequential=sequential, evaluate=str(place / "text.txt"))
    prune(source, tmp_path / "whole", asked)
    out, real = tmp_path / "stopped", engine._prune_block
    for stop in (1, 2):

        def stopping(plan, at, number, clock, stop=stop):
            if number == stop:
                raise KeyboardInterrupt
            return real(plan, at, number, clock)

        monkeypatch.setattr(engine, "_prune_block", stopping)
        with pytest.raises(KeyboardInterrupt):
            prune(source, out, asked)
        assert not out.exists()
    monkeypatch.setattr(engine, "_prune_block", real)
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with (
        mock.patch("transformers.PreTrainedModel.save_pretrained", full),
        pytest.raises(PruneError, match="No space left"),
    ):
        prune(source, out, asked)
    assert not out.exists()
    different = options(place, spec="wanda+refit", sequential=sequential, pattern="0.6", evaluate=asked.evaluate)
    with pytest.raises(PruneError, match=r"begun with pattern '0.5', not '0.6'"):
        prune(source, out, different)
    summary = prune(source, out, asked)
    assert summary["blocks_resumed"] == 3
    assert not out.with_name("stopped.partial").exists()
    for name in ("model.safetensors", "masks.safetensors", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert timeless(out) == timeless(tmp_path / "whole")
    with pytest.raises(PruneError, match="already there"):
        prune(source, out, asked)


@pytest.mark.parametrize("pattern", ["2:4", "unstructured:0.6"])
def test_other_patterns_and_skipped_layers(place, tmp_path, pattern):
    summary = prune(
        str(saved(place, "gpt2")), tmp_path / "out", options(place, pattern=pattern, skip=r"mlp\.|c_fc|\.00\.", seed=1)
    )
    masks = load_masks(tmp_path / "out")
    assert len(masks) == 4
    assert summary["totals"]["layers"] == 4
    for keep in masks.values():
        if pattern == "2:4":
            assert set(keep.T.reshape(-1, 4).sum(1).tolist()) == {2}
        else:
            assert keep.size - keep.sum() == round(0.6 * keep.size)


@pytest.mark.parametrize(
    ("pattern", "spec"),
    [*(("2:4", spec) for spec in ("wanda", "wanda+swap", "sparsegpt")), ("transposable:2:4", "wanda+swap+refit")],
)
def test_2_4_layers_compress_as_semi_structured_tensors_do(place, tmp_path, pattern, spec):
    """By torch's own conversion, which its CUDA tensors use; it runs on a CPU, the products do not."""
    wide = tiny.GROUPED | {"hidden_size": 64, "intermediate_size": 96}
    with mock.patch.dict(FAMILIES, {"wide": lambda: t.LlamaConfig(**wide)}):
        source = str(saved(place, "wide"))
    prune(source, tmp_path / "out", options(place, pattern=pattern, spec=spec, save_dtype="bfloat16"))
    network = t.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    layers = [part.weight for part in network.model.modules() if isinstance(part, torch.nn.Linear)]
    assert len(layers) == 21
    for weight in layers:
        packed, meta = sparse_semi_structured_from_dense_cutlass(weight.data)
        assert packed.shape == (weight.shape[0], weight.shape[1] // 2)
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed, meta), weight.data)
        if pattern == "transposable:2:4":
            turned = weight.data.T.contiguous()
            back = sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(turned))
            assert torch.equal(back, turned)


def test_layers_are_skipped_by_their_path_in_the_model_too(place, tmp_path):
    source = str(saved(place, "llama"))
    summary = prune(source, tmp_path / "out", options(place, skip=r"layers\.0\.mlp\.|\.01\.q_proj"))
    names = {record["layer"].partition(".")[2] for record in summary["layers"]}
    mlp, attention = ("gate_proj", "up_proj", "down_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
    every = {f"{block:02}.{name}" for block in range(3) for name in mlp + attention}
    assert every - names == {f"00.{name}" for name in mlp} | {"01.q_proj"}
    assert names < every


def test_changed_weights_are_judged_as_they_are_saved(place, tmp_path):
    """A bfloat16 model gives a bfloat16 model, whose recorded errors are those of the rounded weights."""
    source = tmp_path / "bf16"
    source.mkdir()
    tiny.save(source, "llama")
    t.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    summary = prune(str(source), tmp_path / "out", options(place, spec="sparsegpt", sequential=False))
    dense, pruned = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    masks = load_masks(tmp_path / "out")
    assert {value.dtype for value in pruned.values()} == {torch.bfloat16}
    assert all(torch.equal(dense[name], pruned[name]) for name in dense if name not in masks)
    problems = extract.extract(models.load_model(source), load_text(place / "text.txt"), None, TOKENS, length=LENGTH)
    for problem, record in zip(problems, summary["layers"], strict=True):
        weights = pruned[record["parameter"]].float().numpy()
        assert record["error"] == pytest.approx(problem.error_of_weights(weights), rel=1e-4)
        assert not weights[~masks[record["parameter"]]].any()


@pytest.mark.parametrize("spec", ["wanda", "fw+swap", "wanda+refit"])
def test_shrunk_correlations_choose_and_real_ones_judge(place, tmp_path, spec):
    source = str(saved(place, "llama"))
    given = options(place, spec=spec, shrink=0.4, sequential=False)
    summary = prune(source, tmp_path / "out", given)
    assert summary["shrink"] == 0.4
    masks, pruned = load_masks(tmp_path / "out"), load_file(tmp_path / "out" / "model.safetensors")
    problems = extract.extract(models.load_model(source), load_text(place / "text.txt"), None, TOKENS, length=LENGTH)
    for problem, record in zip(problems, summary["layers"], strict=True):
        blurred = 0.6 * problem.G + 0.4 * np.diag(np.diag(problem.G))
        expected = pipeline.run(replace(problem, G=blurred), pipeline.resolve(spec)).keep
        assert (masks[record["parameter"]] == expected).mean() > 0.99  # forward passes differ in last bits
        weights = pruned[record["parameter"]].numpy()
        assert record["error"] == pytest.approx(problem.error_of_weights(weights), rel=1e-4)
        wanda = problem.error(~problem.pattern.prune(np.abs(problem.W) * np.sqrt(problem.G.diagonal())))
        assert record["ratio_to_wanda"] == pytest.approx(record["error"] / wanda, rel=1e-4)
        assert (record["lower_bound"], record["proof"]) == (None, "none")


@pytest.mark.parametrize("spec", ["wanda+swap", "sparsegpt", "wanda+refit"])
def test_zero_inputs_and_few_tokens(place, tmp_path, spec):
    source = tmp_path / "dead"
    source.mkdir()
    tiny.save(source, "llama")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"].zero_()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    summary = prune(str(source), tmp_path / "out", options(place, spec=spec, tokens=8, length=8))
    dead = [record for record in summary["layers"] if record["dense_power"] == 0]
    assert len(dead) == 4  # q, k, v, and o after values of zero
    assert all(record["error"] == 0 for record in dead)
    assert all(torch.isfinite(x).all() for x in load_file(tmp_path / "out" / "model.safetensors").values())
    for keep in load_masks(tmp_path / "out").values():
        assert set(keep.sum(1).tolist()) == {keep.shape[1] // 2}
    assert "Infinity" not in (tmp_path / "out" / "fwbench.json").read_text()


def _no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _edit(name, change):
    def breaking(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors[name])
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return breaking


LAYER, HEAD = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
BROKEN = {
    "no tokenizer": (_no_tokenizer, "tokenizer"),
    "NaN weights": (
        _edit(LAYER, lambda x: x[0, :1].fill_(float("nan"))),
        r"01.up_proj has weights that are not finite",
    ),
    "infinite activations": (_edit(HEAD, lambda x: x.fill_(3e38)), "not finite"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_models(place, tmp_path, case):
    breaking, reason = BROKEN[case]
    source = tmp_path / "model"
    source.mkdir()
    tiny.save(source, "llama")
    breaking(source)
    with pytest.raises(ValueError, match=reason) as caught:
        prune(str(source), tmp_path / "out", options(place))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


REFUSED = {
    "a missing text": ({"text": "nowhere.txt"}, "no such text"),
    "a pattern that does not fit": ({"pattern": "3:7"}, "does not fit"),
    "an unknown pattern": ({"pattern": "half"}, "unknown pattern"),
    "an unknown solver": ({"spec": "wandaa"}, "did you mean 'wanda'"),
    "too many columns skipped": ({"skip": "."}, "leaves no layer"),
    "a bad expression": ({"skip": "("}, "not a regular expression"),
    "an expression that finds nothing": ({"skip": "lm_head"}, "finds no layer"),
    "a device": ({"device": "cuda:77"}, "cannot be used"),
    "a type": ({"save_dtype": "int3"}, "not 'int3'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(place, tmp_path, case):
    given, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason) as caught:
        prune(str(saved(place, "llama")), tmp_path / "out", options(place, **given))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # refused before anything is written


def test_mixtures_binary_text_and_quantised_layers(place, tmp_path, monkeypatch):
    with pytest.raises(models.ModelError, match="mixtures of experts among them, are not supported"):
        prune(str(saved(place, "mixture")), tmp_path / "out", options(place))
    (tmp_path / "binary").write_bytes(b"\0\1\2")
    with pytest.raises(ValueError, match="binary, not text"):
        prune(str(saved(place, "llama")), tmp_path / "out", options(place, text=str(tmp_path / "binary")))
    model = models.load_model(saved(place, "llama"))
    block = structure.find_blocks(model.network)[0]
    block.mlp.up_proj.register_buffer("qweight", torch.zeros(3, dtype=torch.int32))
    block.mlp.up_proj.__class__ = torch.nn.Module
    monkeypatch.setattr("fwbench.pruning.plan.load_model", lambda *_: model)
    with pytest.raises(models.ModelError, match="quantised"):
        prune("llama", tmp_path / "out", options(place))


def test_a_model_that_is_no_plain_chain(place):
    network = models.load_model(saved(place, "llama")).network
    body, ids = network.model, torch.ones(1, 9, dtype=torch.long)
    with pytest.raises(models.ModelError, match="layer gate_proj does not run in a forward pass on text"):
        walk.begin(network, [ids]).arrived(1, {"gate_proj": body.layers[0].mlp.gate_proj})

    def scaled(input_ids, use_cache):
        hidden = body.embed_tokens(input_ids)
        rotary = body.rotary_emb(hidden, position_ids=torch.arange(input_ids.shape[1])[None])
        for block in body.layers:
            hidden = block(hidden, position_embeddings=rotary) * 1.5

    body.forward = scaled
    with pytest.raises(models.ModelError, match="between its blocks"):
        walk.begin(network, [ids])


def test_command_line_and_report(place, tmp_path, capsys):
    source, text = str(saved(place, "llama")), str(place / "text.txt")
    arguments = [source, "--pattern", "2:4", "-s", "wanda+swap", "--text", text, "--tokens", "250", "--length", "48"]
    arguments += ["-o", str(tmp_path / "out"), "--one-shot", "--evaluate", text]
    cli.main(["prune", *arguments], standalone_mode=False)
    said = capsys.readouterr().out
    assert "10,368 of 20,736 weights in 21 layers are zero" in said
    summary = json.loads((tmp_path / "out" / "fwbench.json").read_text())
    cli.main(["perplexity", str(tmp_path / "out"), "--text", text], standalone_mode=False)
    value = summary["perplexity"]["pruned"]["value"]  # of the model in memory; here the saved one is measured
    assert f"perplexity {value:.4f} on text.txt" in capsys.readouterr().out
    html, markdown = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    for said in (html, markdown):
        assert f"{value:.2f}" in said
        assert f"{summary['perplexity']['dense']['value']:.2f}" in said
        assert said.count("up_proj") == 3
        assert "sparse tensor cores" in said
        assert engine.PROMPT in said
    assert "<script" not in html
    assert "http" not in html
    assert "| layer | rows" in markdown
    assert summary["mode"] == "one-shot"
    assert summary["totals"]["ratio_to_wanda"] < 1
    for said in (html, markdown):  # nothing was proved: no empty column, but how to fill it
        assert "certified gap |" not in said
        assert ">certified gap<" not in said
        assert page.PROVING in said
    summary["layers"][0] |= {"lower_bound": 0.75 * summary["layers"][0]["error"], "gap": 0.25}
    html, markdown = page.render(summary).values()
    assert ">certified gap<" in html
    assert html.count("25.0 %") == 1
    [line] = [line for line in markdown.splitlines() if "25.0 %" in line]
    assert line.count("|") == 8
    assert page.PROVING not in html + markdown


@pytest.mark.slow
def test_smollm2(tmp_path):
    """Wanda at one half by rows, one-shot; the prototype had 75.6 (docs/mathematics.md, "Figures of the prototype")."""
    summary = prune("smollm2", tmp_path / "out", Options(pattern="0.5", spec="wanda", sequential=False))
    assert summary["perplexity"]["dense"]["value"] == pytest.approx(32.37, abs=0.005)
    assert 65 < summary["perplexity"]["pruned"]["value"] < 85
    assert summary["totals"]["layers"] == 210
    assert t.AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.hidden_size == 576


def test_a_report_of_its_layers(place, tmp_path, fwbench):
    """The folder stands wherever a store does."""
    out = tmp_path / "out"
    summary = prune(str(saved(place, "llama")), out, options(place, spec="fw+swap"))
    with Store(out, readonly=True) as store:
        rows = store.results()
    assert [row.problem for row in rows] == [record["layer"] for record in summary["layers"]]
    for row, record in zip(rows, summary["layers"], strict=True):
        assert row.solved
        assert row.proof == record["proof"] == "verified"
        assert (row.error, row.lower_bound, row.mask_sha256) == tuple(
            record[name] for name in ("error", "lower_bound", "mask_sha256")
        )
    files = {path.name for path in out.iterdir()}
    assert fwbench("report", out, "-o", tmp_path / "page")[0] == 0
    assert {path.name for path in out.iterdir()} == files, "a reader leaves nothing there"
    table = (tmp_path / "page" / "index.md").read_text(encoding="utf-8")
    assert all(record["layer"] in table for record in summary["layers"])
    assert fwbench("results", out, "--csv")[1].count("\n") == 1 + len(rows)
