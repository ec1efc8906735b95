"""Families of decoders similar to GPT-2: layer norms, MLPs without gates, fused query-key-value projections, learned
positions or ALiBi, parallel attention and MLP.

If a transformers model uses the exact GELU, llama.cpp, and therefore GGUF files here, use the tanh form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compiler.errors import InvalidModelError
from compiler.frontends.llm.attention import alibi_slopes
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.families.family import Family, Gguf, within, without
from compiler.frontends.llm.families.layer_kinds import FULL, SLIDING
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.names import Names, hugging_face_names
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.settings import Settings

_UNUSED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def _gpt2(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    scaled = settings.get("scale_attn_weights") is not False
    return config if scaled else replace(config, score_scale=1.0)


def _one_key_head(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """`multi_query`: all heads share one key head."""
    return replace(config, key_heads=1 if settings.flag("multi_query") else config.heads)


def _bigcode(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return _one_key_head(_gpt2(config, settings), settings)


def _falcon(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    if settings.flag("new_decoder_architecture"):
        shared = settings.size("num_kv_heads", config.heads)
        if config.heads % shared:
            raise InvalidModelError(
                f"{settings.path}: {config.heads} attention heads are not a multiple of {shared} key heads"
            )
        return replace(config, key_heads=shared, parallel=True)
    return replace(_one_key_head(config, settings), parallel=settings.flag("parallel_attn"))


def _mpt(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    attention = Settings(
        settings.table("attn_config"),
        settings.path,
        {"alibi_bias_max": settings.positive("alibi_bias_max", 8.0), "clip_qkv": settings.get("clip_qkv")},
    )
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


def _neo(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """Scores are not scaled."""
    return replace(config, score_scale=1.0)


def _neo_kinds(settings: Settings, count: int) -> list[str]:
    """Expand kinds of layers with repetition counts, such as [[["global", "local"], 12]]."""
    kinds = {"global": FULL, "local": SLIDING}
    try:
        result = [kinds[each] for names, times in settings.get("attention_types") for each in names * min(times, count)]
    except (KeyError, TypeError, ValueError):
        result = []
    if len(result) != count:
        raise InvalidModelError(f"{settings.path}: 'attention_types' are not global or local for {count} layers")
    return result


def _opt(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    settings.refuse("word_embed_proj_dim", "a projection of the embeddings", unless=config.hidden)
    return config


def _jais(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return replace(config, score_scale=1 / config.head_size)


def _learned_rows(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the number of rows of the position table. Raises InvalidModelError if there is none."""
    if "position_embd.weight" not in file.names:
        raise InvalidModelError(f"{file.path}: it has no table of positions, 'position_embd.weight'")
    rows = file.shape("position_embd.weight")[0]
    context = values.get("max_position_embeddings")
    return {"position_rows": rows, "max_position_embeddings": rows if context is None else min(context, rows)}


def _bigcode_rows(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**_learned_rows(file, values), "multi_query": values.get("num_key_value_heads") == 1}


