"""Small files of architectures without transformers code, against llama.cpp's graphs written in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import compiler
from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm import LanguageModelOptions, import_language_model

Array = np.ndarray[Any, Any]
_HIDDEN, _HEAD, _VOCABULARY, _EPSILON, _BASE = 32, 8, 48, 1e-5, 500.0


@dataclass(frozen=True)
class _Graph:
    """One file: its tensors below "blk.{layer}." as (rows, depth), or (rows,) for norms, and settings of the graph.

    Attributes:
        layers: for each one (query heads, key heads, width of the MLP), 0 for none.
        adjacent: RoPE on adjacent pairs, else on elements half a head apart.
        window: odd layers attend to this many tokens, and have RoPE with base 10000.
        cap: softcap of the scores.
        experts: number of experts, two of which each token has.
        early: the router reads the input of the layer.
        unrotated: layers without RoPE.
        late_norms: heads are normalized after RoPE.
        metadata: additional metadata.
    """

    layers: list[tuple[int, int, int]]
    adjacent: bool = False
    parallel: bool = False
    fused: bool = False
    head_norms: bool = False
    post_norms: tuple[str, ...] = ()
    window: int = 0
    cap: float = 0.0
    scale: float = _HEAD**-0.5
    experts: int = 0
    early: bool = False
    unrotated: tuple[int, ...] = ()
    late_norms: bool = False
    activation: str = "silu"
    factors: tuple[float, float] = (1.0, 1.0)  # of embeddings and logits
    latent: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)


_GROK = {"attention.output_scale": 0.3, "attn_logit_softcapping": 3.0, "embedding_scale": 3.0, "logit_scale": 0.5}
_LATENT = {
    "attention.kv_lora_rank": 20,
    "attention.key_length": 12,
    "attention.value_length": 6,
    "rope.dimension_count": 4,
}
GRAPHS = {
    "openelm": _Graph([(2, 1, 24), (4, 2, 40), (6, 2, 24)], fused=True, head_norms=True),
    "deci": _Graph([(4, 2, 24), (0, 0, 40), (4, 4, 24), (0, 0, 0), (4, 1, 40)], adjacent=True),
    "plamo": _Graph([(4, 2, 24)] * 2, parallel=True),
    "plamo3": _Graph(
        [(4, 2, 24)] * 2,
        fused=True,
        head_norms=True,
        post_norms=("post_attention_norm", "post_ffw_norm"),
        window=5,
        metadata={"attention.sliding_window": 5, "attention.sliding_window_pattern": 2},
    ),
    "grok": _Graph(
        [(4, 2, 24)] * 2,
        post_norms=("attn_output_norm.weight", "layer_output_norm.weight"),
        cap=3.0,
        scale=0.3,
        experts=3,
        activation="gelu",
        factors=(3.0, 0.5),
        metadata={**_GROK, "expert_count": 3, "expert_used_count": 2, "expert_feed_forward_length": 24},
    ),
    "maincoder": _Graph([(4, 2, 24)] * 2, adjacent=True, head_norms=True, late_norms=True),
    "smallthinker": _Graph(
        [(4, 2, 24)] * 5,
        experts=3,
        early=True,
        unrotated=(0, 4),
        activation="relu",
        metadata={
            "attention.sliding_window": 4096,  # more than the test reads
            "expert_count": 3,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
            "expert_gating_func": 1,
        },
    ),
    "plm": _Graph([(4, 4, 24)] * 2, adjacent=True, activation="relu2", latent=True, scale=12**-0.5, metadata=_LATENT),
}


def _shapes(graph: _Graph, layer: int) -> dict[str, tuple[int, ...]]:
    queries, keys, width = graph.layers[layer]
    shapes: dict[str, tuple[int, ...]] = {}
    if queries:
        shapes["attn_norm.weight"] = (_HIDDEN,)
        shapes["attn_output.weight"] = (_HIDDEN, queries * (6 if graph.latent else _HEAD))
        rows = {"q": queries * _HEAD, "k": keys * _HEAD, "v": keys * _HEAD}
        if graph.latent:
            shapes |= {"attn_q.weight": (queries * 12, _HIDDEN), "attn_kv_a_mqa.weight": (24, _HIDDEN)}
            shapes |= {"attn_kv_a_norm.weight": (20,), "attn_kv_b.weight": (queries * 14, 20)}
        elif graph.fused:
            shapes["attn_qkv.weight"] = (sum(rows.values()), _HIDDEN)
        else:
            shapes |= {f"attn_{role}.weight": (count, _HIDDEN) for role, count in rows.items()}
    if graph.head_norms:
        shapes |= {f"attn_{role}_norm.weight": (_HEAD,) for role in "qk"}
    shapes |= dict.fromkeys(graph.post_norms, (_HIDDEN,))
    if not width:
        return shapes
    if not graph.parallel:
        shapes["ffn_norm.weight"] = (_HIDDEN,)
    if graph.experts:
        shapes["ffn_gate_inp.weight"] = (graph.experts, _HIDDEN)
    end, first = ("_exps.weight", (graph.experts,)) if graph.experts else (".weight", ())
    doubled = graph.window > 0
    shapes[f"ffn_up{end}"] = (*first, width * (2 if doubled else 1), _HIDDEN)
    shapes[f"ffn_down{end}"] = (*first, _HIDDEN, width)
    if not doubled and graph.activation != "relu2":
        shapes[f"ffn_gate{end}"] = (*first, width, _HIDDEN)
    return shapes


def tensors_of(graph: _Graph) -> dict[str, Array]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (_VOCABULARY, _HIDDEN)}
    shapes |= {"output_norm.weight": (_HIDDEN,), "output.weight": (_VOCABULARY, _HIDDEN)}
    for layer in range(len(graph.layers)):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in _shapes(graph, layer).items()}
    return {name: random.normal(len(shape) == 1, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def written(path: Path, architecture: str, graph: _Graph, tensors: Mapping[str, Array]) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(len(graph.layers))
    queries, keys, widths = (list(each) for each in zip(*graph.layers, strict=True))
    writer.add_head_count(queries)
    writer.add_head_count_kv(keys)
    writer.add_feed_forward_length(widths)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_rope_freq_base(_BASE)
    if "attention.key_length" not in graph.metadata:
        writer.add_key_length(_HEAD)
        writer.add_value_length(_HEAD)
    for key, value in graph.metadata.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _normed(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + _EPSILON) * weight


def _rotated(x: Array, base: float, *, adjacent: bool) -> Array:
    """(tokens, heads, size)"""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    pairs = [slice(0, None, 2), slice(1, None, 2)] if adjacent else [slice(half), slice(half, None)]
    found = np.empty_like(x)
    first, second = x[..., pairs[0]], x[..., pairs[1]]
    found[..., pairs[0]], found[..., pairs[1]] = first * cos - second * sin, second * cos + first * sin
    return found


def _heads(graph: _Graph, layer: int, w: Mapping[str, Array], x: Array, base: float) -> list[Array]:
    """Queries, keys and values (tokens, heads, size)."""
    queries, keys, _ = graph.layers[layer]
    if graph.latent:
        q = (x @ w["attn_q.weight"].T).reshape(len(x), queries, 12)
        row = x @ w["attn_kv_a_mqa.weight"].T
        both = (_normed(row[:, :20], w["attn_kv_a_norm.weight"]) @ w["attn_kv_b.weight"].T).reshape(len(x), queries, 14)
        turned = [_rotated(each, base, adjacent=True) for each in (q[..., 8:], row[:, None, 20:])]
        shared = np.broadcast_to(turned[1], turned[0].shape)
        return [np.concatenate([q[..., :8], turned[0]], -1), np.concatenate([both[..., :8], shared], -1), both[..., 8:]]
    if graph.fused:
        parts = np.split(x @ w["attn_qkv.weight"].T, [queries * _HEAD, (queries + keys) * _HEAD], -1)
    else:
        parts = [x @ w[f"attn_{role}.weight"].T for role in "qkv"]
    heads = [each.reshape(len(x), -1, _HEAD) for each in parts]
    for at, role in enumerate("qk"):
        if graph.head_norms and not graph.late_norms:
            heads[at] = _normed(heads[at], w[f"attn_{role}_norm.weight"])
        if layer not in graph.unrotated:
            heads[at] = _rotated(heads[at], base, adjacent=graph.adjacent)
        if graph.late_norms:
            heads[at] = _normed(heads[at], w[f"attn_{role}_norm.weight"])
    return [heads[0], *(np.repeat(each, queries // keys, 1) for each in heads[1:])]


def _attention(graph: _Graph, layer: int, w: Mapping[str, Array], x: Array) -> Array:
    slides = graph.window and layer % 2 == 0
    q, k, v = _heads(graph, layer, w, x, 10000.0 if slides else _BASE)
    scores = np.einsum("qhd,khd->hqk", q, k) * graph.scale
    if graph.cap:
        scores = graph.cap * np.tanh(scores / graph.cap)
    distance = np.arange(len(x))[:, None] - np.arange(len(x))
    scores = np.where((distance < 0) | (bool(slides) & (distance >= graph.window)), -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    found = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)
    return found.reshape(len(x), -1) @ w["attn_output.weight"].T


def _activated(graph: _Graph, x: Array) -> Array:
    if graph.activation == "gelu":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    if graph.activation.startswith("relu"):
        return np.maximum(x, 0) ** (2 if graph.activation == "relu2" else 1)
    return x / (1 + np.exp(-x))


def _mlp(graph: _Graph, w: Mapping[str, Array], x: Array, entered: Array) -> Array:
    if graph.experts:
        scores = np.exp((entered if graph.early else x) @ w["ffn_gate_inp.weight"].T)
        scores[scores == scores.min(-1, keepdims=True)] = 0  # two of three
        scores /= scores.sum(-1, keepdims=True)
        gates, ups = (np.einsum("nk,emk->nem", x, w[f"ffn_{role}_exps.weight"]) for role in ("gate", "up"))
        return np.einsum("ne,nem,ekm->nk", scores, _activated(graph, gates) * ups, w["ffn_down_exps.weight"])
    up = x @ w["ffn_up.weight"].T
    if graph.window:
        gate, up = np.split(up, 2, -1)
        up = _activated(graph, gate) * up
    else:
        up = _activated(graph, x @ w["ffn_gate.weight"].T) * up if "ffn_gate.weight" in w else _activated(graph, up)
    return up @ w["ffn_down.weight"].T


def _logits(graph: _Graph, tensors: Mapping[str, Array], tokens: Array) -> Array:
    """Logits (vocabulary,) of the last token."""
    x = tensors["token_embd.weight"][tokens].astype(np.float64) * graph.factors[0]
    for layer, (queries, _, width) in enumerate(graph.layers):
        prefix = f"blk.{layer}."
        w = {
            key.removeprefix(prefix): each.astype(np.float64) for key, each in tensors.items() if key.startswith(prefix)
        }
        posts = [w[name] for name in graph.post_norms]
        entered = x
        if queries:
            first = _normed(x, w["attn_norm.weight"])
            update = _attention(graph, layer, w, first)
            x = x + (_normed(update, posts[0]) if posts else update)
        if width:
            update = _mlp(graph, w, first if graph.parallel else _normed(x, w["ffn_norm.weight"]), entered)
            x = x + (_normed(update, posts[1]) if posts else update)
    return _normed(x[-1], tensors["output_norm.weight"]) @ tensors["output.weight"].T * graph.factors[1]


@pytest.mark.parametrize("architecture", GRAPHS)
def test_logits_are_those_of_the_graph(architecture: str, tmp_path: Path) -> None:
    graph = GRAPHS[architecture]
    tensors = tensors_of(graph)
    path = written(tmp_path / "model.gguf", architecture, graph, tensors)
    options = LanguageModelOptions(activations="float32", cache="float32")
    session = compiler.compile(import_language_model(path, options), threads=1).session(capacity=16)
    prompt = np.random.default_rng(1).integers(0, _VOCABULARY, 12)
    for first, last in ((0, 11), (11, 12)):
        found = session.run([prompt[None, first:last]])["logits"][0, 0]
        wanted = _logits(graph, tensors, prompt[:last])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize(
    ("architecture", "layers", "error", "message"),
    [
        ("deci", [(4, 0, 24), (4, 2, 24)], OptionError, "a matmul in place of attention"),
        ("openelm", [(3, 2, 24), (4, 2, 24)], InvalidModelError, "layer 0 has 3 heads, and 2 of keys"),
        ("rwkv6", [(4, 2, 24)], OptionError, "the time mixing of RWKV 6"),
    ],
)
def test_other_layers_are_refused(
    architecture: str, layers: list[tuple[int, int, int]], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "model.gguf", architecture, _Graph(layers), {"token_embd.weight": np.zeros((4, 32), "f")})
    with pytest.raises(error, match=message):
        import_language_model(path)
