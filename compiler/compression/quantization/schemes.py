"""Schemes that quantize each layer separately, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np
from tvm import relax

from compiler.compression.quantization.affine import Array, QuantizedWeight, quantize_weight
from compiler.compression.quantization.edit import Emit, with_operands
from compiler.compression.quantization.insertion import dequantized_weight
from compiler.compression.quantization.layers import Layer
from compiler.compression.quantization.rounding import (
    adarounded,
    rounded_by_adaround,
    rounded_by_gptq,
    rounded_to_nearest,
)
from compiler.errors import OptionError
from compiler.passes.rewriting.constant_products import Interleaved
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.passes.rewriting.grouped_weights import GroupedWeight, grouped_expression
from compiler.passes.rewriting.matching import array_of, as_constant, rank_of
from compiler.support.options import check_choices

STATIC = "static-int8"


@dataclass(frozen=True)
class SchemeOptions:
    """Options of a scheme.

    Attributes:
        group: number of neighbors along a matmul's depth that share a scale.
        scales: the stored type of scales, "float16" or "float32".
        rounding: for weight-only schemes: "nearest", "gptq" (rounding one weight corrects those after it) or
        "adaround".
    """

    group: int
    scales: str
    rounding: str


class RoundedLayer(Protocol):
    """A layer with quantized weights."""

    def dequantized(self) -> Array:
        """The weights as float32, in the layer's layout."""

    def rewritten(self, layer: Layer, call: Call, emit: Emit) -> Expr:
        """Replacement of the layer's call."""


class Scheme(Protocol):
    """Quantization of layers."""

    def refuses(self, layer: Layer) -> str | None:
        """Reason why the layer stays in float; None if it does not."""

    def rounded(self, layer: Layer, gram: Array | None) -> RoundedLayer:
        """Quantize the layer. `gram`: Gram matrices of the calibration data, (groups, depth, depth), if
        `needs_gram`."""

    def needs_gram(self, layer: Layer) -> bool:
        """True if `rounded` uses the Gram matrices."""


Make = Callable[[SchemeOptions], Scheme]
_SCHEMES: dict[str, Make] = {}


def scheme(*names: str) -> Callable[[Callable[[str, SchemeOptions], Scheme]], Callable[[str, SchemeOptions], Scheme]]:
    """Register the decorated function, which creates a scheme from its name and the options."""

    def register(make: Callable[[str, SchemeOptions], Scheme]) -> Callable[[str, SchemeOptions], Scheme]:
        for name in names:
            _SCHEMES[name] = lambda options, name=name: make(name, options)  # type: ignore[misc]
        return make

    return register


def scheme_names() -> tuple[str, ...]:
    """All schemes, the static one first."""
    return (STATIC, *sorted(_SCHEMES))


def make_scheme(name: str, options: SchemeOptions) -> Scheme:
    """The scheme with that name. Raises OptionError if there is none."""
    if name not in _SCHEMES:
        raise OptionError(f"scheme={name!r}", f"use one of {', '.join(scheme_names())}")
    return _SCHEMES[name](options)


# The table of a lookup as int8 with one scale per row.


@dataclass(frozen=True)
class Table:
    """A table whose rows are dequantized when they are read."""

    weight: QuantizedWeight

    def dequantized(self) -> Array:
        return self.weight.dequantized()

    def rewritten(self, layer: Layer, call: Call, emit: Emit) -> Expr:
        return with_operands(call, {layer.operator.weight: emit(dequantized_weight(self.weight))})


def rounded_table(layer: Layer) -> Table:
    """The table of a lookup, with each row rounded to the nearest levels."""
    return Table(quantize_weight(layer.weight, 0, per_channel=True))


# float16, bfloat16: weights rounded to and stored in 16 bits; data and sums are float32.

_TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class NarrowLayer:
    """A layer whose float32 weights fit exactly in fewer bits: the module stores them like that."""

    weight: Array

    def dequantized(self) -> Array:
        return self.weight

    def rewritten(self, layer: Layer, call: Call, emit: Emit) -> Expr:
        return with_operands(call, {layer.operator.weight: as_constant(self.weight)})


@dataclass(frozen=True)
class NarrowFloats:
    """Rounds weights to a 16-bit float type."""

    dtype: np.dtype

    def needs_gram(self, layer: Layer) -> bool:
        return False

    def refuses(self, layer: Layer) -> str | None:
        with np.errstate(over="ignore"):
            whole = np.isfinite(layer.weight.astype(self.dtype).astype(np.float32)).all()
        return None if whole else f"its weights exceed the range of {self.dtype.name}"

    def rounded(self, layer: Layer, gram: Array | None) -> NarrowLayer:
        return NarrowLayer(layer.weight.astype(self.dtype).astype(np.float32))


