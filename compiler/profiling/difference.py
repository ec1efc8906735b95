"""Two profiles side by side, layer by layer, matched by the names of the model's nodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import OptionError, storage_errors

if TYPE_CHECKING:
    from compiler.profiling.measured import Profile

FORMAT_VERSION = 2
"""Version of `profile.json`."""


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer in a run: the model's nodes that it computes, the main one first, and seconds."""

    name: str
    nodes: tuple[str, ...]
    seconds: float

    @property
    def key(self) -> str:
        """Key for matching layers of two profiles."""
        return self.nodes[0] if self.nodes else self.name


@dataclass(frozen=True)
class LayerDifference:
    """A layer in two profiles; None if it is missing from one."""

    name: str
    seconds: float | None
    other: float | None

    @property
    def gain(self) -> float:
        """Seconds by which the other profile is faster."""
        return (self.seconds or 0.0) - (self.other or 0.0)


def layer_times(source: Profile | Mapping[str, Any]) -> list[LayerTime]:
    """The layers of a profile, or of a dictionary from `Profile.to_dict`."""
    if isinstance(source, Mapping):
        return [LayerTime(each["name"], tuple(each["nodes"]), float(each["seconds"])) for each in source["layers"]]
    return [LayerTime(each.name, each.nodes, each.seconds) for each in source.layers]


def read_profile(path: Path) -> Mapping[str, Any]:
    """Read a `profile.json` written by `Profile.save`.

    Raises:
        StorageError: the file cannot be read.
        OptionError: it is not a profile, or has no layers.
    """
    with storage_errors(path):
        content = path.read_bytes()
    try:
        profile = dict(json.loads(content))
        layer_times(profile)
        float(profile["latency"]["p50"])
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"{path} is not a profile with layers (format version {FORMAT_VERSION})",
            "give a profile.json that `tensorwright profile --output` wrote, or a module",
        ) from error
    return profile


def differences(layers: Sequence[LayerTime], others: Sequence[LayerTime]) -> list[LayerDifference]:
    """Layers of two profiles of one model, those with the largest difference first.

    A layer that is part of a larger one in the other profile, because more was fused there, counts as that one.
    """
    ours, theirs = _by_key(layers, others), _by_key(others, layers)
    names = dict.fromkeys([*ours, *theirs])
    found = [LayerDifference(name, ours.get(name), theirs.get(name)) for name in names]
    return sorted(found, key=lambda each: -abs(each.gain))


def _by_key(layers: Iterable[LayerTime], others: Sequence[LayerTime]) -> dict[str, float]:
    known = {each.key for each in others}
    holders: dict[str, str] = {}
    for layer in others:
        for node in layer.nodes:
            holders.setdefault(node, layer.key)
    seconds: dict[str, float] = {}
    for layer in layers:
        key = layer.key if layer.key in known else holders.get(layer.key, layer.key)
        seconds[key] = seconds.get(key, 0.0) + layer.seconds
    return seconds
