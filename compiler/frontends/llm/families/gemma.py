"""Families of Gemma."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import NormalDist
from typing import Any

from compiler.errors import InvalidModelError
from compiler.frontends.llm.config import (
    MAX_HEADS,
    AlternatingUpdates,
    DecoderConfig,
    ExpertsConfig,
    Heads,
    LayerConfig,
    LayerInputs,
)
from compiler.frontends.llm.families.family import Family, Gguf, mixture
from compiler.frontends.llm.families.layer_kinds import FULL, SLIDING, listed_kinds
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.names import Names, hugging_face_names
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.rope import MAX_HEAD_SIZE, PROPORTIONAL
from compiler.frontends.llm.settings import Settings

_27B_LAYERS = (46, 62)
_MAX_STREAMS = 16
_SPARSE_LAYERS = 10  # of Gemma 3n, if the config does not specify them
_OWN_KEYS = 20
_TABLE = "per_layer_token_embd.weight"


def _scale(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The 27B models scale by the width divided by the number of heads."""
    is_large = values.get("num_hidden_layers") in _27B_LAYERS
    scale = values["hidden_size"] / values["num_attention_heads"] if is_large else None
    return {"query_pre_attn_scalar": scale}


def _kinds(settings: Settings, count: int) -> list[str]:
    """Layer kinds of Gemma 3n: listed, or full attention at fixed intervals."""
    if settings.get("layer_types") is not None:
        return listed_kinds(settings, count)
    every = settings.size("sliding_window_pattern")
    return [SLIDING if (index + 1) % every else FULL for index in range(count)]


def _kinds_ending_in_full(settings: Settings, count: int) -> list[str]:
    """Layer kinds of Gemma 4, whose last layer has full attention regardless of the list."""
    return [*_kinds(settings, count)[:-1], FULL]


def _heads(settings: Settings, layer: int, kind: str, heads: Heads) -> Heads:
    """Layers with full attention have wider heads, and may have fewer key heads."""
    listed = settings.table("per_layer_config")
    entry = Settings(listed.get(str(layer)) or {}, settings.path, {})
    if not listed and kind == FULL:
        keys = settings.get("num_global_key_value_heads") if settings.flag("attention_k_eq_v") else None
        entry = Settings({"head_dim": settings.get("global_head_dim"), "num_key_value_heads": keys}, settings.path, {})
    keys = entry.size("num_key_value_heads", heads.keys, most=MAX_HEADS)
    return Heads(heads.count, keys, entry.size("head_dim", heads.size, most=MAX_HEAD_SIZE))


def _sharing(config: DecoderConfig, settings: Settings, kinds: list[str]) -> DecoderConfig:
    """Let the last layers read the keys and values of the preceding layer of their kind."""
    shared = settings.number("num_kv_shared_layers", 0)
    first = len(kinds) - int(shared)
    if shared == 0:
        return config
    sources = {kind: index for index, kind in enumerate(kinds[: max(first, 0)])}
    if not set(kinds) <= set(sources):
        raise InvalidModelError(f"{settings.path}: {shared:g} of {len(kinds)} layers have no keys and values to read")
    layers = [
        replace(layer, shares=sources[kind] if index >= first else None)
        for index, (layer, kind) in enumerate(zip(config.layers, kinds, strict=True))
    ]
    return replace(config, layers=tuple(layers))


def _layer_inputs(settings: Settings) -> LayerInputs | None:
    if not settings.get("hidden_size_per_layer_input"):
        return None
    rows = settings.size("vocab_size_per_layer_input", settings.size("vocab_size"))
    return LayerInputs(settings.size("hidden_size_per_layer_input"), rows)


def _deviations(settings: Settings, count: int) -> list[float | None]:
    """Return each layer's gate threshold in standard deviations, from the file or from a share of the gates."""
    stored = settings.each_layer("activation_sparsity_scale", count)
    if stored is not None:
        return [each if isinstance(each, float) and math.isfinite(each) else None for each in stored]
    parts = settings.each_layer("activation_sparsity_pattern", count)
    if parts is None:
        parts = [0.95 if count > _SPARSE_LAYERS and index < _SPARSE_LAYERS else 0.0 for index in range(count)]
    if not all(isinstance(each, int | float) and 0 <= each < 1 for each in parts):
        raise InvalidModelError(f"{settings.path}: 'activation_sparsity_pattern' is {str(parts)[:80]}, not parts of 1")
    return [NormalDist().inv_cdf(each) if each else None for each in parts]


