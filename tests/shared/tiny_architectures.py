"""Tiny forms of every causal architecture of transformers: its own configuration class, with small sizes."""

from dataclasses import fields
from typing import Any

import tiny
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

t = tiny.t
NAMES = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LIMIT = 3_000_000  # parameters of a form that is called tiny

# small values of the fields of configuration classes: a value, and the fields that get it
_SIZES = """
97 vocab_size vocab_size_per_layer_input audio_vocab_size shape_vocab_size pronunciation_vocab_size
97 decoder_vocab_size make_ngram_vocab_size_divisible_by ngram_vocab_size_base unpadded_vocab_size
32 hidden_size d_model n_embd emb_dim embedding_dim embedding_size out_hidden_size input_size
32 backbone_hidden_size lru_width adapter_out_dim adapter_in_dim adapter_input_size input_embedding_size
32 output_embedding_size vision_output_dim output_proj_dims mm_embed_dim hidden_size_global image_size
4 num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers
4 num_decoder_layers num_blocks depth conf_num_hidden_layers num_global_layers
4 num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads
4 attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads
4 linear_num_value_heads conf_num_attention_heads linear_num_heads mamba_n_heads mamba_num_heads index_n_heads
2 num_key_value_heads swa_num_key_value_heads linear_num_key_heads n_mamba_heads n_groups
8 head_dim v_head_dim qk_nope_head_dim swa_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim
8 index_head_dim d_kv dim_head kv_channels mamba_head_dim mamba_d_head attention_head_size rotary_dim
8 mamba_d_state ssm_state_size state_size hidden_size_per_layer_input router_hidden_size d_rel
8 patch_size num_mel_bins
4 qk_rope_head_dim
40 intermediate_size moe_intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim d_inner dff d_ff dim_ff mlp_dim
40 shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp expert_ffn_hidden_size
40 ffn_hidden_size dense_intermediate_size moe_shared_expert_intermediate_size shared_experts_intermediate_size
40 feed_forward_size
12 q_lora_rank kv_lora_rank o_lora_rank laurel_rank hc_lowrank adapter_rank gated_norm_rank loop_gate_rank
64 max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions max_source_positions
16 sliding_window sliding_window_size window_size block_size local_attention index_topk chunk_size
16 mamba_chunk_size attention_window_size attention_chunk_size
4 num_experts n_routed_experts num_local_experts moe_num_experts
2 num_experts_per_tok moe_topk moe_k top_k_experts
3 max_window_layers
1 n_group topk_group bos_token_id
2 eos_token_id
0 pad_token_id
"""
SIZES: dict[str, Any] = {
    name: int(value) for value, *names in map(str.split, _SIZES.split("\n")[1:-1]) for name in names
} | {"is_decoder": True}

MAMBA = {"mamba_n_heads": 8, "mamba_n_groups": 2}
NOTE = {
    f"swa_{name}": value for name, value in SIZES.items() if "heads" in name or "rank" in name or "head_dim" in name
}
NOTE |= {"swa_num_key_value_heads": 4, "swa_head_dim": 12, "head_dim": 12}
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16}
INDEXER |= {"indexer_compress_ratio": 4, "ple_layer_ids": [1]}
# num_hidden_layers is 4: a period of 2 shows both kinds of layers
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": MAMBA | {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3], "rope_parameters": ROPE},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "dbrx": {
        "rope_parameters": ROPE,
        "attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 40},
    },
    "dots3_note": {"text_config": NOTE, "vision_config": {"mlp_layer_types": ["dense"] * 4}},
    "dots3_note_text": NOTE,
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"head_dim": 16},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def _sizes_of(kind: type) -> dict[str, Any]:
    """Small values for the fields of a configuration class, nested classes included."""
    given = {item.name: SIZES[item.name] for item in fields(kind) if item.name in SIZES}
    if "kv_lora_rank" in given:
        given["num_key_value_heads"] = given["num_attention_heads"]  # latent attention has no groups
    for name, spec in (getattr(kind, "sub_configs_defaults", None) or {}).items():
        other = spec.config_class
        if not issubclass(other, t.PreTrainedConfig):
            other = t.models.auto.configuration_auto.CONFIG_MAPPING[spec.model_type]
        given[name] = {"model_type": other.model_type} | _sizes_of(other)
    return given


def config(name: str) -> Any:
    kind = t.models.auto.configuration_auto.CONFIG_MAPPING[name]
    given = _sizes_of(kind)
    for key, value in SPECIAL.get(name, {}).items():
        if isinstance(value, dict) and isinstance(given.get(key), dict):
            value = given[key] | value
        given[key] = value
    return kind(**given)


def network(name: str) -> Any:
    """A model with all weights random, biases and norms included."""
    made = config(name)
    with torch.device("meta"):
        count = sum(p.numel() for p in t.AutoModelForCausalLM.from_config(made).parameters())
    if count > LIMIT:
        raise ValueError(f"{name}: {count:,} parameters are not tiny")
    torch.manual_seed(7)
    model = t.AutoModelForCausalLM.from_config(config(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
