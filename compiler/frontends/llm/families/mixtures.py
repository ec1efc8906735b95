"""Families of Llama-like decoders with special forms of mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.config import DecoderConfig, ExpertsConfig, Heads
from compiler.frontends.llm.families.family import NORMALIZED, NOT_NORMALIZED, Family, Gguf, mixture, without
from compiler.frontends.llm.families.layer_kinds import FULL, SLIDING, listed_kinds
from compiler.frontends.llm.families.llama import full_first, hunyuan, layer_ropes
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.names import (
    DEEPSEEK_EXPERTS,
    GRANITE_EXPERTS,
    MIXTRAL_EXPERTS,
    QWEN_EXPERTS,
    hugging_face_names,
)
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.settings import Settings


def _ernie_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    """Layers after the last one with a mixture have MLPs."""
    last = settings.number("moe_layer_end_index", -1)
    return None if 0 <= last < layer else mixture(settings, layer)


def _hunyuan_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    """All tokens also go through a shared MLP, as wide as that of dense models."""
    found = mixture(settings, layer)
    return None if found is None else replace(found, shared=found.shared or settings.size("intermediate_size"))


def _cohere_kinds(settings: Settings, count: int) -> list[str]:
    """Layer kinds without a list; the first layers, which have MLPs, follow their own pattern."""
    if settings.get("layer_types") is not None:
        return listed_kinds(settings, count)
    dense = int(settings.number("first_k_dense_replace", 0))
    patterns = [settings.size("prefix_dense_sliding_window_pattern", 1)] * dense
    patterns += [settings.size("sliding_window_pattern", 4)] * (count - dense)
    places = [*range(1, dense + 1), *range(1, count - dense + 1)]
    return [SLIDING if place % every else FULL for place, every in zip(places, patterns, strict=True)]


def _cohere_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    """The softmax over the chosen experts' logits equals the softmax over all, normalized."""
    experts, function = mixture(settings, layer), settings.get("expert_selection_fn")
    combined = settings.get("shared_expert_combination_strategy")
    if function not in ("softmax", "sigmoid") or combined not in ("average", "sum"):
        raise InvalidModelError(f"{settings.path}: experts are chosen by {function!r} and combined by {combined!r}")
    if experts is None:
        return None
    sigmoid = function == "sigmoid"
    return replace(
        experts,
        sigmoid=sigmoid,
        biased=False,
        normalized=experts.normalized or not sigmoid,
        averaged=combined == "average" and experts.shared > 0,
    )


