"""Families of decoders like Llama whose layers hold mixtures of experts in forms of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compiler.errors import OptionError
from compiler.frontends.llm.config import DecoderConfig, ExpertsConfig
from compiler.frontends.llm.families.family import Family, Gguf, mixture
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
    """Layers behind the last one with a mixture have MLPs."""
    last = settings.number("moe_layer_end_index", -1)
    return None if 0 <= last < layer else mixture(settings, layer)


def _hunyuan_mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    """All tokens go to an MLP as wide as those of dense models, too."""
    found = mixture(settings, layer)
    return None if found is None else replace(found, shared=found.shared or settings.size("intermediate_size"))


def _afmoe(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    scale = config.hidden**0.5 if settings.flag("mup_enabled") else 1.0
    return replace(config, embedding_scale=scale, gated_attention=True)


def _bailing_shared(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """llama.cpp takes the stated width, or that of an expert, as many times as there are experts for all tokens."""
    count = values.get("n_shared_experts")
    width = values.get("shared_expert_intermediate_size", values.get("moe_intermediate_size"))
    if not isinstance(count, int) or not isinstance(width, int):
        raise OptionError(f"{file.path}: the width of the experts for all tokens is missing")
    return {"n_shared_experts": None, "shared_expert_intermediate_size": count * width}


_NORMALIZED = {"norm_topk_prob": True}
_SIGMOID = {**_NORMALIZED, "scoring_func": "sigmoid"}
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
            **_NORMALIZED,
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
        defaults={**_NORMALIZED, "rms_norm_eps": 1e-5},
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
        gguf=(Gguf(name="exaone-moe", keys=_COUNT_GGUF),),
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
                values={"mup_enabled": True, "sliding_window_pattern": 4, "no_rope_layer_interval": 4},
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
        gguf=(Gguf(name="hy_v3"),),
    ),
    "flex_olmo": Family(
        names=hugging_face_names("post", roles=QWEN_EXPERTS),
        defaults={"rope_theta": 5e5, "num_experts_per_tok": 5, "num_experts": 7},
    ),
    "mellum": Family(
        names=hugging_face_names(roles=QWEN_EXPERTS),
        defaults={
            **_NORMALIZED,
            "head_dim": 128,
            "num_experts_per_tok": 8,
            "use_sliding_window": False,  # where layers are not listed
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
        defaults={"attention_multiplier": 1.0, "num_experts_per_tok": 2, "sliding_window": 128, **_NORMALIZED},
        aliases={"shared_expert_intermediate_size": "shared_intermediate_size"},
    ),
}

# Families of GGUF files alone.
MIXTURE_FILES: tuple[Family, ...] = (
    Family(
        gguf=tuple(
            Gguf(name=name, interleaved=True, keys=_COUNT_GGUF, values={"norm_topk_prob": False})
            for name in ("deepseek", "deepseek2-ocr", "bailingmoe")
        )
    ),
    Family(
        defaults={"topk_sum_epsilon": 1e-20},
        gguf=(
            Gguf(
                name="bailingmoe2",
                keys=_COUNT_GGUF,
                values={"norm_topk_prob": False},
                read=_bailing_shared,
            ),
        ),
    ),
    Family(norm="layer", gguf=(Gguf(name="dbrx", roles={"mlp_norm": "attn_output_norm"}),)),
)
