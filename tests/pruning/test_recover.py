"""``fwbench recover`` on tiny models: the mask kept, held-out errors, steps by another formula, resuming, refusals."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from small_models import LENGTH, TOKENS, hashes, options, place, saved, t, tiny

import fwbench as fwb
from fwbench.cli import cli
from fwbench.problems import models
from fwbench.problems.structure import ModelError
from fwbench.pruning import PruneError, Recovery, load_masks, prune, recover
from fwbench.pruning import walk as walks
from fwbench.pruning.linear import Layer
from fwbench.pruning.recovery import engine as recover_engine
from fwbench.pruning.recovery import training as rec
from fwbench.pruning.recovery.units import units

__all__ = ["place"]  # a fixture
WEIGHTS = "model.safetensors"


def asked(place, **more):
    given = {"text": str(place / "text.txt"), "tokens": TOKENS, "length": LENGTH, "epochs": 2, "rate": 0.01}
    return Recovery(**(given | {"evaluate": ""} | more))


@pytest.fixture(scope="module")
def pruned(place):
    """Folder of a pruned model of a family, made once; half of each row, one-shot."""

    def of(family, **more):
        folder = place / "-".join(["pruned", family, *map(str, more.values())])
        if not folder.exists():
            prune(str(saved(place, family)), folder, options(place, sequential=False, **more))
        return folder

    return of


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "phi"])
def test_every_family(place, pruned, tmp_path, family):
    """Pruned weights and all that is no pruned layer keep their bits; no block is worse on held-out sequences."""
    source, out = pruned(family), tmp_path / "out"
    before = hashes(source)
    summary = recover(str(source), out, asked(place, against=str(saved(place, family))))
    assert hashes(source) == before
    old, new, masks = load_file(source / WEIGHTS), load_file(out / WEIGHTS), load_masks(out)
    assert masks.keys() == load_masks(source).keys() == {record["parameter"] for record in summary["layers"]}
    for name, weight in old.items():
        if name not in masks:
            assert torch.equal(new[name], weight), name
            continue
        keep = masks[name]
        assert np.array_equal(keep, load_masks(source)[name])
        assert not new[name].numpy()[~keep].view(np.uint32).any()
    moved = {record["parameter"] for record in summary["layers"] if record["change"]}
    assert moved == {name for name, weight in old.items() if not torch.equal(new[name], weight)}
    assert [block["block"] for block in summary["blocks"]] == [0, 1, 2]
    assert summary["blocks"][0]["epochs"] != [0]
    for block in summary["blocks"]:
        assert (block["held_out"][1] < block["held_out"][0]) == any(block["epochs"]), block
        assert any(block["epochs"]) or block["held_out"][1] == block["held_out"][0]
    network = t.AutoModelForCausalLM.from_pretrained(out)
    assert {name: p.dtype for name, p in network.named_parameters()} == {
        name: torch.float32 for name, _ in network.named_parameters()
    }


def test_errors_are_those_of_whole_models(place, pruned, tmp_path):
    """A block's errors from hidden states of the models themselves, the blocks before it recovered."""
    source, out = pruned("llama"), tmp_path / "out"
    summary = recover(str(source), out, asked(place, against=str(saved(place, "llama"))))
    dense, old, new = (models.load_model(str(path)) for path in (saved(place, "llama"), source, out))
    words = dense.tokenizer((place / "text.txt").read_text())["input_ids"]
    rows = [torch.tensor([words[at : at + LENGTH]]) for at in range(0, TOKENS, LENGTH)]
    rows[-1] = rows[-1][:, : TOKENS % LENGTH]
    assert summary["sequences"] == len(rows) == 6
    assert summary["held_out"] == 1
    found = {}
    for number in range(2):  # a norm comes behind the last
        for kind, later in (("before", old), ("after", new)):
            mixed = models.load_model(str(out))
            mixed.network.model.layers[number].load_state_dict(later.network.model.layers[number].state_dict())
            errors = []
            for ids in rows:
                wanted, given = (
                    model.network(ids, output_hidden_states=True).hidden_states[number + 1].double()
                    for model in (dense, mixed)
                )
                errors.append(float(((given - wanted).norm(dim=-1) / wanted.norm(dim=-1)).square().mean()))
            found[kind] = (np.mean(errors[:-1]), errors[-1])
        block = summary["blocks"][number]
        assert block["fitted"] == pytest.approx([found["before"][0], found["after"][0]], rel=1e-4)
        assert block["held_out"] == pytest.approx([found["before"][1], found["after"][1]], rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_parts_are_trained_apart(place, pruned, tmp_path, family):
    """A part reads what comes before it alone: with the MLP left out, block 0's attention gets the same bits."""
    source, more = str(pruned(family)), {"against": str(saved(place, family)), "unit": "parts"}
    summary = recover(source, tmp_path / "parts", asked(place, **more))
    recover(source, tmp_path / "attention", asked(place, skip=r"mlp|c_fc|fc\d", **more))
    parts, attention = (load_file(tmp_path / folder / WEIGHTS) for folder in ("parts", "attention"))
    masks = load_masks(tmp_path / "parts")
    own = [name for name in masks if re.search(r"\.0\..*attn", name)]
    assert own
    before = load_file(pruned(family) / WEIGHTS)
    for name in own:
        assert torch.equal(parts[name], attention[name])
        assert not torch.equal(parts[name], before[name]), name
        assert not parts[name].numpy()[~masks[name]].any()
    block = summary["blocks"][0]
    assert len(block["epochs"]) == 2
    assert block["held_out"][1] < block["held_out"][0]
    assert "a part of a block" in (tmp_path / "parts" / "report.md").read_text()


def test_layers_that_are_children_of_the_block_come_last():
    block = torch.nn.ModuleDict({"up": torch.nn.Linear(2, 2), "attention": torch.nn.ModuleDict()})
    block["attention"]["q"] = torch.nn.Linear(2, 2)
    up, q = Layer("m.0.up", "up.weight", block["up"]), Layer("m.0.q", "attention.q.weight", block["attention"]["q"])
    assert [(unit.path, unit.layers) for unit in units(block, [q, up], "parts")] == [("attention", [q]), ("", [up])]
    assert [(unit.path, unit.layers) for unit in units(block, [q, up], "block")] == [("", [q, up])]


def test_a_gradient_is_the_formula_s():
    """Of one linear layer, by hand: d/dW of the mean of |Wx - y|²/|y|²."""
    rng = np.random.default_rng(0)
    W, X, Y = rng.normal(size=(3, 4)), rng.normal(size=(1, 5, 4)), rng.normal(size=(1, 5, 3))
    weight = torch.nn.Parameter(torch.tensor(W), requires_grad=False)
    [found] = rec.gradient(lambda _: torch.tensor(X) @ weight.T, [torch.tensor(Y)], {"w": weight}, 0)
    scale = (Y**2).sum(-1, keepdims=True)
    wanted = 2 * np.einsum("bto,bti->oi", (X @ W.T - Y) / scale, X) / 5
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    assert not weight.requires_grad


def test_steps_are_adam_s():
    """Two epochs of a masked layer beside Adam written out in float64; the rate falls in a straight line."""
    rng = np.random.default_rng(1)
    sequences, rate = 3, 0.01
    X, Y = rng.normal(size=(sequences, 1, 6, 4)), rng.normal(size=(sequences, 1, 6, 3))
    W = rng.normal(size=(3, 4)) * (rng.random((3, 4)) < 0.6)
    weight = torch.nn.Parameter(torch.tensor(W), requires_grad=False)
    targets, training = list(torch.tensor(Y)), rec.Training(epochs=2, rate=rate, seed=5)
    for _ in rec._steps(lambda i: torch.tensor(X[i]) @ weight.T, targets, {"w": weight}, [0, 1, 2], training):
        pass
    order = torch.Generator().manual_seed(5)
    chosen = [index for _ in range(2) for index in torch.randperm(3, generator=order).tolist()]
    mask, own, m, v = W != 0, W.copy(), 0.0, 0.0
    size = np.sqrt((W[mask] ** 2).mean())
    for step, index in enumerate(chosen):
        scale = (Y[index] ** 2).sum(-1, keepdims=True)
        g = 2 * np.einsum("bto,bti->oi", (X[index] @ own.T - Y[index]) / scale, X[index]) / 6 * mask
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        lr = rate * size * (1 - step / 6)
        own = own - lr * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-12)
    np.testing.assert_allclose(weight.numpy(), own, rtol=1e-9)
    assert not own[~mask].any()


