"""weight-int4, weight-int8: the weights of matrix products in few bits, a scale a group; data and sums are float32."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.compression.quantization.affine import Array
from compiler.compression.quantization.edit import Emit, with_operands
from compiler.compression.quantization.gptq import rounded_by_gptq, rounded_to_nearest
from compiler.compression.quantization.layers import Layer
from compiler.compression.quantization.schemes.registry import SchemeOptions, scheme
from compiler.errors import OptionError
from compiler.passes.graph import Call, Expr
from compiler.passes.grouped_weights import GroupedWeight, grouped_expression

GROUPS = (16, 32, 64, 128, 256)
_BITS = {"weight-int4": 4, "weight-int8": 8}


@dataclass(frozen=True)
class GroupedLayer:
    """A matrix of integers in groups."""

    weight: GroupedWeight

    def dequantized(self) -> Array:
        return self.weight.dequantized()

    def rewritten(self, layer: Layer, call: Call, emit: Emit) -> Expr:
        weight = self.weight
        matrix = grouped_expression(weight.values, weight.scales, None, weight.group, emit)
        return with_operands(call, {layer.product.weight: matrix})


@dataclass(frozen=True)
class WeightIntegers:
    """Rounds matrices in groups."""

    bits: int
    options: SchemeOptions

    @property
    def uses_squares(self) -> bool:
        return self.options.gptq

    def refuses(self, layer: Layer) -> str | None:
        matrix = layer.product.is_matrix
        return None if matrix else "only matrix products read weights of few bits as they are"

    def rounded(self, layer: Layer, squares: Array | None) -> GroupedLayer:
        group, dtype = self.options.group, self.options.scales
        if squares is None:
            values, scales = rounded_to_nearest(layer.weight, group, self.bits, dtype)
        else:
            values, scales = rounded_by_gptq(layer.weight, squares, group, self.bits, dtype)
        return GroupedLayer(GroupedWeight(values, scales, None, group, self.bits))


@scheme("weight-int4", "weight-int8")
def weight_integers(name: str, options: SchemeOptions) -> WeightIntegers:
    """Raises OptionError for a group that the kernel has no form for."""
    if options.group not in GROUPS:
        raise OptionError(f"group={options.group}", f"use one of {', '.join(map(str, GROUPS))}")
    return WeightIntegers(_BITS[name], options)
