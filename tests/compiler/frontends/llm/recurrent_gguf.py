"""Models as written by llama.cpp's converter: float32, a tokenizer of bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.compiler.frontends.llm.gemma_gguf import describe_gemma3n, describe_gemma4, gemma_tensors
from tests.compiler.frontends.llm.gguf_tensors import write_tensors
from tests.compiler.generation.models import byte_tokens

Config: TypeAlias = "dict[str, Any]"
Tensors: TypeAlias = "dict[str, np.ndarray[Any, Any]]"
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "norm_eps")


def write_recurrent_gguf(path: Path, folder: Path) -> Path:
    """The model of a folder."""
    config: Config = json.loads((folder / "config.json").read_text())
    mixture = "-mixture" if "moe" in config.get("layers_block_type", ()) else ""
    name, describe, convert = ARCHITECTURES[config["model_type"] + mixture]
    tensors = load_file(folder / "model.safetensors")
    layers = config.get("num_hidden_layers") or len(config["layers_block_type"])
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(config.get("max_position_embeddings", 1 << 20))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_head_count(config.get("num_attention_heads", 0))
    writer.add_layer_norm_rms_eps(next(config[key] for key in _EPSILONS if key in config))
    describe(writer, config)
    _add_tokenizer(writer, config["vocab_size"])
    write_tensors(writer, name, layers, convert(_plain(tensors, config), config))
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = byte_tokens()[: size - 1]
    merged = tokens[65:67]
    tokens.append("".join(merged))
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([" ".join(merged)])
    writer.add_eos_token_id(0)


def _plain(tensors: Tensors, config: Config) -> Tensors:
    """Transformations shared by all architectures: decays, convolutions, skips, the biases of steps."""
    found: Tensors = {}
    for name, values in tensors.items():
        if name.endswith("A_log"):
            values = -np.exp(values)
        if name.endswith(("conv1d.weight", "conv.conv.weight")):
            values = values[:, 0]
        if name.endswith((".D", "A_log")) and values.ndim == 1 and "linear_num_key_heads" not in config:
            values = values[:, None] if config["model_type"] not in ("mamba", "falcon_mamba", "jamba") else values
        if name.endswith(("mixer.norm.weight", "mamba.norm.weight")):
            groups = config.get("mamba_n_groups") or config["n_groups"]
            values = values.reshape(groups, -1)
        found[name.replace("dt_bias", "dt_proj.bias")] = values
    return found


def _experts(tensors: Tensors, prefix: str) -> Tensors:
    """Stack the weights of experts."""
    found, stacks = dict[str, Any](), dict[str, list[np.ndarray[Any, Any]]]()
    for name, values in sorted(
        tensors.items(), key=lambda each: [int(x) if x.isdigit() else x for x in each[0].split(".")]
    ):
        if f".{prefix}.experts." not in name:
            found[name] = values
            continue
        layer, part = name.split(".")[2], name.split(".")[-2].removesuffix("_proj")
        part = {"w1": "gate", "w3": "up", "w2": "down"}.get(part, part)
        stacks.setdefault(f"blk.{layer}.ffn_{part}_exps.weight", []).append(values)
    return {**found, **{name: np.stack(parts) for name, parts in stacks.items()}}


def _kinds(config: Config, layers: int) -> list[bool]:
    """For each layer, true if it has attention."""
    listed = config.get("layer_types") or config.get("layers_block_type")
    if listed is not None:
        return [kind == "full_attention" for kind in listed]
    return [index % config["attn_layer_period"] == config["attn_layer_offset"] for index in range(layers)]


def _key_heads(writer: gguf.GGUFWriter, config: Config) -> None:
    layers = config.get("num_hidden_layers") or len(config["layers_block_type"])
    writer.add_head_count_kv([config["num_key_value_heads"] if attends else 0 for attends in _kinds(config, layers)])


def _describe_scan(writer: gguf.GGUFWriter, taps: int, inner: int, sizes: int, rank: int, groups: int | None) -> None:
    writer.add_ssm_conv_kernel(taps)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(sizes)
    writer.add_ssm_time_step_rank(rank)
    if groups is not None:
        writer.add_ssm_group_count(groups)


def _mamba(writer: gguf.GGUFWriter, config: Config) -> None:
    inner = config.get("intermediate_size") or int(config["expand"] * config["hidden_size"])
    heads = config.get("num_heads")
    rank = config["time_step_rank"] if heads is None else heads
    groups = None if heads is None else config["n_groups"]
    _describe_scan(writer, config["conv_kernel"], inner, config["state_size"], rank, groups)
    writer.add_feed_forward_length(0)
    if config["model_type"] == "falcon_mamba":
        writer.add_ssm_dt_b_c_rms(True)


def _lfm2(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_feed_forward_length(256)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_shortconv_l_cache(config["conv_L_cache"])
    _key_heads(writer, config)


def _lfm2_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_shortconv_l_cache(config["conv_L_cache"])
    _key_heads(writer, config)
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_leading_dense_block_count(config["num_dense_layers"])


def _lfm2_moe_tensors(tensors: Tensors, config: Config) -> Tensors:
    bias, ends = ".feed_forward.expert_bias", ".exp_probs_b.bias"
    named = {f"blk.{name.split('.')[2]}{ends}" if name.endswith(bias) else name: each for name, each in tensors.items()}
    return _experts(named, "feed_forward")


def _describe_mamba2(writer: gguf.GGUFWriter, config: Config) -> None:
    inner = config.get("mamba_d_ssm") or config["mamba_expand"] * config["hidden_size"]
    sizes = config["mamba_d_state"], config["mamba_n_heads"], config["mamba_n_groups"]
    _describe_scan(writer, config["mamba_d_conv"], inner, *sizes)


def _granite(writer: gguf.GGUFWriter, config: Config) -> None:
    _describe_mamba2(writer, config)
    _key_heads(writer, config)
    has_experts = bool(config["num_local_experts"])
    writer.add_feed_forward_length(config["intermediate_size"] if has_experts else config["shared_intermediate_size"])
    if has_experts:
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_scaling_finetuned(config.get("position_embedding_type") == "rope")


def _granite_tensors(tensors: Tensors, config: Config) -> Tensors:
    found: Tensors = {}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, values in tensors.items():
        layer = name.split(".")[2] if "layers" in name else ""
        kind = name.split(".")[-2]
        if kind in heads:
            values = _interleaved(values, heads[kind])
        if "input_linear" in name:
            suffix = ("_exps" if "block_sparse_moe" in name else "_shexp") if config["num_local_experts"] else ""
            gate, up = np.split(values, 2, axis=-2)
            found |= {f"blk.{layer}.ffn_gate{suffix}.weight": gate, f"blk.{layer}.ffn_up{suffix}.weight": up}
        elif "shared_mlp.output_linear" in name:
            suffix = "_shexp" if config["num_local_experts"] else ""
            found[f"blk.{layer}.ffn_down{suffix}.weight"] = values
        else:
            found[name] = values
    return found


def _interleaved(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of heads with rotated pairs side by side."""
    return values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def _falcon_h1(writer: gguf.GGUFWriter, config: Config) -> None:
    _describe_mamba2(writer, config)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["hidden_size"] // config["num_attention_heads"])
    writer.add_value_length(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])


