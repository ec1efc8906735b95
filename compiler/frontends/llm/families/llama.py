"""Families of decoders similar to Llama, including mixtures of experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.config import DecoderConfig, ExpertsConfig, Heads, Temperature, XieluNumbers
from compiler.frontends.llm.families.family import NORMALIZED, NOT_NORMALIZED, Family, Gguf, mixture, needed, without
from compiler.frontends.llm.families.layer_kinds import CHUNKED, FULL, MLP, SLIDING, listed_kinds
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.names import (
    DEEPSEEK_EXPERTS,
    GPT_OSS_ROLES,
    GRANITE_EXPERTS,
    LLAMA4_ROLES,
    MIXTRAL_EXPERTS,
    QWEN_EXPERTS,
    hugging_face_names,
)
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.rope import RopeSettings, make_rope
from compiler.frontends.llm.settings import Settings

_BAICHUAN_LAYERS = 32  # of the model with rotary positions; the larger one has ALiBi
_LLAMA4_BARE_EXPERTS = 128


def _cohere(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """The scale of the logits is a factor, unlike Granite's, which is a divisor."""
    return replace(config, logit_scale=settings.number("logit_scale", 0.0625))


def _sparse_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    found = mixture(settings, layer)
    if found is None or found.chosen != 2:
        raise OptionError(f"{settings.path}: mixtures of Phi with other than 2 experts per token are not supported")
    return replace(found, normalized=False, jitter=settings.number("router_jitter_noise", 0.01))


