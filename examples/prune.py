"""Prune a whole model and measure it. Here a tiny random one, made on the spot; yours is a name or a folder."""

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import fwbench as fwb

WORDS = ["a", "the", "cat", "dog", "sat", "ran", "on", "to", "mat", "hill", "and", "saw"]


def make_model(folder):
    """A model folder as transformers writes it, and a text of the same words."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=16, max_position_embeddings=64, **shape)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    rng = random.Random(0)
    with open("text.txt", "w") as file:
        file.write(" ".join(rng.choices(WORDS, k=3000)))


make_model("tiny")
summary = fwb.prune(
    "tiny", "pruned", pattern="2:4", solver="fast", text="text.txt", tokens=1024, length=64, evaluate="text.txt"
)
found = summary["perplexity"]
print(f"layer error {summary['totals']['ratio_to_wanda']:.3f} of Wanda's")
print(f"perplexity {found['dense']['value']:.2f} dense, {found['pruned']['value']:.2f} pruned")

pruned = AutoModelForCausalLM.from_pretrained("pruned")  # transformers loads the folder as it is
weight = pruned.model.layers[0].mlp.gate_proj.weight
kept = (weight.reshape(-1, 4) != 0).sum(dim=1)
print(f"kept of each four neighbours: {kept.unique().tolist()}; the report: pruned/report.html")
assert (kept <= 2).all()
