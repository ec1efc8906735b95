"""Model types of config.json, and the families of decoders like GPT-2: layer norms, MLPs without gates, fused products
of queries, keys and values, learned positions or ALiBi, attention and MLP side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compiler.errors import InvalidModelError
from compiler.frontends.llm.attention import alibi_slopes
from compiler.frontends.llm.config import DecoderConfig, ExpertsConfig
from compiler.frontends.llm.names import Names, hugging_face_names
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.rope import RopeSettings, make_rope
from compiler.frontends.llm.settings import Settings


@dataclass(frozen=True)
class Family:
    """Properties of a model type that its config.json may lack.

    Attributes:
        names: of its tensors, or a function that gives them.
        changes: adapts the configuration.
        defaults: values of config.json that it may leave out.
        aliases: standard keys of config.json -> its own.
        storage: how its weights are stored, or a function that says so.
        scales_full_only: `rope_scaling` is for layers that see everything, and not for those with a window.
        rotary: whether positions are rotations.
        experts: the mixture of a layer, None for an MLP.
        expansion: times the hidden size, the width of an MLP that config.json does not give.
        unused: ends of the names of tensors that hold nothing a model needs: masks, frequencies.
    """

    names: Names | Callable[[Settings], Names] = field(default_factory=hugging_face_names)
    changes: Callable[[DecoderConfig, Settings], DecoderConfig] = lambda config, settings: config
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    storage: Storage | Callable[[Settings], Storage] = field(default_factory=Storage)
    scales_full_only: bool = False
    rotary: bool = True
    experts: Callable[[Settings, int], ExpertsConfig | None] = lambda settings, layer: None
    expansion: int | None = None
    unused: tuple[str, ...] = (".rotary_emb.inv_freq",)


Changes = Callable[[DecoderConfig, Settings], DecoderConfig]
_UNUSED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def _with(*steps: Changes, **fixed: Any) -> Changes:
    """Changes that set some fields, then make others."""

    def change(config: DecoderConfig, settings: Settings) -> DecoderConfig:
        config = replace(config, norm="layer", **fixed)
        for step in steps:
            config = step(config, settings)
        return config

    return change


def _refused(key: str, what: str, unless: Any = False) -> Changes:
    """A check that a setting does not ask for what is not supported."""

    def check(config: DecoderConfig, settings: Settings) -> DecoderConfig:
        settings.refuse(key, what, unless=unless)
        return config

    return check


def _learned(offset: int = 0) -> Changes:
    """Learned positions, the rows of a table."""

    def change(config: DecoderConfig, settings: Settings) -> DecoderConfig:
        return replace(config, position_rows=config.context + offset, position_offset=offset)

    return change


def _gpt2(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    settings.refuse("scale_attn_by_inverse_layer_idx", "a scale of attention by layer")
    scaled = settings.get("scale_attn_weights") is not False
    return config if scaled else replace(config, score_scale=1.0)


def _one_key_head(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """`multi_query`: all heads share one of keys."""
    return replace(config, key_heads=1 if settings.flag("multi_query") else config.heads)


def _falcon(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    settings.refuse("alibi", "ALiBi of Falcon")
    if settings.flag("new_decoder_architecture"):
        shared = settings.size("num_kv_heads", config.heads)
        if config.heads % shared:
            raise InvalidModelError(
                f"{settings.path}: {config.heads} attention heads are not a multiple of {shared} key heads"
            )
        return replace(config, key_heads=shared, parallel=True)
    return replace(_one_key_head(config, settings), parallel=settings.flag("parallel_attn"))


def _mpt(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    attention = Settings(settings.table("attn_config"), settings.path, {"alibi_bias_max": 8})
    attention.refuse("qk_ln", "normalization of queries and keys")
    attention.refuse("attn_type", "this kind of attention", unless="multihead_attention")
    attention.refuse("alibi", "a model without ALiBi", unless=True)
    scale, most = attention.optional("softmax_scale"), attention.positive("alibi_bias_max")
    return replace(
        config,
        score_scale=config.score_scale if scale is None else scale,
        clip=attention.optional("clip_qkv"),
        slopes=alibi_slopes(config.heads, most),
    )


def _bloom(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    settings.refuse("apply_residual_connection_post_layernorm", "a residual connection behind the norm")
    return replace(config, slopes=alibi_slopes(config.heads))


def _gptj(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    rope = make_rope(RopeSettings(settings.size("rotary_dim", config.head_size), 10000.0, config.context, {}))
    return replace(config, layers=tuple(replace(layer, rope=rope) for layer in config.layers))


def _parallel(key: str) -> Changes:
    """Run attention and MLP in parallel where a setting says so."""
    return lambda config, settings: replace(config, parallel=settings.flag(key))


def _cohere(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return replace(config, logit_scale=settings.number("logit_scale", 0.0625))


_GPT2 = {"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
_NEOX = {"up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"}
_BLOOM = {"qkv": "self_attention.query_key_value", "o": "self_attention.dense", **_NEOX}
_PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_LN = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
_SEPARATE = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}


def _gpt2_names(positions: bool = True) -> Names:
    table = "transformer.wpe" if positions else None
    return Names("transformer.wte", "transformer.ln_f", "lm_head", "transformer.h.{index}.", {**_GPT2, **_LN}, table)


def _bloom_names(roles: dict[str, str], embedding_norm: str | None = None) -> Names:
    names = Names("transformer.word_embeddings", "transformer.ln_f", "lm_head", "transformer.h.{index}.", roles)
    return replace(names, embedding_norm=embedding_norm)


def _within(prefix: str, roles: dict[str, str]) -> dict[str, str]:
    return {role: prefix + name for role, name in roles.items()}


_GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
_BLOOM_KEYS = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "rms_norm_eps": "layer_norm_epsilon"}
_MPT_KEYS = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_seq_len",
    "rms_norm_eps": "layer_norm_epsilon",
}
_NORM_EPS = {"rms_norm_eps": "layer_norm_eps"}
_OPT_NAMES = Names(
    "model.decoder.embed_tokens",
    "model.decoder.final_layer_norm",
    "lm_head",
    "model.decoder.layers.{index}.",
    {
        **_within("self_attn.", {**_SEPARATE, "o": "out_proj"}),
        "attention_norm": "self_attn_layer_norm",
        "mlp_norm": "final_layer_norm",
        "up": "fc1",
        "down": "fc2",
    },
    "model.decoder.embed_positions",
)
_GPTJ_ROLES = {**_within("attn.", {**_SEPARATE, "o": "out_proj"}), "attention_norm": "ln_1"}
_GPTJ_NAMES = Names(
    "transformer.wte",
    "transformer.ln_f",
    "lm_head",
    "transformer.h.{index}.",
    {**_GPTJ_ROLES, "up": "mlp.fc_in", "down": "mlp.fc_out"},
)
_NEOX_NAMES = Names(
    "gpt_neox.embed_in",
    "gpt_neox.final_layer_norm",
    "embed_out",
    "gpt_neox.layers.{index}.",
    {**_PRE, "qkv": "attention.query_key_value", "o": "attention.dense", **_NEOX},
)
_PHI_NAMES = replace(
    hugging_face_names(roles={"o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"}), norm="model.final_layernorm"
)
_MPT_NAMES = Names(
    "transformer.wte",
    "transformer.norm_f",
    "lm_head",
    "transformer.blocks.{index}.",
    {
        "attention_norm": "norm_1",
        "mlp_norm": "norm_2",
        "qkv": "attn.Wqkv",
        "o": "attn.out_proj",
        "up": "ffn.up_proj",
        "down": "ffn.down_proj",
    },
)


def _without(names: Names, role: str) -> Names:
    """Names of models whose blocks have one norm."""
    return replace(names, roles={key: name for key, name in names.roles.items() if key != role})


def _falcon_names(settings: Settings) -> Names:
    """Falcon's blocks have two norms by one of two pairs of names, or one."""
    new = settings.flag("new_decoder_architecture")
    norms = settings.size("num_ln_in_parallel_attn", 2 if new else 1)
    if new and norms == 2:
        return _bloom_names({**_BLOOM, "attention_norm": "ln_attn", "mlp_norm": "ln_mlp"})
    names = _bloom_names({**_BLOOM, **_PRE})
    return _without(names, "mlp_norm") if new or settings.flag("parallel_attn") else names