def _one_norm(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The largest models have one norm for attention and MLP, which then read the same values."""
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in file.names}


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
        **within("self_attn.", {**_SEPARATE, "o": "out_proj"}),
        "attention_norm": "self_attn_layer_norm",
        "mlp_norm": "final_layer_norm",
        "up": "fc1",
        "down": "fc2",
    },
    "model.decoder.embed_positions",
)
_NEO_ROLES = {**within("attn.attention.", {**_SEPARATE, "o": "out_proj"}), **_LN}
_GPTJ_ROLES = {**within("attn.", {**_SEPARATE, "o": "out_proj"}), "attention_norm": "ln_1"}
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


def _falcon_names(settings: Settings) -> Names:
    """Falcon's blocks have two norms, named by one of two pairs, or one."""
    new = settings.flag("new_decoder_architecture")
    norms = settings.size("num_ln_in_parallel_attn", 2 if new else 1)
    if new and norms == 2:
        return _bloom_names({**_BLOOM, "attention_norm": "ln_attn", "mlp_norm": "ln_mlp"})
    names = _bloom_names({**_BLOOM, **_PRE})
    return without(names, "mlp_norm") if new or settings.flag("parallel_attn") else names


def _falcon_storage(settings: Settings) -> Storage:
    """Queries, keys and values of a key head are stored together, unless all heads share one."""
    return Storage(grouped=settings.flag("new_decoder_architecture") or not settings.flag("multi_query"))


_TANH = {"hidden_act": "gelu_new"}  # of llama.cpp
_EPSILON = {"rms_norm_eps": 1e-5}
_TIED = {**_EPSILON, "tie_word_embeddings": True}
_INVERSE = {"scale_attn_by_inverse_layer_idx": ("a scale of attention by layer", False)}
_NO_QK_NORM = {"qk_layernorm": ("normalization of queries and keys", False)}

GPT: dict[str, Family] = {
    "gpt2": Family(
        names=_gpt2_names(),
        norm="layer",
        gated=False,
        positions="learned",
        changes=_gpt2,
        refused=_INVERSE,
        defaults={**_TANH, **_TIED},
        aliases=_GPT2_KEYS,
        storage=Storage(transposed=True),
        expansion=4,
        unused=_UNUSED,
        gguf=(Gguf(name="gpt2", read=_learned_rows),),
    ),
    "gpt_bigcode": Family(
        names=_gpt2_names(),
        norm="layer",
        gated=False,
        positions="learned",
        changes=_bigcode,
        refused=_INVERSE,
        defaults={"hidden_act": "gelu_pytorch_tanh", **_TIED, "multi_query": True},
        aliases=_GPT2_KEYS,
        storage=lambda settings: Storage(grouped=not settings.flag("multi_query")),
        expansion=4,
        unused=_UNUSED,
        gguf=(Gguf(name="starcoder", read=_bigcode_rows),),
    ),
    "gpt_neo": Family(
        names=replace(_gpt2_names(), roles={**_NEO_ROLES, "up": "mlp.c_fc", "down": "mlp.c_proj"}),
        norm="layer",
        gated=False,
        positions="learned",
        kinds=_neo_kinds,
        changes=_neo,
        defaults={**_TANH, **_TIED, "max_position_embeddings": 2048, "sliding_window": 256},
        aliases={
            "num_attention_heads": "num_heads",
            "num_hidden_layers": "num_layers",
            "rms_norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
            "sliding_window": "window_size",
        },
        expansion=4,
        unused=(*_UNUSED, ".attn.attention.bias", ".attn.attention.masked_bias"),
    ),
    "gptj": Family(
        names=_GPTJ_NAMES,
        norm="layer",
        gated=False,
        parallel=True,
        defaults={**_TANH, **_EPSILON, "rotary_dim": 64},
        aliases=_GPT2_KEYS,
        storage=Storage(interleaved=True),
        expansion=4,
        unused=_UNUSED,
    ),
    "gpt_neox": Family(
        names=_NEOX_NAMES,
        norm="layer",
        gated=False,
        parallel="use_parallel_residual",
        defaults={"hidden_act": "gelu", "use_parallel_residual": True, **_EPSILON, "partial_rotary_factor": 0.25},
        aliases={**_NORM_EPS, "partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"},
        storage=Storage(grouped=True),
        unused=_UNUSED,
        gguf=(Gguf(name="gptneox", values=_TANH),),
    ),
    "starcoder2": Family(
        names=hugging_face_names(roles={"up": "mlp.c_fc", "down": "mlp.c_proj"}),
        norm="layer",
        gated=False,
        defaults={"hidden_act": "gelu_pytorch_tanh", **_TIED},
        aliases={"rms_norm_eps": "norm_epsilon"},
        gguf=(Gguf(name="starcoder2"), Gguf(name="codeshell")),
    ),
    "falcon": Family(
        names=_falcon_names,
        norm="layer",
        gated=False,
        changes=_falcon,
        refused={"alibi": ("ALiBi of Falcon", False)},
        defaults={
            "hidden_act": "gelu",
            **_TIED,
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
        gguf=(
            Gguf(
                name="falcon",
                values={**_TANH, "new_decoder_architecture": True},
                keys={"attention.head_count_kv": "num_kv_heads"},
                # The larger models have two norms, and the second is attention's.
                second={"attention_norm": "attn_norm_2", "mlp_norm": "attn_norm"},
            ),
        ),
    ),
    "mpt": Family(
        names=_MPT_NAMES,
        norm="layer",
        gated=False,
        positions="none",
        changes=_mpt,
        defaults={"hidden_act": "gelu", **_TIED},
        aliases=_MPT_KEYS,
        expansion=4,
        gguf=(Gguf(name="mpt", values={**_TANH, "attn_config": {"alibi": True}}),),
    ),
    "bloom": Family(
        names=_bloom_names({**_BLOOM, **_PRE}, "transformer.word_embeddings_layernorm"),
        norm="layer",
        gated=False,
        positions="alibi",
        refused={"apply_residual_connection_post_layernorm": ("a residual connection after the norm", False)},
        defaults={"hidden_act": "gelu_pytorch_tanh", **_TIED, "max_position_embeddings": 2048},
        aliases={**_BLOOM_KEYS, "max_position_embeddings": "seq_length"},
        storage=Storage(grouped=True),
        expansion=4,
        gguf=(Gguf(name="bloom"),),
    ),
    "opt": Family(
        names=_OPT_NAMES,
        norm="layer",
        gated=False,
        positions="learned",
        position_offset=2,
        changes=_opt,
        refused={"do_layer_norm_before": ("norms after the blocks", True)},
        defaults={"hidden_act": "relu", **_TIED},
        aliases={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
    ),
    "phi": Family(
        names=without(_PHI_NAMES, "mlp_norm"),
        norm="layer",
        gated=False,
        parallel=True,
        refused=_NO_QK_NORM,
        defaults={**_TANH, **_EPSILON, "partial_rotary_factor": 0.5},
        aliases=_NORM_EPS,
        gguf=(Gguf(name="phi2"),),
    ),
    "nemotron": Family(
        norm="layer",
        gated=False,
        defaults={"hidden_act": "relu2", **_EPSILON, "partial_rotary_factor": 0.5},
        aliases={"rms_norm_eps": "norm_eps"},
        storage=Storage(norm_offset=1.0),
        gguf=(Gguf(name="nemotron"),),
    ),
    "jais2": Family(
        norm="layer",
        gated=False,
        defaults={"hidden_act": "relu2", **_EPSILON},
        aliases=_NORM_EPS,
        gguf=(Gguf(name="jais2"),),
    ),
    "stablelm": Family(
        norm="layer",
        parallel="use_parallel_residual",
        refused=_NO_QK_NORM,
        defaults={**_EPSILON, "partial_rotary_factor": 0.25},
        aliases=_NORM_EPS,
        gguf=(Gguf(name="stablelm", read=_one_norm),),
    ),
}

# Families that exist only as GGUF files.
GPT_FILES: tuple[Family, ...] = (
    Family(norm="layer", positions="alibi", changes=_jais, gguf=(Gguf(name="jais"),)),
    Family(norm="layer", gguf=(Gguf(name="orion"),)),
)
