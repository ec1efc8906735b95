"""Small random models of the decoder families in transformers' format, and transformers' results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 160,
    "max_position_embeddings": 2048,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
_PLAIN = {"rope_type": "default", "rope_theta": 1e4}
_GROWING = {**_PLAIN, "llama_4_scaling_beta": 0.25, "original_max_position_embeddings": 8}
_STRETCHED = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0, "alpha": 100.0}
_SHORT, _LONG = [1.0 + 0.1 * i for i in range(6)], [2.0 + 0.3 * i for i in range(6)]
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": _SHORT,
    "long_factor": _LONG,
    "original_max_position_embeddings": 300,
    "partial_rotary_factor": 0.75,
}
_OLMO3 = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e6}}
_ALTERNATE = ["sliding_attention", "full_attention"]

_SHARED_KEYS: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": 2 * _ALTERNATE,
    "sliding_window": 9,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 12,
    "vocab_size_per_layer_input": 160,
    "final_logit_softcapping": 3.0,
    "pad_token_id": 0,
}  # of Gemma 3n and 4, whose last layers read the keys and values of others
_BARE: dict[str, Any] = {
    "head_dim": None,
    "num_key_value_heads": None,
    "intermediate_size": None,
}  # of models that have no such settings
_GPT2 = {**_BARE, "n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 640}

_HYBRID: dict[str, Any] = {
    "head_dim": None,
    "mamba_n_heads": 6,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_expand": 2,
}
_DEEPSEEK: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "routed_scaling_factor": 1.5,
    "n_group": 1,
    "topk_group": 1,
}
_MIXED: dict[str, Any] = {"moe_intermediate_size": 40, "num_experts_per_tok": 3, "num_shared_experts": 2}
_LATENT: dict[str, Any] = {
    "head_dim": None,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 8,
}

# name -> (class of transformers, what differs from the common sizes; None leaves one of those out)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}}),
    "llama-dynamic": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            "max_position_embeddings": 200,
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 9}),
    "qwen2": ("Qwen2", {"rope_parameters": YARN, "use_sliding_window": True, "sliding_window": 20}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "pad_token_id": 0}),
    "phi3": ("Phi3", {"hidden_size": 64, "rope_parameters": _LONGROPE, "sliding_window": 40, "pad_token_id": 0}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.1,
            "attention_bias": True,
        },
    ),
    "gemma": ("Gemma", {}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": 9,
            "layer_types": _ALTERNATE,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3": ("Gemma3Text", {"sliding_window": 9, "layer_types": _ALTERNATE, "query_pre_attn_scalar": 24}),
    "gemma3n_text": (
        "Gemma3nText",
        {
            **_SHARED_KEYS,
            "intermediate_size": [80, 64, 64, 64],
            "activation_sparsity_pattern": [0.9, 0.0, 0.5, 0.0],
            "laurel_rank": 8,
            "altup_num_inputs": 3,
            "vocab_size_per_layer_input": 150,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gemma4_text": ("Gemma4Text", {**_SHARED_KEYS, "global_head_dim": 24, "use_double_wide_mlp": True}),
    "gemma4_text-mixture": (
        "Gemma4Text",
        {
            **_SHARED_KEYS,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 24,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "sliding_window": 30}),
    "phimoe": (
        "Phimoe",
        {
            "num_local_experts": 6,
            "head_dim": 12,
            "attention_bias": True,
            "lm_head_bias": True,
            "router_jitter_noise": 0.3,
            "sliding_window": 40,
            "pad_token_id": 0,
        },
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 56,
            "mlp_only_layers": [0],
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "olmoe": (
        "Olmoe",
        {"num_experts": 6, "num_experts_per_tok": 4, "clip_qkv": 0.5, "head_dim": 12, "pad_token_id": 1},
    ),
    "granitemoe": (
        "GraniteMoe",
        {"num_local_experts": 5, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1},
    ),
    "granitemoeshared": ("GraniteMoeShared", {"num_local_experts": 5, "shared_intermediate_size": 72, "head_dim": 12}),
    "gpt2": ("GPT2", _GPT2),
    "gpt_bigcode": ("GPTBigCode", _GPT2),
    "gpt_bigcode-heads": ("GPTBigCode", {**_GPT2, "multi_query": False}),
    "gpt_neo": (
        "GPTNeo",
        {**_BARE, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4, "window_size": 9},
    ),
    "gptj": ("GPTJ", {**_GPT2, "n_head": 3, "rotary_dim": 8}),
    "gpt_neox": ("GPTNeoX", {**_BARE, "intermediate_size": 80, "hidden_size": 64}),
    "gpt_neox-sequential": (
        "GPTNeoX",
        {**_BARE, "intermediate_size": 80, "hidden_size": 64, "use_parallel_residual": False, "attention_bias": False},
    ),
    "starcoder2": ("Starcoder2", {"sliding_window": 50, "head_dim": 12}),
    "falcon": ("Falcon", {**_BARE, "num_kv_heads": 2, "new_decoder_architecture": True, "ffn_hidden_size": 100}),
    "falcon-7b": ("Falcon", {**_BARE, "multi_query": True, "bias": True}),
    "falcon-sequential": ("Falcon", {**_BARE, "multi_query": False, "parallel_attn": False, "bias": True}),
    "mpt": ("Mpt", {**_BARE, "d_model": 48, "n_heads": 6, "n_layers": 2}),
    "bloom": ("Bloom", {**_BARE, "n_head": 6, "n_layer": 2}),
    "opt": ("OPT", {**_BARE, "ffn_dim": 96, "word_embed_proj_dim": 48}),
    "phi": ("Phi", {"hidden_size": 64, "num_key_value_heads": 4}),
    "stablelm": ("StableLm", {"hidden_size": 64, "use_qkv_bias": True}),
    "cohere": ("Cohere", {"head_dim": 12, "pad_token_id": 0}),
    "mamba": ("Mamba", {**_BARE, "state_size": 12, "num_attention_heads": None}),
    "mamba2": (
        "Mamba2",
        {**_BARE, "state_size": 8, "num_heads": 6, "head_dim": 16, "n_groups": 2, "num_attention_heads": None},
    ),
    "falcon_mamba": (
        "FalconMamba",
        {**_BARE, "state_size": 12, "num_attention_heads": None, "expand": 16, "intermediate_size": 80},
    ),
    "lfm2": ("Lfm2", {"head_dim": None, "layer_types": ["conv", "full_attention"], "norm_eps": 1e-5}),
    "lfm3": (
        "Lfm3",
        {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "sliding_attention"],
            "sliding_window": 9,
            "norm_eps": 1e-5,
            "pad_token_id": 0,
        },
    ),
    "lfm2_moe": (
        "Lfm2Moe",
        {
            "head_dim": None,
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "num_dense_layers": 1,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "routed_scaling_factor": 1.5,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2",
        {**_LATENT, **_DEEPSEEK, "n_group": 3, "topk_group": 2, "topk_method": "group_limited_greedy"},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_LATENT,
            **_DEEPSEEK,
            "n_group": 3,
            "topk_group": 2,
            "rope_parameters": {**YARN, "mscale": 0.8, "mscale_all_dim": 1.3},
        },
    ),
    "mistral4": (
        "Mistral4",
        {
            **_LATENT,
            **_DEEPSEEK,
            "q_lora_rank": 36,
            "rope_parameters": {
                **YARN,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 8,
                "llama_4_scaling_beta": 0.25,
            },
        },
    ),
    "glm4_moe_lite": ("Glm4MoeLite", {**_LATENT, **_DEEPSEEK, "first_k_dense_replace": None, "q_lora_rank": 36}),
    "youtu": ("Youtu", {**_LATENT, "q_lora_rank": 36}),
    "glm4_moe": ("Glm4Moe", {**_DEEPSEEK, "use_qk_norm": True, "attention_bias": True}),
    "dots1": ("Dots1", _DEEPSEEK),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **_HYBRID,
            "layer_types": ["linear_attention", "full_attention"],
            "shared_intermediate_size": 72,
            "num_local_experts": 4,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.1,
            "logits_scaling": 4.0,
        },
    ),
    "granitemoehybrid-dense": (
        "GraniteMoeHybrid",
        {
            **_HYBRID,
            "layer_types": ["full_attention", "linear_attention"],
            "shared_intermediate_size": 72,
            "num_local_experts": 0,
            "position_embedding_type": "rope",
        },
    ),
    "falcon_h1": (
        "FalconH1",
        {
            **_HYBRID,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "mlp_multipliers": [0.7, 1.3],
            "key_multiplier": 0.8,
            "attention_out_multiplier": 0.9,
            "attention_in_multiplier": 1.1,
            "ssm_multipliers": [0.5, 1.5, 0.8, 1.2, 0.9],
            "ssm_in_multiplier": 1.4,
            "ssm_out_multiplier": 0.6,
        },
    ),
    "falcon_h1-norm": (
        "FalconH1",
        {**_HYBRID, "mamba_d_ssm": 96, "mamba_rms_norm": True, "mamba_norm_before_gate": False},
    ),
    "bamba": ("Bamba", {**_HYBRID, "attn_layer_indices": [1]}),
    "jamba": (
        "Jamba",
        {
            "head_dim": None,
            "num_hidden_layers": 3,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
        },
    ),
    "nemotron_h": (
        "NemotronH",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
            "mamba_num_heads": 6,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "ssm_state_size": 8,
        },
    ),
    "nemotron_h-mixture": (
        "NemotronH",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "mamba_num_heads": 6,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "ssm_state_size": 8,
            "n_routed_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "moe_shared_expert_intermediate_size": 56,
            "moe_latent_size": 32,
            "routed_scaling_factor": 1.5,
        },
    ),
    "qwen3_next": (
        "Qwen3Next",
        {
            **_DELTA,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 56,
        },
    ),
    "qwen3_5_text": ("Qwen3_5Text", _DELTA),
    "qwen3_5_moe_text": (
        "Qwen3_5MoeText",
        {
            **_DELTA,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 56,
        },
    ),
    "zamba2": (
        "Zamba2",
        {
            **_BARE,
            "intermediate_size": 80,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "hybrid", "hybrid"],
            "num_mem_blocks": 2,
            "use_shared_attention_adapter": True,
            "adapter_rank": 5,
            "use_mem_rope": True,
            "n_mamba_heads": 6,
            "mamba_ngroups": 2,
            "mamba_d_state": 8,
            "pad_token_id": None,
        },
    ),
    "xlstm": (
        "xLSTM",
        {
            "hidden_size": 128,
            "num_heads": 4,
            "ffn_round_up_to_multiple_of": 8,
            "num_attention_heads": None,
            "head_dim": None,
            "num_key_value_heads": None,
            "intermediate_size": None,
            "max_position_embeddings": None,
            "autocast_kernel_dtype": "float32",
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        {"head_dim": None, "num_hidden_layers": 3, "attention_window_size": 9, "max_position_embeddings": None},
    ),
    "minimax": (
        "MiniMax",
        {
            "num_local_experts": 4,
            "block_size": 8,
            "full_attn_alpha_factor": 1.3,
            "linear_attn_beta_factor": 0.8,
            "mlp_alpha_factor": 0.7,
        },
    ),
    "olmo_hybrid": ("OlmoHybrid", {**_DELTA, "pad_token_id": 0, "head_dim": None, "hidden_size": 64}),
    "kimi_linear": (
        "KimiLinear",
        {
            **_LATENT,
            **_DEEPSEEK,
            "pad_token_id": 0,
            "first_k_dense_replace": None,
            "n_routed_experts": None,
            "num_local_experts": 6,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_heads": 3,
            "linear_head_dim": 12,
        },
    ),
    "llama4_text": (
        "Llama4Text",
        {
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 72,
            "attention_chunk_size": 9,
            "floor_scale": 8,
            "pad_token_id": 0,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 4,
            "intermediate_size": 64,
            "hidden_size": 64,
            "sliding_window": 9,
            "swiglu_limit": 0.7,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    "apertus": ("Apertus", {"rope_parameters": _LLAMA3}),
    "glm": ("Glm", {"head_dim": 12, "pad_token_id": 0}),
    "glm4": ("Glm4", {"pad_token_id": 0}),
    "cohere2": ("Cohere2", {"head_dim": 12, "pad_token_id": 0, "sliding_window": 9, "layer_types": _ALTERNATE}),
    "exaone4": ("Exaone4", {"sliding_window": 9, "layer_types": _ALTERNATE}),
    "nemotron": ("Nemotron", {"attention_bias": True, "mlp_bias": True}),
    "jais2": ("Jais2", {}),
    "arcee": ("Arcee", {}),
    "helium": ("Helium", {"head_dim": 12, "pad_token_id": 0}),
    "seed_oss": ("SeedOss", {"attention_bias": True}),
    "cwm": ("Cwm", {"rope_parameters": _LLAMA3, "sliding_window": 9, "layer_types": _ALTERNATE}),
    "ministral3": ("Ministral3", {"rope_parameters": _GROWING, "sliding_window": None}),
    "granite_swa": ("GraniteSWA", {"sliding_window": 9, "layer_rope_theta": [0, 500.0], "attention_multiplier": 0.1}),
    "granitemoe_swa": ("GraniteMoeSWA", {"sliding_window": 9, "num_local_experts": 5, "shared_intermediate_size": 72}),
    "vaultgemma": ("VaultGemma", {"sliding_window": 9, "layer_types": _ALTERNATE, "query_pre_attn_scalar": 24}),
    "bitnet": ("BitNet", {"head_dim": 12}),
    "ernie4_5": ("Ernie4_5", {}),
    "ernie4_5_moe": ("Ernie4_5_Moe", {"head_dim": 12, "moe_num_experts": 6, "moe_k": 3, "moe_intermediate_size": 40}),
    "hunyuan_v1_dense": ("HunYuanDenseV1", {"rope_parameters": _STRETCHED, "pad_token_id": 0}),
    "hunyuan_v1_moe": ("HunYuanMoEV1", {"num_experts": 6, "moe_topk": 2, "pad_token_id": 0}),
    "exaone_moe": (
        "ExaoneMoe",
        {**_MIXED, "num_experts": 6, "sliding_window": 9, "layer_types": _ALTERNATE, "n_group": 3, "topk_group": 2},
    ),
    "afmoe": (
        "Afmoe",
        {
            **_MIXED,
            "num_experts": 6,
            "mup_enabled": True,
            "route_scale": 1.5,
            "sliding_window": 9,
            "layer_types": _ALTERNATE,
        },
    ),
    "minimax_m2": (
        "MiniMaxM2",
        {"num_local_experts": 6, "num_experts_per_tok": 3, "rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.5}},
    ),
    "cohere2_moe": (
        "Cohere2Moe",
        {
            "head_dim": 12,
            "pad_token_id": 0,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "num_shared_experts": 2,
            "expert_selection_fn": "sigmoid",
            "first_k_dense_replace": 1,
            "prefix_dense_intermediate_size": 72,
            "sliding_window": 9,
            "rms_norm_eps": None,
        },
    ),
    "laguna": (
        "Laguna",
        {
            "head_dim": 12,
            "num_attention_heads_per_layer": [4, 6],
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 9,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 56,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_routed_scaling_factor": 1.5,
        },
    ),
    "solar_open": ("SolarOpen", {**_DEEPSEEK, "first_k_dense_replace": None}),
    "hy_v3": ("HYV3", {**_MIXED, "num_experts": 6, "router_scaling_factor": 1.5}),
    "flex_olmo": ("FlexOlmo", {"head_dim": 12, "num_experts": 6, "num_experts_per_tok": 3, "pad_token_id": 0}),
    "mellum": ("Mellum", {**_MIXED, "num_experts": 6, "sliding_window": 9, "layer_types": _ALTERNATE}),
    "minicpm3": ("MiniCPM3", {**_LATENT, "q_lora_rank": 36, "dim_model_base": 24}),
    "olmo": ("Olmo", {"clip_qkv": 0.05, "head_dim": 12}),
    "olmo2": ("Olmo2", {"head_dim": 12}),
    "olmo3": ("Olmo3", {"rope_parameters": _OLMO3, "sliding_window": 9, "layer_types": _ALTERNATE, "head_dim": 12}),
}

# Those that transformers' own code is captured for.
CAPTURED: dict[str, tuple[str, dict[str, Any]]] = {
    "dbrx": (
        "Dbrx",
        {
            **_BARE,
            "d_model": 48,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 2048,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 1e4},
            "ffn_config": {"hidden_size": 48, "ffn_hidden_size": 40, "moe_num_experts": 5, "moe_top_k": 2},
        },
    ),
    "persimmon": ("Persimmon", {"num_key_value_heads": None, "head_dim": 12}),
    "codegen": ("CodeGen", {**_GPT2, "rotary_dim": 8}),
}


def save_model(name: str, folder: Path, **changes: Any) -> Any:
    """Write a random model of a family to a folder; return the torch module, in float32 and evaluation mode."""
    import torch
    import transformers

    kind, differs = {**CAPTURED, **FAMILIES}[name]
    settings: Mapping[str, Any] = {**_SIZES, "eos_token_id": 0, **differs, **changes}
    torch.manual_seed(len(name))
    config = getattr(transformers, f"{kind}Config")(
        **{key: value for key, value in settings.items() if value is not None}
    )
    build = getattr(transformers, f"{kind}ForCausalLM", transformers.AutoModelForCausalLM.from_config)
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Large enough that every part counts, norms and biases included.
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("expert_bias", "e_score_correction_bias", "layer_scalar")):
                buffer.add_(0.3 * torch.randn_like(buffer))
    model.save_pretrained(folder)
    return model


_CACHES = ("cache", "past_key_values", "cache_params")
# Whose tokens with a cache differ from those without one, or which return none, in transformers 5.24.
_UNCACHED = ("bamba", "recurrent_gemma", "zamba2")


def greedy(model: Any, prompt: np.ndarray[Any, Any], steps: int) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Return the logits of each step, float32 (steps, vocabulary), and transformers' tokens."""
    import torch

    rows, tokens = [], []
    with torch.no_grad():
        found = model(torch.from_numpy(prompt)[None], use_cache=True)
        for _ in range(steps):
            row = found.logits[0, -1]
            rows.append(row.numpy())
            tokens.append(int(row.argmax()))
            if len(tokens) == steps:
                break
            if model.config.model_type in _UNCACHED:
                found = model(torch.tensor([[*prompt, *tokens]]), use_cache=False)
            else:
                name = next(each for each in _CACHES if found.get(each) is not None)
                found = model(torch.tensor([[tokens[-1]]]), use_cache=True, **{name: found[name]})
    return np.stack(rows), tokens