@scheme("float16", "bfloat16")
def narrow_floats(name: str, options: SchemeOptions) -> NarrowFloats:
    """Create the scheme; it has no options."""
    return NarrowFloats(_TYPES[name])


# dynamic-int8: int8 weights per output channel, data quantized at run time, integer matmuls.
#
# s = max |x| / 127 over a row (of matmuls) or over one example (of convolutions)
# x @ w => float(round(x / s) @ q) * s * scale,   w = q * scale

_MAX_INT8 = 127
# The smallest magnitude with its own scale, so that rows of zeros stay zero.
_SMALLEST = 2.0**-100


@dataclass(frozen=True)
class DynamicLayer:
    """A layer whose data is quantized at run time."""

    weight: QuantizedWeight

    def dequantized(self) -> Array:
        return self.weight.dequantized()

    def rewritten(self, layer: Layer, call: Call, emit: Emit) -> Expr:
        rank = rank_of(layer.data) or 0
        matrix = layer.operator.is_matrix
        data, scale = quantized_rows(layer.data, [rank - 1] if matrix else list(range(1, rank)), emit)
        total = emit(_product(layer, call, data, as_constant(self.weight.values), emit))
        shape = [-1, *[1] * (0 if matrix else rank - 2)]
        of_weight = as_constant(self.weight.scale.reshape(shape))
        wide = emit(relax.op.multiply(emit(relax.op.astype(total, "float32")), of_weight))
        return relax.op.multiply(wide, scale)


def quantized_rows(data: Var, axes: list[int], emit: Emit) -> tuple[Expr, Expr]:
    """(int8, scale): each part of `data` along `axes` with its own scale, which keeps those axes as size 1."""
    largest = emit(relax.op.max(emit(relax.op.abs(data)), axes, keepdims=True))
    limited = emit(relax.op.maximum(largest, as_constant(np.asarray(_SMALLEST, np.float32))))
    scale = emit(relax.op.multiply(limited, as_constant(np.asarray(1 / _MAX_INT8, np.float32))))
    inverse = emit(relax.op.divide(as_constant(np.asarray(_MAX_INT8, np.float32)), limited))
    rounded = emit(relax.op.round(emit(relax.op.multiply(data, inverse))))
    return emit(relax.op.astype(emit(relax.op.astype(rounded, "int32")), "int8")), scale


def _product(layer: Layer, call: Call, data: Expr, weight: Expr, emit: Emit) -> Expr:
    """The layer's integer matmul or convolution, with int32 sums."""
    if layer.operator.is_matrix:
        return relax.op.matmul(data, weight, out_dtype="int32")
    attrs = call.attrs
    form = Interleaved.of(call) if layer.operator.filters else None
    if form is not None:
        kernels = as_constant(form.kernels(array_of(weight)))
        return form.interleave(emit(form.convolution(data, kernels, "int32")), emit)
    names = ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "out_layout")
    function = getattr(relax.op.nn, str(call.op.name).rsplit(".", 1)[-1])
    return function(data, weight, **{name: getattr(attrs, name) for name in names}, out_dtype="int32")


@dataclass(frozen=True)
class DynamicIntegers:
    """Rounds each filter, and each row of a table, with its own scale."""

    def needs_gram(self, layer: Layer) -> bool:
        return False

    def refuses(self, layer: Layer) -> str | None:
        return None

    def rounded(self, layer: Layer, gram: Array | None) -> RoundedLayer:
        if layer.is_look_up:
            return rounded_table(layer)
        return DynamicLayer(quantize_weight(layer.weight, layer.operator.filters, per_channel=True))


@scheme("dynamic-int8")
def dynamic_integers(name: str, options: SchemeOptions) -> DynamicIntegers:
    """Create the scheme; it has no options."""
    return DynamicIntegers()


# weight-int4, weight-int8: weights in few bits; data and sums are float32.
#
# Matmuls have one scale per group and read the integers directly. Convolutions have int8 weights, scaled per channel:
# the module stores those and converts them at load (the pass store-scaled-integers).

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
        return with_operands(call, {layer.operator.weight: matrix})


@dataclass(frozen=True)
class WeightIntegers:
    """Rounds matrices in groups, filters and rows of tables, each with its own scale."""

    bits: int
    options: SchemeOptions

    def needs_gram(self, layer: Layer) -> bool:
        return self.options.rounding == "adaround" or (self.options.rounding == "gptq" and layer.operator.is_matrix)

    def refuses(self, layer: Layer) -> str | None:
        return None

    def rounded(self, layer: Layer, gram: Array | None) -> RoundedLayer:
        if layer.is_look_up:
            return rounded_table(layer)
        if not layer.operator.is_matrix:
            filters = quantize_weight(layer.weight, layer.operator.filters, per_channel=True)
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
    """Create the scheme. Raises OptionError for a group that the kernel does not support."""
    check_choices(options, group=GROUPS)
    return WeightIntegers(_BITS[name], options)
