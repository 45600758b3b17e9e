"""Models: blocks and layers are found by structure, and what is no model is refused in one line."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from fwbench.problems import models
from fwbench.problems.models import ModelError

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LAYERS = {
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],  # two end alike, and keep their paths
    "opt": ["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"],
    "gpt_neox": ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gemma": LLAMA,
    "phi": ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"],
}


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_blocks_and_layers(family):
    network = tiny.network(family)
    blocks = models.find_blocks(network)
    assert len(blocks) == 3
    for block in blocks:
        layers = models.find_layers(block)
        assert sorted(layers) == sorted(LAYERS[family])
        assert all(models.weight_of(layer).dtype == np.float32 for layer in layers.values())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weight_reproduces_the_output(family):
    for layer in models.find_layers(models.find_blocks(tiny.network(family))[1]).values():
        W = torch.from_numpy(models.weight_of(layer))
        x = torch.randn(5, W.shape[1])
        bias = layer.bias if layer.bias is not None else 0
        assert torch.allclose(layer(x), x @ W.T + bias, atol=1e-5)


def test_head_and_embeddings_stay_outside():
    network = tiny.network("opt")  # with projections into and out of the embedding
    found = {id(layer) for block in models.find_blocks(network) for layer in models.find_layers(block).values()}
    outside = {network.lm_head, network.model.decoder.project_in, network.model.decoder.project_out}
    assert not found & {id(layer) for layer in outside}


def test_a_mixture_of_experts_is_refused():
    config = tiny.t.MixtralConfig(**tiny.GROUPED, num_local_experts=2)
    blocks = models.find_blocks(tiny.t.AutoModelForCausalLM.from_config(config))
    with pytest.raises(ModelError, match="experts"):
        models.find_layers(blocks[0])


def test_a_list_of_experts_is_refused():
    block = nn.Module()
    block.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    with pytest.raises(ModelError, match="experts"):
        models.find_layers(block)


def test_a_quantised_layer_is_refused():
    block = nn.Module()
    block.proj = nn.Linear(4, 4)
    block.proj.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match=r"layer proj \(Linear\) is quantised"):
        models.find_layers(block)
    block = nn.Module()
    block.proj = nn.Module()
    block.proj.register_buffer("qweight", torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ModelError, match=r"layer proj .* is quantised"):
        models.find_layers(block)


def test_no_blocks():
    with pytest.raises(ModelError, match="no decoder blocks"):
        models.find_blocks(nn.Sequential(nn.Linear(3, 3)))


def test_a_folder(tmp_path):
    folder = tmp_path / "My Model"
    folder.mkdir()
    tiny.save(folder)
    model = models.load_model(folder)
    assert model.label == "my-model"
    assert model.max_length == 64
    assert not model.network.training
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert model.tokenizer("a b c d")["input_ids"] == [1, 2, 3, 0]


@pytest.mark.parametrize(
    ("folder", "name"), [("my-model", "."), ("my-model/deep", ".."), (".", "my-model/deep/.."), (".", "my-model/.")]
)
def test_a_folder_by_a_path_that_does_not_name_it(tmp_path, monkeypatch, folder, name):
    (tmp_path / "my-model" / "deep").mkdir(parents=True)
    tiny.save(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path / folder)
    model = models.load_model(name)
    assert (model.label, model.source) == ("my-model", "my-model")


def test_what_is_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    (tmp_path / "x.gguf").write_bytes(b"no such thing")
    (tmp_path / "short.gguf").write_bytes(b"GGUF\3\0\0\0")
    for name, reason in {
        "empty": "not a model, the folder has no config.json",
        "broken": "cannot load it",
        "x.gguf": "not a GGUF file",
        "short.gguf": "cannot load it",
        "not/there/at all": "no such model folder or GGUF file",
    }.items():
        with pytest.raises(ModelError, match=reason) as error:
            models.load_model(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_the_hub(monkeypatch, tmp_path):
    asked = []

    def load(location, name, folder, trust_remote_code, **options):
        asked.append((location, folder, trust_remote_code, options))
        return None, None

    monkeypatch.setattr(models, "load", load)
    info = SimpleNamespace(sha="abc", card_data=SimpleNamespace(license="mit"))
    monkeypatch.setattr(models.huggingface_hub, "model_info", lambda name, timeout: info)
    monkeypatch.setattr(models.huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path))
    found = models.load_model("Org/Some.Model", trust_remote_code=True)
    assert (found.label, found.source, found.license) == ("some-model", "Org/Some.Model@abc", "mit")
    assert found.folder == tmp_path
    assert asked == [("Org/Some.Model", tmp_path, True, {"revision": "abc"})]

    def gated(name, **options):
        raise OSError("Access to model Org/Some.Model is restricted.\nPlease log in.")

    monkeypatch.setattr(models.huggingface_hub, "snapshot_download", gated)
    with pytest.raises(ModelError, match=r"cannot be had from the hub \(Access to model Org/Some.Model is restricted"):
        models.load_model("Org/Some.Model")


def test_without_the_hub(monkeypatch, tmp_path):
    def offline(name, timeout):
        raise OSError("Name or service not known")

    monkeypatch.setattr(models.huggingface_hub, "model_info", offline)
    with pytest.raises(ModelError, match="no such model folder or GGUF file here, and the hub cannot be reached"):
        models.load_model("smolm2")
    monkeypatch.setattr(models, "load", lambda location, name, folder, trust, **options: (options, None))
    monkeypatch.setattr(models.huggingface_hub, "try_to_load_from_cache", lambda name, file: "config.json")
    monkeypatch.setattr(models.huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path))
    assert models.load_model("smolm2").network == {"local_files_only": True}


def test_nothing_on_the_terminal(tmp_path, capfd):
    tiny.save(tmp_path)
    capfd.readouterr()
    models.load_model(tmp_path)
    assert capfd.readouterr() == ("", "")
