"""Families with recurrent mixers, in all layers or combined with layers with attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from compiler.errors import InvalidModelError
from compiler.frontends.llm.config import DecoderConfig, ExpertsConfig
from compiler.frontends.llm.families.family import NOT_NORMALIZED, Family, Gguf, mixture, within
from compiler.frontends.llm.families.latent import LATENT_KEYS, head_sizes, latent
from compiler.frontends.llm.families.layer_kinds import (
    MOE,
    kinds_by_fours,
    kinds_by_interval,
    kinds_of_nemotron,
    listed_kinds,
)
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.mixers import (
    GatedDelta,
    GatedRecurrence,
    LightningAttention,
    MatrixMemory,
    ShortConvolution,
    StateSpace,
    TimeMixing,
)
from compiler.frontends.llm.names import (
    DEEPSEEK_EXPERTS,
    GRANITE_EXPERTS,
    MIXTRAL_EXPERTS,
    QWEN_EXPERTS,
    Names,
    hugging_face_names,
    recurrent_roles,
)
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.settings import MAX_SIZE, Settings

_ENDLESS = 1 << 20  # context of models whose states do not grow
_MAX_MIXED = 256  # largest head size of RWKV 7: the kernel unrolls the vectors of a head


def _inner(settings: Settings, hidden: int) -> int:
    """Return the scan's number of channels. Raises InvalidModelError if out of range."""
    inner = int(min(settings.positive("mamba_expand", 2.0) * hidden, MAX_SIZE + 1))
    if settings.get("mamba_d_ssm") is not None:
        inner = settings.size("mamba_d_ssm")
    if not 1 <= inner <= MAX_SIZE:
        raise InvalidModelError(f"{settings.path}: 'expand' results in {inner} channels")
    return inner


def _limits(settings: Settings) -> tuple[float, float]:
    """Return the limits of steps; JSON represents infinity as a string, a literal or an object."""
    limits = settings.get("time_step_limit") or (0.0, np.inf)
    values: list[Any] = [each.get("__float__") if isinstance(each, dict) else each for each in limits]
    try:
        low, high = (float(each) for each in values)
    except (TypeError, ValueError) as error:
        raise InvalidModelError(
            f"{settings.path}: 'time_step_limit' is {str(limits)[:80]!r}, not two numbers"
        ) from error
    return low, high