def test_the_best_epoch_is_kept():
    """A target that only the fitted sequences have: held-out ones get worse, so nothing is changed."""
    X = torch.eye(4)[None].repeat(2, 1, 1)
    weight = torch.nn.Parameter(torch.eye(4), requires_grad=False)
    targets = [2 * X[0], X[1] + 1e-3]
    before = weight.clone()
    found = rec.train(lambda i: X[i] @ weight.T, targets, {"w": weight}, {"w": torch.float32}, rec.Training(3, 0.1))
    assert (found.epoch, found.before) == (0, found.after)
    assert torch.equal(weight, before)
    assert torch.equal(found.weights["w"], before)
    targets[1] = targets[0]
    found = rec.train(lambda i: X[i] @ weight.T, targets, {"w": weight}, {"w": torch.bfloat16}, rec.Training(3, 0.1))
    assert found.epoch == 3
    assert found.weights["w"].dtype == torch.bfloat16
    assert torch.equal(found.weights["w"].float(), weight)  # what was compared is what is saved
    assert found.after.held_out < found.before.held_out


@pytest.mark.parametrize(("sequences", "held_out"), [(2, [1]), (8, [7]), (9, [7]), (16, [7, 15])])
def test_held_out_sequences(sequences, held_out):
    fitted, found = rec.split(sequences)
    assert found == held_out
    assert sorted(fitted + found) == list(range(sequences))


