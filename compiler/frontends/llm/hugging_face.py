"""A folder of the transformers library: config.json as a decoder's configuration."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.config import MOST_HEADS, MOST_LAYERS, Activation, DecoderConfig, LayerConfig
from compiler.frontends.llm.families import FAMILIES
from compiler.frontends.llm.gpt_families import Family
from compiler.frontends.llm.names import Names
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.rope import MOST_HEAD_SIZE, Rope, RopeSettings, make_rope
from compiler.frontends.llm.safetensors_folder import SafetensorsFolder, read_json
from compiler.frontends.llm.settings import Settings
from compiler.frontends.llm.weights import Checkpoint

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def model_type(folder: Path) -> str:
    """The model type in config.json, "" for none. Raises StorageError or InvalidModelError as `read_hugging_face`."""
    found = read_json(folder / "config.json").get("model_type")
    return found if isinstance(found, str) else ""


def read_hugging_face(folder: Path) -> tuple[DecoderConfig, Names, Storage, Checkpoint]:
    """The configuration, names and weights of a folder.

    Raises:
        StorageError: a file is missing.
        InvalidModelError: a file is damaged, or config.json is not complete.
        OptionError: the type of the model, or a setting of it, is not supported.
    """
    path = folder / "config.json"
    values = read_json(path)
    kind = values.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise OptionError(
            f"{path}: models of type {kind!r} are not supported",
            f"supported: {', '.join(sorted(FAMILIES))}; for others install 'tensorwright[torch]' and transformers: its"
            " own code is captured then",
        )
    quantized = values.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise OptionError(
            f"{path}: the weights are quantized ({str(method)[:80]})",
            "give the model in float16, bfloat16 or float32, or a GGUF file",
        )
    settings = Settings(values, path, family.defaults, family.aliases)
    config = family.changes(_config(settings, str(kind), family), settings)
    tied = True if settings.flag("tie_word_embeddings") else None
    checkpoint = Checkpoint(SafetensorsFolder(folder), str(folder))
    checkpoint.ignore_suffixes(family.unused)
    names = family.names(settings) if callable(family.names) else family.names
    storage = family.storage(settings) if callable(family.storage) else family.storage
    return config, _names(names, checkpoint), replace(storage, tied=tied), checkpoint


def _names(names: Names, checkpoint: Checkpoint) -> Names:
    """The names of the checkpoint: some were saved without the head, so that names lack the first part."""
    prefix = names.embedding.partition(".")[0] + "."
    bare = names.below(prefix)
    whole = checkpoint.has(f"{names.embedding}.weight") or not checkpoint.has(f"{bare.embedding}.weight")
    return names if whole else bare


def _config(settings: Settings, kind: str, family: Family) -> DecoderConfig:
    hidden, heads = settings.size("hidden_size"), settings.size("num_attention_heads", most=MOST_HEADS)
    head_size = settings.size("head_dim", hidden // heads, most=MOST_HEAD_SIZE)
    activation = settings.get("hidden_activation") or settings.get("hidden_act") or "silu"
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise OptionError(f"{settings.path}: the activation {str(activation)[:80]!r} is not supported")
    key_heads = settings.size("num_key_value_heads", heads)
    if heads % key_heads:
        raise InvalidModelError(f"{settings.path}: {heads} attention heads are not a multiple of {key_heads} key heads")
    return DecoderConfig(
        architecture=kind,
        hidden=hidden,
        intermediate=settings.size(
            "intermediate_size", None if family.expansion is None else family.expansion * hidden
        ),
        vocabulary=settings.size("vocab_size"),
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        context=settings.size("max_position_embeddings"),
        layers=_layers(settings, head_size, family),
        score_scale=1 / math.sqrt(head_size),
        epsilon=settings.number("rms_norm_eps", 1e-6),
        activation=_ACTIVATIONS[activation],
    )


def _layers(settings: Settings, head_size: int, family: Family) -> tuple[LayerConfig, ...]:
    """The window and the rotary embedding of each layer."""
    count = settings.size("num_hidden_layers")
    if count > MOST_LAYERS:
        raise InvalidModelError(f"{settings.path}: {count} layers, and at most {MOST_LAYERS} are supported")
    kinds = settings.each_layer("layer_types", count)
    window = settings.size("sliding_window") if settings.get("sliding_window") else None
    ropes: dict[str, Rope] = {}
    layers = []
    for index in range(count):
        kind = _attention_kind(settings, index, kinds, window)
        if kind not in ropes and family.rotary:
            ropes[kind] = _rope(settings, head_size, kind, scaled=kind == _FULL or not family.scales_full_only)
        if kind == _SLIDING and window is None:
            raise InvalidModelError(f"{settings.path}: layer {index} has a window, and 'sliding_window' is missing")
        experts = family.experts(settings, index)
        layers.append(LayerConfig(ropes.get(kind), window if kind == _SLIDING else None, experts))
    return tuple(layers)


_FULL, _SLIDING = "full_attention", "sliding_attention"


def _attention_kind(settings: Settings, index: int, kinds: list[Any] | None, window: int | None) -> str:
    """Full or sliding, by the list of layers, by a pattern, or by the first layer that slides."""
    if kinds is not None:
        if kinds[index] not in (_FULL, _SLIDING):
            raise OptionError(f"{settings.path}: layers of type {kinds[index]!r} are not supported")
        return str(kinds[index])
    if window is None or settings.get("use_sliding_window") is False:
        return _FULL
    pattern = settings.get("sliding_window_pattern")
    if pattern is not None:
        return _SLIDING if (index + 1) % settings.size("sliding_window_pattern") else _FULL
    first = settings.optional("max_window_layers")
    return _SLIDING if first is None or index >= first else _FULL


def _rope(settings: Settings, head_size: int, kind: str, *, scaled: bool) -> Rope:
    """The rotary embedding of a kind of layer, from `rope_parameters` (one, or one per kind), or the older keys."""
    parameters = settings.table("rope_parameters")
    if any(isinstance(each, dict) for each in parameters.values()):
        scaling = dict(parameters.get(kind) or {})
    else:
        scaling = (parameters or settings.table("rope_scaling")) if scaled else {}
        if not scaled and settings.get("rope_local_base_freq") is not None:
            scaling = {"rope_theta": settings.number("rope_local_base_freq")}
    base = scaling.get("rope_theta")
    base = settings.number("rope_theta", 10000.0) if base is None else base
    part = scaling.get("partial_rotary_factor")
    part = settings.number("partial_rotary_factor", 1.0) if part is None else part
    if not isinstance(base, int | float) or not isinstance(part, int | float) or not 0 < part <= 1:
        raise InvalidModelError(f"{settings.path}: the rotary embedding's base is {base!r}, its part {part!r}")
    original = settings.get("original_max_position_embeddings")
    if original is not None:
        scaling.setdefault("original_max_position_embeddings", original)
    context = settings.size("max_position_embeddings")
    return make_rope(RopeSettings(int(head_size * part), float(base), context, scaling))