def _phimoe(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Cosine and sine have an additional factor."""
    scaling = settings.table("rope_parameters") or settings.table("rope_scaling")
    factors = [scaling.get(each, 1.0) for each in ("short_mscale", "long_mscale")]
    if factors[0] != factors[1] or not isinstance(factors[0], int | float):
        raise OptionError(f"{settings.path}: factors of RoPE that depend on the length, {factors}, are not supported")
    factor = float(factors[0])
    layers = tuple(
        layer if layer.rope is None else replace(layer, rope=replace(layer.rope, factor=factor))
        for layer in config.layers
    )
    return replace(config, layers=layers)


def _clamped_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    """The softmax over the chosen experts equals the softmax over all, normalized."""
    found = mixture(settings, layer)
    clamped = settings.positive("swiglu_limit", 7.0), settings.number("swiglu_alpha", 1.702)
    return None if found is None else replace(found, clamped=clamped)


def _apertus(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """GGUF files store the xIELU parameters as metadata."""
    stored = settings.get("xielu")
    if stored is None:
        return config
    layers = zip(config.layers, zip(*stored, strict=True), strict=True)
    return replace(config, layers=tuple(replace(layer, xielu=XieluNumbers.of_stored(*each)) for layer, each in layers))


def _apertus_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Each xIELU parameter is one number for all layers, or a list with one per layer."""
    count, stored = values.get("num_hidden_layers", 0), []
    for key in ("xielu.alpha_p", "xielu.alpha_n", "xielu.beta", "xielu.eps"):
        found = file.required(key)
        each = found if isinstance(found, list) else [found] * count
        if len(each) != count or not all(isinstance(one, float) and math.isfinite(one) for one in each):
            raise InvalidModelError(f"{file.path}: the metadata {key!r} are not {count} numbers")
        stored.append(each)
    return {"xielu": stored}


def _qwen(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """The width in the file is the sum of both MLP matmuls' widths."""
    return replace(config, intermediate=config.intermediate // 2)


def _alibi(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Baichuan's larger models have ALiBi."""
    return {"alibi": values.get("num_hidden_layers") != _BAICHUAN_LAYERS}


def _llama4(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Layers without rotations have a temperature; the others have head norms."""
    tempered = settings.get("attn_temperature_tuning") not in (False, 0)
    temperature = Temperature(
        settings.positive("floor_scale", 8192.0), settings.number("attn_scale", 0.1), offset=1.0, rotated=False
    )
    bare = settings.get("use_qk_norm") is not False
    return replace(
        config,
        intermediate=settings.size("intermediate_size_mlp", config.intermediate),
        bare_head_norms=bare,
        temperature=temperature if tempered else None,
    )


def _llama4_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model with 128 experts has no head norms; llama.cpp detects it by the number of experts."""
    width = values.get("moe_intermediate_size")
    return {"use_qk_norm": values.get("num_experts") != _LLAMA4_BARE_EXPERTS, "intermediate_size": width}


def _llama4_kinds(settings: Settings, count: int) -> list[str]:
    """Layers with rotations attend only within their chunk."""
    if settings.get("layer_types") is not None:
        return listed_kinds(settings, count)
    listed = settings.each_layer("no_rope_layers", count) if settings.get("no_rope_layers") else None
    every = settings.size("no_rope_layer_interval", 4)
    rotates = listed or [(index + 1) % every for index in range(count)]
    chunked = settings.get("attention_chunk_size") is not None
    return [CHUNKED if each and chunked else FULL for each in rotates]


def _llama4_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    """Layers with a mixture are listed, or are every `interleave_moe_layer_step`-th."""
    listed = settings.get("moe_layers")
    if isinstance(listed, list) and layer not in listed:
        return None
    if listed is None and (layer + 1) % settings.size("interleave_moe_layer_step", 1):
        return None
    found = mixture(settings, layer)
    return None if found is None else replace(found, biased=False, shared=found.intermediate, scales_inputs=True)


def hunyuan(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Queries and keys are normalized after their rotation."""
    return replace(config, norms_after_rotation=True)


def full_first(settings: Settings, count: int) -> list[str]:
    """Layer kinds without a list: full attention in the first of every four layers."""
    if settings.get("layer_types") is not None:
        return listed_kinds(settings, count)
    return [SLIDING if index % 4 else FULL for index in range(count)]


def layer_ropes(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Each layer may have its own rotary base, or 0 for no rotation."""
    bases = settings.each_layer("layer_rope_theta", len(config.layers))
    if bases is None:
        return config
    size, scaling = config.head_size, settings.table("rope_parameters")
    ropes = {base: make_rope(RopeSettings(size, float(base), config.context, scaling)) for base in set(bases) if base}
    layers = zip(config.layers, bases, strict=True)
    return replace(config, layers=tuple(replace(layer, rope=ropes.get(base)) for layer, base in layers))


def growing_queries(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Queries are scaled with the position beyond the training length."""
    scaling = settings.table("rope_parameters")
    scale, floor = scaling.get("llama_4_scaling_beta"), scaling.get("llama_4_scaling_floor")
    floor = scaling.get("original_max_position_embeddings") if floor is None else floor
    if not scale:
        return config
    if not isinstance(scale, int | float) or not isinstance(floor, int | float) or floor <= 0:
        raise InvalidModelError(f"{settings.path}: queries grow by {scale!r} at every {floor!r} positions")
    return replace(config, temperature=Temperature(float(floor), float(scale)))


def _ministral_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    beta = file.value("mistral3.attention.temperature_scale")
    return {"rope_parameters": {**values["rope_scaling"], "llama_4_scaling_beta": beta}} if beta else {}


def _hunyuan_vl(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its files specify the factor of NTK-aware scaling, which text models include in their base."""
    alpha, size = file.value("hunyuan_vl.rope.scaling.alpha"), values.get("head_dim")
    if not alpha or not isinstance(size, int):
        return {}
    return {"rope_theta": values.get("rope_theta", 10000.0) * alpha ** (size / (size - 2))}


def _rope_pattern(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"no_rope_layers": file.value("granite_swa.attention.rope_pattern")}


_LISTED = ("num_attention_heads", "num_key_value_heads")


def _listed(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Numbers of heads that differ by layer: the model has the largest ones.

    Some layers of DeciLM have no attention, no MLP, or neither (arXiv:2411.19146).
    """
    count = values.get("num_hidden_layers", 0)
    lists = [values.get(key) if isinstance(values.get(key), list) else [values.get(key)] * count for key in _LISTED]
    widths = values.get("intermediate_size")
    if any(not isinstance(each, int) for listed in lists for each in listed or ()):
        raise InvalidModelError(f"{file.path}: the numbers of attention heads are {str(lists)[:80]}")
    pairs = list(zip(*(listed or () for listed in lists), strict=True))
    if any(queries and not keys for queries, keys in pairs):
        raise OptionError(f"{file.path}: layers with a matmul in place of attention are not supported")
    settings = {"listed_heads": pairs, **dict(zip(_LISTED, max(pairs, default=(0, 0)), strict=True))}
    if isinstance(widths, list):
        settings |= {"intermediate_size": [each or 1 for each in widths], "listed_widths": widths}
    return settings


def _listed_heads(settings: Settings, layer: int, kind: str, heads: Heads) -> Heads:
    queries, keys = settings.get("listed_heads")[layer]
    return Heads(queries, keys, heads.size) if queries else heads


def _listed_attention(settings: Settings, count: int) -> list[str]:
    pairs = settings.each_layer("listed_heads", count) or ()
    return [FULL if queries else MLP for queries, _ in pairs]


def _listed_mlps(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    widths = settings.get("listed_widths") or [1] * len(config.layers)
    layers = zip(config.layers, widths, strict=True)
    return replace(config, layers=tuple(replace(layer, feeds=width > 0) for layer, width in layers))


_DEEPSEEK = {"scoring_func": "sigmoid", "topk_sum_epsilon": 1e-20, "norm_topk_prob": True}
_DEEPSEEK_KEYS = {"num_experts": "n_routed_experts"}
_DEEPSEEK_GGUF = {"expert_shared_count": "n_shared_experts"}
_QWEN = {"use_sliding_window": False, "max_window_layers": 28}
_GRANITE = {"attention_multiplier": 1.0}
_GRANITE_GGUF = {"attention_multiplier": None}  # files without it use the usual scale
_GLM = {"rms_norm_eps": 1.5625e-07, "head_dim": 128, "partial_rotary_factor": 0.5}
_CWM_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 16.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
_EXPERTS_PER_TOKEN = {"num_experts_per_tok": 2, **NORMALIZED}
_NORM_EPS = {"rms_norm_eps": "layer_norm_eps"}
_COHERE_GGUF: dict[str, Any] = {
    "interleaved": True,
    "values": {"logit_scale": 1.0},
    "keys": {"logit_scale": "logit_scale"},
}

LLAMA: dict[str, Family] = {
    "llama": Family(
        gguf=(
            *(Gguf(name=name, interleaved=True) for name in ("llama", "internlm2", "xverse", "chatglm")),
            Gguf(name="exaone"),
            Gguf(name="pangu-embedded"),
        )
    ),
    "mistral": Family(),
    "ministral": Family(),
    "ministral3": Family(
        changes=growing_queries,
        defaults={"rms_norm_eps": 1e-5, "head_dim": 128},
        gguf=(Gguf(name="mistral3", interleaved=True, read=_ministral_gguf),),
    ),
    "cwm": Family(
        kinds=full_first,
        defaults={"head_dim": 128, "sliding_window": 8192, "rope_parameters": _CWM_ROPE},
    ),
    "arcee": Family(
        gated=False,
        defaults={"hidden_act": "relu2", "rms_norm_eps": 1e-5},
        gguf=(Gguf(name="arcee", interleaved=True),),
    ),
    "ernie4_5": Family(
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 5e5, "head_dim": 128, "tie_word_embeddings": True},
        storage=Storage(interleaved=True),
        gguf=(Gguf(name="ernie4_5", interleaved=True),),
    ),
    "hunyuan_v1_dense": Family(
        names=hugging_face_names(
            roles={"q_norm": "self_attn.query_layernorm", "k_norm": "self_attn.key_layernorm"},
        ),
        changes=hunyuan,
        defaults={"rms_norm_eps": 1e-5},
        gguf=(Gguf(name="hunyuan-dense"), Gguf(name="hunyuan_vl", read=_hunyuan_vl)),
    ),
    "helium": Family(
        defaults={"rms_norm_eps": 1e-8, "rope_theta": 1e5, "head_dim": 128},
        storage=Storage(interleaved=True),
    ),
    "seed_oss": Family(
        defaults={"head_dim": 128},
        gguf=(Gguf(name="seed_oss", second={"mlp_norm": "post_attention_norm"}),),
    ),
    "exaone4": Family(
        names=hugging_face_names("post"),
        rope_in_windows_only=True,
        defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4},
        gguf=(Gguf(name="exaone4", norms="post"),),
    ),
    "glm": Family(defaults=_GLM, storage=Storage(interleaved=True)),
    "glm4": Family(
        names=hugging_face_names(
            "sandwich",
            roles={
                "post_attention_norm": "post_self_attn_layernorm",
                "mlp_norm": "post_attention_layernorm",
                "post_mlp_norm": "post_mlp_layernorm",
            },
        ),
        defaults=_GLM,
        storage=Storage(interleaved=True),
        gguf=(Gguf(name="glm4", norms="sandwich", interleaved=True),),
    ),
    "bitnet": Family(
        names=hugging_face_names(roles={"o_norm": "self_attn.attn_sub_norm", "down_norm": "mlp.ffn_sub_norm"}),
        defaults={"hidden_act": "relu2", "rms_norm_eps": 1e-5, "rope_theta": 5e5},
        # llama.cpp's architecture is the first models', which have another activation.
        gguf=(
            Gguf(
                name="bitnet",
                roles={"o_norm": "attn_sub_norm", "down_norm": "ffn_sub_norm"},
                values={"hidden_act": "silu"},
            ),
        ),
    ),
    "mixtral": Family(
        names=hugging_face_names(roles=MIXTRAL_EXPERTS),
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 1e6, **_EXPERTS_PER_TOKEN},
    ),
    "phimoe": Family(
        names=hugging_face_names(roles=MIXTRAL_EXPERTS),
        norm="layer",
        experts=_sparse_mixture,
        changes=_phimoe,
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_experts_per_tok": 2},
    ),
    "qwen2": Family(defaults=_QWEN, gguf=(Gguf(name="qwen2"), Gguf(name="qwen2vl"), Gguf(name="paddleocr"))),
    "qwen3": Family(defaults={**_QWEN, "head_dim": 128}, gguf=(Gguf(name="qwen3"), Gguf(name="qwen3vl"))),
    "qwen2_moe": Family(
        names=hugging_face_names(roles=QWEN_EXPERTS),
        defaults={**_QWEN, "num_experts_per_tok": 4, "shared_gate": True},
        gguf=(Gguf(name="qwen2moe", values=NOT_NORMALIZED),),
    ),
    "qwen3_moe": Family(
        names=hugging_face_names(roles=QWEN_EXPERTS),
        defaults={**_QWEN, "num_experts_per_tok": 8},
        gguf=(Gguf(name="qwen3moe"), Gguf(name="qwen3vlmoe")),
    ),
    "olmoe": Family(
        names=hugging_face_names(roles=QWEN_EXPERTS),
        defaults={"rms_norm_eps": 1e-5, "num_experts_per_tok": 8},
        gguf=(Gguf(name="olmoe", values=NOT_NORMALIZED),),
    ),
    "glm4_moe": Family(
        names=hugging_face_names(roles=DEEPSEEK_EXPERTS),
        defaults={"rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "first_k_dense_replace": 1, **_DEEPSEEK},
        aliases=_DEEPSEEK_KEYS,
        gguf=(
            Gguf(
                name="glm4moe",
                roles={"mlp_norm": "post_attention_norm"},
                keys=_DEEPSEEK_GGUF,
                values=NOT_NORMALIZED,
            ),
        ),
    ),
    "dots1": Family(
        names=hugging_face_names(roles=DEEPSEEK_EXPERTS),
        defaults=_DEEPSEEK,
        aliases=_DEEPSEEK_KEYS,
        gguf=(Gguf(name="dots1", keys=_DEEPSEEK_GGUF, values=NOT_NORMALIZED),),
    ),
    "smollm3": Family(
        defaults={
            "use_sliding_window": False,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
            "no_rope_layer_interval": 4,
        },
        gguf=(Gguf(name="smollm3", interleaved=True),),
    ),
    "phi3": Family(defaults={"rms_norm_eps": 1e-5}, gguf=(Gguf(name="phi3"),)),
    "granite_swa": Family(
        names=hugging_face_names(roles={"sinks": "self_attn.sinks"}),
        kinds=full_first,
        changes=layer_ropes,
        defaults={**_GRANITE, "rms_norm_eps": 1e-5, "sliding_window": 128, "tie_word_embeddings": True},
        gguf=(Gguf(name="granite_swa", interleaved=True, values=_GRANITE_GGUF, read=_rope_pattern),),
    ),
    "granite": Family(defaults=_GRANITE, gguf=(Gguf(name="granite", interleaved=True, values=_GRANITE_GGUF),)),
    **dict.fromkeys(
        ("granitemoe", "granitemoeshared"),
        Family(
            names=hugging_face_names(roles=GRANITE_EXPERTS),
            defaults={**_GRANITE, **_EXPERTS_PER_TOKEN},
            aliases={"shared_expert_intermediate_size": "shared_intermediate_size"},
            gguf=(Gguf(name="granitemoe", interleaved=True, values=_GRANITE_GGUF),),
        ),
    ),
    "olmo": Family(
        norm="layer",
        storage=Storage(bare_norms=True),
        defaults={"rms_norm_eps": 1e-5},
        gguf=(Gguf(name="olmo", interleaved=True),),
    ),
    "olmo2": Family(
        names=hugging_face_names("post"),
        defaults={"rms_norm_eps": 1e-5},
    ),
    "olmo3": Family(
        names=hugging_face_names("post"),
        scales_full_only=True,
        defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4},
        gguf=(Gguf(name="olmo2", norms="post"),),
    ),
    "gpt_oss": Family(
        names=hugging_face_names(roles=GPT_OSS_ROLES),
        experts=_clamped_mixture,
        storage=Storage(alternating=True),
        refused={"hidden_act": ("this activation", "silu")},
        defaults={
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
            "sliding_window": 128,
            "sliding_window_pattern": 2,
            "num_experts_per_tok": 4,
            **NORMALIZED,
        },
        gguf=(Gguf(name="gpt-oss", roles={"mlp_norm": "post_attention_norm"}),),
    ),
    "llama4_text": Family(
        names=hugging_face_names(roles=LLAMA4_ROLES),
        kinds=_llama4_kinds,
        experts=_llama4_mixture,
        changes=_llama4,
        storage=Storage(interleaved=True),
        defaults={
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 5e5,
            "num_experts_per_tok": 1,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
            "scoring_func": "sigmoid",
        },
        gguf=(
            Gguf(
                name="llama4",
                interleaved=True,
                keys={
                    "feed_forward_length": "intermediate_size_mlp",
                    "expert_feed_forward_length": "moe_intermediate_size",
                    "attention.chunk_size": "attention_chunk_size",
                    "interleave_moe_layer_step": "interleave_moe_layer_step",
                },
                read=_llama4_gguf,
            ),
        ),
    ),
    "apertus": Family(
        names=hugging_face_names(roles={"attention_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm"}),
        gated=False,
        changes=_apertus,
        gguf=(Gguf(name="apertus", read=_apertus_gguf),),
        defaults={"hidden_act": "xielu", "rms_norm_eps": 1e-5, "rope_theta": 12e6},
    ),
    "cohere": Family(
        names=without(hugging_face_names(), "mlp_norm"),
        norm="layer",
        parallel=True,
        changes=_cohere,
        refused={"use_qk_norm": ("normalization of queries and keys", False)},
        defaults={"rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        aliases=_NORM_EPS,
        storage=Storage(interleaved=True),
        gguf=(Gguf(name="command-r", **_COHERE_GGUF),),
    ),
    "cohere2": Family(
        names=without(hugging_face_names(), "mlp_norm"),
        norm="layer",
        parallel=True,
        changes=_cohere,
        rope_in_windows_only=True,
        defaults={
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
        },
        aliases=_NORM_EPS,
        storage=Storage(interleaved=True),
        gguf=(Gguf(name="cohere2", **_COHERE_GGUF),),
    ),
}

# Families that exist only as GGUF files.
LLAMA_FILES: tuple[Family, ...] = (
    # Phi's mixtures as in llama.cpp: no window, RMS norms (with a bias), and the softmax over the chosen experts.
    Family(defaults={"use_sliding_window": False}, gguf=(Gguf(name="phimoe"),)),
    Family(gguf=(Gguf(name="baichuan", interleaved=True, read=_alibi),)),
    Family(positions="alibi", gguf=(Gguf(name="refact"),)),
    Family(parallel=True, gguf=(Gguf(name="plamo"),)),
    Family(
        scales_full_only=True,
        defaults={"rope_local_base_freq": 10000.0, "sliding_window_pattern": 8},
        renames={f".post_{part}": f".post_{part}.weight" for part in ("attention_norm", "ffw_norm")},
        gguf=(Gguf(name="plamo3", norms="sandwich"),),
    ),
    Family(heads=_listed_heads, gguf=(Gguf(name="openelm", read=_listed),)),
    Family(
        heads=_listed_heads,
        kinds=_listed_attention,
        changes=_listed_mlps,
        gguf=(Gguf(name="deci", interleaved=True, read=_listed),),
    ),
    Family(
        changes=_cohere,
        gguf=(
            Gguf(
                name="grok",
                norms="sandwich",
                roles={"post_attention_norm": "attn_output_norm", "post_mlp_norm": "layer_output_norm"},
                second={"post_mlp_norm": "post_ffw_norm"},
                keys={"attention.output_scale": "attention_multiplier", "logit_scale": "logit_scale"},
                values={
                    "hidden_act": "gelu_pytorch_tanh",
                    "embedding_multiplier": 78.38367176906169,
                    "attention_multiplier": 0.08838834764831845,
                    "attn_logit_softcapping": 30.0,
                    "logit_scale": 0.5773502691896257,
                },
            ),
        ),
    ),
    Family(changes=hunyuan, gguf=(Gguf(name="maincoder", interleaved=True),)),
    Family(changes=_qwen, gguf=(Gguf(name="qwen"),)),
    Family(
        gguf=(Gguf(name="minicpm", interleaved=True, read=needed("embedding_scale", "residual_scale", "logit_scale")),)
    ),
)