def test_a_block_that_gives_what_the_dense_one_gives_is_left_as_it_is(place):
    """Errors of 0 give no step, and no weight moves by rounding."""
    model = models.load_model(str(saved(place, "llama")))
    walk = walks.begin(model.network, [torch.tensor([[3, 4, 5, 6]]), torch.tensor([[6, 5, 4]])])
    weights = {"q": walk.blocks[0].self_attn.q_proj.weight}
    before = weights["q"].clone()
    targets = [output.clone() for output in walk.run(0)]
    found = rec.train(lambda i: walk.output(0, i), targets, weights, {"q": torch.float32}, rec.Training(2, 0.1))
    assert found.after == found.before == rec.Errors(0.0, 0.0)
    assert torch.equal(weights["q"], before)


def test_killed_and_resumed(place, pruned, tmp_path, monkeypatch):
    source, given = str(pruned("llama")), asked(place, against=str(saved(place, "llama")))
    given = replace(given, evaluate=str(place / "text.txt"))
    recover(source, tmp_path / "whole", given)
    real, out = recover_engine._train_block, tmp_path / "out"

    def stopping(plan, walk, parts, targets, number):
        if number == 1:
            raise KeyboardInterrupt
        return real(plan, walk, parts, targets, number)

    monkeypatch.setattr(recover_engine, "_train_block", stopping)
    with pytest.raises(KeyboardInterrupt):
        recover(source, out, given)
    assert not out.exists()
    monkeypatch.setattr(recover_engine, "_train_block", real)
    with pytest.raises(PruneError, match="begun with epochs 2, not 3"):
        recover(source, out, replace(given, epochs=3))
    summary = recover(source, out, given)
    whole = json.loads((tmp_path / "whole" / "fwbench.json").read_text())
    assert summary["blocks_resumed"] == 1
    assert json.loads(json.dumps(summary["perplexity"])) == whole["perplexity"]
    for name in (WEIGHTS, "masks.safetensors", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with pytest.raises(PruneError, match="already there"):
        recover(source, out, given)


def test_streamed_and_whole_give_the_same_bytes(place, pruned, tmp_path):
    source, given = str(pruned("llama")), asked(place, against=str(saved(place, "llama")))
    for stream in (True, False):
        recover(source, tmp_path / str(stream), replace(given, stream=stream))
    assert hashes(tmp_path / "True")[WEIGHTS] == hashes(tmp_path / "False")[WEIGHTS]


def test_layers_that_were_not_pruned_stay(place, pruned, tmp_path):
    source = pruned("llama", skip=r"mlp|\.01\.")
    summary = recover(str(source), tmp_path / "out", asked(place, against=str(saved(place, "llama"))))
    assert [block["block"] for block in summary["blocks"]] == [0, 2]
    assert all("self_attn" in record["parameter"] for record in summary["layers"])
    old, new = load_file(source / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == set(load_masks(source)) == {record["parameter"] for record in summary["layers"]}


def test_a_checkpoint_of_others(place, pruned, tmp_path):
    """Zeros are the mask where no file says it; the dense model has to be named; bfloat16 stays bfloat16."""
    source, dense = tmp_path / "other", saved(place, "llama")
    network = t.AutoModelForCausalLM.from_pretrained(pruned("llama"), dtype=torch.bfloat16)
    network.save_pretrained(source)
    tiny.save_tokenizer(source)
    with pytest.raises(PruneError, match="not of fwbench prune; name the dense model with --against"):
        recover(str(source), tmp_path / "out", asked(place))
    with pytest.raises(ModelError, match="no/folder/here: no such model folder"):
        recover("no/folder/here", tmp_path / "out", asked(place))
    summary = recover(str(source), tmp_path / "out", asked(place, against=str(dense), skip=r"\.02\."))
    assert [block["block"] for block in summary["blocks"]] == [0, 1]
    assert (summary["solver"], summary["pattern"], summary["save_dtype"]) == (None, None, "bfloat16")
    found, old, masks = load_file(tmp_path / "out" / WEIGHTS), load_file(source / WEIGHTS), load_masks(tmp_path / "out")
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}
    for name, keep in masks.items():
        assert np.array_equal(keep, (old[name] != 0).numpy())
        assert not found[name].float().numpy()[~keep].any()
    assert summary["blocks"][0]["epochs"] != [0]
    assert (tmp_path / "out" / "report.md").is_file()


def _other_size(place, tmp_path):
    folder = tmp_path / "wider"
    t.LlamaForCausalLM(t.LlamaConfig(**tiny.GROUPED | {"intermediate_size": 44})).save_pretrained(folder)
    tiny.save_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("case", "more", "reason"),
    [
        ("dense", {}, r"no weight of its linear layers is zero that is not so in llama"),
        ("pruned", {"against": "gpt2"}, r"pruned-llama is not gpt2 with weights pruned"),
        ("pruned", {"against": "wider"}, r"mlp.down_proj.weight is 32 x 40 in it and 32 x 44 in the dense model"),
        ("pruned", {"tokens": LENGTH}, r"one sequence of 48 tokens leaves none to hold out"),
        ("pruned", {"unit": "head"}, r"unit is block or parts"),
        ("pruned", {"epochs": 0}, r"epochs must be 1 or more"),
        ("pruned", {"rate": float("nan")}, r"rate above 0"),
        ("pruned", {"device": "cuda:99"}, r"cuda:99"),
    ],
)
def test_refusals(place, pruned, tmp_path, case, more, reason):
    source = saved(place, "llama") if case == "dense" else pruned("llama")
    against = more.pop("against", "llama")
    against = _other_size(place, tmp_path) if against == "wider" else saved(place, against)
    with pytest.raises(ValueError, match=reason) as caught:
        recover(str(source), tmp_path / "out", asked(place, against=str(against), **more))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_by_command_with_its_report(place, pruned):
    """The dense model is found by what the folder says of it, beside it."""
    out, text = place / "recovered", str(place / "text.txt")
    words = ["recover", str(pruned("llama")), "-o", str(out), "--text", text, "--evaluate", text]
    words += ["--tokens", str(TOKENS), "--length", str(LENGTH), "--epochs", "1", "--rate", "0.01"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "recovered (text.txt" in done.output
    summary = json.loads((out / "fwbench.json").read_text())
    assert list(summary["perplexity"]) == ["dense", "pruned", "recovered"]
    assert (summary["model"], summary["pruned"]) == ("llama", "pruned-llama")
    page = (out / "report.md").read_text()
    assert "| dense | pruned | recovered |" in page
    assert "Adam, 1 epoch" in page
    assert "fwbench recover" in (out / "report.html").read_text()
    done = CliRunner().invoke(cli, ["report", str(out), "-o", str(place / "page")])
    assert done.exit_code == 0, done.output
    assert (place / "page" / "index.md").read_text() == page
    beside = CliRunner().invoke(cli, ["perplexity", str(out), "--text", text, "--length", str(LENGTH)])
    assert "dense: perplexity" in beside.output, beside.output
    second = fwb.recover(out, place / "again", text=text, tokens=TOKENS, length=LENGTH, epochs=1, evaluate="")
    assert (second["model"], second["pruned"], second["pattern"]) == ("llama", "recovered", "0.5")
    for name, keep in load_masks(place / "again").items():
        assert np.array_equal(keep, load_masks(out)[name])
    again = CliRunner().invoke(cli, words)
    assert "already there" in str(again.exception)
