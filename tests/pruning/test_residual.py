"""Which layers write to the residual stream, in models that add in different ways."""

from unittest import mock

import numpy as np
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
    way, layers = walked(family)
    before = way.output(1, 0)
    found = writers(way.blocks[1], layers, lambda: way.output(1, 0))
    assert {name.split(".", 2)[2] for name in found} == expected
    assert all(writer.factor == pytest.approx(factor) for writer in found.values())
    assert torch.equal(before, way.output(1, 0))  # no hook is left


def walked(family):
    """A model's activations before its second block, and that block's layers."""
    with mock.patch.dict(tiny.CONFIGS, FAMILIES):
        model = tiny.model(family)
    way = walk.begin(model.network, [torch.arange(40).reshape(2, 20), torch.arange(5)[None]], with_dense=True)
    way.advance(0)
    way.advance(0, way.dense)
    layers = {name: layer for name, layer in extract.named_layers(model).items() if name.split(".")[1] == "01"}
    return way, layers


@pytest.mark.parametrize(
    ("family", "names"),  # in the order in which they are added
    [
        ("llama", ("o_proj", "down_proj")),
        ("opt", ("out_proj", "fc2")),
        ("falcon", ("dense", "dense_4h_to_h")),
        ("granite", ("o_proj", "down_proj")),
    ],
)
@pytest.mark.parametrize("in_turn", [False, True])
def test_what_is_wrong_beside_each_layer(family, names, in_turn):
    """By hand: what both models' blocks read and add, and the layers' inputs."""
    way, layers = walked(family)
    torch.manual_seed(0)
    for hidden in way.hidden:
        hidden += 0.3 * torch.randn(hidden.shape)
    block, factor = way.blocks[1], 0.5 if family == "granite" else 1.0
    modules = {path.rpartition(".")[2]: module for path, module in block.named_modules()}
    seen = {name: [] for name in names}
    handles = [
        modules[name].register_forward_hook(
            lambda _, args, output, name=name: seen[name].append((args[0].clone(), output.clone()))
        )
        for name in names
    ]
    wrong = torch.cat([(a - b).flatten(0, -2) for a, b in zip(way.dense, way.hidden, strict=True)]).double()
    for activations in (way.dense, way.hidden):
        for index in range(2):
            way.output(1, index, activations)
    for handle in handles:
        handle.remove()

    def tokens(name, own, side):  # inputs or outputs in one model
        rows = [pair[side].reshape(-1, pair[side].shape[-1]) for pair in seen[name][2 * own : 2 * own + 2]]
        return torch.cat(rows).double()

    adding = writers(block, layers, lambda: way.output(1, 0))
    found = {}
    for _, arrived in way.in_sequence(1, layers, in_turn, adding):
        found |= {name.rpartition(".")[2]: K for name, K in arrived.K.items()}
    assert set(found) == set(names)
    for name in names:
        X = tokens(name, 1, 0)
        expected = (wrong / factor).T @ X / len(X)
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        wrong = wrong + factor * (tokens(name, 0, 1) - tokens(name, 1, 1))