def _falcon_storage(settings: Settings) -> Storage:
    """Queries, keys and values of a head of keys stand together, but where all heads share one."""
    return Storage(grouped=settings.flag("new_decoder_architecture") or not settings.flag("multi_query"))


GPT_FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        names=_gpt2_names(),
        changes=_with(_gpt2, _learned(), gated=False),
        defaults={"hidden_act": "gelu_new", "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        aliases=_GPT2_KEYS,
        storage=Storage(transposed=True),
        rotary=False,
        expansion=4,
        unused=_UNUSED,
    ),
    "gpt_bigcode": Family(
        names=_gpt2_names(),
        changes=_with(_gpt2, _one_key_head, _learned(), gated=False),
        defaults={
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
            "multi_query": True,
        },
        aliases=_GPT2_KEYS,
        storage=lambda settings: Storage(grouped=not settings.flag("multi_query")),
        rotary=False,
        expansion=4,
        unused=_UNUSED,
    ),
    "gptj": Family(
        names=_GPTJ_NAMES,
        changes=_with(_gptj, gated=False, parallel=True),
        defaults={"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "rotary_dim": 64},
        aliases=_GPT2_KEYS,
        storage=Storage(interleaved=True),
        rotary=False,
        expansion=4,
        unused=_UNUSED,
    ),
    "gpt_neox": Family(
        names=_NEOX_NAMES,
        changes=_with(_parallel("use_parallel_residual"), gated=False),
        defaults={
            "hidden_act": "gelu",
            "use_parallel_residual": True,
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 0.25,
        },
        aliases={**_NORM_EPS, "partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"},
        storage=Storage(grouped=True),
        unused=_UNUSED,
    ),
    "starcoder2": Family(
        names=hugging_face_names(roles={"up": "mlp.c_fc", "down": "mlp.c_proj"}),
        changes=_with(gated=False),
        defaults={"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        aliases={"rms_norm_eps": "norm_epsilon"},
    ),
    "falcon": Family(
        names=_falcon_names,
        changes=_with(_falcon, gated=False),
        defaults={
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "multi_query": True,
            "parallel_attn": True,
            "max_position_embeddings": 2048,
        },
        aliases={
            "rms_norm_eps": "layer_norm_epsilon",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
            "intermediate_size": "ffn_hidden_size",
            "hidden_act": "activation",
        },
        storage=_falcon_storage,
        expansion=4,
        unused=_UNUSED,
    ),
    "mpt": Family(
        names=_MPT_NAMES,
        changes=_with(_mpt, gated=False),
        defaults={"hidden_act": "gelu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        aliases=_MPT_KEYS,
        rotary=False,
        expansion=4,
    ),
    "bloom": Family(
        names=_bloom_names({**_BLOOM, **_PRE}, "transformer.word_embeddings_layernorm"),
        changes=_with(_bloom, gated=False),
        defaults={
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "max_position_embeddings": 2048,
        },
        aliases={**_BLOOM_KEYS, "max_position_embeddings": "seq_length"},
        storage=Storage(grouped=True),
        rotary=False,
        expansion=4,
    ),
    "opt": Family(
        names=_OPT_NAMES,
        changes=_with(
            _refused("do_layer_norm_before", "norms behind the blocks", unless=True),
            lambda config, settings: _refused("word_embed_proj_dim", "a projection of the embeddings", config.hidden)(
                config, settings
            ),
            _learned(offset=2),
            gated=False,
        ),
        defaults={"hidden_act": "relu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        aliases={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
        rotary=False,
    ),
    "phi": Family(
        names=_without(_PHI_NAMES, "mlp_norm"),
        changes=_with(_refused("qk_layernorm", "normalization of queries and keys"), gated=False, parallel=True),
        defaults={"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
        aliases=_NORM_EPS,
    ),
    "stablelm": Family(
        changes=_with(
            _refused("qk_layernorm", "normalization of queries and keys"), _parallel("use_parallel_residual")
        ),
        defaults={"rms_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
        aliases=_NORM_EPS,
    ),
    "cohere": Family(
        names=_without(hugging_face_names(), "mlp_norm"),
        changes=_with(_refused("use_qk_norm", "normalization of queries and keys"), _cohere, parallel=True),
        defaults={"rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        aliases=_NORM_EPS,
        storage=Storage(interleaved=True),
    ),
}
