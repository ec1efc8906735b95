"""compute-in-integers: compute operators between a dequantization and a quantization in integers.

    conv(dequantize(x), dequantize(w))             => scale * (conv(x, w) - offset), conv in int32
    matmul(dequantize(x), dequantize(w))           => the same, also with a computed scale of x
    quantize(scale * sum + bias)                   => quantize((scale / step) * (sum + round(bias / scale)))
    quantize(dequantize(a) + dequantize(b))        => quantize(ratio a + (ratio b + constant))
    quantize(relu(y)), quantize(clip(y))           => clip(quantize(y))
    move(dequantize(x)), max_pool(dequantize(x))   => dequantize(move(x)), dequantize(max_pool(x))
    quantize(concat(...)), quantize(move(...))     => concat(quantize(...)), move(quantize(...))
    quantize(factor * dequantize(move(x)))         => move(quantize(factor * dequantize(x)))
    quantize(dequantize(x)) with equal parameters    => x

Sums are exact. The multipliers are those of ONNX Runtime's quantized operators, computed in float32 in the same order,
so that results round alike: see QLinearConv, QLinearMatMul and (com.microsoft) QLinearAdd.

Operands of integer operators: quantized tensors, and weights stored in 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import (
    Array,
    as_constant,
    both_orders,
    constant_array,
    dtype_of,
    rank_of,
    same_shape,
    shape_of,
)

BYTES = ("int8", "uint8")
WORDS = ("int16", "uint16")


@dataclass(frozen=True)
class Quantized:
    """A dequantization: integers with constant parameters, scalars or vectors along `axis`."""

    data: Expr
    scale: Array
    zero: Array
    axis: int

    @property
    def is_scalar(self) -> bool:
        return self.scale.size == 1 and self.zero.size == 1

    def equals(self, other: Quantized) -> bool:
        """True if the parameters are the same numbers for the same type."""
        return (
            self.is_scalar
            and other.is_scalar
            and dtype_of(self.data) == dtype_of(other.data)
            and float(self.scale.reshape(())) == float(other.scale.reshape(()))
            and int(self.zero.reshape(())) == int(other.zero.reshape(()))
        )

    def dequantized(self, data: Expr) -> Expr:
        """Dequantize other integers with the same scalar parameters."""
        zero = self.zero.reshape(())
        return relax.op.dequantize(data, as_constant(self.scale.reshape(())), as_constant(zero), -1, "float32")


def dequantized_operand(graph: Graph, expr: Expr, dtypes: Sequence[str] = BYTES) -> Quantized | None:
    """Return the dequantization that computes a float operand, if its type is one of `dtypes`."""
    call = graph.call(expr, "relax.dequantize")
    if call is None or dtype_of(call) != "float32":
        return None
    scale, zero = (constant_array(graph, each) for each in call.args[1:3])
    if scale is None or zero is None or dtype_of(call.args[0]) not in dtypes:
        return None
    return Quantized(call.args[0], scale, zero, int(call.attrs.axis) % max(rank_of(call) or 1, 1))


@dataclass(frozen=True)
class IntegerWeight:
    """Weights minus their zero point, int8 or int16 (see center-weights), and the scale per filter or of all."""

    values: Array
    scale: Array


def integer_weight(graph: Graph, expr: Expr, filters: int) -> IntegerWeight | None:
    """Return constant weights with one scale for all, or one per entry of axis `filters`."""
    operand = dequantized_operand(graph, expr)
    values = None if operand is None else constant_array(graph, operand.data)
    if operand is None or values is None or (operand.scale.size > 1 and operand.axis != filters):
        return None
    shape = [1] * values.ndim
    shape[filters] = -1
    zero = operand.zero.astype(np.int32)
    shifted = values.astype(np.int32) - (zero.reshape(shape) if zero.size > 1 else zero.reshape(()))
    if shifted.size == 0:
        return None
    fits = shifted.min() >= -128 and shifted.max() <= 127
    return IntegerWeight(shifted.astype(np.int8 if fits else np.int16), operand.scale.reshape(-1).astype(np.float32))


rules = RuleTable()

_CONVOLUTIONS = tuple(f"relax.nn.conv{rank}d" for rank in (1, 2, 3))
_POOLS = tuple(f"relax.nn.max_pool{rank}d" for rank in (1, 2, 3))
_MOVES = ("relax.reshape", "relax.permute_dims", "relax.squeeze", "relax.expand_dims", "relax.flatten")
# How far a bias divided by the accumulator's scale may be from its integer before float32 rounding.
_BIAS_ROUNDING = 2.0**-20
# The largest term added to an accumulator, so that int32 holds both.
_MAX_BIAS = 2.0**30


@graph_pass("compute-in-integers", summary="Compute with quantized tensors as integers")
def compute_in_integers(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return rules.apply(mod)


@rules.on(*_CONVOLUTIONS)
def convolution(graph: Graph, call: Call) -> Expr | None:
    """conv(dequantize(x), dequantize(w)) => scale * (conv(x, w) - zero * sum of w)"""
    if not is_plain_convolution(call):
        return None
    data, weight = dequantized_operand(graph, call.args[0]), integer_weight(graph, call.args[1], 0)
    if data is None or weight is None or not data.is_scalar:
        return None
    product = integer_convolution(graph, call, data.data, weight, int(data.zero.reshape(())))
    return scaled_sum(graph, product, data, weight, len(call.attrs.strides))


def is_plain_convolution(call: Call) -> bool:
    """True for a float32 convolution with channels before the spatial dimensions."""
    spatial = "DHW"[-len(call.attrs.strides) :]
    layouts = str(call.attrs.data_layout), str(call.attrs.kernel_layout), str(call.attrs.out_layout)
    plain = (f"NC{spatial}", f"OI{spatial}")
    return dtype_of(call) == "float32" and layouts in ((*plain, f"NC{spatial}"), (*plain, ""))


def integer_convolution(graph: Graph, call: Call, source: Expr, weight: IntegerWeight, zero: int) -> Expr:
    """Return the int32 convolution of other data with a convolution's attributes, padded with `zero`."""
    rank, padding = len(call.attrs.strides), [int(each) for each in call.attrs.padding]
    if zero and any(padding):
        widths = [0, 0, 0, 0, *(width for i in range(rank) for width in (padding[i], padding[i + rank]))]
        source, padding = graph.emit(relax.op.nn.pad(source, widths, "constant", zero)), [0] * (2 * rank)
    return graph.emit(
        getattr(relax.op.nn, f"conv{rank}d")(
            source,
            as_constant(weight.values),
            strides=call.attrs.strides,
            padding=padding,
            dilation=call.attrs.dilation,
            groups=call.attrs.groups,
            out_dtype="int32",
        )
    )


