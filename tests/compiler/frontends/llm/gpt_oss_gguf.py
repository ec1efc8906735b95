"""gpt-oss as written by llama.cpp's converter: separate gates and ups, experts in MXFP4."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray[Any, Any]
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.sinks": "attn_sinks",
    "mlp.router": "ffn_gate_inp",
}
_MXFP4 = gguf.GGMLQuantizationType.MXFP4


def write_gpt_oss_gguf(path: Path, folder: Path, config: Any) -> dict[str, Array]:
    """Write a GGUF file of a folder in float32; returns the experts' weights that it stores, as transformers has them.

    Args:
        config: transformers' configuration of the model.
    """
    writer = gguf.GGUFWriter(path, "gpt-oss")
    _describe(writer, config)
    stored = {}
    for name, values in load_file(folder / "model.safetensors").items():
        prefix, inner = "", name
        if name.startswith("model.layers."):
            layer, _, inner = name.removeprefix("model.layers.").partition(".")
            prefix = f"blk.{layer}."
        if not inner.startswith("mlp.experts."):
            end = ".bias" if inner.endswith(".bias") else ".weight"
            writer.add_tensor(prefix + _NAMES[inner.removesuffix(end)] + end, values)
            continue
        is_bias = inner.endswith("_bias")
        kept = values if is_bias else values.swapaxes(1, 2).copy()
        for role, part, place in _parts(inner, kept):
            if is_bias:
                writer.add_tensor(f"{prefix}ffn_{role}_exps.bias", part)
                continue
            blocks = gguf.quantize(part, _MXFP4)
            writer.add_tensor(f"{prefix}ffn_{role}_exps.weight", blocks, raw_dtype=_MXFP4)
            kept[:, place] = gguf.dequantize(blocks, _MXFP4)
        if not is_bias:
            stored[name] = kept.swapaxes(1, 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _parts(inner: str, values: Array) -> Iterator[tuple[str, Array, slice]]:
    """The products that a tensor (experts, rows, ...) holds, and their rows."""
    places = {"gate": slice(0, None, 2), "up": slice(1, None, 2)} if "gate_up" in inner else {"down": slice(None)}
    for role, place in places.items():
        yield role, np.ascontiguousarray(values[:, place]), place


def _describe(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
    writer.add_tokenizer_model("none")
