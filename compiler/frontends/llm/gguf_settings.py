"""GGUF metadata under the names of the settings of transformers' config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.errors import OptionError
from compiler.frontends.llm.families import Family, Gguf
from compiler.frontends.llm.families.layer_kinds import FULL, SLIDING
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.settings import Settings

_FACTORS, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = (_FACTORS, _LONG, _SHORT)
_ROPE = "rope.scaling."

# Metadata key without the architecture's name -> setting; if both keys of a setting exist, the later one counts.
_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_epsilon": "rms_norm_eps",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.scale": "attention_multiplier",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attention.clamp_kqv": "clip_qkv",
    "attention.max_alibi_bias": "alibi_bias_max",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "rope.dimension_count": "rotary_dim",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "use_parallel_residual": "use_parallel_residual",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
    "leading_dense_block_count": "first_k_dense_replace",
    "ssm.inner_size": "mamba_d_ssm",
    "ssm.state_size": "mamba_d_state",
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.group_count": "mamba_n_groups",
    "ssm.dt_b_c_rms": "dt_b_c_rms",
    "shortconv.l_cache": "conv_L_cache",
    "full_attention_interval": "full_attention_interval",
}
# llama.cpp's values for missing metadata, which override a family's own defaults.
_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "head_dim": None,
    "query_pre_attn_scalar": None,
    "sliding_window": None,
    "rotary_dim": None,
    "tie_word_embeddings": False,
    "norm_topk_prob": True,
}
# Numbers of the functions of router logits; the last is the softmax over the chosen experts.
_GATING: Mapping[object, Mapping[str, Any]] = {
    1: {"scoring_func": "softmax"},
    2: {"scoring_func": "sigmoid"},
    3: {"scoring_func": "softmax", "norm_topk_prob": True},
}


def gguf_settings(file: GgufFile, family: Family, found: Gguf) -> Settings:
    """Return the settings of a file of one of a family's architectures.

    Raises:
        InvalidModelError: the file lacks its embedding, or has unreadable metadata.
        OptionError: keys and values have different widths.
    """
    every = {**_KEYS, **found.keys}
    values = {setting: value for key, setting in every.items() if (value := _value(file, found, key)) is not None}
    further = _value(file, found, "nextn_predict_layers")  # after the last layer, predicting more tokens
    if isinstance(further, int) and isinstance(values.get("num_hidden_layers"), int):
        values["num_hidden_layers"] -= further
    values["rope_scaling"] = _scaling(file, found)
    if "token_embd.weight" in file.names:
        values["vocab_size"] = file.shape("token_embd.weight")[0]
    keys, width = (_value(file, found, f"attention.{each}_length") for each in ("key", "value"))
    if family.latent is None and None not in (keys, width) and keys != width:
        raise OptionError(f"{file.path}: keys and values of different widths are not supported")
    values |= _routing(file, found)
    windows = file.value(f"{found.name}.attention.sliding_window_pattern")
    if isinstance(windows, list):  # one entry per layer, including those after the last one
        count = values.get("num_hidden_layers")
        values["layer_types"] = [SLIDING if each else FULL for each in windows][:count]
        values.pop("sliding_window_pattern", None)
    values |= found.read(file, values)
    return Settings(values, file.path, {**family.defaults, **_DEFAULTS, **found.values})


def _routing(file: GgufFile, architecture: Gguf) -> dict[str, Any]:
    """Return the selection of experts, if specified. Raises OptionError for other functions of the router's logits."""
    values: dict[str, Any] = {}
    if file.value(f"{architecture.name}.expert_count"):
        values["use_expert_bias"] = any(".exp_probs_b" in name for name in file.names)
    function = file.value(f"{architecture.name}.expert_gating_func")
    if not function:
        return values
    if function not in _GATING:
        raise OptionError(f"{file.path}: the function {function!r} of the router's logits is not supported")
    return {**values, **_GATING[function]}


def _value(file: GgufFile, found: Gguf, key: str) -> Any:
    """Return a metadata value, or the only distinct one of a list; None if missing or 0, which means missing."""
    value = file.value(f"{found.name}.{key}")
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    return None if not isinstance(value, bool) and value == 0 else value


def _scaling(file: GgufFile, architecture: Gguf) -> dict[str, Any]:
    """Return the RoPE scaling metadata in the form of transformers' `rope_parameters`."""
    kind = file.value(f"{architecture.name}.{_ROPE}type", "none")
    scaling = {
        "rope_type": "default" if kind == "none" else kind,
        "factor": file.value(f"{architecture.name}.{_ROPE}factor"),
        "original_max_position_embeddings": file.value(f"{architecture.name}.{_ROPE}original_context_length"),
        "attention_factor": None,
        "beta_fast": file.value(f"{architecture.name}.{_ROPE}yarn_beta_fast"),
        "beta_slow": file.value(f"{architecture.name}.{_ROPE}yarn_beta_slow"),
    }
    if kind == "longrope" or _SHORT in file.names:
        scaling["rope_type"] = "longrope"
        for key, tensor in (("short_factor", _SHORT), ("long_factor", _LONG)):
            if tensor in file.names:
                scaling[key] = file.vector(tensor).tolist()
        scaling["attention_factor"] = file.value(f"{architecture.name}.{_ROPE}attn_factor")
    if _FACTORS in file.names:
        scaling["divisors"] = file.vector(_FACTORS).tolist()
    return scaling