def _falcon_tensors(tensors: Tensors, config: Config) -> Tensors:
    """The factors are part of the weights."""
    inner, shared = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    rows = np.repeat(config["ssm_multipliers"], [inner, inner, shared, shared, config["mamba_n_heads"]])
    gate, down = config["mlp_multipliers"]
    attention = config["attention_in_multiplier"]
    factors = {
        "mamba.in_proj": rows[:, None] * config["ssm_in_multiplier"],
        "mamba.out_proj": config["ssm_out_multiplier"],
        "q_proj": attention,
        "k_proj": attention * config["key_multiplier"],
        "v_proj": attention,
        "o_proj": config["attention_out_multiplier"],
        "gate_proj": gate,
        "down_proj": down,
        "embed_tokens": config["embedding_multiplier"],
        "lm_head": config["lm_head_multiplier"],
    }
    return {
        name: values * math.prod(each for end, each in factors.items() if name.endswith(f"{end}.weight"))
        for name, values in tensors.items()
    }


def _jamba(writer: gguf.GGUFWriter, config: Config) -> None:
    inner = config["mamba_expand"] * config["hidden_size"]
    _describe_scan(writer, config["mamba_d_conv"], inner, config["mamba_d_state"], config["mamba_dt_rank"], None)
    _key_heads(writer, config)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])


def _nemotron(writer: gguf.GGUFWriter, config: Config) -> None:
    inner = config["mamba_num_heads"] * config["mamba_head_dim"]
    sizes = config["ssm_state_size"], config["mamba_num_heads"], config["n_groups"]
    _describe_scan(writer, config["conv_kernel"], inner, *sizes)
    _key_heads(writer, config)
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    widths = {"mlp": config["intermediate_size"], "moe": config["moe_intermediate_size"]}
    writer.add_feed_forward_length([widths.get(kind, 0) for kind in config["layers_block_type"]])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])


