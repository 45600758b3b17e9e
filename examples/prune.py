"""Prune a whole model and measure it: here a tiny random one, made on the spot."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import fwbench as fwb

WORDS = ["[UNK]", "a", "the", "cat", "dog", "sat", "ran", "on", "to", "mat", "hill", "and"]


def make_model(folder):
    """A model folder as transformers writes it; yours is a folder, or a name on a hub."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    tokenizer.save_pretrained(folder)


make_model("tiny")
Path("text.txt").write_text(" ".join(random.Random(0).choices(WORDS[1:], k=3000)), encoding="utf-8")

text = {"text": "text.txt", "tokens": 1024, "length": 64, "evaluate": "text.txt"}
summary = fwb.prune("tiny", "pruned", pattern="2:4", solver="fast", **text)
found = summary["perplexity"]
print(f"layer error {summary['totals']['ratio_to_wanda']:.3f} of Wanda's")
print(f"perplexity {found['dense']['value']:.2f}, pruned {found['pruned']['value']:.2f}")

pruned = AutoModelForCausalLM.from_pretrained("pruned")  # the folder loads as it is
weight = pruned.model.layers[0].mlp.gate_proj.weight
kept = (weight.reshape(-1, 4) != 0).sum(dim=1)
print(f"of each four neighbours stay {kept.max()}; the report is pruned/report.html")
assert (kept <= 2).all()
