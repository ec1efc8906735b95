"""A decoder's configuration from the settings of a config.json, or from GGUF metadata under the same names."""

from __future__ import annotations

import math
from dataclasses import replace

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.attention import alibi_slopes
from compiler.frontends.llm.config import (
    MAX_HEADS,
    MAX_LAYERS,
    Activation,
    DecoderConfig,
    Heads,
    LatentConfig,
    LayerConfig,
)
from compiler.frontends.llm.families import Family
from compiler.frontends.llm.families.layer_kinds import BOTH, CHUNKED, FULL, MLP, MOE, RECURRENT, SLIDING
from compiler.frontends.llm.rope import MAX_HEAD_SIZE, PROPORTIONAL, Rope, RopeSettings, make_rope
from compiler.frontends.llm.settings import Settings

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "sqrelu": "relu2",
    "xielu": "xielu",
}
_ATTENDING = (FULL, SLIDING, CHUNKED, BOTH)
_MAX_ALIBI = 1024


def decoder_config(settings: Settings, kind: str, family: Family) -> DecoderConfig:
    """Return the configuration of a model of a family; `kind` is its name in the file.

    Raises:
        InvalidModelError: a setting is missing or out of range, or settings are inconsistent.
        OptionError: a setting is not supported.
    """
    for key, (what, unless) in family.refused.items():
        settings.refuse(key, what, unless=unless)
    hidden, heads = settings.size("hidden_size"), settings.size("num_attention_heads", most=MAX_HEADS)
    head_size = settings.size("head_dim", hidden // heads, most=MAX_HEAD_SIZE)
    key_heads = settings.size("num_key_value_heads", heads)
    latent = family.latent(settings) if family.latent else None
    if latent is not None:
        head_size, key_heads = latent.rotated, 1
    layers = _layers(settings, Heads(heads, key_heads, head_size), family)
    widths = settings.layer_sizes("intermediate_size", len(layers))
    if widths is not None:
        layers = tuple(replace(layer, intermediate=width) for layer, width in zip(layers, widths, strict=True))
    context = settings.size("max_position_embeddings")
    learned = family.positions == "learned"
    config = DecoderConfig(
        architecture=kind,
        hidden=hidden,
        intermediate=widths[0] if widths else _intermediate(settings, hidden, family, layers),
        vocabulary=settings.size("vocab_size"),
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        context=context,
        layers=layers,
        score_scale=_score_scale(settings, head_size) if latent is None else _latent_scale(settings, latent),
        norm=family.norm,
        epsilon=settings.number("rms_norm_eps", 1e-6),
        activation=_activation(settings),
        score_cap=settings.optional("attn_logit_softcapping"),
        logit_cap=settings.optional("final_logit_softcapping"),
        embedding_scale=math.sqrt(hidden) if family.scales_embedding else settings.number("embedding_multiplier", 1.0),
        residual_scale=settings.number("residual_multiplier", 1.0),
        logit_scale=1 / settings.positive("logits_scaling", 1.0),
        clip=settings.optional("clip_qkv"),
        gated=family.gated,
        parallel=settings.flag(family.parallel) if isinstance(family.parallel, str) else family.parallel,
        position_rows=settings.size("position_rows", context + family.position_offset) if learned else 0,
        position_offset=family.position_offset,
        slopes=_slopes(settings, heads) if _positions(settings, family) == "alibi" else None,
        latent=latent,
    )
    return family.changes(config, settings)


def _positions(settings: Settings, family: Family) -> str:
    return "alibi" if family.positions == "rotary" and settings.get("alibi") is True else family.positions


def _slopes(settings: Settings, heads: int) -> tuple[float, ...]:
    most = settings.positive("alibi_bias_max", 8.0)
    if most >= _MAX_ALIBI:
        raise InvalidModelError(f"{settings.path}: the largest slope of ALiBi is {most}")
    return alibi_slopes(heads, most)


def _score_scale(settings: Settings, head_size: int) -> float:
    if settings.get("query_pre_attn_scalar") is not None:
        return settings.positive("query_pre_attn_scalar") ** -0.5
    return settings.number("attention_multiplier", 1 / math.sqrt(head_size))


def _latent_scale(settings: Settings, latent: LatentConfig) -> float:
    """YaRN scales the scores of all positions, including the unrotated parts of heads."""
    scaling = settings.table("rope_parameters") or settings.table("rope_scaling")
    growth, factor = scaling.get("mscale_all_dim") or 0.0, scaling.get("factor") or 1.0
    if not isinstance(growth, int | float) or not isinstance(factor, int | float):
        raise InvalidModelError(f"{settings.path}: the scaling of RoPE has the factors {growth!r} and {factor!r}")
    magnitude = 0.1 * growth * math.log(factor) + 1.0 if factor > 1 else 1.0
    return float(magnitude**2 / math.sqrt(latent.plain + latent.rotated))


def _activation(settings: Settings) -> Activation:
    activation = settings.get("hidden_activation") or settings.get("hidden_act") or "silu"
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise OptionError(f"{settings.path}: the activation {str(activation)[:80]!r} is not supported")
    return _ACTIVATIONS[activation]


def _intermediate(settings: Settings, hidden: int, family: Family, layers: tuple[LayerConfig, ...]) -> int:
    """Return the width of an MLP; models of only experts, or without MLPs, may omit it."""
    if not any(layer.feeds for layer in layers):
        return 0
    experts = layers[0].experts
    default = None if experts is None else experts.intermediate
    return settings.size("intermediate_size", default if family.expansion is None else family.expansion * hidden)


def _layers(settings: Settings, heads: Heads, family: Family) -> tuple[LayerConfig, ...]:
    """Return the settings of each layer."""
    listed = settings.get("layers_block_type") or settings.get("hybrid_override_pattern") or ()
    count = settings.size("num_hidden_layers", len(listed) if isinstance(listed, list | str) and listed else None)
    if count > MAX_LAYERS:
        raise InvalidModelError(f"{settings.path}: {count} layers, but at most {MAX_LAYERS} are supported")
    window = settings.size("sliding_window") if settings.get("sliding_window") else None
    kinds = family.kinds(settings, count) if family.kinds else _attention_kinds(settings, count, window)
    rotates = _rotating_layers(settings, kinds, family, has_window=window is not None)
    layer_heads = [
        family.heads(settings, index, kind, heads) if family.heads else heads for index, kind in enumerate(kinds)
    ]
    for index, head in enumerate(layer_heads):
        if head.count % head.keys:
            raise InvalidModelError(f"{settings.path}: layer {index} has {head.count} heads, and {head.keys} of keys")
    turned = {(kind, each.size) for kind, each, turns in zip(kinds, layer_heads, rotates, strict=True) if turns}
    ropes = {
        (kind, size): _rope(settings, size, kind, scaled=kind != SLIDING or not family.scales_full_only)
        for kind, size in sorted(turned)
    }
    recurrent = family.recurrent(settings) if family.recurrent and {RECURRENT, BOTH} & set(kinds) else None
    layers = []
    for index, kind in enumerate(kinds):
        if kind == SLIDING and window is None:
            raise InvalidModelError(f"{settings.path}: layer {index} has a window, but 'sliding_window' is missing")
        feeds = kind in (MLP, MOE) or not family.one_part
        layers.append(
            LayerConfig(
                rope=ropes[kind, layer_heads[index].size] if rotates[index] else None,
                window=window if kind == SLIDING else None,
                chunk=settings.size("attention_chunk_size") if kind == CHUNKED else None,
                experts=family.experts(settings, index) if feeds else None,
                attends=kind in _ATTENDING,
                recurrent=recurrent if kind in (RECURRENT, BOTH) else None,
                feeds=feeds,
                heads=None if layer_heads[index] == heads else layer_heads[index],
            )
        )
    return tuple(layers)


def _rotating_layers(settings: Settings, kinds: list[str], family: Family, *, has_window: bool) -> list[bool]:
    """Return, for each layer, True if it applies a rotary embedding."""
    attends = [kind in _ATTENDING for kind in kinds]
    if family.rope_if is not None and settings.get(family.rope_if[0]) != family.rope_if[1]:
        return [False] * len(kinds)
    if _positions(settings, family) != "rotary":
        return [False] * len(kinds)
    if family.rope_in_windows_only and has_window:
        return [kind == SLIDING for kind in kinds]
    listed = settings.each_layer("no_rope_layers", len(kinds))  # 1 for layers with an embedding
    if listed:
        return [bool(rotates) and each for rotates, each in zip(listed, attends, strict=True)]
    if settings.get("no_rope_layer_interval") is not None:
        every = settings.size("no_rope_layer_interval")
        return [(index + 1) % every != 0 and each for index, each in enumerate(attends)]
    return attends


def _attention_kinds(settings: Settings, count: int, window: int | None) -> list[str]:
    """Return full or sliding, from the list of layers, a pattern, or the index of the first sliding layer."""
    listed = settings.each_layer("layer_types", count)
    if listed is not None:
        for kind in listed:
            if kind not in (FULL, SLIDING):
                raise OptionError(f"{settings.path}: layers of type {kind!r} are not supported")
        return listed
    if window is None or settings.get("use_sliding_window") is False:
        return [FULL] * count
    if settings.get("sliding_window_pattern") is not None:
        every = settings.size("sliding_window_pattern")
        return [SLIDING if (index + 1) % every else FULL for index in range(count)]
    first = settings.optional("max_window_layers")
    return [SLIDING if first is None or index >= first else FULL for index in range(count)]


def _rope(settings: Settings, head_size: int, kind: str, *, scaled: bool) -> Rope:
    """Return the rotary embedding for a kind of layer, from `rope_parameters` (one, or one per kind), or the older
    keys."""
    parameters = settings.table("rope_parameters")
    if any(isinstance(each, dict) for each in parameters.values()):
        scaling = dict(parameters.get(FULL if kind == BOTH else kind) or {})
    else:
        kept = parameters if scaled else {"rope_theta": parameters.get("rope_theta")}
        scaling = kept if parameters or not scaled else settings.table("rope_scaling")
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
    part = 1.0 if scaling.get("rope_type") == PROPORTIONAL else part
    size = settings.size("rotary_dim", int(head_size * part))
    return make_rope(RopeSettings(size, float(base), settings.size("max_position_embeddings"), scaling))
