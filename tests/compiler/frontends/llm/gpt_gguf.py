"""GPT-2 and related models as written by llama.cpp's converter: its names, and separate queries, keys and values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

_NEOX_MLP = {"mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down"}
_GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.final_layernorm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.dense": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_WORD_EMBEDDINGS = {
    "transformer.word_embeddings": "token_embd",
    "transformer.ln_f": "output_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    **_NEOX_MLP,
}
# of GGUF -> names of transformers and of GGUF
NAMES: dict[str, dict[str, str]] = {
    "gpt2": _GPT2,
    "starcoder": _GPT2,
    "starcoder2": _LLAMA,
    "phi2": _LLAMA,
    "stablelm": _LLAMA,
    "gptneox": {
        "gpt_neox.embed_in": "token_embd",
        "gpt_neox.final_layer_norm": "output_norm",
        "embed_out": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        **_NEOX_MLP,
    },
    "falcon": {**_WORD_EMBEDDINGS, "input_layernorm": "attn_norm", "ln_mlp": "attn_norm", "ln_attn": "attn_norm_2"},
    "bloom": {
        **_WORD_EMBEDDINGS,
        "transformer.word_embeddings_layernorm": "token_embd_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    },
    "mpt": {
        "transformer.wte": "token_embd",
        "transformer.norm_f": "output_norm",
        "norm_1": "attn_norm",
        "norm_2": "ffn_norm",
        "attn.Wqkv": "attn_qkv",
        "attn.out_proj": "attn_output",
        "ffn.up_proj": "ffn_up",
        "ffn.down_proj": "ffn_down",
    },
}
_HEAD = "lm_head"


def write_gpt_gguf(path: Path, folder: Path, architecture: str, sizes: dict[str, Any]) -> Path:
    """Write a GGUF file in float32.

    Args:
        sizes: sizes of the model: heads, key_heads, head_size, hidden, intermediate, layers, context, epsilon, and
            optionally rotary, alibi, parallel.
    """
    writer = gguf.GGUFWriter(path, architecture)
    _describe(writer, architecture, sizes)
    for name, values in load_file(folder / "model.safetensors").items():
        prefix, inner = _split(name)
        end = ".bias" if name.endswith(".bias") else ".weight"
        known = "output" if inner == _HEAD else NAMES[architecture].get(inner)
        if known is None:
            raise KeyError(name)
        if architecture == "gpt2" and values.ndim == 2 and prefix:
            values = values.T
        if known == "attn_qkv" and architecture in ("gptneox", "falcon", "bloom"):
            values = _three_parts(values, sizes)
        writer.add_tensor(f"{prefix}{known}{end}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: gguf.GGUFWriter, architecture: str, sizes: dict[str, Any]) -> None:
    writer.add_context_length(sizes["context"])
    writer.add_embedding_length(sizes["hidden"])
    writer.add_block_count(sizes["layers"])
    writer.add_feed_forward_length(sizes["intermediate"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["key_heads"])
    writer.add_layer_norm_eps(sizes["epsilon"])
    if sizes.get("rotary"):
        writer.add_rope_dimension_count(sizes["rotary"])
    if sizes.get("alibi"):
        writer.add_max_alibi_bias(sizes["alibi"])
    if architecture == "gptneox":
        writer.add_parallel_residual(sizes["parallel"])
    writer.add_tokenizer_model("none")


def _split(name: str) -> tuple[str, str]:
    """The prefix in GGUF, and the name below it in transformers."""
    inner = name.removesuffix(".weight").removesuffix(".bias")
    for start in ("transformer.h.", "transformer.blocks.", "gpt_neox.layers.", "model.layers."):
        if inner.startswith(start):
            layer, _, inner = inner.removeprefix(start).partition(".")
            return f"blk.{layer}.", inner
    return "", inner


def _three_parts(values: np.ndarray[Any, Any], sizes: dict[str, Any]) -> np.ndarray[Any, Any]:
    """All queries, then all keys, then all values; transformers groups them by key head."""
    size, shared = sizes["head_size"], sizes["key_heads"]
    group = sizes["heads"] // shared
    parts = values.reshape(shared, group + 2, size, *values.shape[1:])
    order = [parts[:, :group], parts[:, group : group + 1], parts[:, group + 1 :]]
    return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in order])


def sizes_of(folder: Path) -> dict[str, Any]:
    """The metadata that a converter reads from config.json."""
    config = json.loads((folder / "config.json").read_text())

    def first(*names: str) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), None)

    hidden, heads = first("n_embd", "hidden_size", "d_model"), first("n_head", "num_attention_heads", "n_heads")
    shared = first("num_kv_heads", "num_key_value_heads")
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        shared = 1
    part = first("partial_rotary_factor") or (config.get("rope_parameters") or {}).get("partial_rotary_factor") or 1
    size = hidden // heads
    return {
        "hidden": hidden,
        "heads": heads,
        "key_heads": heads if shared is None or config.get("multi_query") is False else shared,
        "head_size": size,
        "intermediate": first("n_inner", "ffn_hidden_size", "intermediate_size") or 4 * hidden,
        "layers": first("n_layer", "num_hidden_layers", "n_layers"),
        "context": first("n_positions", "max_position_embeddings", "max_seq_len") or 2048,
        "epsilon": first("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon") or 1e-5,
        "rotary": int(size * part),
        "alibi": 8.0,
        "parallel": config.get("use_parallel_residual", True),
    }