def _gemma3n(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    count = len(config.layers)
    streams = settings.size("altup_num_inputs", 4, most=_MAX_STREAMS)
    active = settings.number("altup_active_idx", 0)
    if active not in range(streams):
        raise InvalidModelError(f"{settings.path}: stream {active:g} of {streams}")
    config = _sharing(config, settings, _kinds(settings, count))
    deviations = _deviations(settings, count)
    return replace(
        config,
        layers=tuple(replace(each, sparsity=own) for each, own in zip(config.layers, deviations, strict=True)),
        bare_value_norms=True,
        layer_inputs=_layer_inputs(settings),
        alternating=AlternatingUpdates(streams, int(active)),
    )


def _gemma4(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    kinds = _kinds_ending_in_full(settings, len(config.layers))
    config = _sharing(config, settings, kinds)
    wide, alike = settings.flag("use_double_wide_mlp"), settings.flag("attention_k_eq_v")

    def changed(layer: LayerConfig, kind: str) -> LayerConfig:
        widened = 2 * config.intermediate if wide and layer.shares is not None else layer.intermediate
        return replace(layer, intermediate=widened, values_are_keys=alike and kind == FULL)

    layers = tuple(changed(*each) for each in zip(config.layers, kinds, strict=True))
    return replace(config, layers=layers, bare_value_norms=True, layer_inputs=_layer_inputs(settings))


def _beside(settings: Settings, layer: int) -> ExpertsConfig | None:
    found = mixture(settings, layer) if settings.flag("enable_moe_block") else None
    return None if found is None else replace(found, beside=True)


def _gguf_inputs(file: GgufFile) -> dict[str, Any]:
    """Return the number of tokens with per-layer inputs."""
    return {"vocab_size_per_layer_input": file.shape(_TABLE)[0]} if _TABLE in file.names else {}


def _gemma3n_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Files without the number of layers that share keys use llama.cpp's: all but 20."""
    count = values.get("num_hidden_layers", 0)
    shared = values.get("num_kv_shared_layers", max(count - _OWN_KEYS, 0) if isinstance(count, int) else 0)
    return {**_gguf_inputs(file), "num_kv_shared_layers": shared}


def _gemma4_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Heads differ by layer, and layers without a value tensor use keys as values."""
    count, kinds, keys = (values.get(each) for each in ("num_hidden_layers", "layer_types", "num_key_value_heads"))
    if kinds is None or len(kinds) != count:
        raise InvalidModelError(f"{file.path}: 'attention.sliding_window_pattern' is not a list of {count} layers")
    layer_keys = keys if isinstance(keys, list) else [keys] * len(kinds)
    if len(layer_keys) != len(kinds):
        raise InvalidModelError(f"{file.path}: 'attention.head_count_kv' is not a list of {count} layers")
    sizes = {FULL: values.get("global_head_dim"), SLIDING: values.get("head_dim")}
    layer_settings = {
        str(index): {"head_dim": sizes[kind], "num_key_value_heads": number}
        for index, (kind, number) in enumerate(zip(kinds, layer_keys, strict=True))
    }
    first = len(kinds) - (values.get("num_kv_shared_layers") or 0)
    alike = [
        f"blk.{index}.attn_v.weight" not in file.names
        for index, kind in enumerate([*kinds[:-1], FULL])
        if kind == FULL and index < first
    ]
    return {
        **_gguf_inputs(file),
        "num_key_value_heads": layer_keys[0],
        "per_layer_config": layer_settings,
        "attention_k_eq_v": any(alike),
        "enable_moe_block": "num_experts" in values,
    }


_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
_STORAGE = Storage(norm_offset=1.0)
_BIDIRECTIONAL = {"use_bidirectional_attention": ("bidirectional attention", False)}
_WINDOWS = {"sliding_window": 512, "rope_theta": 1e6, "rope_local_base_freq": 10000.0}
_LAYER_ROLES = {
    "layer_gate": "per_layer_input_gate",
    "layer_out": "per_layer_projection",
    "layer_out_norm": "post_per_layer_input_norm",
}
_WHOLE = {
    "layer_embedding": "model.embed_tokens_per_layer",
    "layer_model": "model.per_layer_model_projection",
    "layer_norm": "model.per_layer_projection_norm",
    "streams_in": "model.altup_projections",
    "streams_out": "model.altup_unembed_projections",
}
_GEMMA3N_ROLES = {
    **_LAYER_ROLES,
    "stream_router": "altup.modality_router",
    "stream_router_norm": "altup.router_norm",
    "stream_predict": "altup.prediction_coefs",
    "stream_correct": "altup.correction_coefs",
    "stream_scale": "altup.correct_output_scale",
    "laurel_in": "laurel.linear_left",
    "laurel_out": "laurel.linear_right",
    "laurel_norm": "laurel.post_laurel_norm",
}
_GEMMA4_ROLES = {
    **_LAYER_ROLES,
    "layer_scale": "layer_scalar",
    "router": "router.proj",
    "router_scale": "router.scale",
    "expert_scale": "router.per_expert_scale",
    "expert_gate_up": "experts.gate_up_proj",
    "expert_down": "experts.down_proj",
    "experts_norm": "pre_feedforward_layernorm_2",
    "dense_post_norm": "post_feedforward_layernorm_1",
    "experts_post_norm": "post_feedforward_layernorm_2",
}
_LAYER_KEYS = {
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    "attention.shared_kv_layers": "num_kv_shared_layers",
}


def _names(roles: Mapping[str, str]) -> Names:
    return replace(hugging_face_names("sandwich", roles), whole=_WHOLE)


GEMMA: dict[str, Family] = {
    "gemma": Family(
        scales_embedding=True,
        refused=_BIDIRECTIONAL,
        defaults=_GEMMA,
        storage=_STORAGE,
        gguf=(Gguf(name="gemma"),),
    ),
    "gemma2": Family(
        names=hugging_face_names("sandwich"),
        scales_embedding=True,
        refused=_BIDIRECTIONAL,
        defaults={**_GEMMA, "sliding_window": 4096, "sliding_window_pattern": 2, "query_pre_attn_scalar": 256},
        storage=_STORAGE,
        gguf=(Gguf(name="gemma2", norms="sandwich", read=_scale),),
    ),
    "vaultgemma": Family(
        names=hugging_face_names(roles={"mlp_norm": "pre_feedforward_layernorm"}),
        scales_embedding=True,
        defaults={**_GEMMA, "sliding_window": 4096, "sliding_window_pattern": 2, "query_pre_attn_scalar": 256},
        storage=_STORAGE,
    ),
    "gemma3_text": Family(
        names=hugging_face_names("sandwich"),
        scales_embedding=True,
        scales_full_only=True,
        refused=_BIDIRECTIONAL,
        defaults={
            **_GEMMA,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
        },
        storage=_STORAGE,
        gguf=(Gguf(name="gemma3", norms="sandwich", read=_scale),),
    ),
    "gemma3n_text": Family(
        names=_names(_GEMMA3N_ROLES),
        kinds=_kinds,
        changes=_gemma3n,
        scales_embedding=True,
        scales_full_only=True,
        refused={**_BIDIRECTIONAL, "altup_correct_scale": ("an input of layers that is not scaled", True)},
        defaults={
            **_GEMMA,
            **_WINDOWS,
            "attention_multiplier": 1.0,
            "sliding_window_pattern": 5,
            "final_logit_softcapping": 30.0,
            "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 262144,
            "num_kv_shared_layers": 15,
        },
        gguf=(
            Gguf(
                name="gemma3n",
                norms="sandwich",
                read=_gemma3n_gguf,
                keys={
                    **_LAYER_KEYS,
                    "altup.active_idx": "altup_active_idx",
                    "altup.num_inputs": "altup_num_inputs",
                    "activation_sparsity_scale": "activation_sparsity_scale",
                },
            ),
        ),
    ),
    "gemma4_text": Family(
        names=_names(_GEMMA4_ROLES),
        kinds=_kinds_ending_in_full,
        heads=_heads,
        experts=_beside,
        changes=_gemma4,
        scales_embedding=True,
        scales_full_only=True,
        storage=Storage(stacked_rows=True),
        refused={"use_bidirectional_attention": ("bidirectional attention", "vision")},
        defaults={
            **_GEMMA,
            **_WINDOWS,
            "attention_multiplier": 1.0,
            "sliding_window_pattern": 6,
            "global_head_dim": 512,
            "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 262144,
            "rope_parameters": {
                SLIDING: {"rope_theta": 10000.0},
                FULL: {"rope_type": PROPORTIONAL, "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            },
            "norm_topk_prob": True,
        },
        aliases={"num_experts_per_tok": "top_k_experts"},
        gguf=(
            Gguf(
                name="gemma4",
                norms="sandwich",
                read=_gemma4_gguf,
                values={"hidden_size_per_layer_input": None, "rope_parameters": None},
                keys={
                    **_LAYER_KEYS,
                    "attention.key_length": "global_head_dim",
                    "attention.key_length_swa": "head_dim",
                    "rope.dimension_count": "global_rotary_dim",
                },
            ),
        ),
    ),
}
