"""GGUF files of Phi's mixtures follow llama.cpp, which differs from transformers: RMS norms with a bias, no window, and
softmax over the chosen experts. Compared with float64; llama.cpp itself is within 6e-7 of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import compiler
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from tests.compiler.frontends.llm.expert_gguf import write_expert_gguf
from tests.compiler.frontends.llm.families import save_model

Array = np.ndarray[Any, Any]
HEADS, KEY_HEADS, SIZE = 4, 2, 16


def test_a_gguf_file_of_a_phi_mixture(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "vocab_size": 260, "num_hidden_layers": 1, "head_dim": SIZE}
    save_model("phimoe", tmp_path, **sizes, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, sliding_window=3)
    write_expert_gguf(tmp_path / "model.gguf", tmp_path, "phimoe", "F32")
    options = LanguageModelOptions(activations="float32", cache="float32", all_logits=True)
    module = compiler.compile(import_language_model(tmp_path / "model.gguf", options), threads=1)
    tokens = np.random.default_rng(0).integers(1, 250, 9)
    found = module.session(capacity=16).run([tokens[None]])["logits"][0]
    stored = {name: each.astype(np.float64) for name, each in load_file(tmp_path / "model.safetensors").items()}
    wanted = _logits(stored, tokens)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def _logits(weights: dict[str, Array], tokens: Array) -> Array:
    def linear(name: str, x: Array) -> Array:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", np.zeros(())))

    def norm(name: str, x: Array) -> Array:
        scaled = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    layer = "model.layers.0"
    x = weights["model.embed_tokens.weight"][tokens]
    normed = norm(f"{layer}.input_layernorm", x)
    x = x + linear(f"{layer}.self_attn.o_proj", _attended(linear, f"{layer}.self_attn", normed))
    normed = norm(f"{layer}.post_attention_layernorm", x)
    scores = linear(f"{layer}.block_sparse_moe.gate", normed)
    experts = f"{layer}.block_sparse_moe.experts"
    mixed = np.zeros_like(x)
    for row, chosen in enumerate(np.argsort(-scores, 1)[:, :2]):
        shares = np.exp(scores[row, chosen] - scores[row].max())
        for share, expert in zip(shares / shares.sum(), chosen, strict=True):
            gate, up = (linear(f"{experts}.{expert}.{name}", normed[row]) for name in ("w1", "w3"))
            mixed[row] += share * linear(f"{experts}.{expert}.w2", gate / (1 + np.exp(-gate)) * up)
    return linear("lm_head", norm("model.norm", x + mixed))


def _attended(linear: Any, name: str, x: Array) -> Array:
    rows, half = len(x), SIZE // 2
    angles = np.arange(rows)[:, None] / 1e6 ** (np.arange(half) / half)

    def heads(kind: str, count: int) -> Array:
        return np.asarray(linear(f"{name}.{kind}_proj", x).reshape(rows, count, SIZE).transpose(1, 0, 2))

    def rotated(each: Array) -> Array:
        first, second = each[..., :half], each[..., half:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    query = rotated(heads("q", HEADS))
    key, value = (
        np.repeat(each, HEADS // KEY_HEADS, 0) for each in (rotated(heads("k", KEY_HEADS)), heads("v", KEY_HEADS))
    )
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(SIZE)
    shares = np.where(np.tri(rows, dtype=bool), np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return np.asarray((shares / shares.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(rows, -1))
