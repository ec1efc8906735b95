"""Small configurations of every causal language model of transformers, made from each class's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOCABULARY, CONTEXT = 160, 256
_HIDDEN, _HEADS, _LAYERS = 64, 4, 2

_SIZES: dict[int, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input unpadded_vocab_size encoder_hash_byte_group_vocab"
    " pronunciation_vocab_size shape_vocab_size ngram_vocab_size_base",
    CONTEXT: "max_position_embeddings n_positions max_seq_len model_max_length context_length n_ctx"
    " max_target_positions seq_length max_source_positions",
    96: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner dff dim_ff ffn_hidden_size"
    " feed_forward_size dense_intermediate_size intermediate_size_mlp",
    80: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size"
    " moe_shared_expert_intermediate_size shared_experts_intermediate_size",
    _HIDDEN: "hidden_size d_model n_embd emb_dim embedding_size embedding_dim word_embed_proj_dim lru_width"
    " attention_hidden_size input_embedding_size output_embedding_size pronunciation_embed_dim shape_embed_dim"
    " original_max_position_embeddings mamba_d_ssm router_hidden_size prompt_mid_dim ple_embed_dim",
    32: "kv_lora_rank o_lora_rank num_mel_bins classifier_proj_size index_block_size",
    24: "q_lora_rank qk_head_dim laurel_rank hc_lowrank",
    16: "head_dim qk_nope_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim index_head_dim"
    " mamba_d_head mamba_head_dim swa_head_dim dim_head d_head kv_channels attention_head_size"
    " attention_head_dim dim_model_base global_head_dim hidden_size_per_layer_input query_pre_attn_scalar"
    " rotary_dim mamba_headdim patch_size swa_v_head_dim index_topk v_head_dim index_n_heads",
    12: "rel_extent",
    9: "sliding_window window_size attention_window_size local_attention attention_chunk_size keep_window_size"
    " sliding_window_size local_attention_window_len swa_window_size",
    8: "qk_rope_head_dim state_size ssm_state_size mamba_d_state n_routed_experts num_experts num_local_experts"
    " moe_num_experts floor_scale log_scaling_n_floor adapter_rank gated_norm_rank loop_gate_rank"
    " time_step_rank mamba_dt_rank block_size chunk_size mamba_chunk_size mamba_n_heads mamba_num_heads"
    " n_mamba_heads",
    _HEADS: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"
    " attention_heads num_encoder_attention_heads num_decoder_attention_heads linear_num_heads"
    " linear_num_value_heads swa_num_attention_heads zero_expert_num compress_ratio",
    2: "linear_num_key_heads n_group topk_group num_expert_group num_experts_per_tok num_experts_per_token"
    " moe_topk moe_k n_groups mamba_n_groups mamba_ngroups index_topk_blocks heads_per_ngram"
    " num_global_key_value_heads o_groups attn_layer_period global_attn_every_n_layers layer_group_size"
    " sliding_window_pattern no_rope_layer_interval num_kv_heads swa_num_key_value_heads num_query_groups"
    " split_ngram_parts num_mem_blocks",
    1: "first_k_dense_replace attn_layer_offset num_dense_layers make_ngram_vocab_size_divisible_by"
    " num_layers_per_stack n_input_layers n_recurrent_layers n_output_layers n_layers_per_attn_res_block"
    " hc_sinkhorn_iters loop_layer_index_start num_kv_shared_layers",
}  # size -> settings that are set to it
_BY_SETTING = {setting: size for size, settings in _SIZES.items() for setting in settings.split()}
_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "num_blocks",
)
_LEFT_OUT = ("per_layer_config", "id2label", "label2id", "full_attn_idxs", "attention_layers", "transformers_version")

# Model type -> additional settings of its class; None omits a setting.
_SHARED = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "intermediate_size": 96,
}  # Gemma 3n, whose last layers read other layers' keys and values
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_QWEN4: dict[str, Any] = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_ZAMBA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "attention_hidden_size": 2 * _HIDDEN,
    "attention_head_dim": 32,
}
_OWN: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 9,
        "rope_parameters": dict.fromkeys(["sliding_attention", "full_attention"], _ROPE),
    },
    "dbrx": {
        "attn_config": {"clip_qkv": 0.5, "kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": _HIDDEN, "ffn_hidden_size": 80, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 3, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3},
    "dory": {"num_hidden_layers": 3, "layer_types": None},
    "gemma3n_text": {**_SHARED, "activation_sparsity_pattern": [0.9, 0.0, 0.5, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "kolibri1_1": {
        "num_hidden_layers": 5,
        "layer_types": ["sliding_attention", *["indexed_attention"] * 2, "sliding_attention", "indexed_attention"],
        "index_layers": [1, 4],
        "kv_source_layers": [0, 1, 1, 3, 4],
        "index_pool_size": 16,
        "index_compression": 4,
        "index_num_heads": 2,
        "index_num_local_tokens": 4,
        "index_num_sink_tokens": 2,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"time_step_min": 1e-30},  # which transformers applies to prompts, but not to single tokens
    "qwen4_exp_text": _QWEN4,
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": {**_ZAMBA, "hybrid_layer_ids": [1, 3]},
}


def tiny_config(kind: str) -> Any:
    """A configuration of a model type with about 64 channels and 2 layers of each kind."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    values = _scaled(made().to_dict())
    values |= _OWN.get(kind, {})
    config = made.from_dict({key: value for key, value in values.items() if value is not None})
    if hasattr(config, "is_decoder") and not getattr(config, "is_encoder_decoder", False):
        config.is_decoder = True
    return config


def _scaled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with small sizes; lists with an entry per layer cycle through their distinct entries."""
    counts = {values[key] for key in _COUNTS if isinstance(values.get(key), int)}
    lists = {key: _distinct(each) for key, each in values.items() if isinstance(each, list) and len(each) in counts}
    lists = {key: each for key, each in lists.items() if len(each) < min(counts)}  # others are layer counts
    layers = max([_LAYERS, *(len(each) for each in lists.values())])
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in _LEFT_OUT or (isinstance(value, list) and len(value) in counts and key not in lists):
            continue
        if key == "head_dim":
            value = value or _HIDDEN // _HEADS
            found[key] = min(value, 8 if values.get("qk_rope_head_dim") else 16)
            continue
        if key in lists:
            found[key] = [lists[key][index % len(lists[key])] for index in range(layers)]
        elif isinstance(value, dict):
            found[key] = _scaled(value)
        elif key.endswith("_token_id") and isinstance(value, list):
            found[key] = [min(each, VOCABULARY - 1) for each in value]
        elif isinstance(value, bool) or not isinstance(value, int):
            found[key] = value
        else:
            found[key] = _size(key, value, values, layers)
    return found


def _size(key: str, value: int, values: Mapping[str, Any], layers: int) -> int:
    if key in _COUNTS:
        return layers
    if key == "num_key_value_heads":
        heads = values.get("num_attention_heads")
        return _HEADS if value == heads else min(value, _HEADS // 2)
    if key.endswith("_token_id"):
        return min(value, VOCABULARY - 1)
    return min(value, _BY_SETTING.get(key, value))


def _distinct(values: list[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value not in values[:index]]