@rules.on("relax.matmul")
def matmul(graph: Graph, call: Call) -> Expr | None:
    """matmul(dequantize(x), dequantize(w)) => scale * (matmul(x, w) - zero * column sums of w)"""
    if not is_plain_matmul(call):
        return None
    data, weight = dequantized_operand(graph, call.args[0]), integer_weight(graph, call.args[1], 1)
    if data is None or weight is None or not data.is_scalar:
        return None
    product = graph.emit(relax.op.matmul(data.data, as_constant(weight.values), out_dtype="int32"))
    return scaled_sum(graph, product, data, weight)


@rules.on("relax.matmul")
def matmul_of_measured(graph: Graph, call: Call) -> Expr | None:
    """The same for data quantized dynamically, with one scale and zero point per tensor."""
    data, weight = graph.call(call.args[0], "relax.dequantize"), integer_weight(graph, call.args[1], 1)
    if data is None or weight is None or not is_plain_matmul(call) or dtype_of(data.args[0]) not in BYTES:
        return None
    source, scale, zero = data.args
    if weight.values.dtype != np.int8 or rank_of(scale) or rank_of(zero) or constant_array(graph, scale) is not None:
        return None
    product = graph.emit(relax.op.matmul(source, as_constant(weight.values), out_dtype="int32"))
    sums = as_constant(weight.values.astype(np.int32).sum(axis=0, dtype=np.int32))
    offset = graph.emit(relax.op.multiply(graph.emit(relax.op.astype(zero, "int32")), sums))
    wide = graph.emit(relax.op.astype(graph.emit(relax.op.subtract(product, offset)), "float32"))
    factor = graph.emit(relax.op.multiply(scale, as_constant(weight.scale)))
    return relax.op.multiply(wide, factor)


