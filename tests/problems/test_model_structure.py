"""Networks: blocks and layers are found by structure and by what runs, and what cannot be pruned is said."""

import re

import numpy as np
import pytest
import tiny
import tiny_architectures
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
    with pytest.raises(ModelError, match=r"mixtures of experts .*; --skip 'mlp\\.experts' leaves such layers out"):
        structure.find_layers(blocks[0])
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert list(structure.find_layers(blocks[0], r"mlp\.experts")) == attention
    assert list(structure.find_layers(blocks[0], r"layers\.0\.mlp", "model.layers.0.")) == attention
    with pytest.raises(ModelError, match="experts"):
        structure.find_layers(blocks[0], r"layers\.1\.mlp", "model.layers.0.")


def test_the_way_out_names_all_that_lies_outside():
    """JetMoE's experts are of two kinds, and each has two stacks; a block of nothing else has no way out."""
    block = structure.find_blocks(tiny_architectures.network("jetmoe"))[0]
    with pytest.raises(ModelError) as error:
        structure.find_layers(block)
    skip = re.search(r"; --skip '([^']+)' leaves such layers out$", str(error.value))[1]
    assert structure.find_layers(block, skip)
    with pytest.raises(ModelError, match=r"--skip 'input_linear\|.*' leaves such layers out"):
        structure.find_layers(block, "input_linear")
    block = nn.Module()
    block.weight = nn.Parameter(torch.zeros(2, 3, 4))
    with pytest.raises(ModelError, match=r"are not supported$"):
        structure.find_layers(block)


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


def test_blocks_are_what_runs_on_text():
    """GIT's vision tower holds more weights here than its text blocks; text never gets there."""
    config = tiny_architectures.config("git")
    config.vision_config.intermediate_size = 400
    network = tiny.t.AutoModelForCausalLM.from_config(config).eval()
    vision, blocks = network.git.image_encoder, structure.find_blocks(network)
    assert sum(p.numel() for p in vision.parameters()) > sum(p.numel() for b in blocks for p in b.parameters())
    assert blocks == list(network.git.encoder.layer)


def test_lists_that_take_turns_are_one_stack():
    """XLM keeps attentions and feed-forward layers in two lists."""
    network = tiny_architectures.network("xlm")
    blocks = structure.find_blocks(network)
    assert len(blocks) == 4
    for number, block in enumerate(blocks):
        found = structure.find_layers(block)
        assert list(found) == ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]
        assert found["out_lin"] is network.transformer.attentions[number].out_lin
        assert found["lin2"] is network.transformer.ffns[number].lin2


def test_stacks_that_follow_one_another():
    network = tiny_architectures.network("blt")
    body = network.model
    stacks = [body.patcher.layers, body.local_encoder.layers, body.local_encoder.cross_attn_layers]
    wanted = [block for stack in [*stacks, body.global_transformer.layers] for block in stack]
    found = structure.find_blocks(network)
    assert found[: len(wanted)] == wanted
    decoder = found[len(wanted) :]  # each of its layers after a cross-attention
    for block, layer, cross in zip(
        decoder, body.local_decoder.layers, body.local_decoder.cross_attn_layers, strict=True
    ):
        assert {id(part) for part in block.children()} == {id(layer), id(cross)}


LEFT_OUT = {
    "llama": [],
    "gpt2": [],
    "opt": ["model.decoder.project_in.weight", "model.decoder.project_out.weight"],
    "bert": ["cls.predictions.transform.dense.weight"],
    "mamba": [f"backbone.layers.{number}.mixer.A_log" for number in range(4)],
    "gemma3": [],  # its vision tower does not run on text
    "xlm": [],
    "recurrent_gemma": [
        f"model.layers.{number}.temporal_block.rg_lru.{name}_gate_weight"
        for number in (0, 1, 3)
        for name in ("input", "recurrent")
    ],
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out(name):
    network = tiny.network(name) if name in tiny.CONFIGS else tiny_architectures.network(name)
    found = structure.left_out(network)
    assert found == LEFT_OUT[name]
    assert all(network.get_parameter(path).ndim > 1 for path in found)
    assert not any(module._forward_pre_hooks for module in network.modules())


OUTSIDE = {
    "dbrx": r"ffn\.experts\.mlp\.w1 \(160 x 32, of DbrxExpertGLU\) is no linear layer's weight, and such hold 8\d% ",
    "xlnet": r"rel_attn\.q \(32 x 4 x 8, of XLNetRelativeAttention\) is no linear layer's weight, and such hold 67% ",
    "jetmoe": r"\(4 x 80 x 32, of JetMoeParallelExperts\) is no linear layer's weight",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_most_weights_outside_of_linear_layers(name):
    with pytest.raises(ModelError, match=OUTSIDE[name]) as error:
        structure.find_layers(structure.find_blocks(tiny_architectures.network(name))[0])
    assert "\n" not in str(error.value)


# By each architecture's own definition, where the configuration says 64 and the padding's id is 0
LONGEST = {"roberta": 63, "xlm-roberta": 63, "camembert": 63, "mpt": 64, "whisper": 64, "gpt2": 64, "openai-gpt": 64}
LONGEST |= {"rwkv": 64, "ctrl": 64, "gemma3": 64, "git": 64, "opt": 64, "bart": 64, "biogpt": 64, "reformer": 64}
LONGEST |= {"prophetnet": 62, "xlnet": 1 << 30, "mamba": 1 << 30}
TABLES = ("roberta", "camembert", "gpt2", "openai-gpt", "whisper", "git", "opt", "bart", "biogpt", "reformer")
TABLES += ("prophetnet",)


@pytest.mark.parametrize("name", LONGEST)
def test_the_longest_sequence(name):
    """It is what the model takes: where positions are looked up in a table, one token more is too many."""
    network = tiny_architectures.network(name)
    limit = structure.longest(network)
    assert limit == LONGEST[name]
    ids = torch.randint(3, tiny.VOCABULARY, (1, min(limit, 80)))
    assert network(input_ids=ids, use_cache=False).logits.shape[1] == ids.shape[1]
    if name in TABLES:
        with pytest.raises(Exception, match=r"index|range|size|shape|exceed|must|position"):
            network(input_ids=torch.cat([ids, ids[:, :1]], 1), use_cache=False)


def test_positions_begin_behind_the_padding():
    config = tiny_architectures.config("roberta")
    config.pad_token_id, config.max_position_embeddings = 1, 514  # as in its checkpoints
    assert structure.longest(tiny.t.AutoModelForCausalLM.from_config(config)) == 512


@pytest.mark.parametrize("stated", [-1, 0])
def test_a_limit_that_is_none(stated):
    network = tiny.network("llama")
    network.config.max_position_embeddings = stated
    assert structure.longest(network) == 1 << 30


def test_a_model_that_needs_more_than_text():
    network = tiny_architectures.network("gemma4_assistant")
    for work in (structure.left_out, lambda network: structure.run_body(network, structure.few_tokens(network))):
        with pytest.raises(ModelError, match=r"^Gemma4\w+: a forward pass on 8 tokens and nothing else fails \(.+\)$"):
            work(network)
