"""The families of decoders like Llama, mixtures of experts included, by the type that config.json names."""

from __future__ import annotations

import math
from dataclasses import replace

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.config import MOST_EXPERTS, DecoderConfig, ExpertsConfig
from compiler.frontends.llm.gpt_families import GPT_FAMILIES, Family
from compiler.frontends.llm.names import GRANITE_EXPERTS, MIXTRAL_EXPERTS, QWEN_EXPERTS, hugging_face_names
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.settings import Settings


def _without_rope(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """SmolLM3: some layers have no rotary positions."""
    count = len(config.layers)
    every = settings.size("no_rope_layer_interval", 4)
    with_rope = settings.each_layer("no_rope_layers", count) or [(index + 1) % every for index in range(count)]
    layers = (
        layer if rotates else replace(layer, rope=None) for layer, rotates in zip(config.layers, with_rope, strict=True)
    )
    return replace(config, layers=tuple(layers))


def _granite(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return replace(
        config,
        embedding_scale=settings.number("embedding_multiplier", 1.0),
        residual_scale=settings.number("residual_multiplier", 1.0),
        score_scale=settings.number("attention_multiplier", 1.0),
        logit_scale=1 / settings.positive("logits_scaling", 1.0),
    )


def _gemma(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    if settings.flag("use_bidirectional_attention"):
        raise OptionError(f"{settings.path}: bidirectional attention is not supported")
    scale = None if settings.get("query_pre_attn_scalar") is None else settings.positive("query_pre_attn_scalar")
    return replace(
        config,
        embedding_scale=math.sqrt(config.hidden),
        score_scale=config.score_scale if scale is None else scale**-0.5,
        score_cap=settings.optional("attn_logit_softcapping"),
        logit_cap=settings.optional("final_logit_softcapping"),
    )


def _olmo(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return replace(config, norm="layer", epsilon=1e-5, clip=settings.optional("clip_qkv"))


_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
_GEMMA_STORAGE = Storage(norm_offset=1.0)


def _mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    """The mixture of a layer; some layers of Qwen's models have an MLP."""
    dense = settings.get("mlp_only_layers") or []
    every = settings.size("decoder_sparse_step", 1)
    if not isinstance(dense, list) or layer in dense or (layer + 1) % every:
        return None
    key = "num_experts" if settings.get("num_experts") is not None else "num_local_experts"
    count = settings.size(key, most=MOST_EXPERTS)
    chosen = settings.size("num_experts_per_tok")
    if chosen > count:
        raise InvalidModelError(f"{settings.path}: {chosen} experts per token, and {count} in all")
    shared = settings.get("shared_expert_intermediate_size")
    return ExpertsConfig(
        count=count,
        chosen=chosen,
        intermediate=settings.size("moe_intermediate_size", settings.size("intermediate_size")),
        normalized=settings.flag("norm_topk_prob"),
        shared=settings.size("shared_expert_intermediate_size") if shared else 0,
        shared_gate=settings.flag("shared_gate"),
    )


def _sparse_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    found = _mixture(settings, layer)
    if found is None or found.chosen != 2:
        raise OptionError(f"{settings.path}: mixtures of Phi with other than 2 experts per token are not supported")
    return replace(found, normalized=False, jitter=settings.number("router_jitter_noise", 0.01))


def _phimoe(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Layer norms; cosine and sine have a factor of their own."""
    scaling = settings.table("rope_parameters") or settings.table("rope_scaling")
    factors = [scaling.get(each, 1.0) for each in ("short_mscale", "long_mscale")]
    if factors[0] != factors[1] or not isinstance(factors[0], int | float):
        raise OptionError(f"{settings.path}: factors of RoPE that depend on the length, {factors}, are not supported")
    factor = float(factors[0])
    layers = tuple(
        layer if layer.rope is None else replace(layer, rope=replace(layer.rope, factor=factor))
        for layer in config.layers
    )
    return replace(config, norm="layer", layers=layers)


_ALWAYS_NORMALIZED = {"norm_topk_prob": True}
_QWEN = {"use_sliding_window": False, "max_window_layers": 28}

FAMILIES: dict[str, Family] = {
    **GPT_FAMILIES,
    "mixtral": Family(
        names=hugging_face_names(roles=MIXTRAL_EXPERTS),
        experts=_mixture,
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_experts_per_tok": 2, **_ALWAYS_NORMALIZED},
    ),
    "phimoe": Family(
        names=hugging_face_names(roles=MIXTRAL_EXPERTS),
        experts=_sparse_mixture,
        changes=_phimoe,
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": Family(
        names=hugging_face_names(roles=QWEN_EXPERTS),
        experts=_mixture,
        defaults={**_QWEN, "num_experts_per_tok": 4, "shared_gate": True},
    ),
    "qwen3_moe": Family(
        names=hugging_face_names(roles=QWEN_EXPERTS),
        experts=_mixture,
        defaults={**_QWEN, "num_experts_per_tok": 8, "shared_expert_intermediate_size": 0},
    ),
    "olmoe": Family(
        names=hugging_face_names(roles=QWEN_EXPERTS),
        experts=_mixture,
        defaults={"rms_norm_eps": 1e-5, "num_experts_per_tok": 8},
        changes=lambda config, settings: replace(config, clip=settings.optional("clip_qkv")),
    ),
    "granitemoe": Family(
        names=hugging_face_names(roles=GRANITE_EXPERTS),
        experts=_mixture,
        changes=_granite,
        defaults={"num_experts_per_tok": 2, **_ALWAYS_NORMALIZED},
    ),
    "granitemoeshared": Family(
        names=hugging_face_names(roles=GRANITE_EXPERTS),
        experts=_mixture,
        changes=_granite,
        defaults={"num_experts_per_tok": 2, **_ALWAYS_NORMALIZED},
        aliases={"shared_expert_intermediate_size": "shared_intermediate_size"},
    ),
    "llama": Family(),
    "mistral": Family(),
    "ministral": Family(),
    "qwen2": Family(defaults={"use_sliding_window": False, "max_window_layers": 28}),
    "qwen3": Family(defaults={"use_sliding_window": False, "max_window_layers": 28, "head_dim": 128}),
    "smollm3": Family(
        changes=_without_rope, defaults={"use_sliding_window": False, "rope_theta": 2e6, "tie_word_embeddings": True}
    ),
    "phi3": Family(defaults={"rms_norm_eps": 1e-5}),
    "granite": Family(changes=_granite),
    "gemma": Family(
        changes=_gemma, defaults={**_GEMMA, "hidden_activation": "gelu_pytorch_tanh"}, storage=_GEMMA_STORAGE
    ),
    "gemma2": Family(
        names=hugging_face_names("sandwich"),
        changes=_gemma,
        defaults={**_GEMMA, "sliding_window": 4096, "sliding_window_pattern": 2, "query_pre_attn_scalar": 256},
        storage=_GEMMA_STORAGE,
    ),
    "gemma3_text": Family(
        names=hugging_face_names("sandwich"),
        scales_full_only=True,
        changes=_gemma,
        defaults={
            **_GEMMA,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
        },
        storage=_GEMMA_STORAGE,
    ),
    "olmo": Family(changes=_olmo, storage=Storage(bare_norms=True)),
    "olmo2": Family(names=hugging_face_names("post"), defaults={"rms_norm_eps": 1e-5}),
    "olmo3": Family(
        names=hugging_face_names("post"),
        scales_full_only=True,
        defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4},
    ),
}
