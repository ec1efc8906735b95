"""Families with multi-head latent attention: DeepSeek-V2, V3 and related models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compiler.errors import OptionError
from compiler.frontends.llm.config import MAX_HEADS, DecoderConfig, LatentConfig
from compiler.frontends.llm.families.family import Family, Gguf
from compiler.frontends.llm.families.llama import growing_queries
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.names import DEEPSEEK_EXPERTS, hugging_face_names
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.rope import MAX_HEAD_SIZE
from compiler.frontends.llm.settings import Settings


def latent(settings: Settings) -> LatentConfig:
    """Return the sizes of latent attention; in transformers, the norms of its rows have their own epsilon."""
    return LatentConfig(
        query_rank=settings.size("q_lora_rank") if settings.get("q_lora_rank") else 0,
        rank=settings.size("kv_lora_rank", 512, most=MAX_HEAD_SIZE),
        plain=settings.size("qk_nope_head_dim", 128, most=MAX_HEAD_SIZE),
        rotated=settings.size("qk_rope_head_dim", 64, most=MAX_HEAD_SIZE),
        values=settings.size("v_head_dim", 128, most=MAX_HEAD_SIZE),
        interleaved=settings.get("rope_interleave") is not False,
        epsilon=settings.number("latent_norm_eps", 1e-6),
    )


def head_sizes(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return head sizes, also for files with keys and values in one tensor; all norms share one epsilon."""
    key, value = (values.get(f"{each}_mla", values.get(each)) for each in ("qk_head_dim", "v_head_dim"))
    rotated = values.get("qk_rope_head_dim")
    if not all(isinstance(each, int) for each in (key, value, rotated)):
        raise OptionError(f"{file.path}: the sizes of the heads of latent attention are missing")
    return {
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": value,
        "latent_norm_eps": values.get("rms_norm_eps", 1e-6),
    }


def _gguf(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return head sizes, and llama.cpp's implicit settings."""
    architecture, scaling = file.value("general.architecture"), dict(values["rope_scaling"])
    growth = file.value(f"{architecture}.rope.scaling.yarn_log_multiplier")
    if growth:
        scaling |= {"mscale": 10 * growth, "mscale_all_dim": 10 * growth}  # stored times 0.1
    names = {"llama_4_scaling_beta": "temperature_scale", "llama_4_scaling_floor": "temperature_length"}
    growth_of = {key: file.value(f"{architecture}.attention.{name}") for key, name in names.items()}
    return {**head_sizes(file, values), "rope_parameters": {**scaling, **growth_of}}


def _minicpm_latent(settings: Settings) -> LatentConfig:
    size = settings.size("hidden_size") // settings.size("num_attention_heads", most=MAX_HEADS)
    found = latent(settings)
    return found if settings.get("v_head_dim") else replace(found, values=size)


def _minicpm(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Return scales of residuals and logits relative to the depth and width of a small model."""
    depth, base = settings.get("scale_depth"), settings.get("dim_model_base")
    return replace(
        config,
        residual_scale=settings.positive("scale_depth") / len(config.layers) ** 0.5 if depth else 1.0,
        logit_scale=settings.positive("dim_model_base") / config.hidden if base else 1.0,
    )


_V2: dict[str, Any] = {"n_shared_experts": 2, "topk_method": "greedy", "q_lora_rank": 1536}
_V3: dict[str, Any] = {
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_sum_epsilon": 1e-20,
}
_KEYS = {"num_experts": "n_routed_experts", "rotary_dim": "qk_rope_head_dim"}
_NAMES = hugging_face_names(roles=DEEPSEEK_EXPERTS)
LATENT_KEYS = {
    "attention.key_length": "qk_head_dim",
    "attention.value_length": "v_head_dim",
    "attention.key_length_mla": "qk_head_dim_mla",
    "attention.value_length_mla": "v_head_dim_mla",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "expert_count": "num_experts",
    "expert_shared_count": "n_shared_experts",
}
_UNSTATED = {
    **dict.fromkeys(("n_group", "topk_group", "num_experts_per_tok")),
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 0,
}
_DEEPSEEK_V3 = Family(
    names=_NAMES,
    latent=latent,
    changes=growing_queries,
    defaults=_V3,
    aliases=_KEYS,
    gguf=(Gguf(name="deepseek2", keys=LATENT_KEYS, values=_UNSTATED, read=_gguf),),
)

# A family that exists only as GGUF files.
LATENT_FILES = (
    Family(
        latent=latent,
        gated=False,
        defaults={"hidden_act": "relu2"},
        gguf=(Gguf(name="plm", keys=LATENT_KEYS, read=head_sizes),),
    ),
)

LATENT: dict[str, Family] = {
    "deepseek_v2": Family(names=_NAMES, latent=latent, defaults=_V2, aliases=_KEYS),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "mistral4": Family(
        names=hugging_face_names(
            roles={
                **DEEPSEEK_EXPERTS,
                "expert_gate_up": "mlp.experts.gate_up_proj",
                "expert_down": "mlp.experts.down_proj",
            }
        ),
        latent=latent,
        changes=growing_queries,
        storage=Storage(stacked_rows=True),
        refused={"n_group": ("the choice of experts in groups", 1)},
        aliases=_KEYS,
        defaults={
            "kv_lora_rank": 256,
            "q_lora_rank": 1024,
            "qk_nope_head_dim": 64,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "topk_sum_epsilon": 1e-20,
        },
        gguf=(Gguf(name="mistral4", keys=LATENT_KEYS, values=_UNSTATED, read=_gguf),),
    ),
    "glm4_moe_lite": Family(
        names=_NAMES,
        latent=latent,
        defaults={
            **_V3,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 4,
            "routed_scaling_factor": 1.8,
            "first_k_dense_replace": 1,
            "rms_norm_eps": 1e-5,
        },
        aliases=_KEYS,
    ),
    "minicpm3": Family(
        names=_NAMES,
        latent=_minicpm_latent,
        changes=_minicpm,
        aliases={**_KEYS, "embedding_multiplier": "scale_emb"},
        defaults={
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "kv_lora_rank": 256,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "embedding_multiplier": 12.0,
            "scale_depth": 1.4,
            "dim_model_base": 256,
            "rope_interleave": False,
        },
        gguf=(Gguf(name="minicpm3", keys=LATENT_KEYS, read=head_sizes),),
    ),
    "youtu": Family(latent=latent, aliases=_KEYS, defaults={"tie_word_embeddings": True}),
}