def _cohere_moe(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Layers with full attention have rotations if they are among the first ones, with an MLP."""
    rotates = settings.number("prefix_dense_sliding_window_pattern", 1) == 1
    layers = tuple(
        layer if layer.window is not None or (rotates and layer.experts is None) else replace(layer, rope=None)
        for layer in config.layers
    )
    rms = settings.get("rms_norm_eps") is not None
    return replace(
        config,
        norm="rms" if rms else "layer",
        epsilon=settings.number("rms_norm_eps" if rms else "layer_norm_eps", 1e-5),
        layers=layers,
        logit_scale=settings.number("logit_scale", 0.0625),
        intermediate=settings.size("prefix_dense_intermediate_size", config.intermediate),
    )


def _cohere_moe_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Files contain the epsilon of their norms, and llama.cpp averages whenever there is a shared expert."""
    prefix = "cohere2moe."
    function = file.value(f"{prefix}expert_gating_func", 2)
    listed = values.get("layer_types")
    every = file.value(f"{prefix}attention.sliding_window_pattern")
    if listed is None and isinstance(every, int) and every > 0:
        listed = [SLIDING if index % every else FULL for index in range(values.get("num_hidden_layers", 0))]
    return {
        "layer_types": listed,
        "layer_norm_eps": file.value(f"{prefix}attention.layer_norm_epsilon"),
        "rms_norm_eps": file.value(f"{prefix}attention.layer_norm_rms_epsilon"),
        "expert_selection_fn": {1: "softmax", 2: "sigmoid"}.get(function, function),
        "norm_topk_prob": bool(file.value(f"{prefix}expert_weights_norm", False)),
    }


def _laguna(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return replace(config, attention_gate="softplus")


def _laguna_heads(settings: Settings, layer: int, kind: str, heads: Heads) -> Heads:
    counts = settings.layer_sizes("num_attention_heads_per_layer", settings.size("num_hidden_layers"))
    return heads if counts is None else replace(heads, count=counts[layer])


def _laguna_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Layers with a window have separate rotations, which are not scaled."""
    prefix, count = "laguna.", values.get("num_hidden_layers", 0)
    heads, every = values.get("num_attention_heads"), file.value("laguna.attention.sliding_window_pattern", 4)
    size = values.get("head_dim")
    settings: dict[str, Any] = {"rotary_dim": None}
    if isinstance(heads, list):
        settings |= {"num_attention_heads": max(heads, default=0), "num_attention_heads_per_layer": heads}
    if values.get("sliding_window") and isinstance(every, int) and every > 0:
        settings["layer_types"] = [SLIDING if index % every else FULL for index in range(count)]
    if isinstance(size, int) and size > 0:
        base = values.get("rope_theta", 10000.0)
        full = values.get("rotary_dim", size) / size
        part = file.value(f"{prefix}rope.dimension_count_swa", values.get("rotary_dim", size)) / size
        slides = {"rope_type": "default", "rope_theta": values.get("rope_local_base_freq", base)}
        settings["rope_parameters"] = {
            FULL: {**values["rope_scaling"], "rope_theta": base, "partial_rotary_factor": full},
            SLIDING: {**slides, "partial_rotary_factor": part},
        }
    return settings


def _small_thinker_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    found = mixture(settings, layer)
    return None if found is None else replace(found, early=True)


def _small_thinker_gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """llama.cpp uses a fixed window size and fixed layers with a window."""
    count = values.get("num_hidden_layers", 0)
    if not values.get("sliding_window"):
        return {}
    kinds = [SLIDING if index % 4 else FULL for index in range(count)]
    return {"sliding_window": 4096, "layer_types": kinds, "no_rope_layers": [kind == SLIDING for kind in kinds]}


def _afmoe(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    scale = config.hidden**0.5 if settings.flag("mup_enabled") else 1.0
    return replace(config, embedding_scale=scale, attention_gate="sigmoid")


def _bailing_shared(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """llama.cpp uses the given width, or the width of one expert times the number of shared experts."""
    count = values.get("n_shared_experts")
    width = values.get("shared_expert_intermediate_size", values.get("moe_intermediate_size"))
    if not isinstance(count, int) or not isinstance(width, int):
        raise OptionError(f"{file.path}: the width of the shared experts is missing")
    return {"n_shared_experts": None, "shared_expert_intermediate_size": count * width}


_SIGMOID = {**NORMALIZED, "scoring_func": "sigmoid"}
_DEEPSEEK = {**_SIGMOID, "topk_sum_epsilon": 1e-20}
_SHARED_KEY = {"n_shared_experts": "num_shared_experts"}
_COUNT_GGUF = {"expert_shared_count": "n_shared_experts"}

MIXTURES: dict[str, Family] = {
    "ernie4_5_moe": Family(
        names=hugging_face_names(
            roles={**DEEPSEEK_EXPERTS, "router_bias": "mlp.moe_statics.e_score_correction_bias"},
        ),
        renames={"mlp.gate.moe_statics.": "mlp.moe_statics."},
        experts=_ernie_mixture,
        defaults={
            **NORMALIZED,
            "rms_norm_eps": 1e-5,
            "rope_theta": 5e5,
            "tie_word_embeddings": True,
            "use_expert_bias": True,
            "moe_num_experts": 64,
            "moe_k": 6,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
        },
        aliases={
            "num_experts": "moe_num_experts",
            "num_experts_per_tok": "moe_k",
            "n_shared_experts": "moe_num_shared_experts",
            "first_k_dense_replace": "moe_layer_start_index",
            "decoder_sparse_step": "moe_layer_interval",
        },
        storage=Storage(interleaved=True),
        gguf=(Gguf(name="ernie4_5-moe", interleaved=True, keys={"interleave_moe_layer_step": "decoder_sparse_step"}),),
    ),
    "hunyuan_v1_moe": Family(
        names=hugging_face_names(
            roles={
                **QWEN_EXPERTS,
                "router": "mlp.gate.wg",
                **{f"shared_{role}": f"mlp.shared_mlp.{role}_proj" for role in ("gate", "up", "down")},
                "q_norm": "self_attn.query_layernorm",
                "k_norm": "self_attn.key_layernorm",
            }
        ),
        experts=_hunyuan_mixture,
        changes=hunyuan,
        defaults={**NORMALIZED, "rms_norm_eps": 1e-5},
        aliases={"num_experts_per_tok": "moe_topk"},
        gguf=(Gguf(name="hunyuan-moe"),),
    ),
    "exaone_moe": Family(
        names=hugging_face_names(roles={**DEEPSEEK_EXPERTS, "router_bias": "mlp.e_score_correction_bias"}),
        renames={"mlp.gate.e_score_correction_bias": "mlp.e_score_correction_bias"},
        rope_in_windows_only=True,
        defaults={
            **_DEEPSEEK,
            "rms_norm_eps": 1e-5,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "first_k_dense_replace": 1,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "routed_scaling_factor": 2.5,
        },
        aliases=_SHARED_KEY,
        gguf=(Gguf(name="exaone-moe", keys=_COUNT_GGUF, values=NOT_NORMALIZED),),
    ),
    "afmoe": Family(
        names=hugging_face_names(
            "sandwich",
            roles={
                **DEEPSEEK_EXPERTS,
                "router": "mlp.router.gate",
                "router_bias": "mlp.expert_bias",
                "attention_gate": "self_attn.gate_proj",
                "mlp_norm": "pre_mlp_layernorm",
                "post_mlp_norm": "post_mlp_layernorm",
            },
        ),
        changes=_afmoe,
        rope_in_windows_only=True,
        defaults={
            **_DEEPSEEK,
            "rms_norm_eps": 1e-5,
            "head_dim": 128,
            "num_experts": 64,
            "num_experts_per_tok": 6,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "sliding_window": 1024,
            "global_attn_every_n_layers": 4,
        },
        aliases={
            **_SHARED_KEY,
            "first_k_dense_replace": "num_dense_layers",
            "routed_scaling_factor": "route_scale",
            "sliding_window_pattern": "global_attn_every_n_layers",
        },
        gguf=(
            Gguf(
                name="afmoe",
                norms="sandwich",
                roles={"attention_gate": "attn_gate"},
                values={
                    **NOT_NORMALIZED,
                    "mup_enabled": True,
                    "sliding_window_pattern": 4,
                    "no_rope_layer_interval": 4,
                },
                keys=_COUNT_GGUF,
            ),
        ),
    ),
    "minimax_m2": Family(
        names=hugging_face_names(
            roles={**MIXTRAL_EXPERTS, "router_bias": "block_sparse_moe.e_score_correction_bias"},
        ),
        defaults={**_SIGMOID, "head_dim": 128, "rope_theta": 5e6, "num_experts_per_tok": 8},
        gguf=(Gguf(name="minimax-m2"),),
    ),
    "solar_open": Family(
        names=hugging_face_names(roles=DEEPSEEK_EXPERTS),
        defaults={
            **_DEEPSEEK,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "head_dim": 128,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
        },
        aliases={"num_experts": "n_routed_experts"},
    ),
    "hy_v3": Family(
        names=hugging_face_names(
            roles={
                **DEEPSEEK_EXPERTS,
                "router": "mlp.router.gate",
                "router_bias": "mlp.expert_bias",
                **{f"shared_{role}": f"mlp.shared_mlp.{role}_proj" for role in ("gate", "up", "down")},
            }
        ),
        renames={
            "mlp.gate.weight": "mlp.router.gate.weight",
            "mlp.e_score_correction_bias": "mlp.expert_bias",
            "mlp.shared_experts.": "mlp.shared_mlp.",
        },
        defaults={
            **_DEEPSEEK,
            "rms_norm_eps": 1e-5,
            "rope_theta": 11158840.0,
            "head_dim": 128,
            "num_experts": 192,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "router_scaling_factor": 2.826,
            "first_k_dense_replace": 1,
        },
        aliases={**_SHARED_KEY, "routed_scaling_factor": "router_scaling_factor"},
        gguf=(Gguf(name="hy_v3", roles={"router_bias": "exp_probs_b"}, values=NOT_NORMALIZED),),
    ),
    "cohere2_moe": Family(
        names=without(hugging_face_names(roles=DEEPSEEK_EXPERTS), "mlp_norm"),
        parallel=True,
        kinds=_cohere_kinds,
        experts=_cohere_mixture,
        changes=_cohere_moe,
        storage=Storage(interleaved=True),
        defaults={
            **NORMALIZED,
            "head_dim": 128,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": 4096,
            "tie_word_embeddings": True,
            "expert_selection_fn": "softmax",
            "shared_expert_combination_strategy": "average",
        },
        aliases=_SHARED_KEY,
        gguf=(
            Gguf(
                name="cohere2moe",
                interleaved=True,
                keys={**_COUNT_GGUF, "logit_scale": "logit_scale"},
                read=_cohere_moe_gguf,
            ),
        ),
    ),
    "laguna": Family(
        names=hugging_face_names(
            roles={
                **QWEN_EXPERTS,
                "router_bias": "mlp.experts.e_score_correction_bias",
                "attention_gate": "self_attn.g_proj",
            }
        ),
        heads=_laguna_heads,
        changes=_laguna,
        refused={
            "moe_router_logit_softcapping": ("a cap of the router's logits", 0.0),
            "moe_apply_router_weight_on_input": ("scaling the inputs of experts", False),
        },
        defaults={
            **_SIGMOID,
            "head_dim": 128,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 1,
            "shared_expert_intermediate_size": 512,
            "sliding_window": 512,
            "use_sliding_window": False,  # if layers are not listed
            "rope_parameters": {
                FULL: {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5},
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        aliases={"routed_scaling_factor": "moe_routed_scaling_factor"},
        renames={
            "mlp.gate.e_score_correction_bias": "mlp.experts.e_score_correction_bias",
            "mlp.shared_experts.": "mlp.shared_expert.",
        },
        gguf=(Gguf(name="laguna", roles={"attention_gate": "attn_gate"}, values=NOT_NORMALIZED, read=_laguna_gguf),),
    ),
    "flex_olmo": Family(
        names=hugging_face_names("post", roles=QWEN_EXPERTS),
        defaults={"rope_theta": 5e5, "num_experts_per_tok": 5, "num_experts": 7},
    ),
    "mellum": Family(
        names=hugging_face_names(roles=QWEN_EXPERTS),
        defaults={
            **NORMALIZED,
            "head_dim": 128,
            "num_experts_per_tok": 8,
            "use_sliding_window": False,  # if layers are not listed
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        scales_full_only=True,
        gguf=(Gguf(name="mellum", values={"rope_parameters": None, "sliding_window_pattern": 4}),),
    ),
    "granitemoe_swa": Family(
        names=hugging_face_names(
            roles={
                **GRANITE_EXPERTS,
                "router": "block_sparse_moe.router",
                "expert_gate_up": "block_sparse_moe.experts.gate_up_proj",
                "expert_down": "block_sparse_moe.experts.down_proj",
                "sinks": "self_attn.sinks",
            }
        ),
        storage=Storage(stacked_rows=True),
        kinds=full_first,
        changes=layer_ropes,
        defaults={"attention_multiplier": 1.0, "num_experts_per_tok": 2, "sliding_window": 128, **NORMALIZED},
        aliases={"shared_expert_intermediate_size": "shared_intermediate_size"},
    ),
}

# Families that exist only as GGUF files.
MIXTURE_FILES: tuple[Family, ...] = (
    Family(
        gguf=tuple(
            Gguf(name=name, interleaved=True, keys=_COUNT_GGUF, values=NOT_NORMALIZED)
            for name in ("deepseek", "deepseek2-ocr", "bailingmoe")
        )
    ),
    Family(
        defaults={"topk_sum_epsilon": 1e-20},
        gguf=(
            Gguf(
                name="bailingmoe2",
                keys=_COUNT_GGUF,
                values=NOT_NORMALIZED,
                read=_bailing_shared,
            ),
        ),
    ),
    Family(
        experts=_small_thinker_mixture,
        gguf=(Gguf(name="smallthinker", values={"hidden_act": "relu"}, read=_small_thinker_gguf),),
    ),
    Family(norm="layer", gguf=(Gguf(name="dbrx", roles={"mlp_norm": "attn_output_norm"}),)),
)
