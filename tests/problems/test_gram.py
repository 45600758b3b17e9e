"""Recorder: sums equal plain products of what hooks see, and what does not read each token once is refused."""

import weakref

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from fwbench.problems.gram import Recorder
from fwbench.problems.structure import ModelError

WIDTH = 6


class Toy(nn.Module):
    """A few layers, and a forward pass that a test gives."""

    def __init__(self, run, names="qkv"):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(tiny.VOCABULARY, WIDTH)
        self.layers = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in names})
        self.run = run

    def forward(self, input_ids, use_cache):
        return self.run(self.layers, self.embed(input_ids))

    def named(self):
        return {f"toy.00.{name}": layer for name, layer in self.layers.items()}


def passes(*shapes):
    return [torch.randint(tiny.VOCABULARY, shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]


def recorded(network, batches, look=True):
    """Gram matrices of a network's layers, with or without a first look at a few tokens."""
    recorder = Recorder(network.named(), network if look else None)
    with recorder.recording():
        if look:
            recorder.look(network, batches[0][:1, :8])
        for ids in batches:
            recorder.add(network, ids)
    return {name: found.G for names, found in recorder.arrived() for name in names}, recorder.groups()


def by_hooks(network, batches):
    """The same by hooks and products of this test's own."""
    inputs = {name: [] for name in network.named()}
    handles = [
        layer.register_forward_pre_hook(
            lambda m, args, kw, name=name: inputs[name].append([*args, *kw.values()][0].clone()), with_kwargs=True
        )
        for name, layer in network.named().items()
    ]
    with torch.no_grad():
        for ids in batches:
            network(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    X = {name: torch.cat([x.reshape(-1, WIDTH) for x in found]).double().numpy() for name, found in inputs.items()}
    return {name: x.T @ x / len(x) for name, x in X.items()}


def plain(layers, x):
    y = layers["q"](x) + layers["k"](x)
    return layers["v"](y)


def by_keyword(layers, x):
    return layers["v"](input=layers["q"](input=x) + layers["k"](x))


def written_to(layers, x):
    y = layers["q"](x)
    x.add_(1)
    return layers["k"](x) + layers["v"](y)


def seen_as_a_view(layers, x):
    return layers["v"](layers["q"](x) + layers["k"](x.reshape(-1, WIDTH)).reshape(x.shape))


def shared_later(layers, x):
    """Two inputs on a few tokens, and one where there are more: two sums are right for both."""
    return layers["v"](layers["q"](x) + layers["k"](x if x.shape[1] > 8 else x.clone()))


GROUPS = {plain: 2, by_keyword: 2, written_to: 3, seen_as_a_view: 2, shared_later: 3}


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize("run", GROUPS)
def test_sums_are_those_of_plain_products(run, look):
    network, batches = Toy(run), passes((2, 8 if not look else 12), (1, 12), (3, 5))
    found, groups = recorded(network, batches, look)
    wanted = by_hooks(network, batches)
    assert len(groups) == GROUPS[run]
    assert set(found) == set(wanted)
    for name, G in found.items():
        np.testing.assert_allclose(G, wanted[name], rtol=1e-12, atol=1e-12)
    assert not any(layer._forward_pre_hooks for layer in network.layers.values())


def follower_again(layers, x):
    """k shares the input of q, and runs on another one too."""
    return layers["v"](layers["q"](x) + layers["k"](x) + layers["k"](x + 1))


def leader_again(layers, x):
    return layers["v"](layers["k"](layers["q"](x)) + layers["q"](x + 1))


def parted_later(layers, x):
    return layers["v"](layers["q"](x) + layers["k"](x.clone() if x.shape[1] > 8 else x))


def again_later(layers, x):
    y = layers["q"](x) + layers["k"](x)
    return layers["v"](y + layers["k"](y) if x.shape[1] > 8 else y)


def not_at_all(layers, x):
    return layers["q"](x) + layers["k"](x)


def routed(layers, x):
    """Two experts, each on some of the tokens."""
    x = x.reshape(-1, WIDTH)
    return layers["q"](x) + torch.cat([layers["k"](x[:3]), layers["v"](x[3:])])


def streams(layers, x):
    """Three streams of hidden states, mixed by one layer."""
    return layers["q"](x) + layers["k"](x) + layers["v"](x.unsqueeze(2).expand(-1, -1, 3, -1)).mean(2)


REFUSED = {
    follower_again: r"toy\.00\.k runs 2 times in a forward pass, not once; --skip 'k' leaves such layers out",
    leader_again: r"toy\.00\.q runs 2 times in a forward pass, not once; --skip 'q' leaves such layers out",
    parted_later: r"toy\.00\.k reads the input of toy\.00\.q in one forward pass and not in another",
    again_later: r"toy\.00\.k runs 2 times in a forward pass, not once; --skip 'k' leaves such layers out",
    not_at_all: r"toy\.00\.v does not run in a forward pass on text; --skip 'v' leaves such layers out",
    routed: r"toy\.00\.k reads 3 inputs for 8 tokens, not one for each; --skip 'k\|v' leaves such layers out",
    streams: r"toy\.00\.v reads 24 inputs for 8 tokens, not one for each; --skip 'v' leaves such layers out",
}


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize("run", REFUSED)
def test_what_is_refused(run, look):
    with pytest.raises(ModelError, match=f"^layer {REFUSED[run]}$"):
        recorded(Toy(run), passes((1, 8), (2, 12)), look)


def test_one_weight_in_two_modules():
    network = Toy(plain)
    network.layers["k"].weight = network.layers["v"].weight
    with pytest.raises(ModelError, match=r"toy\.00\.k runs 2 times in a forward pass, not once; --skip 'k\|v'"):
        recorded(network, passes((1, 8)))


def test_a_weight_of_an_embedding():
    network = Toy(lambda layers, x: (layers["q"](x), layers["k"](x)), "qk")
    network.layers["q"] = nn.Linear(WIDTH, tiny.VOCABULARY, bias=False)
    network.layers["q"].weight = network.embed.weight
    with pytest.raises(ModelError, match=r"toy\.00\.q runs 2 times in a forward pass, not once; --skip 'q'"):
        recorded(network, passes((1, 8)))


def test_no_layer_does():
    network = Toy(lambda layers, x: x)
    with pytest.raises(
        ModelError, match=r"^layer toy\.00\.q does not run in a forward pass on text; no layer does, such m"
    ):
        recorded(network, passes((1, 8)))


def test_inputs_are_let_go():
    """What no other layer waits for is freed while the pass goes on: of a whole model it would be large."""
    alive = []

    def run(layers, x):
        outputs = []
        for layer in layers.values():
            x = layer(x) * 2
            outputs.append(weakref.ref(x))
            alive.append(sum(output() is not None for output in outputs))
        return x

    network = Toy(run, "abcdef")
    recorded(network, passes((1, 8)))
    assert alive[:6] == [1, 2, 3, 4, 5, 6]  # the look holds them, so that no address is used twice
    assert alive[6:] == [1] * 5  # and the pass ends at the last layer
