"""How checkpoints name the tensors of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Names:
    """Names by role.

    Roles of a layer: attention_norm, q, k, v (or qkv), o, q_norm, k_norm, post_attention_norm, mlp_norm, gate, up (or
    gate_up), down, post_mlp_norm. A role that the format or architecture does not have is missing.

    Attributes:
        embedding, norm, head: names without ".weight".
        layer: the prefix of layer {index}.
        roles: role -> name below the prefix.
    """

    embedding: str
    norm: str
    head: str
    layer: str
    roles: Mapping[str, str] = field(default_factory=dict)

    def of(self, index: int, role: str) -> str | None:
        """The name of a role in a layer, without ".weight"; None where there is no such thing."""
        name = self.roles.get(role)
        return None if name is None else self.layer.format(index=index) + name


_ATTENTION = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "qkv": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
_MLP = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj"}
_PRE_NORM = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_POST_NORM = {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"}
_SANDWICH = {**_POST_NORM, "attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}


def hugging_face_names(norms: str) -> Names:
    """Names in files of transformers; `norms` says where a block has norms: "pre", "post" or "sandwich" (both)."""
    roles = {"pre": _PRE_NORM, "post": _POST_NORM, "sandwich": _SANDWICH}[norms]
    return Names(
        "model.embed_tokens", "model.norm", "lm_head", "model.layers.{index}.", {**_ATTENTION, **_MLP, **roles}
    )


def gguf_names(norms: str) -> Names:
    """Names in GGUF files, as `hugging_face_names`."""
    roles = {
        "q": "attn_q",
        "k": "attn_k",
        "v": "attn_v",
        "qkv": "attn_qkv",
        "o": "attn_output",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "gate_up": "ffn_up",
        "down": "ffn_down",
    }
    if norms != "post":
        roles |= {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}
    if norms != "pre":
        roles |= {"post_attention_norm": "post_attention_norm", "post_mlp_norm": "post_ffw_norm"}
    return Names("token_embd", "output_norm", "output", "blk.{index}.", roles)
