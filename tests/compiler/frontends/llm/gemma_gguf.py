"""Gemma 3n and 4 as llama.cpp's converter writes them."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, TypeAlias

import gguf
import numpy as np

Config: TypeAlias = "dict[str, Any]"
Tensors: TypeAlias = "dict[str, np.ndarray[Any, Any]]"


def describe_gemma3n(writer: gguf.GGUFWriter, config: Config) -> None:
    """The metadata of Gemma 3n."""
    _describe(writer, config)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_altup_active_idx(config["altup_active_idx"])
    writer.add_altup_num_inputs(config["altup_num_inputs"])
    parts = config["activation_sparsity_pattern"]
    writer.add_activation_sparsity_scale([NormalDist().inv_cdf(part) if part else -np.inf for part in parts])


def describe_gemma4(writer: gguf.GGUFWriter, config: Config) -> None:
    """The metadata of Gemma 4, with the frequencies of layers that see everything."""
    _describe(writer, config)
    layers = range(config["num_hidden_layers"])
    own = [config["per_layer_config"].get(str(index), {}) for index in layers]
    writer.add_head_count_kv([each.get("num_key_value_heads", config["num_key_value_heads"]) for each in own])
    first, width = len(layers) - config["num_kv_shared_layers"], config["intermediate_size"]
    wide = config["use_double_wide_mlp"]
    writer.add_feed_forward_length([width * 2 if wide and index >= first else width for index in layers])
    size = max(each.get("head_dim", 0) for each in own)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(size)
    for add in (writer.add_key_length_swa, writer.add_value_length_swa, writer.add_rope_dimension_count_swa):
        add(config["head_dim"])
    if config["enable_moe_block"]:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["top_k_experts"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    turned = int(size * config["rope_parameters"]["full_attention"]["partial_rotary_factor"] / 2)
    divisors = np.asarray([1.0] * turned + [1e30] * (size // 2 - turned), np.float32)
    writer.add_tensor("rope_freqs.weight", divisors)


def _describe(writer: gguf.GGUFWriter, config: Config) -> None:
    ropes = config["rope_parameters"]
    writer.add_rope_freq_base(ropes["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def gemma_tensors(tensors: Tensors, config: Config) -> Tensors:
    """Products between streams in stacks, the table of the layers' inputs as long as the vocabulary."""
    found: Tensors = {}
    stacks: dict[str, list[np.ndarray[Any, Any]]] = {}
    for name, values in sorted(tensors.items()):
        prefix = f"blk.{name.split('.')[2]}." if "layers." in name else ""
        if name.endswith("router.scale"):
            found[f"{prefix}ffn_gate_inp.scale"] = values
        elif name.endswith("per_expert_scale"):
            found[f"{prefix}ffn_down_exps.scale"] = values
        elif "altup_projections." in name or "altup_unembed_projections." in name:
            stacks.setdefault(name.rsplit(".", 2)[0], []).append(values)
        elif "embed_tokens_per_layer" in name:
            found[name] = np.pad(values, ((0, config["vocab_size"] - len(values)), (0, 0)))
        else:
            bare = name.endswith(("layer_scalar", "correct_output_scale")) or ".experts." in name
            found[f"{name}.weight" if bare else name] = values
    return {**found, **{f"{name}.weight": np.stack(parts) for name, parts in stacks.items()}}
