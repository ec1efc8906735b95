"""dynamic-int8: int8 weights per output channel, data quantized as it comes, products in integers.

s = max |x| / 127 over a row (of matrix products) or over one example (of convolutions)
x @ w => float(round(x / s) @ q) * s * scale,   w = q * scale
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from compiler.compression.quantization.affine import Array, QuantizedWeight, quantize_weight
from compiler.compression.quantization.edit import Emit
from compiler.compression.quantization.layers import Layer
from compiler.compression.quantization.schemes.registry import RoundedLayer, SchemeOptions, scheme
from compiler.compression.quantization.tables import rounded_table
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.passes.rewriting.matching import array_of, as_constant, rank_of
from compiler.passes.rewriting.transposed_convolutions import Interleaved

_MOST = 127
# The least magnitude with a scale of its own, so that rows of zeros stay zero.
_SMALLEST = 2.0**-100


@dataclass(frozen=True)
class DynamicLayer:
    """A layer whose data is quantized when it runs."""

    weight: QuantizedWeight

    def dequantized(self) -> Array:
        return self.weight.dequantized()

    def rewritten(self, layer: Layer, call: Call, emit: Emit) -> Expr:
        rank = rank_of(layer.data) or 0
        matrix = layer.product.is_matrix
        data, scale = quantized_rows(layer.data, [rank - 1] if matrix else list(range(1, rank)), emit)
        total = emit(_product(layer, call, data, as_constant(self.weight.values), emit))
        shape = [-1, *[1] * (0 if matrix else rank - 2)]
        of_weight = as_constant(self.weight.scale.reshape(shape))
        wide = emit(relax.op.multiply(emit(relax.op.astype(total, "float32")), of_weight))
        return relax.op.multiply(wide, scale)


def quantized_rows(data: Var, axes: list[int], emit: Emit) -> tuple[Expr, Expr]:
    """(int8, scale): each part of `data` along `axes` on a scale of its own, which keeps those axes as 1."""
    largest = emit(relax.op.max(emit(relax.op.abs(data)), axes, keepdims=True))
    limited = emit(relax.op.maximum(largest, as_constant(np.asarray(_SMALLEST, np.float32))))
    scale = emit(relax.op.multiply(limited, as_constant(np.asarray(1 / _MOST, np.float32))))
    inverse = emit(relax.op.divide(as_constant(np.asarray(_MOST, np.float32)), limited))
    rounded = emit(relax.op.round(emit(relax.op.multiply(data, inverse))))
    return emit(relax.op.astype(emit(relax.op.astype(rounded, "int32")), "int8")), scale


def _product(layer: Layer, call: Call, data: Expr, weight: Expr, emit: Emit) -> Expr:
    """The layer's product of integers, its sums int32."""
    if layer.product.is_matrix:
        return relax.op.matmul(data, weight, out_dtype="int32")
    attrs = call.attrs
    form = Interleaved.of(call) if layer.product.filters else None
    if form is not None:
        kernels = as_constant(form.kernels(array_of(weight)))
        return form.interleave(emit(form.convolution(data, kernels, "int32")), emit)
    names = ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "out_layout")
    function = getattr(relax.op.nn, str(call.op.name).rsplit(".", 1)[-1])
    return function(data, weight, **{name: getattr(attrs, name) for name in names}, out_dtype="int32")


@dataclass(frozen=True)
class DynamicIntegers:
    """Rounds each filter, and each row of a table, on a scale of its own."""

    def needs_gram(self, layer: Layer) -> bool:
        return False

    def refuses(self, layer: Layer) -> str | None:
        return None

    def rounded(self, layer: Layer, gram: Array | None) -> RoundedLayer:
        if layer.is_look_up:
            return rounded_table(layer)
        return DynamicLayer(quantize_weight(layer.weight, layer.product.filters, per_channel=True))


@scheme("dynamic-int8")
def dynamic_integers(name: str, options: SchemeOptions) -> DynamicIntegers:
    """No options."""
    return DynamicIntegers()