def is_plain_matmul(call: Call) -> bool:
    """True for a float32 matmul with a matrix on the right and no vector on the left."""
    return dtype_of(call) == "float32" and rank_of(call.args[1]) == 2 and (rank_of(call.args[0]) or 0) >= 2


def scaled_sum(graph: Graph, product: Expr, data: Quantized, weight: IntegerWeight, spatial: int | None = None) -> Expr:
    """scale * (product - zero * sum of each filter); `spatial`: a convolution's number of dimensions after channels."""
    axes = (0,) if spatial is None else tuple(range(1, weight.values.ndim))
    channels = (-1, *[1] * (spatial or 0))
    sums = weight.values.astype(np.int32).sum(axis=axes, dtype=np.int32)
    offset = (sums * -int(data.zero.reshape(()))).reshape(channels)
    if np.any(offset):
        product = graph.emit(relax.op.add(product, as_constant(offset.astype(np.int32))))
    scale = data.scale.reshape(()).astype(np.float32) * weight.scale
    factor = scale.reshape(()) if scale.size == 1 else scale.reshape(channels)
    return relax.op.multiply(graph.emit(relax.op.astype(product, "float32")), as_constant(factor.astype(np.float32)))


@rules.on("relax.quantize")
def quantize_of_sum(graph: Graph, call: Call) -> Expr | None:
    """quantize(scale * sum + bias) => quantize((scale / step) * (sum + round(bias / scale)))"""
    step = _step_of(graph, call, BYTES + WORDS)
    if step is None or not graph.only_use(call.args[0]):
        return None
    added = graph.call(call.args[0], "relax.add")
    scaled, bias = (call.args[0], None) if added is None else _constant_addend(graph, added)
    product = graph.call(scaled, "relax.multiply")
    if product is None or not graph.only_use(scaled):
        return None
    factor = constant_array(graph, product.args[1])
    converted = graph.call(product.args[0], "relax.astype")
    if factor is None or factor.dtype != np.float32 or converted is None or dtype_of(converted.args[0]) != "int32":
        return None
    if step == 1.0 and bias is None:
        return None
    total = converted.args[0]
    if bias is not None:
        steps = bias.astype(np.float64) / factor.astype(np.float64)
        integers = np.rint(steps)
        # Written so that NaN fails the test.
        if not np.all(np.abs(integers) < _MAX_BIAS):
            return None
        if not np.all(np.abs(steps - integers) <= np.maximum(np.abs(steps), 1) * _BIAS_ROUNDING):
            return None
        total = _plus(graph, total, integers.astype(np.int32))
    ratio = (factor / np.float32(step)).astype(np.float32)
    result = graph.emit(relax.op.multiply(graph.emit(relax.op.astype(total, "float32")), as_constant(ratio)))
    return _requantized(result, call.args[2], str(call.attrs.out_dtype))


def _plus(graph: Graph, total: Expr, constant: Array) -> Expr:
    """Add a constant to a sum, combining it with the constant added before."""
    added = graph.call(total, "relax.add")
    old_constant = None if added is None else constant_array(graph, added.args[1])
    if added is not None and old_constant is not None and old_constant.dtype == np.int32:
        total, constant = added.args[0], old_constant + constant
    return graph.emit(relax.op.add(total, as_constant(constant)))


def _step_of(graph: Graph, call: Call, dtypes: Sequence[str] = BYTES) -> float | None:
    """Return the scale of a quantization to one of `dtypes` by scalar constants."""
    scale, zero = (constant_array(graph, each) for each in call.args[1:3])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    return float(scale.reshape(())) if str(call.attrs.out_dtype) in dtypes else None


def _constant_addend(graph: Graph, added: Call) -> tuple[Expr, Array | None]:
    for value, other in both_orders(added):
        bias = constant_array(graph, other)
        if bias is not None and same_shape(shape_of(added), shape_of(value)):
            return value, bias
    return added, None


def _requantized(value: Expr, zero: Expr, dtype: str) -> Expr:
    one = as_constant(np.ones((), np.float32))
    return relax.op.quantize(value, one, zero, -1, dtype)


