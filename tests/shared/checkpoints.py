"""Checkpoints that something is wrong with, or special about, for the tests of what loads and saves models."""

import json
import shutil

import tiny
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"


def edit(folder, change):
    """Change the tensors of a model folder: in place, or to those that are returned."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS, {"format": "pt"})


def configure(folder, file="config.json", **entries):
    """Set entries of a JSON file of a model folder."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def with_opening(folder, begin="<bos> $A", end=""):
    """Have the tokenizer put a token before every text, and another after it."""
    from tokenizers import Tokenizer, processors

    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens.add_special_tokens(["<bos>", "<eos>"])
    special = [(token, tokens.token_to_id(token)) for token in ("<bos>", "<eos>")]
    tokens.post_processor = processors.TemplateProcessing(single=f"{begin} {end}".strip(), special_tokens=special)
    tokens.save(str(folder / "tokenizer.json"))
    return dict(special)["<bos>"]


CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

print("told by the model's own code")


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, shared="", **more):
        self.shared, self.hidden_size, self.vocab_size, self.num_hidden_layers = shared, 16, 97, 2
        super().__init__(**more)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, hidden_states):
        return hidden_states + self.down(torch.relu(self.up(hidden_states)))


class OwnModel(PreTrainedModel):
    config_class, base_model_prefix = OwnConfig, "model"

    def __init__(self, config):
        super().__init__(config)
        self.embed, self.layers = nn.Embedding(97, 16), nn.ModuleList(Block() for _ in range(2))
        if config.shared:
            setattr(self.layers[1], config.shared, getattr(self.layers[0], config.shared))
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, **_):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


class OwnForCausalLM(PreTrainedModel):
    config_class, base_model_prefix = OwnConfig, "model"
    _tied_weights_keys = TIED

    def __init__(self, config):
        super().__init__(config)
        self.model, self.lm_head = OwnModel(config), nn.Linear(16, 97, bias=False)
        self.post_init()

    def get_decoder(self):
        return self.model

    def get_input_embeddings(self):
        return self.model.embed

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, **_):
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids).last_hidden_state))
"""
OWN_SHAPES = {
    "lm_head.weight": (97, 16),
    "model.embed.weight": (97, 16),
    **{
        f"model.layers.{block}.{name}": shape
        for block in range(2)
        for name, shape in {
            "up.weight": (24, 16),
            "up.bias": (24,),
            "down.weight": (16, 24),
            "down.bias": (16,),
        }.items()
    },
}


def own_code(folder, tied=None, missing=(), **config):
    """A model whose code lies in its folder, with the weights that ``tied`` (target: source) names as one tensor."""
    import torch

    folder.mkdir()
    tiny.save_tokenizer(folder)
    (folder / "modeling_own.py").write_text(CODE.replace("TIED", repr(tied or {})))
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    entries = {"model_type": "own", "auto_map": classes, "tie_word_embeddings": bool(tied), **config}
    (folder / "config.json").write_text(json.dumps(entries))
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in OWN_SHAPES.items()}
    for name in missing:
        del tensors[name]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def copied(source, target):
    shutil.copytree(source, target)
    return target