def _nemotron_mixture(writer: gguf.GGUFWriter, config: Config) -> None:
    _nemotron(writer, config)
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["moe_shared_expert_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_moe_latent_size(config["moe_latent_size"])


def _nemotron_mixture_tensors(tensors: Tensors, config: Config) -> Tensors:
    parts = {"gate.e_score_correction_bias": "exp_probs_b.bias", "fc1_latent_proj": "ffn_latent_down"}
    parts |= {"fc2_latent_proj": "ffn_latent_up"}
    named: Tensors = {}
    for name, values in _experts(tensors, "mixer").items():
        end = next((each for each in parts if f".mixer.{each}" in name), None)
        named[
            name if end is None else f"blk.{name.split('.')[2]}.{name.split('.mixer.')[1]}".replace(end, parts[end])
        ] = values
    return named


def _qwen(writer: gguf.GGUFWriter, config: Config) -> None:
    heads, keys = config["linear_num_value_heads"], config["linear_num_key_heads"]
    sizes = config["linear_value_head_dim"] * heads, config["linear_key_head_dim"], heads, keys
    _describe_scan(writer, config["linear_conv_kernel_dim"], *sizes)
    writer.add_feed_forward_length(config.get("intermediate_size", 0))
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(int(config["head_dim"] * config["rope_parameters"]["partial_rotary_factor"]))
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if config["model_type"] != "qwen3_next":
        writer.add_rope_dimension_sections([1, 1, 0, 0])  # parts of an image's positions, which a text's all equal
    writer.add_full_attention_interval(config["layer_types"].index("full_attention") + 1)
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _qwen_tensors(tensors: Tensors, config: Config) -> Tensors:
    """Convert norms stored as weight - 1, split fused projections, and tile value heads (Qwen3.5)."""
    keys, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    size, width = config["linear_value_head_dim"], config["linear_key_head_dim"]
    tiled = (
        np.arange(heads).reshape(keys, -1).T.reshape(-1) if config["model_type"] != "qwen3_next" else np.arange(heads)
    )
    values_of = (np.arange(heads * size).reshape(heads, size)[tiled]).reshape(-1)
    queries = np.arange(2 * keys * width)
    mixed = np.concatenate([queries, len(queries) + values_of])
    found: Tensors = {}
    for name, values in tensors.items():
        prefix = f"blk.{name.split('.')[2]}." if "layers" in name else ""
        if name.endswith("norm.weight") and "linear_attn" not in name:
            found[name] = values + 1
        elif name.endswith("in_proj_qkvz.weight"):
            parts = np.split(
                values.reshape(keys, -1, values.shape[-1]), np.cumsum([width, width, heads // keys * size]), 1
            )
            query, key, value, gate = (part.reshape(-1, values.shape[-1]) for part in parts)
            found[f"{prefix}attn_qkv.weight"] = np.concatenate([query, key, value])
            found[f"{prefix}attn_gate.weight"] = gate
        elif name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
            found[name] = values[mixed]
        elif name.endswith("in_proj_z.weight"):
            found[name] = values[values_of]
        elif name.endswith(("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_proj.bias")):
            found[name] = values[tiled]
        elif name.endswith("linear_attn.out_proj.weight"):
            found[name] = values[:, values_of]
        elif name.endswith("shared_expert_gate.weight"):
            found[name] = values[0]
        else:
            found[name] = values
    return _experts(found, "mlp")


def _describe_mixture(writer: gguf.GGUFWriter, config: Config, *, sigmoid: bool) -> None:
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config.get("norm_topk_prob", sigmoid))
    kinds = gguf.ExpertGatingFuncType
    writer.add_expert_gating_func(kinds.SIGMOID if sigmoid else kinds.SOFTMAX)


def _describe_latent(writer: gguf.GGUFWriter, config: Config) -> None:
    rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_kv_lora_rank(rank)
    if config["q_lora_rank"]:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_key_length(rank + rotated)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotated)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rotated)


def _deepseek(writer: gguf.GGUFWriter, config: Config) -> None:
    _describe_mixture(writer, config, sigmoid=config["model_type"] == "deepseek_v3")
    _describe_latent(writer, config)
    writer.add_head_count_kv(1)
    scaling = config["rope_parameters"]
    if "mscale_all_dim" in scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])
    if "llama_4_scaling_beta" in scaling:
        writer.add_attn_temperature_scale(scaling["llama_4_scaling_beta"])
        writer.add_attn_temperature_length(scaling["original_max_position_embeddings"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])


