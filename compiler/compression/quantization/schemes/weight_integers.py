"""weight-int4, weight-int8: weights in few bits; data and sums are float32.

Matrix products have one scale per group and are read as they are. Convolutions have int8 weights, scaled per channel:
the module stores those and widens them when it is loaded (the pass store-scaled-integers).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.compression.quantization.adaround import adarounded, rounded_by_adaround
from compiler.compression.quantization.affine import Array, quantize_weight
from compiler.compression.quantization.edit import Emit, with_operands
from compiler.compression.quantization.gptq import rounded_by_gptq, rounded_to_nearest
from compiler.compression.quantization.layers import Layer
from compiler.compression.quantization.schemes.narrow_floats import NarrowLayer
from compiler.compression.quantization.schemes.registry import RoundedLayer, SchemeOptions, scheme
from compiler.compression.quantization.tables import rounded_table
from compiler.errors import OptionError
from compiler.passes.rewriting.graph import Call, Expr
from compiler.passes.rewriting.grouped_weights import GroupedWeight, grouped_expression

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
    """Rounds matrices in groups, filters and rows of tables each on a scale of its own."""

    bits: int
    options: SchemeOptions

    def needs_gram(self, layer: Layer) -> bool:
        return self.options.rounding == "adaround" or (self.options.rounding == "gptq" and layer.product.is_matrix)

    def refuses(self, layer: Layer) -> str | None:
        return None

    def rounded(self, layer: Layer, gram: Array | None) -> RoundedLayer:
        if layer.is_look_up:
            return rounded_table(layer)
        if not layer.product.is_matrix:
            filters = quantize_weight(layer.weight, layer.product.filters, per_channel=True)
            return NarrowLayer((filters if gram is None else adarounded(layer, filters, gram)).dequantized())
        group, dtype = self.options.group, self.options.scales
        if gram is not None and self.options.rounding == "gptq":
            values, scales = rounded_by_gptq(layer.weight, gram[0], group, self.bits, dtype)
        else:
            values, scales = rounded_to_nearest(layer.weight, group, self.bits, dtype)
        if gram is not None and self.options.rounding == "adaround":
            steps = np.repeat(scales, group, 0)[: len(values)]
            most = 2 ** (self.bits - 1)
            values = rounded_by_adaround(layer.weight[None], steps[None], gram, -most, most - 1)[0]
        return GroupedLayer(GroupedWeight(values, scales, None, group, self.bits))


@scheme("weight-int4", "weight-int8")
def weight_integers(name: str, options: SchemeOptions) -> WeightIntegers:
    """Raises OptionError for a group that the kernel has no form for."""
    if options.group not in GROUPS:
        raise OptionError(f"group={options.group}", f"use one of {', '.join(map(str, GROUPS))}")
    return WeightIntegers(_BITS[name], options)
