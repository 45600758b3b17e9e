"""What prune is given and what it hands on: types, tied weights, a model's files, and what every command refuses."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
import torch
from checkpoints import UP, WEIGHTS, configure, copied, edit, own_code, with_opening
from safetensors.torch import load_file
from small_models import FAMILIES, LENGTH, options, place, saved, t, tiny, tiny_architectures

from fwbench.perplexity import perplexity
from fwbench.problems import models
from fwbench.problems.arriving import Arrived
from fwbench.problems.models import Model, ModelError
from fwbench.problems.text import load_text
from fwbench.pruning import PruneError, dtypes, layers, load_masks, plan, prune

__all__ = ["place"]  # a fixture

NORM = "model.norm.weight"


def typed(folder):
    return {name: tensor.dtype for name, tensor in load_file(folder / WEIGHTS).items()}


def mixed(tensors):
    """bfloat16, but float32 norms with numbers that bfloat16 does not hold."""
    return {name: tensor if "norm" in name else tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def stored_mixed(place, folder):
    copied(saved(place, "llama"), folder)
    edit(folder, mixed)
    configure(folder, dtype="bfloat16")
    return folder


CASES = {  # how it is stored, how it is to be saved, types of the output
    "mixed": (mixed, "auto", {torch.bfloat16, torch.float32}),
    "float32": (None, "auto", {torch.float32}),
    "to float16": (None, "float16", {torch.float16}),
    "mixed to bfloat16": (mixed, "bfloat16", {torch.bfloat16}),
}


@pytest.mark.parametrize("spec", ["wanda", "wanda+refit"])
@pytest.mark.parametrize("case", CASES)
def test_the_report_is_of_what_is_saved(place, tmp_path, fwbench, case, spec):
    """Perplexities of the report, to the last digit printed: of the output, and of the input rounded and not pruned."""
    change, asked, kinds = CASES[case]
    source, text = copied(saved(place, "llama"), tmp_path / "in"), place / "text.txt"
    if change:
        edit(source, change)
    given = options(place, spec=spec, save_dtype=asked, evaluate=str(text))
    summary = prune(str(source), tmp_path / "out", given)
    assert set(typed(tmp_path / "out").values()) == kinds
    code, said, _ = fwbench("perplexity", tmp_path / "out", "--text", text)
    assert code == 0
    assert f"perplexity {summary['perplexity']['pruned']['value']:.4f} on" in said
    _, said, _ = fwbench("perplexity", tmp_path / "out", "--text", text, "--json")
    assert json.loads(said)["perplexity"] == summary["perplexity"]["pruned"]["value"]
    if asked != "auto":
        edit(source, lambda tensors: {name: tensor.to(*kinds) for name, tensor in tensors.items()})
    dense = perplexity(models.load_model(source), load_text(text))
    assert dense.value == summary["perplexity"]["dense"]["value"]
    before, after, masks = (
        load_file(source / WEIGHTS),
        load_file(tmp_path / "out" / WEIGHTS),
        load_masks(tmp_path / "out"),
    )
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: x.dtype for name, x in before.items()}
    assert all(torch.equal(before[name], after[name]) for name in before if name not in masks)


def test_what_the_report_says_of_types(place, tmp_path):
    source = stored_mixed(place, tmp_path / "in")
    kept = prune(str(source), tmp_path / "kept", options(place))
    assert (kept["save_dtype"], kept["rounded"]) == ("bfloat16 and float32", 0)
    rounded = prune(str(source), tmp_path / "rounded", options(place, save_dtype="bfloat16"))
    assert (rounded["save_dtype"], rounded["rounded"]) == ("bfloat16", 7)
    assert kept["model_sha256"] == rounded["model_sha256"]
    said = (tmp_path / "kept" / "report.md").read_text()
    assert "norms and biases are as they were." in said
    assert "| bfloat16 and float32 |" in said
    said = (tmp_path / "rounded" / "report.md").read_text()
    assert "norms and biases are as they were, rounded to bfloat16 before anything else." in said
    assert "bfloat16; 7 tensors rounded to it before the work" in said
    for name in ("kept", "rounded"):
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == "bfloat16"


def test_each_layer_has_its_own_type(place, tmp_path):
    """Layers of one input are solved together, and saved each in its type."""
    source = copied(saved(place, "llama"), tmp_path / "in")
    edit(source, lambda tensors: {name: x.half() if "q_proj" in name else x for name, x in tensors.items()})
    summary = prune(str(source), tmp_path / "out", options(place, spec="wanda+refit", sequential=False))
    assert typed(tmp_path / "out") == typed(source)
    after = load_file(tmp_path / "out" / WEIGHTS)
    queries = [record["parameter"] for record in summary["layers"] if "q_proj" in record["parameter"]]
    assert len(queries) == 3
    assert {after[name].dtype for name in queries} == {torch.float16}


@pytest.mark.parametrize("value", [1e5, -1e5])
def test_a_number_beyond_the_type_is_refused_before_the_work(place, tmp_path, value):
    source = copied(saved(place, "llama"), tmp_path / "in")
    edit(source, lambda tensors: tensors[NORM].__setitem__(3, value))
    with pytest.raises(ModelError, match=rf"{NORM} holds {value:g}, float16 at most 65504; --save-dtype auto") as error:
        prune(str(source), tmp_path / "out", options(place, save_dtype="float16"))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    prune(str(source), tmp_path / "out", options(place, save_dtype="bfloat16"))
    assert torch.isfinite(load_file(tmp_path / "out" / WEIGHTS)[NORM]).all()


def test_an_updated_weight_beyond_the_type(place, tmp_path, monkeypatch):
    made = plan.make(str(saved(place, "llama")), options(place, save_dtype="float16", spec="wanda+refit"))
    real = layers.pipeline.execute

    def far(*args, **more):
        outcome = real(*args, **more)
        return replace(outcome, weights=1e9 * outcome.weights)

    monkeypatch.setattr(layers.pipeline, "execute", far)
    layer, G = made.layers[0][0], torch.eye(32, dtype=torch.float64).numpy()
    with pytest.raises(PruneError, match=r"layer llama.00.q_proj: an updated weight is .*, float16 at most 65504"):
        layers.solve(made, [layer], Arrived(G))


def test_types_in_which_nothing_is_saved(place, tmp_path):
    source = copied(saved(place, "llama"), tmp_path / "in")
    edit(source, lambda tensors: {name: x.double() for name, x in tensors.items()})
    with pytest.raises(
        ModelError, match=r"embed_tokens.weight is stored as float64, in which nothing is saved; choose"
    ):
        prune(str(source), tmp_path / "out", options(place))
    assert prune(str(source), tmp_path / "out", options(place, save_dtype="float32"))["save_dtype"] == "float32"


def test_rounding_holds_no_second_copy(place, monkeypatch):
    """Piece by piece, also of tensors that are no whole number of pieces, or have no dimension."""
    network = torch.nn.Module()
    network.wide = torch.nn.Parameter(torch.rand(7, 5) + 1e-4, requires_grad=False)
    network.one, network.none = (torch.nn.Parameter(x, requires_grad=False) for x in (torch.tensor(1.1), torch.ones(0)))
    whole = {name: x.clone() for name, x in network.state_dict().items()}
    monkeypatch.setattr(dtypes, "PIECE", 10)
    assert dtypes.cast(Model("any", network, None), dict.fromkeys(whole, torch.bfloat16)) == 2
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, whole[name].bfloat16().float())
    assert dtypes.cast(Model("any", network, None), dict.fromkeys(whole, torch.bfloat16)) == 0


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Where transformers copies the code of models to."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


TIES = {
    "two layers": ({"model.layers.1.down.weight": "model.layers.0.down.weight"}, {}, "down"),
    "one module in two blocks": (
        {f"model.layers.1.up.{part}": f"model.layers.0.up.{part}" for part in ("weight", "bias")},
        {"shared": "up"},
        "up",
    ),
}


@pytest.mark.parametrize("case", TIES)
def test_tied_layers(place, tmp_path, modules, case):
    tied, config, layer = TIES[case]
    source = own_code(tmp_path / "own", tied, missing=tied, **config)
    given = options(place, trust_remote_code=True)
    with pytest.raises(PruneError, match=rf"layer own.00.{layer}: its weight is used in 2 places") as error:
        prune(str(source), tmp_path / "out", given)
    names = [f"model.layers.{block}.{layer}.weight" for block in (0, 1)]
    assert f"({', '.join(names)})" in str(error.value)
    skip = re.search("; --skip '(.*)' leaves such layers out$", str(error.value))[1]
    assert not (tmp_path / "out.partial").exists()
    summary = prune(
        str(source), tmp_path / "out", options(place, trust_remote_code=True, skip=skip, evaluate=given.text)
    )
    assert len(summary["layers"]) == 2
    network = models.load_model(tmp_path / "out", trust_remote_code=True).network
    first, second = (network.get_parameter(name) for name in names)
    assert torch.equal(first, second)
    assert first.all()
    found = perplexity(models.load_model(tmp_path / "out", trust_remote_code=True), load_text(given.text))
    assert found.value == summary["perplexity"]["pruned"]["value"]


@pytest.mark.parametrize("skip", ["", "q_proj"])
def test_one_way_out_for_all_tied_layers(place, skip):
    """Zamba has one block of attention in several places: a --skip for each of its layers in turn would be many."""
    model = tiny.wrap("zamba2", tiny_architectures.network("zamba2"), tiny.tokenizer)
    with mock.patch("fwbench.pruning.plan.load_model", return_value=model):
        with pytest.raises(PruneError, match=r"its weight is used in 2 places .* leaves such layers out$") as error:
            plan.make("zamba2", options(place, skip=skip))
        found = re.search("--skip '(.*)'", str(error.value))[1]
        assert found == "|".join(filter(None, (skip, "shared_transformer")))
        made = plan.make("zamba2", options(place, skip=found))
    assert sum(map(len, made.layers)) == 10


def test_a_layer_tied_to_the_head(place, tmp_path):
    square = {"vocab_size": 97, "intermediate_size": 97}
    with mock.patch.dict(FAMILIES, {"headed": lambda: t.LlamaConfig(**(tiny.GROUPED | square))}):
        model = models.load_model(saved(place, "headed"))
    network = model.network
    network.lm_head.weight = network.model.layers[2].mlp.up_proj.weight
    network._tied_weights_keys = {"lm_head.weight": "model.layers.2.mlp.up_proj.weight"}
    with (
        mock.patch("fwbench.pruning.plan.load_model", return_value=model),
        pytest.raises(
            PruneError, match=r"02.up_proj: its weight is used in 2 places \(.*2.mlp.up_proj.*, lm_head.weight"
        ),
    ):
        plan.make("headed", options(place))


def test_what_could_not_be_saved_is_refused_before_the_work(place, tmp_path, modules):
    source = own_code(tmp_path / "own", shared="up")
    with pytest.raises(PruneError, match=r"own: model.layers.0.up.weight and model.layers.1.up.weight are one tensor"):
        prune(str(source), tmp_path / "out", options(place, trust_remote_code=True))
    assert not (tmp_path / "out.partial").exists()


def test_a_model_with_code_of_its_own(place, tmp_path, modules, fwbench):
    source, out, text = own_code(tmp_path / "own"), tmp_path / "out", place / "text.txt"
    (source / "tokens_own.py").write_text("# used by the other file\n")
    words = ["--text", text, "--tokens", 250]
    for command in (
        ["perplexity", source, *words],
        ["extract", source, *words, "-o", tmp_path / "problems"],
        ["prune", source, *words, "-o", out, "--pattern", 0.5, "--length", 48, "--evaluate", text],
    ):
        code, said, error = fwbench(*command)
        assert (code, said) == (2, "")
        assert error.count("\n") == 1
        assert "comes with code of its own" in error
        code, said, error = fwbench(*command, "--trust-remote-code")
        assert code == 0, error
        if command[0] == "perplexity":  # what is imported once says no more
            assert error == f"fwbench: note: {source}: while it was loaded: told by the model's own code\n"
    for file in ("modeling_own.py", "tokens_own.py"):
        assert (out / file).read_bytes() == (source / file).read_bytes()
    summary = json.loads((out / "fwbench.json").read_text())
    _, said, _ = fwbench("perplexity", out, "--text", text, "--json", "--trust-remote-code")
    assert json.loads(said)["perplexity"] == summary["perplexity"]["pruned"]["value"]


def test_nobody_is_asked_on_a_terminal(place, tmp_path):
    """The whole program, with an answer ready."""
    words = ["perplexity", str(own_code(tmp_path / "own")), "--text", str(place / "text.txt")]
    done = subprocess.run(
        [sys.executable, "-c", "from fwbench.cli import main; main()", *words],
        capture_output=True,
        text=True,
        input="y\ny\n",
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "--trust-remote-code" in done.stderr


def _without_up(folder):
    edit(folder, lambda tensors: {name: x for name, x in tensors.items() if name != UP})


def _foreign(folder):
    edit(folder, lambda tensors: {f"foreign.{name}": x for name, x in tensors.items()})


def _misshapen(folder):
    edit(folder, lambda tensors: tensors | {UP: tensors[UP][1:].clone()})


def _no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def _foreign_tokenizer(folder):
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["model"]["vocab"] = {"[UNK]": 0, "a": 1, "b": 2, "c": 200}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))


WRONG = {
    "a tensor is missing": (_without_up, f"the checkpoint lacks {UP}; what is missing would be random"),
    "foreign names": (_foreign, "the checkpoint lacks 30 tensors, the first model.embed_tokens.weight"),
    "another shape": (_misshapen, f"{UP} has the shape (39, 32), by its config.json (40, 32)"),
    "no tokenizer": (_no_tokenizer, "no tokenizer in it; copy the tokenizer's files"),
    "another tokenizer": (_foreign_tokenizer, "the tokenizer gives token 200, the model has embeddings for 0..96"),
}


@pytest.mark.parametrize("command", ["perplexity", "extract", "prune"])
@pytest.mark.parametrize("case", WRONG)
def test_every_command_refuses(place, tmp_path, fwbench, command, case):
    breaking, reason = WRONG[case]
    source, out = copied(saved(place, "llama"), tmp_path / "in"), tmp_path / "out"
    breaking(source)
    words = [command, source, "--text", place / "text.txt", "--tokens", TOKENS_OF[command]]
    words += {"perplexity": [], "extract": ["-o", out], "prune": ["-o", out, "--pattern", 0.5, "--length", LENGTH]}[
        command
    ]
    code, said, error = fwbench(*words)
    assert (code, said) == (2, "")
    assert error.count("\n") == 1
    assert reason in error
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


TOKENS_OF = {"perplexity": 100, "extract": 1000, "prune": 250}


def test_unused_tensors_are_told_everywhere(place, tmp_path, fwbench):
    source, text = copied(saved(place, "llama"), tmp_path / "in"), place / "text.txt"
    edit(source, lambda tensors: tensors | {"mtp.weight": torch.ones(3)})
    wanted = f"{source}: the checkpoint holds mtp.weight, for which LlamaForCausalLM has no place; left out"
    _, said, error = fwbench("perplexity", source, "--text", text, "--json")
    assert json.loads(said)["notes"] == [wanted]
    assert error == f"fwbench: note: {wanted}\n"
    _, _, error = fwbench(
        "extract", source, "--text", text, "--tokens", 600, "--blocks", 0, "-o", tmp_path / "problems"
    )
    assert error == f"fwbench: note: {wanted}\n"
    assert prune(str(source), tmp_path / "out", options(place))["notes"] == [wanted]
    assert wanted in (tmp_path / "out" / "report.html").read_text()


SENSES = {
    "text_config": dict(**tiny.GROUPED, head_dim=8),
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
}
COMPANIONS = {
    "preprocessor_config.json": '{"size": 28}',
    "processor_config.json": "{}",
    "video_preprocessor_config.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "generation_config.json": '{"temperature": 0.6, "do_sample": false}',  # which transformers would not save
    "LICENSE.txt": "mine",
    "NOTICE": "note",
    "USE_POLICY.md": "be good",
}


def test_the_files_of_a_model(place, tmp_path):
    ids = {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92, "mm_tokens_per_image": 4}
    with mock.patch.dict(FAMILIES, {"senses": lambda: t.Gemma3Config(**SENSES, **ids)}):
        source = copied(saved(place, "senses"), tmp_path / "in")
    edit(source, lambda tensors: {name: x.bfloat16() for name, x in tensors.items()})
    configure(source, dtype="bfloat16")
    for name, content in COMPANIONS.items():
        (source / name).write_text(content)
    for name in ("README.md", "training_args.bin", "modeling_x.py"):
        (source / name).write_text("not of the pruned model")
    prune(str(source), tmp_path / "out", options(place))
    for name, content in COMPANIONS.items():
        assert (tmp_path / "out" / name).read_text() == content, name
    own = {path.name for path in (tmp_path / "out").iterdir()} - set(COMPANIONS)
    assert own == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("fwbench.json", "masks.safetensors", "layers.sqlite", "report.html", "report.md"),
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "gemma3"
    assert {config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]} == {"bfloat16"}
    assert typed(tmp_path / "out") == typed(source)


@pytest.mark.parametrize("name", ["emu3", "mllama"])
def test_the_output_is_found_by_its_configuration(place, tmp_path, name):
    """transformers knows these language models as parts of others alone."""
    source, network = tmp_path / "in", tiny_architectures.network(name)
    source.mkdir()
    with mock.patch.object(tiny, "network", return_value=network):
        tiny.save(source)
    tiny_architectures.config(name).save_pretrained(source)
    text = str(place / "text.txt")
    summary = prune(str(source), tmp_path / "out", options(place, evaluate=text, skip=r"\.03\."))
    model = models.load_model(tmp_path / "out")
    assert type(model.network) is type(network)
    assert perplexity(model, load_text(text)).value == summary["perplexity"]["pruned"]["value"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == config["text_config"]["architectures"] == [type(network).__name__]


def test_sequences_begin_as_the_tokenizer_has_it(place, tmp_path):
    source, text = copied(saved(place, "llama"), tmp_path / "in"), str(place / "text.txt")
    bos = with_opening(source)
    made = plan.make(str(source), options(place))
    assert all((ids[:, 0] == bos).all() for ids in made.batches)
    assert made.record["tokens"] == 250
    assert made.record["opening"] == ["<bos>"]
    summary = prune(str(source), tmp_path / "out", options(place, evaluate=text))
    assert list(summary["perplexity"]["dense"]["opening"]) == ["<bos>"]
    said = (tmp_path / "out" / "report.md").read_text()
    assert said.count("each begun with") == 2  # of calibration, and of the perplexities
    found = perplexity(models.load_model(tmp_path / "out"), load_text(text))
    assert found.value == summary["perplexity"]["pruned"]["value"]