@rules.on("relax.quantize")
def quantize_of_addition(graph: Graph, call: Call) -> Expr | None:
    """quantize(dequantize(a) + dequantize(b)) => quantize(ratio a + (ratio b + constant)): QLinearAdd"""
    step = _step_of(graph, call)
    added = graph.call(call.args[0], "relax.add")
    if step is None or added is None or not graph.only_use(call.args[0]):
        return None
    operands = [dequantized_operand(graph, each) for each in added.args]
    left, right = operands
    if left is None or right is None or not left.is_scalar or not right.is_scalar:
        return None
    zero = constant_array(graph, call.args[2])
    assert zero is not None
    ratios = [np.float32(each.scale.reshape(()) / np.float32(step)) for each in (left, right)]
    shifts = [
        np.float32(ratio * np.float32(each.zero.reshape(()))) for ratio, each in zip(ratios, (left, right), strict=True)
    ]
    constant = np.float32(np.float32(zero.reshape(())) - np.float32(shifts[0] + shifts[1]))
    parts = [
        graph.emit(relax.op.multiply(graph.emit(relax.op.astype(each.data, "float32")), as_constant(np.asarray(ratio))))
        for each, ratio in zip((left, right), ratios, strict=True)
    ]
    inner = graph.emit(relax.op.add(parts[1], as_constant(np.asarray(constant))))
    total = graph.emit(relax.op.add(parts[0], inner))
    dtype = str(call.attrs.out_dtype)
    return _requantized(total, as_constant(np.zeros((), dtype)), dtype)


@rules.on("relax.quantize")
def quantize_of_limit(graph: Graph, call: Call) -> Expr | None:
    """quantize(relu(y)) => clip(quantize(y)): quantization is monotonic"""
    step = _step_of(graph, call, BYTES + WORDS)
    inner = graph.call(call.args[0], "relax.nn.relu", "relax.clip", "relax.nn.relu6")
    if step is None or inner is None or not graph.only_use(call.args[0]):
        return None
    bounds = _bounds(inner)
    if bounds is None:
        return None
    zero = constant_array(graph, call.args[2])
    assert zero is not None
    dtype = str(call.attrs.out_dtype)
    limits = np.iinfo(dtype)
    offset = int(zero.reshape(()))
    low, high = (
        int(np.clip(np.rint(np.float32(bound) / np.float32(step)) + offset, limits.min, limits.max)) for bound in bounds
    )
    result = relax.op.quantize(inner.args[0], call.args[1], call.args[2], call.attrs.axis, dtype)
    if low == limits.min and high == limits.max:
        return result
    return relax.op.clip(graph.emit(result), low, high)


def _bounds(call: Call) -> tuple[float, float] | None:
    name = str(call.op.name)
    if name == "relax.nn.relu":
        return 0.0, float("inf")
    if name == "relax.nn.relu6":
        return 0.0, 6.0
    values = [getattr(each, "value", None) for each in call.args[1:3]]
    values = [getattr(value, "value", value) for value in values]
    low, high = values
    return (float(low), float(high)) if isinstance(low, int | float) and isinstance(high, int | float) else None


@rules.on("relax.quantize")
def quantize_again(graph: Graph, call: Call) -> Expr | None:
    """quantize(dequantize(x)) => x for equal parameters: the quotient rounds back to the integer"""
    inner = dequantized_operand(graph, call.args[0], BYTES + WORDS)
    scale, zero = (constant_array(graph, each) for each in call.args[1:3])
    if inner is None or scale is None or zero is None or dtype_of(inner.data) != str(call.attrs.out_dtype):
        return None
    return inner.data if inner.equals(Quantized(inner.data, scale, zero, inner.axis)) else None


@rules.on("relax.quantize")
def quantize_of_concatenation(graph: Graph, call: Call) -> Expr | None:
    """quantize(concat(a, b)) => concat(quantize(a), quantize(b)) if an operand is dequantized"""
    joined = graph.call(call.args[0], "relax.concat")
    if joined is None or _step_of(graph, call) is None or not graph.only_use(call.args[0]):
        return None
    fields = graph.definition(joined.args[0])
    if not isinstance(fields, relax.Tuple):
        return None
    parts = list(fields.fields)
    if not any(graph.call(each, "relax.dequantize") is not None for each in parts):
        return None
    dtype = str(call.attrs.out_dtype)
    quantized = [graph.emit(relax.op.quantize(each, call.args[1], call.args[2], -1, dtype)) for each in parts]
    return relax.op.concat(quantized, joined.attrs.axis)