def _mamba(settings: Settings) -> StateSpace:
    """Return a Mamba mixer."""
    hidden = settings.size("hidden_size")
    auto = settings.get("mamba_dt_rank") in (None, "auto")
    return StateSpace(
        inner=_inner(settings, hidden),
        sizes=settings.size("mamba_d_state", 16),
        taps=settings.size("mamba_d_conv", 4),
        rank=-(-hidden // 16) if auto else settings.size("mamba_dt_rank"),
        selection_norms="bare" if settings.flag("dt_b_c_rms") else "none",
        selection_epsilon=settings.number("mixer_rms_eps", settings.number("rms_norm_eps", 1e-6)),
    )


def _mamba2(settings: Settings) -> StateSpace:
    """Return a Mamba-2 mixer."""
    heads, groups = settings.size("mamba_n_heads"), settings.size("mamba_n_groups", 1)
    sized = settings.get("mamba_d_head") not in (None, "auto") and settings.get("mamba_d_ssm") is None
    inner = heads * settings.size("mamba_d_head") if sized else _inner(settings, settings.size("hidden_size"))
    if inner % heads or heads % groups:
        raise InvalidModelError(
            f"{settings.path}: {inner} channels, {heads} heads and {groups} groups do not fit together"
        )
    norm_before_gate = settings.get("mamba_norm_before_gate") is True
    return StateSpace(
        inner=inner,
        sizes=settings.size("mamba_d_state", 128),
        taps=settings.size("mamba_d_conv", 4),
        heads=heads,
        groups=groups,
        limits=_limits(settings),
        norm="none" if settings.get("mamba_rms_norm") is False else "before" if norm_before_gate else "gated",
    )


def _short_convolution(settings: Settings) -> ShortConvolution:
    return ShortConvolution(width=settings.size("hidden_size"), taps=settings.size("conv_L_cache", 3))


def _lfm2(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """The MLP's width is two thirds of the given one, rounded up."""
    if not settings.flag("block_auto_adjust_ff_dim"):
        return config
    width = int(2 * config.intermediate / 3)
    if settings.get("block_ffn_dim_multiplier") is not None:
        every = settings.size("block_multiple_of", 256)
        width = -(-int(settings.positive("block_ffn_dim_multiplier") * width) // every) * every
    return replace(config, intermediate=width)


def _gated_delta(settings: Settings) -> GatedDelta:
    heads, key_heads = settings.size("linear_num_value_heads"), settings.size("linear_num_key_heads")
    if heads % key_heads:
        raise InvalidModelError(f"{settings.path}: {heads} value heads are not a multiple of {key_heads} key heads")
    return GatedDelta(
        heads=heads,
        key_heads=key_heads,
        key_size=settings.size("linear_key_head_dim"),
        value_size=settings.size("linear_value_head_dim"),
        taps=settings.size("linear_conv_kernel_dim", 4),
        layout=settings.get("layout") or "separate",
        tiled=settings.flag("tiled"),
    )


def _olmo_hybrid(settings: Settings) -> GatedDelta:
    """Sizes missing in the settings follow from the number of heads."""
    heads = settings.size("linear_num_value_heads", settings.size("num_attention_heads"))
    key_heads = settings.size("linear_num_key_heads", settings.size("num_attention_heads"))
    size = settings.size("linear_key_head_dim", 3 * settings.size("hidden_size") // (4 * key_heads))
    if heads % key_heads:
        raise InvalidModelError(f"{settings.path}: {heads} value heads are not a multiple of {key_heads} key heads")
    return GatedDelta(
        heads=heads,
        key_heads=key_heads,
        key_size=size,
        value_size=settings.size("linear_value_head_dim", 2 * size),
        taps=settings.size("linear_conv_kernel_dim", 4),
        layout="parts",
        rate_scale=1.0 if settings.get("linear_allow_neg_eigval") is False else 2.0,
        epsilon=1e-5,
    )


def _olmo_hybrid_kinds(settings: Settings, count: int) -> list[str]:
    return listed_kinds(settings, count) if settings.get("layer_types") else kinds_by_fours(count)


def _olmo_hybrid_names(settings: Settings) -> Names:
    """Layers with attention have norms after their parts, others before them."""
    kinds = _olmo_hybrid_kinds(settings, settings.size("num_hidden_layers"))
    recurrent_names: dict[str, str | None] = {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "post_attention_norm": None,
        "post_mlp_norm": None,
    }
    layer_names = {index: recurrent_names for index, kind in enumerate(kinds) if kind == "recurrent"}
    return replace(hugging_face_names("post", recurrent_roles("delta-parts", "linear_attn.")), own=layer_names)


def _recurrent_gemma(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """The given width is the sum of both MLP matmuls' widths; the embedding factor is a bfloat16."""
    scale = float(np.asarray(config.embedding_scale, ml_dtypes.bfloat16))
    return replace(config, intermediate=config.intermediate // 2, embedding_scale=scale)


def _recurrent_gemma_kinds(settings: Settings, count: int) -> list[str]:
    """A short pattern of block types, repeated."""
    types = settings.get("block_types") or ["recurrent", "recurrent", "attention"]
    if not isinstance(types, list) or not set(types) <= {"recurrent", "attention"}:
        raise InvalidModelError(f"{settings.path}: 'block_types' is {str(types)[:80]!r}")
    kinds = ["recurrent" if each == "recurrent" else "sliding_attention" for each in types]
    return [kinds[index % len(kinds)] for index in range(count)]


def _gated_recurrence(settings: Settings) -> GatedRecurrence:
    width, heads = settings.size("lru_width", settings.size("hidden_size")), settings.size("num_attention_heads")
    if width % heads:
        raise InvalidModelError(f"{settings.path}: 'lru_width' of {width} is not a multiple of {heads} heads")
    return GatedRecurrence(width=width, heads=heads, taps=settings.size("conv1d_width", 4))


def _lightning(settings: Settings) -> LightningAttention:
    heads = settings.size("num_attention_heads")
    return LightningAttention(heads=heads, size=settings.size("head_dim", settings.size("hidden_size") // heads))


def _minimax_kinds(settings: Settings, count: int) -> list[str]:
    if settings.get("layer_types") is not None:
        return listed_kinds(settings, count)
    return ["recurrent" if index % 2 else "full_attention" for index in range(count)]


def _minimax(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Residuals are normalized, and both terms of a sum have factors."""

    def factors(part: str) -> tuple[float, float]:
        return settings.number(f"{part}_alpha_factor", 1.0), settings.number(f"{part}_beta_factor", 1.0)

    layers = (
        replace(layer, mixed=(*factors("full_attn" if layer.attends else "linear_attn"), *factors("mlp")))
        for layer in config.layers
    )
    return replace(config, layers=tuple(layers))


def _kimi_linear(settings: Settings) -> GatedDelta:
    """Kimi Delta Attention; published files contain its sizes in a table."""
    sizes = settings.table("linear_attn_config")
    heads, size, taps = (
        sizes.get(key, settings.size(own, default))
        for key, own, default in (
            ("num_heads", "linear_num_heads", 32),
            ("head_dim", "linear_head_dim", 128),
            ("short_conv_kernel_size", "linear_conv_kernel_dim", 4),
        )
    )
    if not all(isinstance(each, int) and 1 <= each <= MAX_SIZE for each in (heads, size, taps)):
        raise InvalidModelError(f"{settings.path}: 'linear_attn_config' has sizes {heads!r}, {size!r}, {taps!r}")
    return GatedDelta(
        heads=heads, key_heads=heads, key_size=size, value_size=size, taps=taps, layout="low-rank", gate="sigmoid"
    )


def _kimi_linear_kinds(settings: Settings, count: int) -> list[str]:
    """Lists of layers count from 1."""
    listed = settings.table("linear_attn_config").get("full_attn_layers")
    if isinstance(listed, list):
        return ["full_attention" if index + 1 in listed else "recurrent" for index in range(count)]
    if settings.get("layer_types") is not None:
        return listed_kinds(settings, count)
    return ["full_attention" if index and index % 4 == 0 else "recurrent" for index in range(count)]


def _kimi_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    heads = {"linear_num_heads": values.get("num_attention_heads")}
    return {**head_sizes(file, values), **_by_key_heads(file, values), **heads}


def _zamba2(settings: Settings) -> StateSpace:
    return replace(_mamba2(settings), limits=(settings.number("time_step_min", 0.001), np.inf))


def _zamba2_changes(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Attention reads rows of twice the width, and scales its scores as for heads of half the size."""
    return replace(
        config,
        intermediate=settings.size("intermediate_size", 4 * config.hidden),
        score_scale=(config.head_size / 2) ** -0.5,
        before_mixers=True,
    )


def _zamba2_names(settings: Settings) -> Names:
    """Layers with attention share a few blocks in turn, each with its own additional updates."""
    kinds = listed_kinds(settings, settings.size("num_hidden_layers"))
    hybrid = [index for index, kind in enumerate(kinds) if kind == "both"]
    parts = {role: f"self_attn.{role}_proj" for role in ("q", "k", "v", "o")}
    parts |= {"gate_up": "feed_forward.gate_up_proj", "down": "feed_forward.down_proj"}
    parts |= {"mlp_norm": "pre_ff_layernorm", "block_norm": "input_layernorm"}
    lists = {"gate_up": "feed_forward.gate_up_proj_adapter_list"}
    if settings.flag("use_shared_attention_adapter"):
        lists |= {role: f"self_attn.linear_{role}_adapter_list" for role in ("q", "k", "v")}
    layer_names: dict[int, dict[str, str | None]] = {}
    for number, index in enumerate(hybrid):
        block = f"model.layers.{hybrid[number % settings.size('num_mem_blocks', 1)]}.shared_transformer."
        updates = {f"{role}_adapter.{at}": f"{name}.{number}.{at}" for role, name in lists.items() for at in range(2)}
        layer_names[index] = {
            **within(block, parts | updates),
            **recurrent_roles("ssm", "mamba_decoder.mamba."),
            "attention_norm": "mamba_decoder.input_layernorm",
            "block_out": "linear",
        }
    names = hugging_face_names(roles=recurrent_roles("ssm", "mamba."))
    return replace(names, norm="model.final_layernorm", own=layer_names)


def _matrix_memory(settings: Settings) -> MatrixMemory:
    hidden, heads = settings.size("hidden_size"), settings.size("num_heads", 8)
    keys, values = (
        int(hidden * settings.positive(f"{part}_dim_factor", default)) for part, default in (("qk", 0.5), ("v", 1.0))
    )
    if not keys or not values or keys % heads or values % heads:
        raise InvalidModelError(f"{settings.path}: {keys} keys and {values} values are not those of {heads} heads")
    return MatrixMemory(
        heads=heads,
        key_size=keys // heads,
        value_size=values // heads,
        cap=settings.positive("gate_soft_cap", 15.0),
    )


def _xlstm(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """The MLP's width is a multiple of the hidden size, rounded up."""
    every = settings.size("ffn_round_up_to_multiple_of", 64)
    width = settings.positive("ffn_proj_factor", 2.667) * config.hidden
    return replace(config, intermediate=int((width + every - 1) // every) * every)


def _time_mixing(settings: Settings) -> TimeMixing:
    hidden, size = settings.size("hidden_size"), settings.size("head_size", 64, most=_MAX_MIXED)
    widths = settings.get("value_dim") or hidden
    if hidden % size or {*(widths if isinstance(widths, list) else [widths])} != {hidden}:
        raise InvalidModelError(f"{settings.path}: {hidden} channels and values of {widths} are not heads of {size}")
    return TimeMixing(
        heads=hidden // size,
        size=size,
        epsilon=settings.number("head_norm_eps", size * settings.number("rms_norm_eps", 1e-5)),
        # flash-linear-attention's fused norm adds 1e-6; torch's clamps the length to at least 1e-12.
        key_epsilon=1e-6 if settings.flag("fuse_norm") else 1e-24,
        shifts_channels=settings.flag("shifts_channels"),
    )


def _rwkv7_names(settings: Settings) -> Names:
    embedding_norm = None if settings.get("norm_first") is False else "model.layers.0.pre_norm"
    return replace(_RWKV7, embedding_norm=embedding_norm)


def _rwkv7(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Derive the MLP's width, a multiple of 32, if the settings lack it."""
    if settings.get("intermediate_size") is not None:
        return config
    width = int(config.hidden * settings.positive("hidden_ratio", 4.0))
    return replace(config, intermediate=-(-width // 32) * 32)


def _lfm3_names(settings: Settings) -> Names:
    """Norms after the parts of a block and attention gates are optional."""
    roles = {**_LFM2, "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm", "o": "self_attn.o_proj"}
    if settings.get("use_sandwich_norm") is not False:
        roles |= {"post_attention_norm": "post_operator_norm", "post_mlp_norm": "post_ffn_norm"}
    if settings.get("use_attention_gate") is not False:
        roles["attention_gate"] = "self_attn.gate_proj"
    return replace(hugging_face_names(roles=roles), norm="model.embedding_norm")


def _lfm3_kinds(settings: Settings, count: int) -> list[str]:
    if settings.get("layer_types") is not None:
        return listed_kinds(settings, count)
    kinds = ("sliding_attention", "recurrent", "full_attention", "recurrent")
    return ["recurrent", *(kinds[index % 4] for index in range(1, count))]


def _lfm3(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return config if settings.get("use_attention_gate") is False else _gated(config, settings)


def _gated(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return replace(config, attention_gate="sigmoid")


def _granite_mlp(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Models without experts have only the shared MLP."""
    if any(layer.experts for layer in config.layers):
        return config
    return replace(config, intermediate=settings.size("shared_expert_intermediate_size"))


def _granite_names(settings: Settings) -> Names:
    roles = {**GRANITE_EXPERTS, **recurrent_roles("ssm", "mamba.")}
    if not settings.get("num_local_experts"):
        roles |= {"gate_up": GRANITE_EXPERTS["shared_gate_up"], "down": GRANITE_EXPERTS["shared_down"]}
    return hugging_face_names(roles=roles)


def _granite_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    return mixture(settings, layer) if settings.get("num_local_experts") or settings.get("num_experts") else None


def _jamba_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    """Jamba's mixture-of-experts layers are at a fixed interval and offset."""
    if settings.get("mlp_only_layers") is not None:
        return mixture(settings, layer)
    period, offset = settings.size("expert_layer_period", 2), settings.number("expert_layer_offset", 1)
    return mixture(settings, layer) if settings.size("num_experts") > 1 and layer % period == offset else None


def _falcon_factors(settings: Settings) -> Storage:
    """Return the factors of matmul inputs and outputs, all as output factors."""
    scan = _mamba2(settings)
    parts = _numbers(settings, "ssm_multipliers", 5)
    gate, down = _numbers(settings, "mlp_multipliers", 2)
    shared = scan.groups * scan.sizes
    attention = settings.number("attention_in_multiplier", 1.0)
    widths = [scan.inner, scan.inner, shared, shared, scan.heads]
    factors: dict[str, Any] = {
        "q": attention,
        "k": attention * settings.number("key_multiplier", 1.0),
        "v": attention,
        "o": settings.number("attention_out_multiplier", 1.0),
        "ssm_in": np.repeat(parts, widths).astype(np.float32) * settings.number("ssm_in_multiplier", 1.0),
        "ssm_out": settings.number("ssm_out_multiplier", 1.0),
        "gate": gate,
        "down": down,
    }
    return Storage(factors={role: each for role, each in factors.items() if np.any(each != 1.0)})


def _numbers(settings: Settings, key: str, count: int) -> list[float]:
    """Return a list of numbers, 1 if missing. Raises InvalidModelError for invalid ones."""
    values = settings.get(key) or [1.0] * count
    if not isinstance(values, list) or len(values) != count or not all(isinstance(x, int | float) for x in values):
        raise InvalidModelError(f"{settings.path}: {key!r} is {str(values)[:80]}, not {count} numbers")
    return [float(value) for value in values]


def _falcon_h1(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return replace(config, logit_scale=settings.number("lm_head_multiplier", 1.0))


def _nemotron_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    """Return the mixture of MoE layers, whose experts may work on a narrower x."""
    listed = settings.get("hybrid_override_pattern") or settings.get("layers_block_type") or settings.get("layer_types")
    if kinds_of_nemotron(settings, len(listed))[layer] != MOE:
        return None
    experts = mixture(settings, layer)
    if experts is None:
        raise InvalidModelError(f"{settings.path}: layer {layer} is a mixture, but 'n_routed_experts' is missing")
    return replace(
        experts,
        shared=settings.size("shared_expert_intermediate_size"),
        latent=settings.size("moe_latent_size") if settings.get("moe_latent_size") else 0,
    )


def _nemotron_moe_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Layers with a router are mixtures."""
    found = dict(_by_key_heads(file, values))
    routed = (f"blk.{index}.ffn_gate_inp.weight" in file.names for index in range(len(found["layer_types"])))
    kinds = [MOE if each else kind for each, kind in zip(routed, found["layer_types"], strict=True)]
    return {**found, "layer_types": kinds}


def _by_key_heads(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return layer kinds: layers without key heads have no attention, those without a width no MLP."""
    heads, widths = (values.get(key) for key in ("num_key_value_heads", "intermediate_size"))
    if not isinstance(heads, list):  # all layers are alike; 0 counts as missing
        return {"layer_types": [("full_attention" if heads else "recurrent")] * values.get("num_hidden_layers", 0)}
    kinds = ["full_attention" if count else "recurrent" for count in heads]
    sizes: dict[str, Any] = {"num_key_value_heads": max(heads)}
    if isinstance(widths, list):
        kinds = ["mlp" if width else kind for kind, width in zip(kinds, widths, strict=True)]
        sizes["intermediate_size"] = max(widths)
    return {**sizes, "layer_types": kinds[: values.get("num_hidden_layers")]}  # further layers predict more tokens


def _granite_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Files with experts specify a separate width for the shared MLP."""
    rotates = file.value("granitehybrid.rope.scaling.finetuned", True)
    found = {**_by_key_heads(file, values), "position_embedding_type": "rope" if rotates else "nope"}
    shared = values.get("shared_expert_intermediate_size", values.get("intermediate_size"))
    return {**found, "shared_expert_intermediate_size": shared}


def _falcon_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"mamba_rms_norm": "blk.0.ssm_norm.weight" in file.names, "mamba_norm_before_gate": False}


def _jamba_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Layers with experts are those that have their tensors."""
    layers = range(values.get("num_hidden_layers", 0))
    dense = [index for index in layers if f"blk.{index}.ffn_gate_inp.weight" not in file.names]
    return {**_by_key_heads(file, values), "mlp_only_layers": dense}


_DELTA_KEYS = {
    "ssm.inner_size": "linear_inner",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}


def _delta_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the width of values; older files of Qwen3-Next have joined projections, like folders."""
    joined = any(name.endswith(".ssm_in.weight") for name in file.names)
    size = values.get("linear_inner", 0) // max(1, values.get("linear_num_value_heads", 1))
    kinds = _by_key_heads(file, values) if isinstance(values.get("num_key_value_heads"), list) else {}
    return {**kinds, "linear_value_head_dim": size, **({"layout": "joined"} if joined else {})}


_HEADS = {"ssm.time_step_rank": "mamba_n_heads"}
_SSM = {
    "mamba_expand": "expand",
    "mamba_d_state": "state_size",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_rank": "time_step_rank",
    "mamba_n_heads": "num_heads",
    "mamba_n_groups": "n_groups",
    "rms_norm_eps": "layer_norm_epsilon",
}
_MAMBA = {**_SSM, "mamba_d_ssm": "intermediate_size"}
_PURE: dict[str, Any] = {
    "max_position_embeddings": _ENDLESS,
    "num_attention_heads": 1,
    "rms_norm_eps": 1e-5,
    "head_dim": 1,
}
_SILU = {"hidden_act": ("this activation", "silu")}
_BACKBONE = Names(
    "backbone.embeddings",
    "backbone.norm_f",
    "lm_head",
    "backbone.layers.{index}.",
    {"attention_norm": "norm", **recurrent_roles("ssm", "mixer.")},
)
_FEED_FORWARD = {
    "mlp_norm": "pre_ff_layernorm",
    "gate": "feed_forward.gate_proj",
    "up": "feed_forward.up_proj",
    "down": "feed_forward.down_proj",
}
_FEED_FORWARD_NAMES = replace(
    hugging_face_names(roles={**_FEED_FORWARD, **recurrent_roles("ssm", "mamba.")}), norm="model.final_layernorm"
)
_LFM2 = {
    **recurrent_roles("conv", "conv."),
    "attention_norm": "operator_norm",
    "mlp_norm": "ffn_norm",
    "q_norm": "self_attn.q_layernorm",
    "k_norm": "self_attn.k_layernorm",
    "o": "self_attn.out_proj",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
}
_LFM2_MOE = {
    **_LFM2,
    "router": "feed_forward.gate",
    "router_bias": "feed_forward.expert_bias",
    "expert_gate": "feed_forward.experts.{expert}.w1",
    "expert_up": "feed_forward.experts.{expert}.w3",
    "expert_down": "feed_forward.experts.{expert}.w2",
}
_SIGMOID = {"scoring_func": "sigmoid", "topk_sum_epsilon": 1e-6}
_DEEPSEEK = {"scoring_func": "sigmoid", "topk_sum_epsilon": 1e-20, "norm_topk_prob": True}
_JAMBA = {
    **_FEED_FORWARD,
    **recurrent_roles("ssm", "mamba."),
    "router": "feed_forward.router",
    "expert_gate": "feed_forward.experts.{expert}.gate_proj",
    "expert_up": "feed_forward.experts.{expert}.up_proj",
    "expert_down": "feed_forward.experts.{expert}.down_proj",
}
_NEMOTRON = {
    **recurrent_roles("ssm", "mixer."),
    "attention_norm": "norm",
    **{role: f"mixer.{role}_proj" for role in ("q", "k", "v", "o", "up", "down")},
    "router": "mixer.gate",
    "router_bias": "mixer.gate.e_score_correction_bias",
    "experts_in": "mixer.fc1_latent_proj",
    "experts_out": "mixer.fc2_latent_proj",
    **{f"expert_{role}": f"mixer.experts.{{expert}}.{role}_proj" for role in ("up", "down")},
    **{f"shared_{role}": f"mixer.shared_experts.{role}_proj" for role in ("up", "down")},
}
_QWEN_NEXT: dict[str, Any] = {
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "num_experts_per_tok": 10,
    "norm_topk_prob": True,
    "shared_gate": True,
}
_NORM_OFFSET = Storage(norm_offset=1.0)
_DELTA = recurrent_roles("delta", "linear_attn.")

_RECURRENT_GEMMA = {
    **recurrent_roles("unit", "temporal_block."),
    "attention_norm": "temporal_pre_norm",
    "mlp_norm": "channel_pre_norm",
    **{role: f"temporal_block.{role}_proj" for role in ("q", "k", "v", "o")},
    **{role: f"mlp_block.{role}_proj" for role in ("gate", "up", "down")},
}
_KIMI_LINEAR = {
    **DEEPSEEK_EXPERTS,
    **recurrent_roles("delta-parts", "self_attn."),
    "delta_step": "self_attn.f_b_proj",
    "delta_gate": "self_attn.g_b_proj",
    "expert_gate": "mlp.experts.{expert}.w1",
    "expert_up": "mlp.experts.{expert}.w3",
    "expert_down": "mlp.experts.{expert}.w2",
}

_KIMI_GGUF = {
    **{f"delta_{role}": f"attn_{role}" for role in ("q", "k", "v")},
    **{f"delta_conv_{role}": f"ssm_conv1d_{role}" for role in ("q", "k", "v")},
    "delta_gate": "ssm_g_b",
    "delta_gate_low": "ssm_g_a",
    "delta_step": "ssm_f_b",
    "delta_step_low": "ssm_f_a",
    "delta_rate": "ssm_beta",
    "delta_out": "attn_output",
}

_RWKV7 = Names(
    "model.embeddings",
    "model.norm",
    "lm_head",
    "model.layers.{index}.",
    {
        **recurrent_roles("mix", "attn."),
        "attention_norm": "attn_norm",
        "mlp_norm": "ffn_norm",
        "up": "ffn.key",
        "down": "ffn.value",
        "channel_shift": "ffn.x_k",
    },
)
# GGUF files store the biases of low-rank projections as weights.
_RWKV7_BIASES = {f".time_mix_{part}0.weight": f".time_mix_{part}2.bias" for part in "wav"}
_RWKV7_GGUF: dict[str, Any] = {"head_norm_eps": 64e-5}

# Every layer is only a mixer.
_recurrent = partial(
    Family,
    names=_BACKBONE,
    kinds=lambda settings, count: ["recurrent"] * count,
    one_part=True,
    positions="none",
    refused=_SILU,
)

RECURRENT: dict[str, Family] = {
    "mamba": _recurrent(
        recurrent=_mamba,
        defaults={**_PURE, "tie_word_embeddings": True},
        aliases=_MAMBA,
        gguf=(Gguf(name="mamba", keys={"ssm.time_step_rank": "mamba_dt_rank"}),),
    ),
    "falcon_mamba": _recurrent(
        recurrent=_mamba,
        defaults={**_PURE, "tie_word_embeddings": True, "mixer_rms_eps": 1e-6, "dt_b_c_rms": True},
        aliases=_MAMBA,
        unused=("layernorm.weight",),
    ),
    "mamba2": _recurrent(
        recurrent=_mamba2,
        defaults={**_PURE, "mamba_n_groups": 8},
        aliases=_SSM,
        gguf=(Gguf(name="mamba2", keys={"ssm.time_step_rank": "mamba_n_heads"}, values={"mamba_n_groups": 1}),),
    ),
    "lfm2": Family(
        names=replace(hugging_face_names(roles=_LFM2), norm="model.embedding_norm"),
        kinds=listed_kinds,
        recurrent=_short_convolution,
        changes=_lfm2,
        defaults={
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.0,
        },
        aliases={"rms_norm_eps": "norm_eps", "intermediate_size": "block_ff_dim"},
        gguf=(
            Gguf(name="lfm2", norm="token_embd_norm", read=_by_key_heads, values={"block_auto_adjust_ff_dim": False}),
        ),
    ),
    "lfm3": Family(
        names=_lfm3_names,
        kinds=_lfm3_kinds,
        recurrent=_short_convolution,
        changes=_lfm3,
        renames={"self_attn.g_proj.": "self_attn.gate_proj."},
        defaults={
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "head_dim": 128,
            "sliding_window": 256,
            "conv_L_cache": 7,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
            },
        },
        aliases={"rms_norm_eps": "norm_eps"},
    ),
    "lfm2_moe": Family(
        names=replace(hugging_face_names(roles=_LFM2_MOE), norm="model.embedding_norm"),
        kinds=listed_kinds,
        recurrent=_short_convolution,
        defaults={
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "norm_topk_prob": True,
            **_SIGMOID,
        },
        aliases={"rms_norm_eps": "norm_eps", "first_k_dense_replace": "num_dense_layers"},
        gguf=(Gguf(name="lfm2moe", norm="token_embd_norm", read=_by_key_heads, values=_SIGMOID),),
    ),
    "granitemoehybrid": Family(
        names=_granite_names,
        kinds=listed_kinds,
        recurrent=_mamba2,
        experts=_granite_mixture,
        rope_if=("position_embedding_type", "rope"),
        changes=_granite_mlp,
        refused=_SILU,
        defaults={"attention_multiplier": 1.0, "num_experts_per_tok": 2, "norm_topk_prob": True},
        aliases={"shared_expert_intermediate_size": "shared_intermediate_size"},
        gguf=(
            Gguf(
                name="granitehybrid",
                interleaved=True,
                keys=_HEADS,
                values={"attention_multiplier": None},
                read=_granite_gguf,
            ),
        ),
    ),
    "falcon_h1": Family(
        names=_FEED_FORWARD_NAMES,
        kinds=lambda settings, count: ["both"] * count,
        recurrent=_mamba2,
        changes=_falcon_h1,
        storage=_falcon_factors,
        refused=_SILU,
        defaults={"rms_norm_eps": 1e-5, "mamba_d_ssm": 1024, "mamba_norm_before_gate": True, "mamba_rms_norm": False},
        unused=(".rotary_emb.inv_freq", ".mup_vector"),
        # Converters multiply the weights by the factors.
        gguf=(Gguf(name="falcon-h1", keys=_HEADS, read=_falcon_gguf),),
    ),
    "bamba": Family(
        names=_FEED_FORWARD_NAMES,
        kinds=listed_kinds,
        recurrent=_mamba2,
        refused=_SILU,
        defaults={"rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    ),
    "jamba": Family(
        names=replace(hugging_face_names(roles=_JAMBA), norm="model.final_layernorm"),
        kinds=kinds_by_interval,
        recurrent=lambda settings: replace(_mamba(settings), selection_norms="weighted"),
        experts=_jamba_mixture,
        positions="none",
        refused=_SILU,
        defaults={"num_experts": 16, "num_experts_per_tok": 2},
        gguf=(
            Gguf(
                name="jamba",
                keys={"ssm.time_step_rank": "mamba_dt_rank"},
                values={**NOT_NORMALIZED, "num_experts": None},
                read=_jamba_gguf,
            ),
        ),
    ),
    "nemotron_h": Family(
        names=Names("backbone.embeddings", "backbone.norm_f", "lm_head", "backbone.layers.{index}.", _NEMOTRON),
        kinds=kinds_of_nemotron,
        recurrent=_mamba2,
        experts=_nemotron_mixture,
        one_part=True,
        gated=False,
        positions="none",
        refused={"mamba_hidden_act": ("this activation", "silu")},
        defaults={
            **_DEEPSEEK,
            "hidden_act": "relu2",
            "head_dim": 128,
            "mamba_n_groups": 8,
            "rms_norm_eps": 1e-5,
            "num_experts_per_tok": 2,
        },
        aliases={
            **_SSM,
            "num_experts": "n_routed_experts",
            "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
            "mamba_n_heads": "mamba_num_heads",
            "mamba_d_head": "mamba_head_dim",
            "mamba_d_state": "ssm_state_size",
            "hidden_act": "mlp_hidden_act",
        },
        gguf=(
            Gguf(name="nemotron_h", keys=_HEADS, read=_by_key_heads),
            Gguf(
                name="nemotron_h_moe",
                keys={**_HEADS, "moe_latent_size": "moe_latent_size"},
                values={**_DEEPSEEK, **NOT_NORMALIZED},
                read=_nemotron_moe_gguf,
            ),
        ),
    ),
    "zamba2": Family(
        names=_zamba2_names,
        kinds=listed_kinds,
        recurrent=_zamba2,
        one_part=True,
        experts=lambda settings, layer: None,
        rope_if=("use_mem_rope", True),
        changes=_zamba2_changes,
        refused={"use_long_context": ("the long context of Zamba2", False)},
        defaults={"hidden_act": "gelu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "mamba_d_state": 64},
        aliases={
            "head_dim": "attention_head_dim",
            "mamba_n_heads": "n_mamba_heads",
            "mamba_n_groups": "mamba_ngroups",
        },
    ),
    "xlstm": Family(
        names=Names(
            "backbone.embeddings",
            "backbone.out_norm",
            "lm_head",
            "backbone.blocks.{index}.",
            {
                **recurrent_roles("memory", "mlstm_layer."),
                "attention_norm": "norm_mlstm",
                "mlp_norm": "norm_ffn",
                **within("ffn.", {"gate": "proj_up_gate", "up": "proj_up", "gate_up": "proj_up_gate_z"}),
                "down": "ffn.proj_down",
            },
        ),
        kinds=lambda settings, count: ["recurrent"] * count,
        recurrent=_matrix_memory,
        positions="none",
        expansion=1,
        changes=_xlstm,
        defaults={**_PURE, "rms_norm_eps": 1e-6, "final_logit_softcapping": 30.0},
        aliases={"rms_norm_eps": "norm_eps", "final_logit_softcapping": "output_logit_soft_cap"},
    ),
    "rwkv7": Family(
        names=_rwkv7_names,
        kinds=lambda settings, count: ["recurrent"] * count,
        recurrent=_time_mixing,
        norm="layer",
        positions="none",
        gated=False,
        expansion=4,
        changes=_rwkv7,
        refused={"attn": ("attention in some layers", None), "hidden_act": ("this activation", "sqrelu")},
        defaults={**_PURE, "hidden_act": "sqrelu", "fuse_norm": True, "shifts_channels": True},
        aliases={"rms_norm_eps": "norm_eps", "head_size": "head_dim"},
        renames=_RWKV7_BIASES,
        gguf=(
            Gguf(
                name="rwkv7",
                keys={"wkv.head_size": "head_size"},
                values={**_RWKV7_GGUF, "fuse_norm": False},
                roles={"mlp_norm": "attn_norm_2", "up": "channel_mix_key", "down": "channel_mix_value"},
            ),
        ),
    ),
    "recurrent_gemma": Family(
        names=replace(hugging_face_names(roles=_RECURRENT_GEMMA), norm="model.final_norm"),
        kinds=_recurrent_gemma_kinds,
        recurrent=_gated_recurrence,
        scales_embedding=True,
        changes=_recurrent_gemma,
        storage=_NORM_OFFSET,
        defaults={
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "partial_rotary_factor": 0.5,
            "sliding_window": 2048,
            "final_logit_softcapping": 30.0,
            "max_position_embeddings": _ENDLESS,
        },
        aliases={"sliding_window": "attention_window_size", "final_logit_softcapping": "logits_soft_cap"},
    ),
    "minimax": Family(
        names=hugging_face_names(roles={**MIXTRAL_EXPERTS, **recurrent_roles("lightning", "self_attn.")}),
        kinds=_minimax_kinds,
        recurrent=_lightning,
        changes=_minimax,
        refused=_SILU,
        defaults={"rms_norm_eps": 1e-5, "num_experts_per_tok": 2, "norm_topk_prob": True},
        unused=(".rotary_emb.inv_freq", ".slope_rate", ".query_decay", ".key_decay", ".diagonal_decay"),
    ),
    "olmo_hybrid": Family(
        names=_olmo_hybrid_names,
        kinds=_olmo_hybrid_kinds,
        recurrent=_olmo_hybrid,
        refused=_SILU,
        renames={"attention_layer_norm": "input_layernorm", "feedforward_layer_norm": "post_attention_layernorm"},
    ),
    "kimi_linear": Family(
        names=hugging_face_names(roles=_KIMI_LINEAR),
        kinds=_kimi_linear_kinds,
        recurrent=_kimi_linear,
        latent=latent,
        positions="none",
        refused=_SILU,
        renames={".forget_gate.": ".", ".block_sparse_moe.": ".mlp."},
        defaults={
            "rms_norm_eps": 1e-5,
            "routed_scaling_factor": 2.446,
            "norm_topk_prob": True,
            "first_k_dense_replace": 1,
            "scoring_func": "sigmoid",
            "topk_sum_epsilon": 1e-20,
        },
        aliases={
            "max_position_embeddings": "model_max_length",
            "norm_topk_prob": "moe_renormalize",
            "n_group": "num_expert_group",
            "num_experts_per_tok": "num_experts_per_token",
            "n_shared_experts": "num_shared_experts",
        },
        gguf=(
            Gguf(
                name="kimi-linear",
                keys={
                    **LATENT_KEYS,
                    "ssm.conv_kernel": "linear_conv_kernel_dim",
                    "kda.head_dim": "linear_head_dim",
                },
                roles=_KIMI_GGUF,
                read=_kimi_gguf,
            ),
        ),
    ),
    "qwen3_next": Family(
        names=hugging_face_names(roles={**QWEN_EXPERTS, **_DELTA}),
        kinds=listed_kinds,
        recurrent=_gated_delta,
        changes=_gated,
        storage=_NORM_OFFSET,
        refused=_SILU,
        defaults={**_QWEN_NEXT, "layout": "joined"},
        gguf=(
            Gguf(
                name="qwen3next",
                keys=_DELTA_KEYS,
                values={"layout": "mixed"},
                read=_delta_gguf,
                roles={"mlp_norm": "post_attention_norm"},
            ),
        ),
    ),
    "qwen3_5_text": Family(
        names=hugging_face_names(roles=_DELTA),
        kinds=listed_kinds,
        recurrent=_gated_delta,
        changes=_gated,
        storage=_NORM_OFFSET,
        refused=_SILU,
        defaults=_QWEN_NEXT,
        gguf=(
            Gguf(
                name="qwen35",
                keys=_DELTA_KEYS,
                values={"tiled": True},
                read=_delta_gguf,
                roles={"mlp_norm": "post_attention_norm"},
            ),
        ),
    ),
    "qwen3_5_moe_text": Family(
        names=hugging_face_names(roles={**QWEN_EXPERTS, **_DELTA}),
        kinds=listed_kinds,
        recurrent=_gated_delta,
        changes=_gated,
        storage=_NORM_OFFSET,
        refused=_SILU,
        defaults={**_QWEN_NEXT, "num_experts_per_tok": 8},
        gguf=(
            Gguf(
                name="qwen35moe",
                keys=_DELTA_KEYS,
                values={"tiled": True},
                read=_delta_gguf,
                roles={"mlp_norm": "post_attention_norm"},
            ),
        ),
    ),
}

# RWKV 7's mixers with the MLP of Qwen 2 and its norms
RECURRENT_FILES = (
    Family(
        kinds=lambda settings, count: ["recurrent"] * count,
        recurrent=_time_mixing,
        positions="none",
        defaults=_PURE,
        renames=_RWKV7_BIASES,
        gguf=(Gguf(name="arwkv7", keys={"wkv.head_size": "head_size"}, values=_RWKV7_GGUF),),
    ),
)
