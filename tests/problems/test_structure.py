"""Networks: blocks and layers are found by structure and by what runs, and what cannot be pruned is said."""

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from fwbench.problems import structure
from fwbench.problems.structure import ModelError

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
    blocks = structure.find_blocks(network)
    assert len(blocks) == 3
    for block in blocks:
        layers = structure.find_layers(block)
        assert sorted(layers) == sorted(LAYERS[family])
        assert all(structure.weight_of(layer).dtype == np.float32 for layer in layers.values())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weight_reproduces_the_output(family):
    for layer in structure.find_layers(structure.find_blocks(tiny.network(family))[1]).values():
        W = torch.from_numpy(structure.weight_of(layer))
        x = torch.randn(5, W.shape[1])
        bias = layer.bias if layer.bias is not None else 0
        assert torch.allclose(layer(x), x @ W.T + bias, atol=1e-5)


def test_head_and_embeddings_stay_outside():
    network = tiny.network("opt")  # with projections into and out of the embedding
    found = {id(layer) for block in structure.find_blocks(network) for layer in structure.find_layers(block).values()}
    outside = {network.lm_head, network.model.decoder.project_in, network.model.decoder.project_out}
    assert not found & {id(layer) for layer in outside}


def test_a_mixture_of_experts_is_refused():
    config = tiny.t.MixtralConfig(**tiny.GROUPED, num_local_experts=2)
    blocks = structure.find_blocks(tiny.t.AutoModelForCausalLM.from_config(config))
    with pytest.raises(ModelError, match="experts"):
        structure.find_layers(blocks[0])


def test_a_quantised_layer_is_refused():
    block = nn.Module()
    block.proj = nn.Linear(4, 4)
    block.proj.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match=r"layer proj \(Linear\) is quantised"):
        structure.find_layers(block)
    block = nn.Module()
    block.proj = nn.Module()
    block.proj.register_buffer("qweight", torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ModelError, match=r"layer proj .* is quantised"):
        structure.find_layers(block)


def test_no_blocks():
    with pytest.raises(ModelError, match="no decoder blocks"):
        structure.find_blocks(nn.Sequential(nn.Linear(3, 3)))
