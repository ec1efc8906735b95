"""Properties of GGUF architectures that the metadata of a file lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.gguf_file import GgufFile


@dataclass(frozen=True)
class GgufArchitecture:
    """Properties of a GGUF architecture that the metadata lacks.

    Attributes:
        norms: as of `gguf_names`.
        interleaved: rows of queries and keys are ordered for rotary embeddings of adjacent pairs.
        normalized: whether the probabilities of a mixture's chosen experts are scaled to sum to 1.
        changes: adapts the configuration.
        roles: role -> other name, where the first layer has tensors of all these names.
    """

    norms: str = "pre"
    interleaved: bool = False
    normalized: bool = True
    changes: Callable[[DecoderConfig, GgufFile], DecoderConfig] = lambda config, file: config
    roles: Mapping[str, str] = field(default_factory=dict)
