"""Checkpoints: whole or refused, what transformers says is told or harmless, and nothing is ever asked."""

import io
import json
import logging
import sys
import warnings
from unittest import mock

import pytest
import tiny
import torch
from checkpoints import UP, WEIGHTS, configure, edit, own_code
from safetensors.torch import load_file, save_file

from fwbench.notes import heard
from fwbench.problems import checkpoint, listening, models
from fwbench.problems.models import ModelError

t = tiny.t
MIXED = {
    "llama": tiny.CONFIGS["llama"],
    "gpt2": tiny.CONFIGS["gpt2"],  # tied
    "mamba": lambda: t.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4),
    "qwen3_moe": lambda: t.Qwen3MoeConfig(  # transformers joins the experts that are stored one by one
        **tiny.GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
    ),
}


@pytest.fixture
def folder(tmp_path):
    tiny.save(tmp_path)
    return tmp_path


@pytest.fixture
def said():
    sentences = []
    with heard(sentences.append):
        yield sentences


def save(folder, config):
    with mock.patch.dict(tiny.CONFIGS, {"it": config}):
        tiny.save(folder, "it")


def test_what_is_missing_is_never_random(folder):
    before = load_file(folder / WEIGHTS)
    network = models.load_model(folder).network
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    for name in before:
        edit(folder, lambda tensors, name=name: {key: x for key, x in tensors.items() if key != name})
        with pytest.raises(ModelError, match="lacks") as error:
            models.load_model(folder)
        assert f"the checkpoint lacks {name}; what is missing would be random" in str(error.value)
        save_file(before, folder / WEIGHTS, {"format": "pt"})