@rules.on("relax.quantize")
def quantize_of_moved(graph: Graph, call: Call) -> Expr | None:
    """quantize(move(x)) => move(quantize(x)): quantize in the producer of x, so that bytes are moved"""
    moved = graph.call(call.args[0], *_MOVES)
    if moved is None or _step_of(graph, call, BYTES + WORDS) is None or not graph.only_use(call.args[0]):
        return None
    if not isinstance(graph.definition(moved.args[0]), relax.Call) or not graph.only_use(moved.args[0]):
        return None
    rounded = relax.op.quantize(moved.args[0], call.args[1], call.args[2], -1, str(call.attrs.out_dtype))
    return relax.Call(moved.op, [graph.emit(rounded), *moved.args[1:]], moved.attrs)


@rules.on("relax.quantize")
def quantize_of_rescaled_move(graph: Graph, call: Call) -> Expr | None:
    """quantize(factor * dequantize(move(x))) => move(quantize(factor * dequantize(x))): rescale in the producer of x"""
    scaled = graph.call(call.args[0], "relax.multiply", "relax.divide")
    if scaled is None or _step_of(graph, call, BYTES + WORDS) is None or not graph.only_use(call.args[0]):
        return None
    inner, factor = dequantized_operand(graph, scaled.args[0]), _number(graph, scaled.args[1])
    moved = None if inner is None else graph.call(inner.data, *_MOVES)
    if inner is None or moved is None or factor is None or not inner.is_scalar:
        return None
    if rank_of(scaled) != rank_of(scaled.args[0]) or not graph.only_use(scaled.args[0], inner.data):
        return None
    source = graph.emit(inner.dequantized(moved.args[0]))
    rescaled = graph.emit(relax.Call(scaled.op, [source, as_constant(factor)]))
    rounded = relax.op.quantize(rescaled, call.args[1], call.args[2], -1, str(call.attrs.out_dtype))
    return relax.Call(moved.op, [graph.emit(rounded), *moved.args[1:]], moved.attrs)


def _number(graph: Graph, expr: Expr) -> Array | None:
    """Return the value of a one-element float32 constant, dequantized or not."""
    constant, quantized = constant_array(graph, expr), dequantized_operand(graph, expr)
    values = None if quantized is None else constant_array(graph, quantized.data)
    if values is not None and quantized is not None and quantized.is_scalar:
        centered = (values.astype(np.int32) - quantized.zero.astype(np.int32).reshape(())).astype(np.float32)
        constant = centered * quantized.scale.reshape(())
    return constant.reshape(()) if constant is not None and constant.size == 1 else None


@rules.on(*_MOVES)
def move(graph: Graph, call: Call) -> Expr | None:
    """move(dequantize(x)) => dequantize(move(x))"""
    inner = dequantized_operand(graph, call.args[0], BYTES + WORDS)
    if inner is None:
        return None
    permuted = _permuted(graph, call, inner)
    if permuted is not None or not inner.is_scalar:
        return permuted
    moved = relax.Call(call.op, [inner.data, *list(call.args)[1:]], call.attrs, call.ty_args)
    return inner.dequantized(graph.emit(moved))


def _permuted(graph: Graph, call: Call, inner: Quantized) -> Expr | None:
    """Permute constants, remapping the axis of their parameters."""
    values = constant_array(graph, inner.data)
    if values is None or str(call.op.name) != "relax.permute_dims":
        return None
    axes = [int(axis) % values.ndim for axis in (call.attrs.axes or reversed(range(values.ndim)))]
    moved = as_constant(np.ascontiguousarray(values.transpose(axes)))
    if inner.is_scalar:
        return inner.dequantized(moved)
    scale, zero = (as_constant(np.ascontiguousarray(each)) for each in (inner.scale, inner.zero))
    return relax.op.dequantize(moved, scale, zero, axes.index(inner.axis), "float32")


@rules.on(*_POOLS)
def maximum(graph: Graph, call: Call) -> Expr | None:
    """max_pool(dequantize(x)) => dequantize(max_pool(x)): dequantizing keeps order"""
    inner = dequantized_operand(graph, call.args[0])
    if inner is None or not inner.is_scalar or float(inner.scale.reshape(())) <= 0:
        return None
    pooled = relax.Call(call.op, [inner.data], call.attrs, call.ty_args)
    return inner.dequantized(graph.emit(pooled))
