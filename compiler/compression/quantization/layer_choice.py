"""Which layers of a model the caller lets be quantized, and in what order they go back to float."""

from __future__ import annotations

from collections.abc import Collection

from compiler.compression.quantization.layers import Layer, LayerGraph
from compiler.errors import OptionError


class LayerChoice:
    """What sessions share.

    Attributes:
        sensitivity: decibels by the layer's name, once `rank` has measured them.
        in_float: reasons by name, of the layers that the caller wants in float.
    """

    graph: LayerGraph

    def __init__(self) -> None:
        self.sensitivity: dict[str, float] = {}
        self.in_float: dict[str, str] = {}

    def leave_in_float(self, names: Collection[str]) -> None:
        """Raises OptionError when one is no layer."""
        known = [layer.name for layer in self.graph.layers]
        for name in names:
            if name not in known:
                raise OptionError(f"in_float= has {name!r}, which is no layer", f"the layers are {', '.join(known)}")
            self.in_float[name] = "asked for"

    @property
    def quantizable(self) -> list[Layer]:
        """The layers that may be quantized."""
        return [layer for layer in self.graph.layers if layer.name not in self.in_float]

    @property
    def ranked(self) -> list[Layer]:
        """Those, the most sensitive first."""
        return sorted(self.quantizable, key=lambda layer: self.sensitivity.get(layer.name, 0.0))
