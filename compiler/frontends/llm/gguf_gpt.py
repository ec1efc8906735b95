"""GGUF architectures similar to GPT-2: layer norms, MLPs without gates, learned positions or ALiBi.

Where a model of transformers has the exact GELU, llama.cpp computes the tanh form, and so does this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compiler.errors import InvalidModelError
from compiler.frontends.llm.attention import alibi_slopes
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.gguf_architecture import GgufArchitecture, without_rope
from compiler.frontends.llm.gguf_file import GgufFile


def _gpt(config: DecoderConfig, **changes: Any) -> DecoderConfig:
    return replace(config, **{"norm": "layer", "gated": False, "activation": "gelu_tanh", **changes})


def _gpt2(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    """Learned positions, the rows of a table."""
    rows = _positions(file)
    return _gpt(without_rope(config), position_rows=rows, context=min(config.context, rows))


def _positions(file: GgufFile) -> int:
    if "position_embd.weight" not in file.names:
        raise InvalidModelError(f"{file.path}: it has no table of positions, 'position_embd.weight'")
    return file.shape("position_embd.weight")[0]


def _alibi(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    most = file.value(f"{config.architecture}.attention.max_alibi_bias", 8.0)
    if isinstance(most, bool) or not isinstance(most, int | float) or not 0 < most < 1024:
        raise InvalidModelError(f"{file.path}: its metadata 'attention.max_alibi_bias' is {str(most)[:80]}")
    return _gpt(without_rope(config), slopes=alibi_slopes(config.heads, float(most)))


def _jais(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    return replace(_alibi(config, file), gated=True, activation="silu", score_scale=1 / config.head_size)


def _neox(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    return _gpt(config, parallel=bool(file.value(f"{config.architecture}.use_parallel_residual", True)))


def _parallel(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    return _gpt(config, parallel=True)


def _stablelm(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    """The largest have one norm for attention and MLP, which read the same values then."""
    return _gpt(config, gated=True, activation="silu", parallel="blk.0.ffn_norm.weight" not in file.names)


GPT_ARCHITECTURES = {
    "gpt2": GgufArchitecture(changes=_gpt2),
    "starcoder": GgufArchitecture(changes=_gpt2),
    "starcoder2": GgufArchitecture(changes=lambda config, file: _gpt(config)),
    "gptneox": GgufArchitecture(changes=_neox),
    "phi2": GgufArchitecture(changes=_parallel),
    # The larger models have two norms, and the second is that of attention.
    "falcon": GgufArchitecture(changes=_parallel, roles={"attention_norm": "attn_norm_2", "mlp_norm": "attn_norm"}),
    "bloom": GgufArchitecture(changes=_alibi),
    "mpt": GgufArchitecture(changes=_alibi),
    "stablelm": GgufArchitecture(changes=_stablelm),
    "codeshell": GgufArchitecture(changes=lambda config, file: _gpt(config)),
    "jais": GgufArchitecture(changes=_jais),
    "nemotron": GgufArchitecture(changes=lambda config, file: _gpt(config, activation="relu2")),
    "orion": GgufArchitecture(changes=lambda config, file: _gpt(config, gated=True, activation="silu")),
}
