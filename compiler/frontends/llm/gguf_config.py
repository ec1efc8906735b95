"""GGUF metadata as a decoder's configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.config import (
    MOST_EXPERTS,
    MOST_HEADS,
    MOST_LAYERS,
    DecoderConfig,
    ExpertsConfig,
    LayerConfig,
)
from compiler.frontends.llm.gguf_architecture import GgufArchitecture, all_but_every, with_windows
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.gguf_gpt import GPT_ARCHITECTURES
from compiler.frontends.llm.gguf_llama import LLAMA_ARCHITECTURES
from compiler.frontends.llm.names import Names, gguf_names
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.rope import MOST_HEAD_SIZE, Rope, RopeSettings, make_rope
from compiler.frontends.llm.weights import Checkpoint

_ROPE_FACTORS, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


def read_gguf(file: GgufFile) -> tuple[DecoderConfig, Names, Storage, Checkpoint]:
    """The configuration, names and weights of a GGUF file.

    Raises:
        InvalidModelError: the metadata is not complete or does not fit together.
        OptionError: the architecture is not supported.
    """
    name = str(file.required("general.architecture"))
    found = ARCHITECTURES.get(name)
    if found is None:
        raise OptionError(
            f"{file.path}: the architecture {name!r} is not supported", f"supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    checkpoint = Checkpoint(file, str(file.path))
    config = found.changes(_config(file, name, found, checkpoint), file)
    storage = Storage(interleaved=found.interleaved, bare_norms=found.bare_norms)
    return config, _names(found, config, file), storage, checkpoint


def _names(found: GgufArchitecture, config: DecoderConfig, file: GgufFile) -> Names:
    names = gguf_names(found.norms)
    roles = dict(names.roles)
    if config.parallel and "blk.0.ffn_norm.weight" not in file.names:  # both parts of a block read what one norm gives
        del roles["mlp_norm"]
    if all(f"blk.0.{name}.weight" in file.names for name in found.roles.values()):
        roles |= found.roles
    tables = [name if f"{name}.weight" in file.names else None for name in ("position_embd", "token_embd_norm")]
    return replace(names, roles=roles, positions=tables[0], embedding_norm=tables[1])


@dataclass(frozen=True)
class Numbers:
    """Numeric metadata of an architecture; values out of range raise InvalidModelError."""

    file: GgufFile
    architecture: str

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, or the only value of a list."""
        name = f"{self.architecture}.{key}"
        value = self.file.value(name, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidModelError(f"{self.file.path}: its metadata '{name}' is {str(value)[:80]}, not a number")
        return value

    def limit(self, key: str) -> float | None:
        """A number; None if missing or 0."""
        return self.number(key, 0.0) or None

    def count(self, key: str, default: float | None = None, *, most: int = 1 << 31) -> int:
        """An integer from 1 to `most`."""
        value = self.number(key, default)
        if value < 1 or value != int(value) or value > most:
            raise InvalidModelError(
                f"{self.file.path}: its metadata '{self.architecture}.{key}' is {value}, not a size"
            )
        return int(value)


def _config(file: GgufFile, name: str, found: GgufArchitecture, checkpoint: Checkpoint) -> DecoderConfig:
    numbers = Numbers(file, name)
    number, count = numbers.number, numbers.count
    hidden, heads = count("embedding_length"), count("attention.head_count", most=MOST_HEADS)
    head_size = count("attention.key_length", hidden // heads, most=MOST_HEAD_SIZE)
    if count("attention.value_length", head_size) != head_size:
        raise OptionError(f"{file.path}: keys and values of different widths are not supported")
    key_heads = count("attention.head_count_kv", heads)
    if heads % key_heads:
        raise InvalidModelError(f"{file.path}: {heads} attention heads are not a multiple of {key_heads} key heads")
    layers = count("block_count")
    if layers > MOST_LAYERS:
        raise InvalidModelError(f"{file.path}: {layers} layers, and at most {MOST_LAYERS} are supported")
    layer = _layer(numbers, found, head_size, checkpoint)
    return DecoderConfig(
        architecture=name,
        hidden=hidden,
        intermediate=count("feed_forward_length", layer.experts.intermediate if layer.experts else None),
        vocabulary=file.shape("token_embd.weight")[0] if "token_embd.weight" in file.names else 0,
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        context=count("context_length"),
        layers=(layer,) * layers,
        score_scale=number("attention.scale", 1 / math.sqrt(head_size)),
        epsilon=number("attention.layer_norm_rms_epsilon", number("attention.layer_norm_epsilon", 1e-5)),
        score_cap=numbers.limit("attn_logit_softcapping"),
        logit_cap=numbers.limit("final_logit_softcapping"),
        embedding_scale=number("embedding_scale", 1.0),
        residual_scale=number("residual_scale", 1.0),
        logit_scale=1 / (number("logit_scale", 1.0) or 1.0),
        clip=numbers.limit("attention.clamp_kqv"),
    )


def _layer(numbers: Numbers, found: GgufArchitecture, head_size: int, checkpoint: Checkpoint) -> LayerConfig:
    """The settings that all layers share."""
    file, number, count = numbers.file, numbers.number, numbers.count
    size = count("rope.dimension_count", head_size)
    scaling = _scaling(file, numbers.architecture)
    settings = RopeSettings(size, number("rope.freq_base", 10000.0), count("context_length"), scaling)
    rope = _with_factors(make_rope(settings), settings, file, checkpoint)
    window = count("attention.sliding_window") if number("attention.sliding_window", 0) else None
    experts = _experts(numbers, found) if number("expert_count", 0) else None
    return LayerConfig(rope, window, experts)


def _experts(numbers: Numbers, found: GgufArchitecture) -> ExpertsConfig:
    """The mixture of experts that replaces the MLP of each layer."""
    file, number, count = numbers.file, numbers.number, numbers.count
    shared = "expert_shared_feed_forward_length"
    experts = ExpertsConfig(
        count=count("expert_count", most=MOST_EXPERTS),
        chosen=count("expert_used_count"),
        intermediate=count("expert_feed_forward_length", number("feed_forward_length", 0)),
        normalized=bool(file.value(f"{numbers.architecture}.expert_weights_norm", found.normalized)),
        shared=count(shared) if number(shared, 0) else 0,
        shared_gate="blk.0.ffn_gate_inp_shexp.weight" in file.names,
    )
    if experts.chosen > experts.count:
        raise InvalidModelError(f"{file.path}: {experts.chosen} experts per token, and {experts.count} in all")
    return experts


def _scaling(file: GgufFile, name: str) -> dict[str, Any]:
    """The metadata of RoPE scaling in the form of transformers' `rope_parameters`."""
    kind = file.value(f"{name}.rope.scaling.type", "none")
    factor = file.value(f"{name}.rope.scaling.factor")
    scaling = {
        "rope_type": "default" if kind == "none" else kind,
        "factor": factor,
        "original_max_position_embeddings": file.value(f"{name}.rope.scaling.original_context_length"),
        "attention_factor": None,
        "beta_fast": file.value(f"{name}.rope.scaling.yarn_beta_fast"),
        "beta_slow": file.value(f"{name}.rope.scaling.yarn_beta_slow"),
    }
    if kind == "longrope" or _SHORT in file.names:
        scaling["rope_type"] = "longrope"
        for key, tensor in (("short_factor", _SHORT), ("long_factor", _LONG)):
            if tensor in file.names:
                scaling[key] = file.vector(tensor).tolist()
        scaling["attention_factor"] = file.value(f"{name}.rope.scaling.attn_factor")
    return scaling


def _with_factors(rope: Rope, settings: RopeSettings, file: GgufFile, checkpoint: Checkpoint) -> Rope:
    """Llama 3's frequencies are stored as divisors."""
    checkpoint.ignore([_SHORT, _LONG, _ROPE_FACTORS])
    if _ROPE_FACTORS not in file.names:
        return rope
    divisors = file.vector(_ROPE_FACTORS)
    if divisors.shape != (settings.size // 2,):
        raise InvalidModelError(f"{file.path}: {_ROPE_FACTORS!r} has shape {divisors.shape}")
    return replace(
        rope, frequencies=tuple(float(f) / float(d) for f, d in zip(rope.frequencies, divisors, strict=True))
    )


def _gemma(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    return replace(config, embedding_scale=math.sqrt(config.hidden), activation="gelu_tanh")


def _gemma2(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    config = _gemma(config, file)
    if len(config.layers) == 46:  # 27B: the scale is that of the width shared among its heads
        config = replace(config, score_scale=1 / math.sqrt(config.hidden / config.heads))
    return with_windows(config, all_but_every(config, 2))


def _gemma3(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    config = _gemma(config, file)
    if len(config.layers) == 62:  # 27B, as above
        config = replace(config, score_scale=1 / math.sqrt(config.hidden / config.heads))
    numbers = Numbers(file, "gemma3")
    base = float(numbers.number("rope.freq_base_swa", 10000.0))
    local = make_rope(RopeSettings(config.head_size, base, config.context, {}))
    pattern = "attention.sliding_window_pattern"
    every = numbers.count(pattern) if numbers.number(pattern, 0) else 6
    return with_windows(config, all_but_every(config, every), local)


def _smollm3(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    """Every fourth layer has no rotary embedding."""
    layers = [replace(each, rope=None) if (i + 1) % 4 == 0 else each for i, each in enumerate(config.layers)]
    return replace(config, layers=tuple(layers))


def _granite(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    return config


def _phimoe(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    """As llama.cpp computes it: no window, RMS norms (with a bias), and the softmax over the chosen experts, where
    transformers has layer norms and an expert's softmax over those near its score."""
    return replace(config, layers=tuple(replace(each, window=None) for each in config.layers))


def _olmo(config: DecoderConfig, file: GgufFile) -> DecoderConfig:
    return replace(config, norm="layer")


ARCHITECTURES = {
    "llama": GgufArchitecture(interleaved=True),
    "mistral3": GgufArchitecture(interleaved=True),
    "qwen2": GgufArchitecture(),
    "qwen3": GgufArchitecture(),
    "qwen2moe": GgufArchitecture(normalized=False),
    "qwen3moe": GgufArchitecture(),
    "olmoe": GgufArchitecture(normalized=False),
    "granitemoe": GgufArchitecture(interleaved=True, changes=_granite),
    "phi3": GgufArchitecture(),
    "phimoe": GgufArchitecture(changes=_phimoe),
    "gemma": GgufArchitecture(changes=_gemma),
    "gemma2": GgufArchitecture(norms="sandwich", changes=_gemma2),
    "gemma3": GgufArchitecture(norms="sandwich", changes=_gemma3),
    "granite": GgufArchitecture(interleaved=True, changes=_granite),
    "smollm3": GgufArchitecture(interleaved=True, changes=_smollm3),
    "olmo2": GgufArchitecture(norms="post"),
    **LLAMA_ARCHITECTURES,
    **GPT_ARCHITECTURES,
}