def _kimi(writer: gguf.GGUFWriter, config: Config) -> None:
    """Layers without key heads have linear attention."""
    names = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
    own = {name: config[each] for name, each in names.items()} | {"q_lora_rank": None, "first_k_dense_replace": 1}
    own |= {"rope_parameters": {"rope_theta": 1e4}, "num_experts_per_tok": config["num_experts_per_token"]}
    _describe_latent(writer, config | own)
    _describe_mixture(writer, config | own, sigmoid=True)
    writer.add_head_count_kv([int(kind == "full_attention") for kind in config["layer_types"]])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_kda_head_dim(config["linear_head_dim"])


def _dots(writer: gguf.GGUFWriter, config: Config) -> None:
    _describe_mixture(writer, config, sigmoid=True)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    part = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(config["head_dim"] * part))


def _deepseek_tensors(tensors: Tensors, config: Config) -> Tensors:
    """Separate transposed keys and values of the heads."""
    bias, size = ".e_score_correction_bias", config.get("qk_nope_head_dim")
    found: Tensors = {}
    for name, values in tensors.items():
        prefix = f"blk.{name.split('.')[2]}." if "layers" in name else ""
        if name.endswith("kv_b_proj.weight"):
            heads = values.reshape(config["num_attention_heads"], -1, values.shape[-1])
            found[f"{prefix}attn_k_b.weight"] = heads[:, :size].swapaxes(1, 2)
            found[f"{prefix}attn_v_b.weight"] = heads[:, size:]
        elif name.endswith(("gate_up_proj", "experts.down_proj")):
            found[f"{name}.weight"] = values
        else:
            found[f"{prefix}exp_probs_b.bias" if name.endswith(bias) else name] = values
    return found if config["model_type"] == "mistral4" else _experts(found, "mlp")


def _kimi_tensors(tensors: Tensors, config: Config) -> Tensors:
    renamed = {name.replace("block_sparse_moe.", "mlp."): values for name, values in tensors.items()}
    renamed |= {name: values[None, :, None] for name, values in renamed.items() if name.endswith("conv1d.weight")}
    return _deepseek_tensors(renamed, config)


_Describe: TypeAlias = "Callable[[gguf.GGUFWriter, Config], None]"
_Convert: TypeAlias = "Callable[[Tensors, Config], Tensors]"
ARCHITECTURES: dict[str, tuple[str, _Describe, _Convert]] = {
    "mamba": ("mamba", _mamba, lambda tensors, config: tensors),
    "falcon_mamba": ("mamba", _mamba, lambda tensors, config: tensors),
    "mamba2": ("mamba2", _mamba, lambda tensors, config: tensors),
    "lfm2": ("lfm2", _lfm2, lambda tensors, config: tensors),
    "lfm2_moe": ("lfm2moe", _lfm2_moe, _lfm2_moe_tensors),
    "granitemoehybrid": ("granitehybrid", _granite, _granite_tensors),
    "falcon_h1": ("falcon-h1", _falcon_h1, _falcon_tensors),
    "jamba": ("jamba", _jamba, lambda tensors, config: _experts(tensors, "feed_forward")),
    "nemotron_h": ("nemotron_h", _nemotron, lambda tensors, config: tensors),
    "nemotron_h-mixture": ("nemotron_h_moe", _nemotron_mixture, _nemotron_mixture_tensors),
    "deepseek_v2": ("deepseek2", _deepseek, _deepseek_tensors),
    "deepseek_v3": ("deepseek2", _deepseek, _deepseek_tensors),
    "mistral4": ("mistral4", _deepseek, _deepseek_tensors),
    "glm4_moe": ("glm4moe", _dots, _deepseek_tensors),
    "dots1": ("dots1", _dots, _deepseek_tensors),
    "kimi_linear": ("kimi-linear", _kimi, _kimi_tensors),
    "gemma3n_text": ("gemma3n", describe_gemma3n, gemma_tensors),
    "gemma4_text": ("gemma4", describe_gemma4, gemma_tensors),
    "qwen3_next": ("qwen3next", _qwen, _qwen_tensors),
    "qwen3_5_text": ("qwen35", _qwen, _qwen_tensors),
    "qwen3_5_moe_text": ("qwen35moe", _qwen, _qwen_tensors),
}
