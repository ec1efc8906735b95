"""Small random models of RWKV 7: as flash-linear-attention and as llama.cpp store them, and what they compute."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
from safetensors.numpy import save_file

Array: TypeAlias = "np.ndarray[Any, Any]"
Tensors: TypeAlias = "dict[str, Array]"
RANKS = {"w": 6, "a": 5, "v": 4, "g": 7}
_PARTS = "rwkvag"


def random_tensors(config: dict[str, Any], *, gated_mlp: bool = False, gates: bool = True, seed: int = 0) -> Tensors:
    """Tensors under the names of flash-linear-attention, large enough that every part counts; with `gated_mlp` those
    of Qwen 2's MLP and norms, of whose attention the names are."""
    random, hidden, width = np.random.default_rng(seed), config["hidden_size"], config["intermediate_size"]

    def normal(*shape: int) -> Array:
        scale = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        return (scale * random.standard_normal(shape)).astype(np.float32)

    def norm(name: str) -> Tensors:
        biases = {} if gated_mlp and "g_norm" not in name else {f"{name}.bias": normal(hidden)}
        return {f"{name}.weight": 1 + normal(hidden), **biases}

    found = {"model.embeddings.weight": normal(config["vocab_size"], hidden), **norm("model.norm")}
    found["lm_head.weight"] = normal(config["vocab_size"], hidden)
    if not gated_mlp:
        found |= norm("model.layers.0.pre_norm")
    for index in range(config["num_hidden_layers"]):
        layer, attn = f"model.layers.{index}.", f"model.layers.{index}.attn."
        found |= {**norm(f"{layer}attn_norm"), **norm(f"{layer}ffn_norm"), **norm(f"{attn}g_norm")}
        found |= {
            f"{attn}x_{part}": random.random((1, 1, hidden), np.float32) for part in _PARTS if gates or part != "g"
        }
        found |= {f"{attn}{part}_proj.weight": normal(hidden, hidden) for part in "rkvo"}
        for part, rank in RANKS.items():
            if (part == "v" and index == 0) or (part == "g" and not gates):
                continue
            found[f"{attn}{part}_lora.lora.0.weight"] = normal(rank, hidden)
            found[f"{attn}{part}_lora.lora.2.weight"] = normal(hidden, rank)
            if part != "g":
                found[f"{attn}{part}_lora.lora.2.bias"] = normal(hidden)
        found |= {f"{attn}{part}": 1 + normal(hidden) for part in ("k_k", "k_a")}
        found[f"{attn}r_k"] = normal(hidden // config["head_dim"], config["head_dim"])
        if gated_mlp:
            found |= {f"{layer}ffn.{part}.weight": normal(width, hidden) for part in ("gate", "up")}
            found[f"{layer}ffn.down.weight"] = normal(hidden, width)
        else:
            found[f"{layer}ffn.x_k"] = random.random(hidden, np.float32)
            found[f"{layer}ffn.key.weight"] = normal(width, hidden)
            found[f"{layer}ffn.value.weight"] = normal(hidden, width)
    return found


def write_folder(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    """Write a folder as flash-linear-attention does."""
    kind = {"model_type": "rwkv7", "architectures": ["RWKV7ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps({**kind, **config}))
    save_file(tensors, folder / "model.safetensors")
    return folder


_GGUF_NAMES = {
    "model.embeddings": "token_embd",
    "model.layers.0.pre_norm": "token_embd_norm",
    "model.norm": "output_norm",
    "lm_head": "output",
    "attn_norm": "attn_norm",
    "ffn_norm": "attn_norm_2",
    "attn.g_norm": "time_mix_ln",
    **{
        f"attn.{part}_proj": f"time_mix_{name}"
        for part, name in zip("rkvo", ("receptance", "key", "value", "output"), strict=True)
    },
    **{f"attn.{part}": f"time_mix_{part}.weight" for part in ("k_k", "k_a", "r_k")},
    "ffn.x_k": "channel_mix_lerp_k.weight",
    "ffn.key": "channel_mix_key",
    "ffn.value": "channel_mix_value",
    **{f"ffn.{part}": f"ffn_{part}" for part in ("gate", "up", "down")},
}


def write_gguf(path: Path, config: dict[str, Any], tensors: Tensors, tokens: Sequence[str], kind: str = "F32") -> Path:
    """Write a file as llama.cpp's converter does, with a vocabulary; matrices of products are quantized to `kind`."""
    gated_mlp = "model.layers.0.ffn.gate.weight" in tensors
    writer = gguf.GGUFWriter(path, "arwkv7" if gated_mlp else "rwkv7")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(0)
    writer.add_wkv_head_size(config["head_dim"])
    if gated_mlp:
        writer.add_layer_norm_rms_eps(config["norm_eps"])
        writer.add_token_shift_count(1)
    else:
        writer.add_layer_norm_eps(config["norm_eps"])
    ranks = {part: tensors[f"model.layers.1.attn.{part}_lora.lora.0.weight"].shape[0] for part in "wav"}
    writer.add_decay_lora_rank(ranks["w"])
    writer.add_iclr_lora_rank(ranks["a"])
    writer.add_value_residual_mix_lora_rank(ranks["v"])
    gates = tensors.get("model.layers.1.attn.g_lora.lora.0.weight")
    writer.add_gate_lora_rank(0 if gates is None else gates.shape[0])
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(list(tokens))
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for name, values in _gguf_tensors(config, tensors, gated_mlp=gated_mlp).items():
        if kind != "F32" and name.endswith(".weight") and values.ndim == 2 and min(values.shape) >= 256:
            quantized = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_tensors(config: dict[str, Any], tensors: Tensors, *, gated_mlp: bool) -> Tensors:
    names = {**_GGUF_NAMES, **({"ffn_norm": "ffn_norm"} if gated_mlp else {})}
    found: Tensors = {}
    for name, values in tensors.items():
        base, _, end = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        if base in names:
            found[f"{names[base]}.{end}"] = values
            continue
        _, _, index, role = base.split(".", 3)
        prefix = f"blk.{index}."
        if ".x_" in base and "attn" in base:
            found.setdefault(f"{prefix}time_mix_lerp_fused.weight", np.zeros(0))
        elif "_lora" in role:
            part, number = role.split(".")[1][0], role[-1]
            which = {"0weight": 1, "2weight": 2, "2bias": 0}[number + end]
            found[f"{prefix}time_mix_{part}{which}.weight"] = values
            if index == "0" and part == "a":  # which llama.cpp asks for, and does not read
                found[f"{prefix}time_mix_v{which}.weight"] = values
        else:
            found[f"{prefix}{names[role]}{'.' if end else ''}{end}"] = (
                values.reshape(-1) if role == "attn.r_k" else values
            )
    for layer in range(config["num_hidden_layers"]):
        shifts = [tensors.get(f"model.layers.{layer}.attn.x_{part}") for part in _PARTS]
        found[f"blk.{layer}.time_mix_lerp_fused.weight"] = np.stack([each for each in shifts if each is not None])
    return found


class Reference:
    """A model in float64, and its states. The epsilons are those of the squared lengths of keys and of the norms of
    heads; those of GGUF files are fixed."""

    def __init__(
        self, config: dict[str, Any], tensors: Tensors, key_epsilon: float = 1e-24, head_epsilon: float = 64e-5
    ) -> None:
        self._config, self._epsilon, self._head_epsilon = config, key_epsilon, head_epsilon
        self._tensors = {name: np.asarray(values, np.float64) for name, values in tensors.items()}
        hidden, size, layers = config["hidden_size"], config["head_dim"], range(config["num_hidden_layers"])
        self._shift = {(index, part): np.zeros(hidden) for index in layers for part in ("attn", "ffn")}
        self._state = {index: np.zeros((hidden // size, size, size)) for index in layers}  # values, then keys

    def run(self, tokens: Sequence[int]) -> Array:
        """The logits of some tokens, which the states go on with."""
        return np.stack([self._token(int(token)) for token in tokens])

    def _token(self, token: int) -> Array:
        x = self._tensors["model.embeddings.weight"][token]
        if "model.layers.0.pre_norm.weight" in self._tensors:
            x = self._norm(x, "model.layers.0.pre_norm")
        self._first: Array | None = None
        for index in self._state:
            layer = f"model.layers.{index}."
            x = x + self._time_mix(index, self._norm(x, f"{layer}attn_norm"))
            x = x + self._channels(index, self._norm(x, f"{layer}ffn_norm"))
        logits: Array = self._tensors["lm_head.weight"] @ self._norm(x, "model.norm")
        return logits

    def _norm(self, x: Array, name: str) -> Array:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias")
        epsilon = self._config["norm_eps"]
        if bias is None:
            return x / np.sqrt((x * x).mean() + epsilon) * weight
        return (x - x.mean()) / np.sqrt(x.var() + epsilon) * weight + bias

    def _channels(self, index: int, x: Array) -> Array:
        ffn = f"model.layers.{index}.ffn."
        if f"{ffn}gate.weight" in self._tensors:
            gate, up, down = (self._tensors[f"{ffn}{part}.weight"] for part in ("gate", "up", "down"))
            return down @ ((gate @ x) / (1 + np.exp(-(gate @ x))) * (up @ x))
        mixed = x + (self._shift[index, "ffn"] - x) * self._tensors[f"{ffn}x_k"]
        self._shift[index, "ffn"] = x
        return self._tensors[f"{ffn}value.weight"] @ np.square(np.maximum(self._tensors[f"{ffn}key.weight"] @ mixed, 0))

    def _low_rank(self, name: str, x: Array, activation: Any = None) -> Array:
        low = self._tensors[f"{name}_lora.lora.0.weight"] @ x
        low = low if activation is None else activation(low)
        return self._tensors[f"{name}_lora.lora.2.weight"] @ low + self._tensors.get(f"{name}_lora.lora.2.bias", 0.0)

    def _time_mix(self, index: int, x: Array) -> Array:
        attn, size = f"model.layers.{index}.attn.", self._config["head_dim"]
        change = self._shift[index, "attn"] - x
        self._shift[index, "attn"] = x
        r, w, k, v, a, g = (
            x + change * self._tensors[f"{attn}x_{part}"].reshape(-1) if f"{attn}x_{part}" in self._tensors else x
            for part in _PARTS
        )
        r, k = (self._tensors[f"{attn}{part}_proj.weight"] @ each for part, each in (("r", r), ("k", k)))
        value = self._tensors[f"{attn}v_proj.weight"] @ v
        if self._first is None:
            self._first = value
        else:
            value = value + (self._first - value) * _sigmoid(self._low_rank(f"{attn}v", v))
        kept = np.exp(-np.exp(-0.5) * _sigmoid(self._low_rank(f"{attn}w", w, np.tanh)))
        rate = _sigmoid(self._low_rank(f"{attn}a", a))
        removed = (k * self._tensors[f"{attn}k_k"]).reshape(-1, size)
        removed = removed / np.sqrt((removed**2).sum(-1, keepdims=True) + self._epsilon)
        k = k * (1 + (rate - 1) * self._tensors[f"{attn}k_a"])
        found = []
        heads = zip(*(each.reshape(-1, size) for each in (r, kept, k, value, rate)), removed, strict=True)
        for head, (query, decay, key, values, share, away) in enumerate(heads):
            state = self._state[index][head]
            state = state * decay + np.outer(state @ -away, away * share) + np.outer(values, key)
            self._state[index][head] = state
            result = state @ query
            result = (result - result.mean()) / np.sqrt(result.var() + self._head_epsilon)
            part = slice(head * size, (head + 1) * size)
            result = result * self._tensors[f"{attn}g_norm.weight"][part] + self._tensors[f"{attn}g_norm.bias"][part]
            bonus = (query * key * self._tensors[f"{attn}r_k"][head]).sum()
            found.append(result + bonus * values)
        whole = np.concatenate(found)
        if f"{attn}g_lora.lora.0.weight" in self._tensors:
            whole = whole * self._low_rank(f"{attn}g", g, _sigmoid)
        output: Array = self._tensors[f"{attn}o_proj.weight"] @ whole
        return output


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))
