"""Folders of Mamba and Mamba-2 as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.compiler.generation.models import byte_tokens

_NAMES = {
    "backbone.embeddings.": "token_embd.",
    "backbone.norm_f.": "output_norm.",
    "lm_head.": "output.",
    "backbone.layers.": "blk.",
    "mixer.in_proj": "ssm_in",
    "mixer.conv1d": "ssm_conv1d",
    "mixer.x_proj": "ssm_x",
    "mixer.dt_proj": "ssm_dt",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.norm": "ssm_norm",
    "mixer.out_proj": "ssm_out",
    ".norm.weight": ".attn_norm.weight",
}


def write_state_space_gguf(path: Path, folder: Path) -> Path:
    """The model of a folder, in float32 and with a tokenizer of bytes."""
    config = json.loads((folder / "config.json").read_text())
    kind = config["model_type"]
    writer = gguf.GGUFWriter(path, kind)
    inner = int(config["expand"] * config["hidden_size"])
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(config["num_heads"] if kind == "mamba2" else config["time_step_rank"])
    if kind == "mamba2":
        writer.add_ssm_group_count(config["n_groups"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = byte_tokens()[: config["vocab_size"] - 1]
    merged = tokens[65:67]
    tokens.append("".join(merged))
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([" ".join(merged)])
    writer.add_eos_token_id(0)
    for name, values in load_file(folder / "model.safetensors").items():
        writer.add_tensor(*_converted(name, values, config, inner))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _converted(name: str, values: np.ndarray, config: dict[str, int], inner: int) -> tuple[str, np.ndarray]:
    """A tensor's name and numbers in GGUF."""
    if name.endswith("A_log"):
        values = -np.exp(values)
    if name.endswith("conv1d.weight"):
        values = values[:, 0]
    if name.endswith(("A_log", ".D")) and values.ndim == 1 and "num_heads" in config:
        values = values[:, None]
    if name.endswith("mixer.norm.weight"):
        values = values.reshape(config["n_groups"], inner // config["n_groups"])
    for old, new in _NAMES.items():
        name = name.replace(old, new)
    return name, np.ascontiguousarray(values, np.float32)
