"""Which layers write to the residual stream, in models that add in different ways."""

from unittest import mock

import pytest
import tiny
import torch

from fwbench.problems import extract
from fwbench.pruning import walk
from fwbench.pruning.residual import writers

t = tiny.t
FAMILIES = {
    "granite": lambda: t.GraniteConfig(**tiny.GROUPED, residual_multiplier=0.5),
    "falcon": lambda: t.FalconConfig(  # attention and MLP side by side, added in place
        vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=3, num_attention_heads=4
    ),
    "gemma3": lambda: t.Gemma3TextConfig(**tiny.GROUPED, head_dim=8),
    "olmo2": lambda: t.Olmo2Config(**tiny.GROUPED),
}


@pytest.mark.parametrize(
    ("family", "expected", "factor"),
    [
        ("llama", {"o_proj", "down_proj"}, 1.0),
        ("gpt2", {"attn.c_proj", "mlp.c_proj"}, 1.0),
        ("opt", {"out_proj", "fc2"}, 1.0),  # fc2 reads tokens in one row
        ("phi", {"dense", "fc2"}, 1.0),
        ("falcon", {"dense", "dense_4h_to_h"}, 1.0),
        ("granite", {"o_proj", "down_proj"}, 0.5),
        ("gemma3", set(), 1.0),  # a norm comes between
        ("olmo2", set(), 1.0),
    ],
)
def test_writers(family, expected, factor):
    with mock.patch.dict(tiny.CONFIGS, FAMILIES):
        model = tiny.model(family)
    way = walk.begin(model.network, [torch.arange(40).reshape(2, 20)])
    layers = {name: layer for name, layer in extract.named_layers(model).items() if name.split(".")[1] == "01"}
    before = way.output(1, 0)
    found = writers(way.blocks[1], layers, lambda: way.output(1, 0))
    assert {name.split(".", 2)[2] for name in found} == expected
    assert all(writer.factor == pytest.approx(factor) for writer in found.values())
    assert torch.equal(before, way.output(1, 0))  # no hook is left
