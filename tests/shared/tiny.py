"""Tiny randomly initialised models of every family, and a tokenizer for them."""

import json
import warnings
from typing import Any

import torch

from fwbench.problems import models

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as t

torch.set_num_threads(1)  # products this small gain nothing from a second

VOCABULARY, HIDDEN = 97, 32
COMMON = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4}
COMMON |= {"intermediate_size": 40, "max_position_embeddings": 64}
COMMON |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = COMMON | {"num_key_value_heads": 2}

CONFIGS = {
    "gpt2": lambda: t.GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=3, n_head=4, n_positions=64),
    "opt": lambda: t.OPTConfig(**COMMON, ffn_dim=40, word_embed_proj_dim=16),
    "gpt_neox": lambda: t.GPTNeoXConfig(**COMMON),
    "llama": lambda: t.LlamaConfig(**GROUPED),
    "qwen2": lambda: t.Qwen2Config(**GROUPED),
    "gemma": lambda: t.GemmaConfig(**GROUPED, head_dim=8),
    "phi": lambda: t.PhiConfig(**COMMON),
}


def network(family: str):
    """A model with all weights random, biases and norms included."""
    torch.manual_seed(7)
    model = t.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokenizer(text: str, verbose: bool = True, **_: object) -> dict:
    """One token a character."""
    return {"input_ids": [ord(letter) % VOCABULARY for letter in text]}


def wrap(label: str, network: Any, tokenizer: Any = None, source: str = "", license: str = "") -> models.Model:
    """A model that is already in memory, as ``load_model`` would give it; the network is cast in place."""
    network.to(torch.float32).eval().requires_grad_(False)
    return models.Model(label, network, tokenizer, source or label, license)


def model(family: str) -> models.Model:
    return wrap(family, network(family), tokenizer, source="test", license="none")


def save(folder, family: str = "llama") -> None:
    """A model folder with a word tokenizer, as a person would have it."""
    network(family).save_pretrained(folder)
    save_tokenizer(folder)


def save_tokenizer(folder) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
