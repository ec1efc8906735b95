"""Layers that the caller allows to be quantized, the order in which they return to float, and a file of the layers in
integers and in float, so that another run can repeat the decision."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from compiler.artifact.storage import write_json
from compiler.compression.quantization.layers import Layer, LayerGraph
from compiler.errors import OptionError
from compiler.passes.rewriting.graph import Var

FORMAT_VERSION = 1
PREDICTED, MEASURED = "predicted", "measured"
INTEGER, FLOAT = "integer", "float"


def check_decide(decide: str | Path | Mapping[str, str]) -> str | Mapping[str, str]:
    """Check `decide`: `PREDICTED`, `MEASURED`, or "integer" or "float" by the layer's name, possibly from a file.

    Raises OptionError for anything else.
    """
    if isinstance(decide, str) and decide in (PREDICTED, MEASURED):
        return decide
    if isinstance(decide, str | Path):
        return _read(Path(decide))
    if not isinstance(decide, Mapping):
        raise OptionError(f"decide={decide!r}", f"use {PREDICTED!r}, {MEASURED!r}, a .json file, or a dictionary")
    return _checked(decide, "decide=")


def write_precisions(precisions: Mapping[str, str], path: str | Path) -> None:
    """Write them for `check_decide` to read. Raises StorageError."""
    write_json(path, {"version": FORMAT_VERSION, "layers": dict(precisions)})


def _read(path: Path) -> dict[str, str]:
    if path.suffix != ".json":
        raise OptionError(f"decide={str(path)!r}", f"use {PREDICTED!r}, {MEASURED!r}, or a .json file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise OptionError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("version") != FORMAT_VERSION:
        raise OptionError(f"{path} does not hold precisions of layers", "write it with save_precisions")
    return _checked(content.get("layers"), str(path))


def _checked(layers: object, where: str) -> dict[str, str]:
    if not isinstance(layers, Mapping):
        raise OptionError(f"{where} has no layers", 'give {"layer": "integer" or "float"}')
    for name, precision in layers.items():
        if precision not in (INTEGER, FLOAT):
            raise OptionError(f"{where} has {precision!r} for the layer {name!r}", "use 'integer' or 'float'")
    return {str(name): str(precision) for name, precision in layers.items()}


class LayerChoice:
    """Layer choice common to all sessions.

    Attributes:
        sensitivity: decibels by the layer's name, once `rank` has measured them.
        in_float: reasons, by name, for layers that stay in float regardless of measurements.
        slower: names of those among them that are faster in float.
    """

    graph: LayerGraph
    # True if sensitive layers may read 16 bits instead of going back to float.
    tries_int16: bool = False

    def __init__(self) -> None:
        self.sensitivity: dict[str, float] = {}
        self.in_float: dict[str, str] = {}
        self.slower: set[str] = set()

    @property
    def choices(self) -> list[Layer]:
        """All layers that can be chosen from."""
        return [*self.graph.layers, *self.graph.look_ups]

    def leave_in_float(self, names: Collection[str]) -> None:
        """Keep these layers in float. Raises OptionError if one is not a layer."""
        self._check_names("in_float=", names)
        for name in names:
            self.in_float[name] = "asked for"

    def repeat(self, precisions: Mapping[str, str]) -> None:
        """Keep the same layers in float as an earlier run. Raises OptionError if one is not a layer."""
        refused = {name for name, _ in self.graph.refused}
        self._check_names("decide=", [name for name in precisions if name not in refused])
        for name, precision in precisions.items():
            if precision == FLOAT and name not in refused:
                self.in_float.setdefault(name, "as decided before")
                self.slower.add(name)

    def _check_names(self, option: str, names: Collection[str]) -> None:
        known = [layer.name for layer in self.choices]
        for name in names:
            if name not in known:
                raise OptionError(f"{option} has {name!r}, which is not a layer", f"the layers are {', '.join(known)}")

    def refuse_weights(self) -> None:
        """Keep layers in float whose weights cannot be scaled."""
        for layer in self.choices:
            if not np.isfinite(layer.weight).all():
                self.in_float[layer.name] = "its weights hold NaN or infinite numbers"

    def refuse_data(self, unusable: Collection[Var]) -> None:
        """Keep layers in float that read one of these."""
        for layer in self.choices:
            if layer.data in unusable:
                self.in_float.setdefault(layer.name, "its data holds NaN or infinite numbers in the calibration")

    @property
    def quantizable(self) -> list[Layer]:
        """The layers that may be quantized."""
        return [layer for layer in self.choices if layer.name not in self.in_float]

    @property
    def left_in_float(self) -> list[tuple[str, str]]:
        """(name, reason) of the others."""
        return [*self.in_float.items(), *self.graph.refused]

    @property
    def ranked(self) -> list[Layer]:
        """The quantizable layers, most sensitive first."""
        return sorted(self.quantizable, key=lambda layer: self.sensitivity.get(layer.name, 0.0))
