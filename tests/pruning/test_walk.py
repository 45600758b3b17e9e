"""The walk: every block gets what the model itself gives it, whatever blocks return; what is no chain is refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_architectures
import torch

from fwbench.problems import structure
from fwbench.problems.structure import ModelError
from fwbench.pruning import walk
from fwbench.pruning.residual import writers


def batches():
    return [
        torch.randint(3, tiny.VOCABULARY, shape, generator=torch.Generator().manual_seed(5))
        for shape in ((2, 20), (1, 9))
    ]


def inputs_of(network, blocks, ids):
    """What each block reads first in the model's own forward pass, None for those that text does not run through."""
    found = [None] * len(blocks)

    def keep(number):
        def hook(module, args, kwargs):
            found[number] = (args[0] if args else kwargs["hidden_states"]).clone()

        return hook

    handles = [block.register_forward_pre_hook(keep(n), with_kwargs=True) for n, block in enumerate(blocks)]
    with torch.no_grad():
        network(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


# what their blocks hand on: a tensor, a list, tuples of two and three, several streams; a block that does not run
@pytest.mark.parametrize("name", ["git", "openai-gpt", "bamba", "bloom", "rwkv", "ctrl", "gemma3n_text", "mllama"])
def test_blocks_get_what_the_model_gives_them(name):
    network = tiny_architectures.network(name)
    blocks = structure.find_blocks(network)
    wanted = [inputs_of(network, blocks, ids) for ids in batches()]
    found = walk.begin(network, batches())
    assert found.tokens == [40, 9]
    for number in range(len(blocks)):
        for hidden, inputs in zip(found.hidden, wanted, strict=True):
            if inputs[number] is not None:
                torch.testing.assert_close(hidden, inputs[number])
        found.advance(number)
    assert not any("forward" in block.__dict__ for block in blocks)


def test_a_block_that_writes_into_its_input():
    """It does so in each of the passes of a sequential run: the sums, and the outputs of the pruned block."""
    network = tiny.network("llama")
    layer = network.model.layers[1]
    real = layer.forward
    layer.forward = lambda hidden, **more: real(hidden.mul_(2), **more)  # a copy of the walk's own is written to
    found = walk.Walk(network, list(network.model.layers), [torch.randn(1, 4, 32)], [], [4])
    found.calls = [
        {1: walk.Call((), {"position_embeddings": network.model.rotary_emb(found.hidden[0], torch.arange(4)[None])})}
    ]
    before = found.hidden[0].clone()
    layers = {"x.01.q_proj": layer.self_attn.q_proj}
    first, second = (next(found.in_sequence(1, layers, in_turn=False))[1].G for _ in range(2))
    assert torch.equal(found.hidden[0], before)
    assert (first == second).all()


REFUSED = {
    "reformer": "more than hidden states passes between its blocks",  # two streams, in an object
    "xlm": "its blocks are no modules that run one after the other",
    "blt": "more than hidden states passes between its blocks",  # its stacks have embeddings of their own
    "hrm_text": "block 0 runs 6 times in a forward pass",
    "dory": "block 0 runs 2 times in a forward pass",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_chain(name):
    network = tiny_architectures.network(name)
    with pytest.raises(ModelError) as error:
        walk.begin(network, batches())
    assert (
        str(error.value)
        == f"{type(network).__name__}: {REFUSED[name]}; it cannot be pruned block by block, but extract takes it"
    )
    assert not any("forward" in module.__dict__ for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in structure.find_blocks(network))


def altered(change):
    """A small Llama whose body does more between its blocks."""
    network = tiny.network("llama")
    body = network.model

    def forward(input_ids, use_cache):
        hidden = body.embed_tokens(input_ids)
        rotary = body.rotary_emb(hidden, position_ids=torch.arange(input_ids.shape[1])[None])
        change(body.layers, hidden, rotary)

    body.forward = forward
    return network


def sums(layers, hidden, rotary):
    """Each block gets the sum of what all before it gave."""
    for layer in layers:
        hidden = hidden + layer(hidden, position_embeddings=rotary)


def notes(layers, hidden, rotary):
    """A number that a block's output decides goes to the next."""
    for layer in layers:
        hidden = layer(hidden * float(1 + hidden.std()), position_embeddings=rotary)


def sometimes(layers, hidden, rotary):
    for layer in layers if hidden.shape[1] < 10 else layers[:2]:
        hidden = layer(hidden, position_embeddings=rotary)


@pytest.mark.parametrize("change", [sums, notes])
def test_more_than_hidden_states(change):
    with pytest.raises(ModelError, match="more than hidden states passes between its blocks; it cannot be pruned"):
        walk.begin(altered(change), batches())


def test_blocks_that_run_in_some_passes_only():
    with pytest.raises(ModelError, match="its blocks do not all run once in every forward pass; it cannot be pruned"):
        walk.begin(altered(sometimes), batches())


def test_a_layer_that_runs_again_beside_one_of_its_input():
    """k_proj shares the input of q_proj, and reads another one after it."""
    network = tiny.network("llama")
    attention = network.model.layers[1].self_attn

    def again(module, args, output):
        attention.k_proj(args[0] + 1)

    attention.q_proj.register_forward_hook(again)
    found = walk.begin(network, batches())
    layers = {"x.01.q_proj": attention.q_proj, "x.01.k_proj": attention.k_proj}
    with pytest.raises(
        ModelError, match=r"layer x\.01\.k_proj runs 2 times in a forward pass, not once; --skip 'k_proj'"
    ):
        list(found.in_sequence(1, layers, in_turn=False))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])  # one after the other, side by side
