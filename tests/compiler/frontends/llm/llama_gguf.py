"""Llama and related models as written by llama.cpp's converter: its names and metadata, float32, no tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.compiler.frontends.llm.gguf_tensors import write_tensors

Array = np.ndarray[Any, Any]
# model type -> architecture
ARCHITECTURES = {
    "afmoe": "afmoe",
    "apertus": "apertus",
    "arcee": "arcee",
    "bitnet": "bitnet",
    "cohere2": "cohere2",
    "cohere2_moe": "cohere2moe",
    "dbrx": "dbrx",
    "ernie4_5": "ernie4_5",
    "ernie4_5_moe": "ernie4_5-moe",
    "exaone4": "exaone4",
    "exaone_moe": "exaone-moe",
    "glm4": "glm4",
    "glm4_moe": "bailingmoe2",  # which computes the same
    "granite_swa": "granite_swa",
    "hunyuan_v1_dense": "hunyuan-dense",
    "hunyuan_v1_moe": "hunyuan-moe",
    "hy_v3": "hy_v3",
    "laguna": "laguna",
    "jais2": "jais2",
    "mellum": "mellum",
    "minicpm3": "minicpm3",
    "minimax_m2": "minimax-m2",
    "ministral3": "mistral3",
    "nemotron": "nemotron",
    "olmo3": "olmo2",
    "seed_oss": "seed_oss",
}
_ADJACENT = (
    "arcee",
    "granite_swa",
    "mistral3",
)  # whose files have rotated pairs side by side, and the folders half a head apart
# metadata -> settings, of which the first that is there counts
_METADATA = {
    "context_length": "max_position_embeddings max_seq_len",
    "embedding_length": "hidden_size d_model",
    "block_count": "num_hidden_layers n_layers",
    "feed_forward_length": "intermediate_size ffn_hidden_size",
    "attention.head_count": "num_attention_heads_per_layer num_attention_heads n_heads",
    "attention.head_count_kv": "num_key_value_heads kv_n_heads",
    "attention.key_length": "qk_head_dim head_dim",
    "attention.value_length": "v_head_dim head_dim",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.sliding_window": "sliding_window",
    "attention.clamp_kqv": "clip_qkv",
    "expert_count": "num_experts num_local_experts n_routed_experts moe_num_experts",
    "expert_used_count": "num_experts_per_tok moe_topk moe_k moe_top_k",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts num_shared_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_scale": "routed_scaling_factor route_scale router_scaling_factor moe_routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "leading_dense_block_count": "first_k_dense_replace num_dense_layers moe_layer_start_index",
    "interleave_moe_layer_step": "moe_layer_interval",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps layer_norm_eps norm_eps",
    "logit_scale": "logit_scale logits_scaling",
    "residual_scale": "residual_multiplier",
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
    "rope.dimension_count": "qk_rope_head_dim",
}
_SIGMOID = ("afmoe", "bailingmoe2", "cohere2moe", "exaone-moe", "hy_v3", "laguna", "minimax-m2")
_FLOATS = ("epsilon", "scale", "clamp_kqv", "freq_base", "freq_base_swa")
_BIASES = ("e_score_correction_bias", "expert_bias")
_EXPERTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}


def write_llama_gguf(path: Path, folder: Path) -> Path:
    """Write the model of a folder."""
    config = json.loads((folder / "config.json").read_text())
    name = ARCHITECTURES[config["model_type"]]
    layers = config.get("num_hidden_layers") or config["n_layers"]
    writer = gguf.GGUFWriter(path, name)
    _describe(writer, name, {**config, **config.get("attn_config", {}), **config.get("ffn_config", {})})
    tensors = load_file(folder / "model.safetensors")
    if name == "apertus":  # whose numbers of xIELU are metadata
        for end in ("alpha_p", "alpha_n", "beta", "eps"):
            stored = [tensors.pop(f"model.layers.{layer}.mlp.act_fn.{end}") for layer in range(layers)]
            writer.add_array(f"xielu.{end}", [float(each.item()) for each in stored])
    write_tensors(writer, name, layers, _converted(tensors, name, config))
    return path


def _describe(writer: gguf.GGUFWriter, name: str, config: dict[str, Any]) -> None:
    """Metadata in the table, and metadata derived from several settings."""
    values = {
        key: next((config[each] for each in settings.split() if config.get(each) is not None), None)
        for key, settings in _METADATA.items()
    }
    rope = config.get("rope_parameters") or {}
    values["rope.freq_base_swa"] = rope.get("sliding_attention", {}).get("rope_theta")
    rope = rope.get("full_attention", rope)
    values["rope.freq_base"] = rope.get("rope_theta", config.get("rope_theta"))
    if config.get("layer_rope_theta"):
        values["rope.freq_base"] = max(config["layer_rope_theta"])
        writer.add_array(f"{name}.attention.rope_pattern", [base > 0 for base in config["layer_rope_theta"]])
    if rope.get("alpha"):
        size = config["head_dim"]
        values["rope.freq_base"] *= rope["alpha"] ** (size / (size - 2))
    if name in ("cohere2moe", "laguna"):
        values["leading_dense_block_count"] = 1
    if name == "cohere2moe":
        values["expert_feed_forward_length"] = values["feed_forward_length"]
        values["feed_forward_length"] = config["prefix_dense_intermediate_size"]
    if name == "laguna":
        values["rope.dimension_count_swa"] = config["head_dim"]
    if "partial_rotary_factor" in rope:
        values["rope.dimension_count"] = int(config["head_dim"] * rope["partial_rotary_factor"])
    if name in ("hunyuan-moe", "minimax-m2", "dbrx"):
        values["expert_feed_forward_length"] = values["feed_forward_length"]
    shared = {"ernie4_5-moe": "moe_num_shared_experts", "hy_v3": "num_shared_experts"}.get(name)
    if shared is not None:
        values["expert_shared_feed_forward_length"] = config[shared] * config["moe_intermediate_size"]
    if name == "hunyuan-moe":
        values["expert_shared_feed_forward_length"] = values["feed_forward_length"]
    if name in _SIGMOID:
        values["expert_gating_func"] = 2
        values["expert_weights_norm"] = config.get("norm_topk_prob", config.get("route_norm", True))
    for key, value in values.items():
        if value is None:
            continue
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add = writer.add_float32 if key.endswith(_FLOATS) else add
        add = writer.add_array if isinstance(value, list) else add
        add(f"{name}.{key}", value)
    if "layer_types" in config and config.get("sliding_window"):
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "llama_4_scaling_beta" in rope:
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _converted(tensors: dict[str, Array], name: str, config: dict[str, Any]) -> dict[str, Array]:
    """The tensors with the converter's rows, names and stacks."""
    found: dict[str, Array] = {}
    stacks: dict[str, dict[int, Array]] = {}
    for key, values in tensors.items():
        parts = key.split(".")
        prefix = f"blk.{next((part for part in parts if part.isdigit()), '')}."
        if parts[-1] in _BIASES:
            found[f"{prefix}exp_probs_b{'' if name == 'hy_v3' else '.bias'}"] = values.reshape(-1)
        elif ".experts.mlp." in key:  # of DBRX
            stack = values.reshape(config["ffn_config"]["moe_num_experts"], -1, values.shape[-1])
            role = {"w1": "gate", "v1": "up", "w2": "down"}[parts[-1]]
            found[f"{prefix}ffn_{role}_exps.weight"] = stack.swapaxes(1, 2) if role == "down" else stack
        elif ".experts." in key:
            stacks.setdefault(f"{prefix}ffn_{_EXPERTS[parts[-2]]}_exps.weight", {})[int(parts[-3])] = values
        elif name in _ADJACENT and parts[-2] in ("q_proj", "k_proj"):
            found[key] = (
                values.reshape(-1, 2, config["head_dim"] // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
            )
        elif key.endswith("g_proj.weight"):
            found[f"{prefix}attn_gate.weight"] = values
        elif key.endswith(".sinks"):
            found[f"{prefix}attn_sinks.weight"] = values
        elif "sub_norm" in key:  # which the name map has by older names
            found[f"{prefix}{parts[-2]}.weight"] = values
        elif name == "nemotron" and key.endswith("norm.weight"):
            found[key] = values + 1
        else:
            found[key] = values
    found |= {key: np.stack([each[at] for at in sorted(each)]) for key, each in stacks.items()}
    return _fused(found) if name == "bailingmoe2" else found


def _fused(tensors: dict[str, Array]) -> dict[str, Array]:
    """Queries, keys and values of each layer in one tensor."""
    found = {
        key: values
        for key, values in tensors.items()
        if not key.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
    }
    for key, values in tensors.items():
        if key.endswith("q_proj.weight"):
            others = [tensors[key.replace("q_proj", each)] for each in ("k_proj", "v_proj")]
            found[f"blk.{key.split('.')[2]}.attn_qkv.weight"] = np.concatenate([values, *others])
    return found
