"""Tensor names of decoders in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Names:
    """Names by role.

    Roles of a layer: attention_norm, q, k, v (or qkv), o, q_norm, k_norm, sinks, post_attention_norm, mlp_norm, gate,
    up (or gate_up), activation (the prefix of its own numbers), down, post_mlp_norm; of a mixture router, router_bias,
    expert_gate, expert_up (or expert_gate_up), expert_down, whose names may contain "{expert}", experts_in,
    experts_out, and shared_gate, shared_up (or shared_gate_up), shared_down, shared_router. Of latent attention: q (or
    q_a, q_a_norm, q_b), kv_a, kv_a_norm, kv_b (or k_b and v_b, with the heads concatenated and keys transposed). Roles
    that a format or architecture lacks are absent. Of recurrent mixers: conv_in, conv, conv_out; ssm_in, ssm_conv,
    ssm_selection, ssm_step, ssm_step_bias, ssm_decay, ssm_skip, ssm_norm, ssm_out and the norms ssm_step_norm,
    ssm_write_norm, ssm_read_norm; delta_joined and delta_rates, or delta_qkv (or delta_q, delta_k, delta_v), delta_gate
    and delta_step (each optionally preceded by a matmul, with "_low") and delta_rate; delta_conv, delta_step_bias,
    delta_decay, delta_norm, delta_out; unit_in, unit_gate, unit_conv, unit_input, unit_rate, unit_decay, unit_out;
    memory_q, memory_k, memory_v, memory_gate (or memory_qkv_gate), memory_input and memory_forget (or memory_gates),
    memory_norm, memory_out; mix_query, mix_key, mix_value, mix_out, mix_norm, mix_decay, mix_rate, mix_gate and
    mix_first (low-rank matmuls, each preceded by one with "_low"), mix_removal, mix_rate_share, mix_bonus, mix_shifts
    (or mix_shift_{part}), channel_shift. Of Zamba2's blocks: block_norm, block_out. Of layers with their own inputs:
    layer_gate, layer_out, layer_out_norm, layer_scale. Of mixtures parallel to an MLP: router_scale,
    expert_scale, experts_norm, dense_post_norm, experts_post_norm. Of alternating updates: stream_router,
    stream_router_norm, stream_predict, stream_correct, stream_scale, laurel_in, laurel_out, laurel_norm. Any
    matmul may have a low-rank update, with roles suffixed "_adapter.0" and "_adapter.1". Names of sinks,
    decays, skips, shifts, biases and scales are complete; all others are followed by ".weight".

    Attributes:
        embedding, norm, head: names without ".weight".
        layer: the prefix of layer {index}.
        roles: role -> name below the prefix.
        own: roles that differ in single layers, by layer number; a name of None means that the role is absent, and
            names that begin like `layer` are complete: tensors of another layer.
        positions, embedding_norm: like `embedding`; None if absent.
        whole: role -> name of other tensors outside layers: layer_embedding, layer_model, layer_norm (see
            `LayerInputs`), streams_in, streams_out (see `AlternatingUpdates`).
    """

    embedding: str
    norm: str
    head: str
    layer: str
    roles: Mapping[str, str] = field(default_factory=dict)
    positions: str | None = None
    embedding_norm: str | None = None
    own: Mapping[int, Mapping[str, str | None]] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)

    def below(self, prefix: str) -> Names:
        """Return the names without a prefix, for checkpoints of models without a head."""
        return replace(
            self,
            embedding=self.embedding.removeprefix(prefix),
            norm=self.norm.removeprefix(prefix),
            layer=self.layer.removeprefix(prefix),
            positions=None if self.positions is None else self.positions.removeprefix(prefix),
            embedding_norm=None if self.embedding_norm is None else self.embedding_norm.removeprefix(prefix),
            own={
                index: {role: None if name is None else name.removeprefix(prefix) for role, name in each.items()}
                for index, each in self.own.items()
            },
            whole={role: name.removeprefix(prefix) for role, name in self.whole.items()},
        )

    def of(self, index: int, role: str) -> str | None:
        """Return the name of a role in a layer, without ".weight"; None if absent."""
        name = {**self.roles, **self.own.get(index, {})}.get(role)
        if name is None or name.startswith(self.layer.partition("{index}")[0]):
            return name
        return self.layer.replace("{index}", str(index)) + name


_ATTENTION = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "qkv": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "q_a": "self_attn.q_a_proj",
    "q_a_norm": "self_attn.q_a_layernorm",
    "q_b": "self_attn.q_b_proj",
    "kv_a": "self_attn.kv_a_proj_with_mqa",
    "kv_a_norm": "self_attn.kv_a_layernorm",
    "kv_b": "self_attn.kv_b_proj",
}
_MLP = {
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "gate_up": "mlp.gate_up_proj",
    "down": "mlp.down_proj",
    "activation": "mlp.act_fn",
}
_PRE_NORM = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_POST_NORM = {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"}
_SANDWICH = {**_POST_NORM, "attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}


MIXTRAL_EXPERTS = {
    "router": "block_sparse_moe.gate",
    "expert_gate": "block_sparse_moe.experts.{expert}.w1",
    "expert_up": "block_sparse_moe.experts.{expert}.w3",
    "expert_down": "block_sparse_moe.experts.{expert}.w2",
}
QWEN_EXPERTS = {
    "router": "mlp.gate",
    "expert_gate": "mlp.experts.{expert}.gate_proj",
    "expert_up": "mlp.experts.{expert}.up_proj",
    "expert_down": "mlp.experts.{expert}.down_proj",
    "shared_gate": "mlp.shared_expert.gate_proj",
    "shared_up": "mlp.shared_expert.up_proj",
    "shared_down": "mlp.shared_expert.down_proj",
    "shared_router": "mlp.shared_expert_gate",
}
DEEPSEEK_EXPERTS = {
    **{role: name.replace("shared_expert.", "shared_experts.") for role, name in QWEN_EXPERTS.items()},
    "router_bias": "mlp.gate.e_score_correction_bias",
}
LLAMA4_ROLES = {
    **{role: name.replace("mlp.", "feed_forward.") for role, name in _MLP.items()},
    "router": "feed_forward.router",
    "expert_gate_up": "feed_forward.experts.gate_up_proj",
    "expert_down": "feed_forward.experts.down_proj",
    **{f"shared_{role}": f"feed_forward.shared_expert.{role}_proj" for role in ("gate", "up", "down")},
}
GPT_OSS_ROLES = {
    "sinks": "self_attn.sinks",
    "router": "mlp.router",
    "expert_gate_up": "mlp.experts.gate_up_proj",
    "expert_down": "mlp.experts.down_proj",
}
GRANITE_EXPERTS = {
    "router": "block_sparse_moe.router.layer",
    "expert_gate_up": "block_sparse_moe.input_linear",
    "expert_down": "block_sparse_moe.output_linear",
    "shared_gate_up": "shared_mlp.input_linear",
    "shared_down": "shared_mlp.output_linear",
}


_STATE_SPACE = {
    "ssm_in": "in_proj",
    "ssm_conv": "conv1d",
    "ssm_selection": "x_proj",
    "ssm_step": "dt_proj",
    "ssm_step_bias": "dt_bias",
    "ssm_decay": "A_log",
    "ssm_skip": "D",
    "ssm_norm": "norm",
    "ssm_out": "out_proj",
    "ssm_step_norm": "dt_layernorm",
    "ssm_write_norm": "b_layernorm",
    "ssm_read_norm": "c_layernorm",
}
_DELTA = {
    "delta_joined": "in_proj_qkvz",
    "delta_rates": "in_proj_ba",
    "delta_qkv": "in_proj_qkv",
    "delta_gate": "in_proj_z",
    "delta_step": "in_proj_a",
    "delta_rate": "in_proj_b",
    "delta_conv": "conv1d",
    "delta_step_bias": "dt_bias",
    "delta_decay": "A_log",
    "delta_norm": "norm",
    "delta_out": "out_proj",
}
_DELTA_PARTS = {
    "delta_q": "q_proj",
    "delta_k": "k_proj",
    "delta_v": "v_proj",
    "delta_gate": "g_proj",
    "delta_gate_low": "g_a_proj",
    "delta_step": "a_proj",
    "delta_step_low": "f_a_proj",
    "delta_rate": "b_proj",
    "delta_conv": "conv1d",
    "delta_conv_q": "q_conv1d",
    "delta_conv_k": "k_conv1d",
    "delta_conv_v": "v_conv1d",
    "delta_step_bias": "dt_bias",
    "delta_decay": "A_log",
    "delta_norm": "o_norm",
    "delta_out": "o_proj",
}
_UNIT = {
    "unit_in": "linear_x",
    "unit_gate": "linear_y",
    "unit_conv": "conv_1d",
    "unit_input": "rg_lru.input_gate",
    "unit_rate": "rg_lru.recurrent_gate",
    "unit_decay": "rg_lru.recurrent_param",
    "unit_out": "linear_out",
}
_LIGHTNING = {
    "lightning_qkv": "qkv_proj",
    "lightning_gate": "output_gate",
    "lightning_norm": "norm",
    "lightning_out": "out_proj",
}
_MEMORY = {
    "memory_q": "q",
    "memory_k": "k",
    "memory_v": "v",
    "memory_gate": "ogate_preact",
    "memory_qkv_gate": "qkv_opreact",
    "memory_input": "igate_preact",
    "memory_forget": "fgate_preact",
    "memory_gates": "ifgate_preact",
    "memory_norm": "multihead_norm",
    "memory_out": "out_proj",
}
_LOW_RANK = {"mix_decay": "w", "mix_rate": "a", "mix_first": "v", "mix_gate": "g"}
_MIX = {
    **{f"mix_{role}": f"{name}_proj" for role, name in zip(("query", "key", "value", "out"), "rkvo", strict=True)},
    **{f"{role}_low": f"{name}_lora.lora.0" for role, name in _LOW_RANK.items()},
    **{role: f"{name}_lora.lora.2" for role, name in _LOW_RANK.items()},
    "mix_removal": "k_k",
    "mix_rate_share": "k_a",
    "mix_bonus": "r_k",
    "mix_norm": "g_norm",
    "mix_shifts": "x_x",
    "mix_shift_{part}": "x_{part}",
}
_CONVOLUTION = {"conv_in": "in_proj", "conv": "conv", "conv_out": "out_proj"}
_RECURRENT = {
    "ssm": _STATE_SPACE,
    "delta": _DELTA,
    "delta-parts": _DELTA_PARTS,
    "conv": _CONVOLUTION,
    "unit": _UNIT,
    "lightning": _LIGHTNING,
    "memory": _MEMORY,
    "mix": _MIX,
}


def recurrent_roles(kind: str, prefix: str) -> dict[str, str]:
    """Return names of a recurrent mixer (a key of the table above) in transformers files, below a prefix."""
    return {role: prefix + name for role, name in _RECURRENT[kind].items()}


def hugging_face_names(norms: str = "pre", roles: Mapping[str, str] | None = None) -> Names:
    """Return names in transformers files of Llama and similar models.

    Args:
        norms: position of a block's norms: "pre", "post" or "sandwich" (both).
        roles: renamed and additional roles.
    """
    own = {"pre": _PRE_NORM, "post": _POST_NORM, "sandwich": _SANDWICH}[norms]
    every = {**_ATTENTION, **_MLP, **own, **(roles or {})}
    return Names("model.embed_tokens", "model.norm", "lm_head", "model.layers.{index}.", every)


_GGUF_ROLES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "qkv": "attn_qkv",
    "o": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "sinks": "attn_sinks.weight",
    "q_a": "attn_q_a",
    "q_a_norm": "attn_q_a_norm",
    "q_b": "attn_q_b",
    "kv_a": "attn_kv_a_mqa",
    "kv_a_norm": "attn_kv_a_norm",
    "kv_b": "attn_kv_b",
    "k_b": "attn_k_b",
    "v_b": "attn_v_b",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "gate_up": "ffn_up",
    "down": "ffn_down",
    "router": "ffn_gate_inp",
    "expert_gate": "ffn_gate_exps",
    "expert_up": "ffn_up_exps",
    "expert_down": "ffn_down_exps",
    "shared_gate": "ffn_gate_shexp",
    "shared_up": "ffn_up_shexp",
    "shared_down": "ffn_down_shexp",
    "shared_router": "ffn_gate_inp_shexp",
    "router_bias": "exp_probs_b.bias",
    "router_scale": "ffn_gate_inp.scale",
    "expert_gate_up": "ffn_gate_up_exps",
    "expert_scale": "ffn_down_exps.scale",
    "experts_norm": "pre_ffw_norm_2",
    "experts_in": "ffn_latent_down",
    "experts_out": "ffn_latent_up",
    "dense_post_norm": "post_ffw_norm_1",
    "experts_post_norm": "post_ffw_norm_2",
    "layer_gate": "inp_gate",
    "layer_out": "proj",
    "layer_out_norm": "post_norm",
    "layer_scale": "layer_output_scale.weight",
    "stream_router": "altup_router",
    "stream_router_norm": "altup_router_norm",
    "stream_predict": "altup_predict_coef",
    "stream_correct": "altup_correct_coef",
    "stream_scale": "altup_correct_scale.weight",
    "laurel_in": "laurel_l",
    "laurel_out": "laurel_r",
    "laurel_norm": "laurel_post_norm",
    "conv_in": "shortconv.in_proj",
    "conv": "shortconv.conv",
    "conv_out": "shortconv.out_proj",
    "ssm_in": "ssm_in",
    "ssm_conv": "ssm_conv1d",
    "ssm_selection": "ssm_x",
    "ssm_step": "ssm_dt",
    "ssm_step_bias": "ssm_dt.bias",
    "ssm_decay": "ssm_a",
    "ssm_skip": "ssm_d",
    "ssm_norm": "ssm_norm",
    "ssm_out": "ssm_out",
    "ssm_step_norm": "ssm_dt_norm",
    "ssm_write_norm": "ssm_b_norm",
    "ssm_read_norm": "ssm_c_norm",
    "delta_joined": "ssm_in",
    "delta_rates": "ssm_ba",
    "delta_qkv": "attn_qkv",
    "delta_gate": "attn_gate",
    "delta_step": "ssm_alpha",
    "delta_rate": "ssm_beta",
    "delta_conv": "ssm_conv1d",
    "delta_step_bias": "ssm_dt.bias",
    "delta_decay": "ssm_a",
    "delta_norm": "ssm_norm",
    "delta_out": "ssm_out",
    **{f"{role}_low": f"time_mix_{name}1" for role, name in _LOW_RANK.items()},
    **{role: f"time_mix_{name}2" for role, name in _LOW_RANK.items()},
    "mix_query": "time_mix_receptance",
    "mix_key": "time_mix_key",
    "mix_value": "time_mix_value",
    "mix_out": "time_mix_output",
    "mix_removal": "time_mix_k_k.weight",
    "mix_rate_share": "time_mix_k_a.weight",
    "mix_bonus": "time_mix_r_k.weight",
    "mix_norm": "time_mix_ln",
    "mix_shifts": "time_mix_lerp_fused.weight",
    "channel_shift": "channel_mix_lerp_k.weight",
}


def gguf_names(norms: str) -> Names:
    """Return names in GGUF files; see `hugging_face_names`."""
    roles = dict(_GGUF_ROLES)
    if norms != "post":
        roles |= {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}
    if norms != "pre":
        roles |= {"post_attention_norm": "post_attention_norm", "post_mlp_norm": "post_ffw_norm"}
    full_names = {
        "layer_embedding": "per_layer_token_embd",
        "layer_model": "per_layer_model_proj",
        "layer_norm": "per_layer_proj_norm",
        "streams_in": "altup_proj",
        "streams_out": "altup_unembd_proj",
    }
    return Names("token_embd", "output_norm", "output", "blk.{index}.", roles, whole=full_names)