@pytest.mark.parametrize("dense", [False, True])
def test_inputs_in_turn(family, dense):
    """By definition: hooks on both models' blocks, of which one is pruned layer by layer meanwhile."""
    network = tiny.network(family)
    way = walk.begin(network, batches(), with_dense=dense)
    torch.manual_seed(0)
    for hidden in way.hidden:
        hidden += 0.1 * torch.randn(hidden.shape)
    whole = replace(way, blocks=copy.deepcopy(list(way.blocks)))
    own, other = (structure.find_layers(each.blocks[1]) for each in (way, whole))
    adding = writers(way.blocks[1], own, lambda: way.output(1, 0)) if dense else {}
    before = [hidden.clone() for hidden in way.hidden], [hidden.clone() for hidden in way.dense]
    seen = []
    for names, arrived in way.in_sequence(1, own, True, adding):
        X, given = caught(way, own, before[0])
        if dense:
            Y, wanted = caught(whole, other, before[1])
            np.testing.assert_allclose(arrived.H, (Y[names[0]] - X[names[0]]).T @ X[names[0]] / 49, atol=1e-5)
            wrong = torch.cat([(a - b).flatten(0, -2) for a, b in zip(before[1], before[0], strict=True)]).double()
            for name in adding:
                if name in names:
                    np.testing.assert_allclose(arrived.K[name], wrong.T @ X[name] / 49, atol=1e-5)
                wrong += wanted[name] - given[name]
        for name in names:
            np.testing.assert_allclose(arrived.G, X[name].T @ X[name] / 49, atol=1e-6)
            own[name].weight.data *= torch.rand(own[name].weight.shape) > 0.5
        seen += names
    assert sorted(seen) == sorted(own)
    assert all(torch.equal(a, b) for a, b in zip(way.hidden, before[0], strict=True))
    for index, hidden in enumerate(way.dense):
        torch.testing.assert_close(hidden, whole.output(1, index, before[1]))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in own.values())


@torch.no_grad()
def caught(way, layers, activations):
    """What each layer of the second block reads and gives, float64 ``(tokens, ...)``, by name."""
    read, given = {name: [] for name in layers}, {name: [] for name in layers}

    def keep(name):
        def hook(_, args, output):
            read[name].append(args[0].reshape(-1, args[0].shape[-1]).double())
            given[name].append(output.reshape(-1, output.shape[-1]).double())

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    for index in range(len(activations)):
        way.output(1, index, activations)
    for handle in handles:
        handle.remove()
    return tuple({name: torch.cat(rows) for name, rows in each.items()} for each in (read, given))
