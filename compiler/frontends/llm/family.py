"""Model types of config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.frontends.llm.config import DecoderConfig, ExpertsConfig
from compiler.frontends.llm.names import Names, hugging_face_names
from compiler.frontends.llm.parameters import Storage
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