def test_foreign_names(folder):
    edit(folder, lambda tensors: {f"foreign.{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert "lacks 30 tensors, the first model.embed_tokens.weight" in str(error.value)
    assert "it holds 30 tensors, the first foreign.lm_head.weight, unknown to LlamaForCausalLM" in str(error.value)


def test_other_shapes(folder):
    edit(folder, lambda tensors: tensors | {UP: tensors[UP][:-1].clone()})
    with pytest.raises(
        ModelError, match=r"up_proj.weight has the shape \(39, 32\), by its config.json \(40, 32\); one"
    ):
        models.load_model(folder)
    configure(folder, vocab_size=96)
    with pytest.raises(ModelError, match=r"\(97, 32\), by its config.json \(96, 32\), and 2 more differ"):
        models.load_model(folder)


def parted(folder):
    """Two parts with an index; which part each tensor is in."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for part in set(parts.values()):
        save_file({name: tensors[name] for name in tensors if parts[name] == part}, folder / part, {"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    return parts


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def as_torch(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


DAMAGE = {
    "nothing": (
        lambda folder: (folder / WEIGHTS).unlink(),
        "no model.safetensors or pytorch_model.bin in it; download its weights",
    ),
    "cut": (lambda folder: cut(folder / WEIGHTS), "model.safetensors is damaged or not whole; download it again"),
    "cut torch": (
        lambda folder: (as_torch(folder), cut(folder / "pytorch_model.bin")),
        "pytorch_model.bin is damaged or not whole; download it again",
    ),
    "pointer": (
        lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n"),
        "model.safetensors is a pointer of Git LFS, not the weights; git lfs pull gets them",
    ),
    "a part": (
        lambda folder: (parted(folder), (folder / "model-1.safetensors").unlink()),
        "model-1.safetensors, which its index of weights names, is not there; download it",
    ),
    "index": (
        lambda folder: (parted(folder), (folder / f"{WEIGHTS}.index.json").write_text("{}")),
        "its index of weights (.index.json) is damaged; download it again",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files(folder, case):
    damage, reason = DAMAGE[case]
    damage(folder)
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert str(error.value) == f"{folder}: {reason}"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_quantised_weights_without_their_scales(folder, dtype, prefix):
    edit(folder, lambda tensors: tensors | {UP: (5 * tensors[UP]).to(dtype)})
    edit(folder, lambda tensors: {key.replace("model.", prefix, 1): x for key, x in tensors.items()})
    with pytest.raises(ModelError, match=rf"{UP.removeprefix('model.')} is stored as {str(dtype)[6:]}, so it is quant"):
        models.load_model(folder)


def test_an_expert_is_missing(tmp_path):
    save(tmp_path, MIXED["qwen3_moe"])
    edit(tmp_path, lambda tensors: {key: x for key, x in tensors.items() if "0.mlp.experts.2.up_proj" not in key})
    with pytest.raises(ModelError, match=r"tensors for model.layers.0.mlp.experts.gate_up_proj do not fit together"):
        models.load_model(tmp_path)


def test_tied_weights_are_stored_once(tmp_path, said):
    save(tmp_path, lambda: t.LlamaConfig(**tiny.GROUPED, tie_word_embeddings=True))
    network = models.load_model(tmp_path).network
    assert network.lm_head.weight.data_ptr() == network.model.embed_tokens.weight.data_ptr()
    assert said == []
    edit(tmp_path, lambda tensors: tensors | {"lm_head.weight": torch.ones(97, 32)})
    assert not torch.equal(*(layer.weight for layer in (network.lm_head, models.load_model(tmp_path).network.lm_head)))
    assert len(said) == 1
    assert "so we will NOT tie them" in said[0]
    del said[:]
    edit(tmp_path, lambda tensors: {key: x for key, x in tensors.items() if x.shape != (97, 32)})
    with pytest.raises(ModelError, match=r"lacks 2 tensors, the first model.embed_tokens.weight"):
        models.load_model(tmp_path)
    assert said == []


def test_more_than_the_model_has(folder, said):
    edit(folder, lambda tensors: tensors | {"mtp.0.weight": torch.ones(2), "mtp.1.weight": torch.ones(2)})
    models.load_model(folder)
    held = "the checkpoint holds 2 tensors, the first mtp.0.weight, for which LlamaForCausalLM has no place; left out"
    assert said == [f"{folder}: {held}"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "opt", "phi"])
def test_no_tokenizer(tmp_path, family):
    """Of some families transformers would make an empty one, which takes every word for unknown."""
    tiny.save(tmp_path, family)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer in it; copy the tokenizer's files \(tokenizer.json and"):
        models.load_model(tmp_path)


def test_a_tokenizer_that_needs_no_files(tmp_path):
    tiny.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    configure(tmp_path, "tokenizer_config.json", tokenizer_class="ByT5Tokenizer")
    assert models.load_model(tmp_path).tokenizer("a")["input_ids"] == [100, 1]


def test_an_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter, not a whole model; merge it into its model"):
        models.load_model(folder)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"hidden_act": "wow"}, r"cannot load it as a causal language model \(unknown 'wow'\)"),
        ({"model_type": "futurama"}, r"cannot load its configuration \(The checkpoint .* model type `futurama`"),
    ],
)
@pytest.mark.parametrize("trust", [False, True])
def test_what_transformers_does_not_know(folder, entries, reason, trust):
    configure(folder, **entries)
    with pytest.raises(ModelError, match=reason) as error:
        models.load_model(folder, trust_remote_code=trust)
    assert "\n" not in str(error.value)


def test_an_encoder_is_said_to_be_one(tmp_path, said):
    save(tmp_path, lambda: t.BertConfig(**tiny.COMMON))
    models.load_model(tmp_path)
    assert len(said) == 1
    assert "its configuration says encoder, so tokens see those after them" in said[0]
    del said[:]
    configure(tmp_path, is_decoder=True)
    models.load_model(tmp_path)
    assert said == []


def test_settings_that_transformers_does_not_use(folder, said):
    configure(folder, rope_scaling={"rope_type": "linear", "factor": 2.0, "strength": 3})
    models.load_model(folder)
    words = "Unrecognized keys in `rope_parameters` for 'rope_type'='linear': {'strength'}"
    assert said == [f"{folder}: while it was loaded: {words}"]


SPOKEN = {  # by kind: does it become a note
    "Slow words: falling back to the reference implementation, correct but much slower.": False,
    "`use_thing` is deprecated and will be removed in v6.": False,
    "The following generation flags are not valid and may be ignored: ['top_k'].": False,
    "Model config: bos_token_id must be `None` or an integer within the vocabulary": False,
    "Token indices sequence length is longer than the specified maximum (9 > 4).": True,
    "Some weights were newly initialized: ['x']": True,
    "The tokenizer uses byte fallback, which is not implemented in the fast tokenizers.": True,
}


@pytest.mark.parametrize("words", SPOKEN)
@pytest.mark.parametrize("how", ["transformers", "huggingface_hub", "warning", "print"])
def test_what_is_said(said, words, how):
    with listening.listening("it"):
        if how == "warning":
            warnings.warn(words, UserWarning, stacklevel=1)
            warnings.warn(words, FutureWarning, stacklevel=1)
        elif how == "print":
            print(words)
        else:
            logging.getLogger(f"{how}.some.part").warning(words)
            logging.getLogger(f"{how}.some.part").info("chatter")
    assert said == ([f"it: while it was loaded: {words}"] if SPOKEN[words] else [])


def test_an_incorrect_tokenizer_is_told_with_the_way_out(said):
    words = "The tokenizer has an incorrect regex pattern. Set the `fix_mistral_regex=True` flag when loading it."
    with listening.listening("it"):
        logging.getLogger("transformers.tokenization").warning(words)
    assert len(said) == 1
    assert 'write "fix_mistral_regex": true into its tokenizer_config.json' in said[0]


def test_nothing_is_said_of_what_fails_and_all_is_as_before(said):
    loggers = [logging.getLogger(name) for name in listening.LIBRARIES]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    streams = sys.stdin, sys.stdout, sys.stderr

    def fails():
        with listening.listening("it"):
            loggers[0].warning("something")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert said == []
    assert [(logger.handlers, logger.level, logger.propagate) for logger in loggers] == before
    assert (sys.stdin, sys.stdout, sys.stderr) == streams


def test_nobody_can_ask(monkeypatch, capfd):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(EOFError), listening.listening("it"):
        input("Do you wish to run the custom code? [y/N] ")
    assert sys.stdin.read() == "y\n"  # what is meant for somebody else is left
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Where transformers copies the code of models to."""
    place = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(place))
    monkeypatch.setattr("sys.path", [*sys.path])
    yield place
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def test_code_of_its_own(tmp_path, monkeypatch, capfd, modules, said):
    folder = own_code(tmp_path / "own")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    for name in (folder, str(folder)):
        with pytest.raises(ModelError, match=r"comes with code of its own, .* give --trust-remote-code") as error:
            models.load_model(name)
        assert "\n" not in str(error.value)
    assert not modules.exists()
    model = models.load_model(folder, trust_remote_code=True)
    assert type(model.network).__name__ == "OwnForCausalLM"
    assert torch.equal(model.network.model.layers[1].up.weight, load_file(folder / WEIGHTS)["model.layers.1.up.weight"])
    assert said == [f"{folder}: while it was loaded: told by the model's own code"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_in_a_list(tmp_path, modules, tied):
    """As transformers 4 had them: with tied weights version 5 fails, without it would when the model is saved."""
    missing = ["lm_head.weight"] if tied else []
    folder = own_code(tmp_path / "own", ["lm_head.weight"], missing, tie_word_embeddings=tied)
    if tied:
        with pytest.raises(ModelError, match=r"own code does not work with .* make _tied_weights_keys a dict"):
            models.load_model(folder, trust_remote_code=True)
    else:
        models.load_model(folder, trust_remote_code=True).network.save_pretrained(tmp_path / "out")


def test_code_for_another_version(tmp_path, modules):
    folder = own_code(tmp_path / "own")
    code = folder / "modeling_own.py"
    code.write_text(code.read_text().replace("self.model, self.lm_head", "self.gone.part, self.lm_head"))
    with pytest.raises(ModelError, match=r"its own code does not work with transformers .*gone.*; get its newest code"):
        models.load_model(folder, trust_remote_code=True)


def test_code_that_stays_away(folder, said):
    """transformers has the architecture itself: the model's own code is not run, which is said."""
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    models.load_model(folder)
    assert said == [f"{folder}: the code that comes with it was not run, transformers has its own LlamaForCausalLM"]


def low(name):
    return not any(part in name for part in ("norm", "ln_", "A_log"))


def store_mixed(folder, dtype=torch.bfloat16):
    def mixed(tensors):
        return {name: tensor.to(dtype) if low(name) else tensor for name, tensor in tensors.items()}

    edit(folder, mixed)


@pytest.mark.parametrize("family", MIXED)
def test_stored_types(tmp_path, family):
    save(tmp_path, MIXED[family])
    store_mixed(tmp_path)
    network = models.load_model(tmp_path).network
    found = checkpoint.stored_types(network, tmp_path)
    floating = {name for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    assert found == {name: torch.bfloat16 if low(name) else torch.float32 for name in floating}
    assert len(set(found.values())) == 2


def test_stored_types_of_other_files(tmp_path):
    """Of names without the base model's prefix, of parts with an index, and of a file of torch."""
    tiny.save(tmp_path)
    store_mixed(tmp_path, torch.float16)
    network = models.load_model(tmp_path).network
    wanted = checkpoint.stored_types(network, tmp_path)
    assert set(wanted.values()) == {torch.float16, torch.float32}
    tensors = load_file(tmp_path / WEIGHTS)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / WEIGHTS, {"format": "pt"})
    assert checkpoint.stored_types(models.load_model(tmp_path).network, tmp_path) == wanted
    (tmp_path / WEIGHTS).unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert checkpoint.stored_types(models.load_model(tmp_path).network, tmp_path) == wanted
    (tmp_path / "pytorch_model.bin").unlink()
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    parted(tmp_path)
    assert checkpoint.stored_types(models.load_model(tmp_path).network, tmp_path) == wanted
    (tmp_path / f"{WEIGHTS}.index.json").unlink()
    with pytest.raises(ModelError, match=r"no model.safetensors or pytorch_model.bin in it"):
        checkpoint.stored_types(network, tmp_path)


def test_token_ids_beyond_the_embedding(folder):
    model = models.load_model(folder)
    model.check_tokens([[0, 96], [5]])
    with pytest.raises(ModelError, match=r"the tokenizer gives token 97, the model has embeddings for 0\.\.96; take"):
        model.check_tokens([[0, 1], [97, 3]])
