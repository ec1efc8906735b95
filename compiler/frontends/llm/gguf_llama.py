"""GGUF architectures similar to Llama that differ in norms, positions, activations or factors."""

from __future__ import annotations

from dataclasses import replace

from compiler.errors import OptionError
from compiler.frontends.llm.attention import alibi_slopes
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.gguf_architecture import GgufArchitecture, all_but_every, with_windows, without_rope
from compiler.frontends.llm.gguf_file import GgufFile

_BAICHUAN_LAYERS = 32  # of the model whose positions are rotations; the larger one has ALiBi


def _alibi(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    return replace(without_rope(config), slopes=alibi_slopes(config.heads))


def _arcee(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    return replace(config, gated=False, activation="relu2")


def _baichuan(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    return config if len(config.layers) == _BAICHUAN_LAYERS else _alibi(config, file)


def _cohere(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    """Its scale of the logits is a factor, where that of Granite is a divisor."""
    return replace(config, norm="layer", parallel=True, logit_scale=1 / config.logit_scale)


def _cohere2(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    """Every fourth layer sees everything, and has no rotary embedding."""
    config = with_windows(_cohere(config, file), all_but_every(config, 4))
    return without_rope(config, where_full=True)


def _exaone4(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    """Those with windows are as Cohere 2."""
    if all(layer.window is None for layer in config.layers):
        return config
    return without_rope(with_windows(config, all_but_every(config, 4)), where_full=True)


def _minicpm(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    missing = [
        key for key in ("embedding_scale", "residual_scale", "logit_scale") if file.value(f"minicpm.{key}") is None
    ]
    if missing:
        raise OptionError(
            f"{file.path}: files of MiniCPM without the metadata {', '.join(missing)} are not supported",
            "convert the model again with a newer llama.cpp",
        )
    return config


def _olmo(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    return replace(config, norm="layer")


def _qwen(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    """The width in the file is that of both products of the MLP together."""
    return replace(config, intermediate=config.intermediate // 2)


LLAMA_ARCHITECTURES = {
    **dict.fromkeys(["internlm2", "xverse", "ernie4_5", "chatglm"], GgufArchitecture(interleaved=True)),
    **dict.fromkeys(["exaone", "pangu-embedded"], GgufArchitecture()),
    "arcee": GgufArchitecture(interleaved=True, changes=_arcee),
    "baichuan": GgufArchitecture(interleaved=True, changes=_baichuan),
    "command-r": GgufArchitecture(interleaved=True, changes=_cohere),
    "cohere2": GgufArchitecture(interleaved=True, changes=_cohere2),
    "exaone4": GgufArchitecture(norms="post", changes=_exaone4),
    "glm4": GgufArchitecture(norms="sandwich", interleaved=True),
    "minicpm": GgufArchitecture(interleaved=True, changes=_minicpm),
    "olmo": GgufArchitecture(interleaved=True, bare_norms=True, changes=_olmo),
    "qwen": GgufArchitecture(changes=_qwen),
    "refact": GgufArchitecture(changes=_alibi),
    "seed_oss": GgufArchitecture(roles={"mlp_norm": "post_attention_norm"}),
}
