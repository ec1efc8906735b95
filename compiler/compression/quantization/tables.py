"""The table of a look-up as int8 with one scale per row."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.compression.quantization.affine import Array, QuantizedWeight, quantize_weight
from compiler.compression.quantization.edit import Emit, with_operands
from compiler.compression.quantization.insertion import dequantized_weight
from compiler.compression.quantization.layers import Layer
from compiler.passes.rewriting.graph import Call, Expr


@dataclass(frozen=True)
class Table:
    """A table whose rows are dequantized when they are read."""

    weight: QuantizedWeight

    def dequantized(self) -> Array:
        return self.weight.dequantized()

    def rewritten(self, layer: Layer, call: Call, emit: Emit) -> Expr:
        return with_operands(call, {layer.product.weight: emit(dequantized_weight(self.weight))})


def rounded_table(layer: Layer) -> Table:
    """The table of a look-up, each row to the nearest levels."""
    return Table(quantize_weight(layer.weight, 0, per_channel=True))
