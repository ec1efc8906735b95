"""A small random language model with a tokenizer of bytes, as a folder and as a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}<|assistant|>"
)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "vocab_size": 260,
    "rms_norm_eps": 1e-5,
}
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_tokens() -> list[str]:
    """Characters of byte-level BPE for each byte, in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [shown[byte] for byte in range(256)]


def weights(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights by the names of transformers, float32."""
    random = np.random.default_rng(seed)
    hidden, inner, size = SIZES["hidden_size"], SIZES["intermediate_size"], 16
    keys = size * SIZES["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (SIZES["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "model.layers.0.input_layernorm.weight": (hidden,),
        "model.layers.0.post_attention_layernorm.weight": (hidden,),
        "model.layers.0.self_attn.q_proj.weight": (hidden, hidden),
        "model.layers.0.self_attn.k_proj.weight": (keys, hidden),
        "model.layers.0.self_attn.v_proj.weight": (keys, hidden),
        "model.layers.0.self_attn.o_proj.weight": (hidden, hidden),
        "model.layers.0.mlp.gate_proj.weight": (inner, hidden),
        "model.layers.0.mlp.up_proj.weight": (inner, hidden),
        "model.layers.0.mlp.down_proj.weight": (hidden, inner),
    }
    return {name: random.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}


def write_folder(folder: Path, **changes: Any) -> Path:
    """Write the model as transformers does."""
    from safetensors.numpy import save_file

    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    config = {**kind, "eos_token_id": 256, **SIZES, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer(SPECIAL)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    save_file(weights(), folder / "model.safetensors")
    return folder


def byte_tokenizer(special: Sequence[str]) -> dict[str, Any]:
    """A tokenizer of bytes, with special tokens from 256 on."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 256 + i, "content": text, **flags} for i, text in enumerate(special)],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {text: i for i, text in enumerate(byte_tokens())}, "merges": []},
    }


def write_gguf(path: Path, kind: str, **options: Any) -> Path:
    """Write the model as llama.cpp's converter does: weights quantized to `kind`, keys and queries interleaved."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_block_count(1)
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    newlines = byte_tokens()[10] * 2
    writer.add_token_list([*byte_tokens(), *SPECIAL[:3], newlines])
    writer.add_token_types([1] * 256 + [3] * 3 + [1])
    writer.add_token_merges([" ".join(newlines)])
    writer.add_eos_token_id(256)
    writer.add_chat_template(TEMPLATE)
    for name, values in weights().items():
        _add(writer, name, values, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _add(writer: Any, name: str, values: np.ndarray[Any, Any], kind: Any) -> None:
    import gguf

    inner = name.removesuffix(".weight").removeprefix("model.layers.0.")
    stored = GGUF_NAMES[inner] if inner.startswith("model.") else f"blk.0.{GGUF_NAMES[inner]}"
    if values.ndim == 1:
        writer.add_tensor(f"{stored}.weight", values)
        return
    if "q_proj" in name or "k_proj" in name:
        values = interleaved(values)
    writer.add_tensor(f"{stored}.weight", gguf.quantize(values, kind), raw_dtype=kind)


def interleaved(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows of heads in llama.cpp's order: rotated pairs side by side."""
    heads = len(values) // 16
    return np.ascontiguousarray(values.reshape(heads, 2, 8, -1).swapaxes(1, 2).reshape(values.shape))
