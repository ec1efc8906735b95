"""Properties of GGUF architectures that the metadata of a file lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.rope import Rope


@dataclass(frozen=True)
class GgufArchitecture:
    """Properties of a GGUF architecture that the metadata lacks.

    Attributes:
        norms: as of `gguf_names`.
        interleaved: rows of queries and keys are ordered for rotary embeddings of adjacent pairs.
        bare_norms: norms have no weights.
        normalized: whether the probabilities of a mixture's chosen experts are scaled to sum to 1.
        changes: adapts the configuration.
        roles: role -> other name, where the first layer has tensors of all these names.
    """

    norms: str = "pre"
    interleaved: bool = False
    bare_norms: bool = False
    normalized: bool = True
    changes: Callable[[DecoderConfig, GgufFile], DecoderConfig] = lambda config, file: config
    roles: Mapping[str, str] = field(default_factory=dict)


def with_windows(config: DecoderConfig, windowed: list[bool], local: Rope | None = None) -> DecoderConfig:
    """Layers with full attention except those in `windowed`, which have a sliding window and the `local` RoPE."""
    layers = [
        replace(layer, rope=local or layer.rope) if inside else replace(layer, window=None)
        for layer, inside in zip(config.layers, windowed, strict=True)
    ]
    return replace(config, layers=tuple(layers))


def without_rope(config: DecoderConfig, *, where_full: bool = False) -> DecoderConfig:
    """No rotary embedding, or none in layers without a sliding window."""
    layers = [replace(each, rope=None) if not where_full or each.window is None else each for each in config.layers]
    return replace(config, layers=tuple(layers))


def all_but_every(config: DecoderConfig, every: int) -> list[bool]:
    """Every n-th layer is False."""
    return [(index + 1) % every != 0 for index in range(len(config.layers))]
