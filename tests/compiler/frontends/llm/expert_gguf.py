"""A mixture of experts as written by llama.cpp's converter: stacked experts, quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.compiler.generation.models import SPECIAL, TEMPLATE, byte_tokens, interleaved

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_EXPERTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
_VOCABULARY = 260


def write_expert_gguf(path: Path, folder: Path, architecture: str, kind: str) -> dict[str, np.ndarray[Any, Any]]:
    """Write a GGUF file; return its stored values, by transformers' names."""
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == _VOCABULARY
    writer = gguf.GGUFWriter(path, architecture)
    _describe(writer, config)
    stored: dict[str, np.ndarray[Any, Any]] = {}
    stacks: dict[str, list[np.ndarray[Any, Any]]] = {}
    for name, values in sorted(load_file(folder / "model.safetensors").items(), key=lambda each: _order(each[0])):
        prefix, inner = _split(name)
        quantizes = values.ndim == 2 and _NAMES.get(inner, "").startswith(("ffn_gate_inp", "output_norm")) is False
        block = gguf.GGMLQuantizationType[kind] if quantizes else gguf.GGMLQuantizationType.F32
        stored[name] = gguf.dequantize(gguf.quantize(values, block), block) if quantizes else values
        if ".experts." in inner:
            expert = _EXPERTS[inner.rpartition(".")[2]]
            stacks.setdefault(f"{prefix}ffn_{expert}_exps", []).append(values)
            continue
        if architecture == "llama" and inner.endswith(("q_proj", "k_proj")) and values.ndim == 2:
            values = interleaved(values)
        if inner == "mlp.shared_expert_gate":
            values = values[0]
        end = ".bias" if name.endswith(".bias") else ".weight"
        _add(writer, f"{prefix}{_NAMES[inner]}{end}", values, block)
    for name, parts in stacks.items():
        _add(writer, f"{name}.weight", np.stack(parts), gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    newlines = byte_tokens()[10] * 2
    writer.add_token_list([*byte_tokens(), *SPECIAL[:3], newlines])
    writer.add_token_types([1] * 256 + [3] * 3 + [1])
    writer.add_token_merges([" ".join(newlines)])
    writer.add_eos_token_id(256)
    writer.add_chat_template(TEMPLATE)


def _split(name: str) -> tuple[str, str]:
    """The prefix in GGUF, and the name below it in transformers."""
    inner = name.removesuffix(".weight").removesuffix(".bias")
    if not inner.startswith("model.layers."):
        return "", inner
    layer, _, inner = inner.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.", inner


def _order(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in name.split(".")]


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray[Any, Any], kind: Any) -> None:
    if kind is gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, np.ascontiguousarray(values))
        return
    writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
