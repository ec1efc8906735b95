"""QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import require, with_size
from compiler.frontends.onnx.broadcasting import elementwise
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.precision import cast
from compiler.frontends.onnx.operators.tensor.cast import decoded, encoded
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import Constant, Runtime, Value, tensor_shape
from compiler.passes.rewriting.grouped_weights import grouped_expression, grouped_rows
from schedules.ir.tvm_types import Expr, Index

# Types that TVM's own quantize and dequantize support; the rest use our kernels.
_TVM_TYPES = frozenset({"int8", "uint8", "int16", "uint16"})


@dataclass(frozen=True)
class Parameters:
    """Scale and zero point: scalars, vectors along `axis`, or tensors that broadcast over the data (axis None)."""

    scale: relax.Expr
    zero_point: relax.Expr | None
    axis: int | None


@converter("QuantizeLinear", since=10)
def quantize_linear(context: NodeContext) -> Value:
    """saturate(round(x / scale) + zero_point), rounding half to even; per tensor, axis, or block of an axis."""
    source = context.dtype(0)
    number = context.attribute("output_dtype", 0)
    declared = dtypes.dtype_name(number) if number else None
    target = context.dtype(2) if context.has_input(2) else (declared or "uint8")
    if declared is not None and declared != target:
        context.invalid(f"output_dtype is {declared}, the zero point {target}")
    _check_quantized(context, target)
    parameters = read_parameters(context, scale=1, zero_point=2, axis=context.attribute("axis", 1))
    precision = context.attribute("precision", 0)
    compute = dtypes.dtype_name(precision) if precision else None
    data = context.input(0)
    if dtypes.is_integer(source):
        data = cast(context, data, "float32")
    return quantized(context, data, parameters, target, compute)


@converter("DequantizeLinear", since=10)
def dequantize_linear(context: NodeContext) -> relax.Expr:
    """(x - zero_point) * scale, in the scale's type or in `output_dtype`."""
    source = context.dtype(0)
    _check_quantized(context, source)
    number = context.attribute("output_dtype", 0)
    target = dtypes.dtype_name(number) if number else context.dtype(1)
    assert target is not None
    narrow = _narrow_matrix(context) if target == context.dtype(1) == "float32" else None
    if narrow is not None:
        return narrow
    parameters = read_parameters(context, scale=1, zero_point=2, axis=context.attribute("axis", 1))
    return dequantized(context, context.input(0), source, parameters, target)


def _narrow_matrix(context: NodeContext) -> relax.Expr | None:
    """Return a constant matrix with a scale per block of a row or column, in a form that matmuls can read directly."""
    data, scales = context.known(0), context.known(1)
    if data is None or scales is None or data.ndim != 2 or scales.ndim != 2 or 0 in scales.shape:
        return None
    zeros = context.known(2) if context.has_input(2) else np.zeros(scales.shape, np.int8)
    source = context.dtype(0)
    assert source is not None
    carrier = dtypes.carrier(source)
    if zeros is None or carrier not in ("int8", "uint8") or dtypes.is_float8_or_float4(source):
        return None
    axis = context.axis(context.attribute("axis", 1), 2)
    block = context.attribute("block_size", 0) or -(-data.shape[axis] // scales.shape[axis])
    expected = [data.shape[0], data.shape[1]]
    expected[axis] = -(-data.shape[axis] // block)
    if list(scales.shape) != expected or zeros.shape != scales.shape:
        return None
    arrays = data.astype(carrier), scales, zeros.astype(carrier)
    build = grouped_expression if axis == 0 else grouped_rows
    return build(*arrays, block, context.emit)


def _check_quantized(context: NodeContext, dtype: str) -> None:
    if not dtypes.is_integer(dtype) and not dtypes.is_float8_or_float4(dtype):
        context.refuse(f"quantized values of type {dtype} are not supported")


def read_parameters(context: NodeContext, *, data: int = 0, scale: int, zero_point: int, axis: int) -> Parameters:
    """Return the scale and the zero point of a node's input `data`, from the inputs of those indices."""
    shape = context.shape(scale)
    rank = context.rank(data)
    if len(shape) > 1 or (len(shape) == 1 and context.attribute("block_size", 0) > 0):
        return _blocked(context, data, scale, zero_point, axis)
    vector = len(shape) == 1 and not (isinstance(shape[0], int) and shape[0] == 1)
    if not vector:
        zero = _scalar(context, zero_point) if context.has_input(zero_point) else None
        return Parameters(_scalar(context, scale), zero, None)
    zero = _vector(context, zero_point, shape[0]) if context.has_input(zero_point) else None
    return Parameters(context.input(scale), zero, context.axis(axis, rank))


def _scalar(context: NodeContext, index: int) -> relax.Expr:
    value = context.tensor(index)
    if isinstance(value, Constant):
        if value.size != 1:
            context.invalid(f"its input {index} must hold one value, not {value.shape}")
        return Constant(value.array.reshape(()), value.dtype).expr()
    return context.reshape(context.input(index), ()) if value.shape else context.input(index)


def _vector(context: NodeContext, index: int, size: Index) -> relax.Expr:
    """Return a zero point along an axis; a single one is repeated."""
    value = context.tensor(index)
    if len(value.shape) == 1 and context.arithmetic.equal_is_proved(value.shape[0], size):
        return context.input(index)
    if isinstance(value, Constant) and value.size == 1 and isinstance(size, int):
        return Constant(np.repeat(value.array.reshape(1), size), value.dtype).expr()
    if len(value.shape) == 1:
        return context.match_shape(context.input(index), [size])
    return context.emit(R.broadcast_to(context.input(index), relax.ShapeExpr([size])))


def _blocked(context: NodeContext, data: int, scale: int, zero_point: int, axis: int) -> Parameters:
    shape, rank = context.shape(data), context.rank(data)
    axis = context.axis(axis, rank)
    if context.rank(scale) != rank:
        context.invalid(f"a scale of rank {context.rank(scale)} for data of rank {rank}")
    block = context.attribute("block_size", 0)
    blocks = context.shape(scale)[axis]
    if block == 0:
        if not isinstance(shape[axis], int) or not isinstance(blocks, int) or blocks == 0:
            context.refuse("block_size is not given and follows from sizes that are not known when compiling")
        block = -(-shape[axis] // blocks)
    expanded = [_repeated(context, index, axis, block, shape) for index in (scale, zero_point)]
    assert expanded[0] is not None
    return Parameters(expanded[0], expanded[1], None)


def _repeated(context: NodeContext, index: int, axis: int, block: int, shape: Sequence[Dim]) -> relax.Expr | None:
    """Return a per-block parameter, repeated to the data's shape."""
    if not context.has_input(index):
        return None
    value = context.tensor(index)
    if isinstance(value, Constant) and isinstance(shape[axis], int):
        repeated = np.repeat(value.array, block, axis)
        return Constant(np.take(repeated, range(shape[axis]), axis), value.dtype).expr()
    if not isinstance(shape[axis], int):
        return _spread(context, context.input(index), axis, block, shape)
    expr = context.emit(R.repeat(context.input(index), block, axis))
    if context.arithmetic.equal_is_proved(tensor_shape(expr)[axis], shape[axis]):
        return expr
    return context.emit(R.strided_slice(expr, [axis], [0], [shape[axis]]))


def _spread(context: NodeContext, values: relax.Expr, axis: int, block: int, shape: Sequence[Dim]) -> relax.Expr:
    """Like `_repeated`, for a dynamic size, whose last block may be partial."""
    for index, (size, wanted) in enumerate(zip(tensor_shape(values), shape, strict=True)):
        require(context, context.arithmetic.ceil_divide(wanted, block) if index == axis else wanted, "equal", size)

    def spread(source: te.Tensor, *sizes: Expr) -> te.Tensor:
        def element(*i: Expr) -> Expr:
            return source(*i[:axis], tirx.floordiv(i[axis], tirx.const(block, "int64")), *i[axis + 1 :])

        return te.compute(sizes, element, name="spread")

    return context.emit_te(spread, values, *map(expression, shape), primfunc_name_hint="spread")


def quantized(
    context: NodeContext, data: relax.Expr, parameters: Parameters, target: str, precision: str | None = None
) -> Value:
    """Quantize float data to integers of type `target`. Narrow floats are divided in float32, like in ONNX Runtime."""
    wide = precision if precision in ("float32", "float64") else "float32"
    data = _with_scales(context, data, parameters)
    data = cast(context, data, wide if str(data.ty.dtype) != "float64" else "float64")
    scale = cast(context, parameters.scale, str(data.ty.dtype))
    if dtypes.is_float8_or_float4(target):
        return _quantized_float(context, data, parameters, target)
    carrier = dtypes.carrier(target)
    zero = parameters.zero_point
    along = parameters.axis is not None or not tensor_shape(scale)
    if carrier in _TVM_TYPES and along and str(data.ty.dtype) == "float32":
        if zero is None:
            zero = context.literal(0, carrier, tuple(tensor_shape(scale)))
        axis = -1 if parameters.axis is None else parameters.axis
        result = context.emit(R.quantize(data, scale, zero, axis, carrier))
        return _limited(context, result, target)
    if parameters.axis is not None:
        scale, zero = (_aligned(context, p, parameters.axis, int(data.ty.ndim)) for p in (scale, zero))
    low, high = dtypes.integer_limits(target)

    def function(x: Expr, s: Expr, *z: Expr) -> Expr:
        rounded = tirx.nearbyint(x / s).astype("float64")
        shifted = rounded + z[0].astype("float64") if z else rounded
        limited = tirx.min(tirx.max(shifted, tirx.const(float(low), "float64")), tirx.const(float(high), "float64"))
        return limited.astype(carrier)

    operands = [data, scale, *([] if zero is None else [zero])]
    return context.runtime(elementwise(context, "quantize", function, *operands), target)


def _with_scales(context: NodeContext, data: relax.Expr, parameters: Parameters) -> relax.Expr:
    """Return the data, checked to have as many entries along the axis as there are scales."""
    if parameters.axis is None:
        return data
    return with_size(context, data, parameters.axis, tensor_shape(parameters.scale)[0])


def _quantized_float(context: NodeContext, data: relax.Expr, parameters: Parameters, target: str) -> Value:
    """Return saturate(x / scale + zero_point) in a float of a byte or less."""
    zero = parameters.zero_point
    zero = None if zero is None else decoded(context, zero, target)
    scale = cast(context, parameters.scale, "float32")
    if parameters.axis is not None:
        scale, zero = (_aligned(context, p, parameters.axis, int(data.ty.ndim)) for p in (scale, zero))

    def function(x: Expr, s: Expr, *z: Expr) -> Expr:
        return x / s + z[0] if z else x / s

    operands = [cast(context, data, "float32"), scale, *([] if zero is None else [zero])]
    saturate = bool(context.attribute("saturate", 1))
    return encoded(context, elementwise(context, "quantize", function, *operands), target, saturate=saturate)


def _limited(context: NodeContext, result: relax.Expr, target: str) -> Value:
    if dtypes.carrier(target) == target:
        return Runtime(result, target, context.sources())
    low, high = dtypes.integer_limits(target)
    return context.runtime(R.clip(result, low, high), target)


def _aligned(context: NodeContext, parameter: relax.Expr | None, axis: int, rank: int) -> Expr | None:
    """Reshape a vector along an axis to broadcast over data of that rank."""
    if parameter is None or not tensor_shape(parameter):
        return parameter
    shape = [1] * rank
    shape[axis] = tensor_shape(parameter)[0]
    return context.reshape(parameter, shape)


def dequantized(
    context: NodeContext, data: relax.Expr, source: str, parameters: Parameters, target: str = "float32"
) -> relax.Expr:
    """Dequantize integers of type `source`."""
    scale, zero = parameters.scale, parameters.zero_point
    data = _with_scales(context, data, parameters)
    along = parameters.axis is not None or not tensor_shape(scale)
    if dtypes.is_float8_or_float4(source):
        data, zero = decoded(context, data, source), None if zero is None else decoded(context, zero, source)
    elif dtypes.carrier(source) in (*_TVM_TYPES, "int32") and along and str(scale.ty.dtype) == target == "float32":
        if zero is None:
            zero = context.literal(0, str(data.ty.dtype), tuple(tensor_shape(scale)))
        axis = -1 if parameters.axis is None else parameters.axis
        return context.emit(R.dequantize(data, scale, zero, axis, target))
    if parameters.axis is not None:
        scale, zero = (_aligned(context, p, parameters.axis, int(data.ty.ndim)) for p in (scale, zero))
    wide = "float64" if target == "float64" or str(scale.ty.dtype) == "float64" else "float32"

    def function(x: Expr, s: Expr, *z: Expr) -> Expr:
        if dtypes.is_float8_or_float4(source):
            difference = x - z[0] if z else x
        else:
            difference = x.astype("int64") - z[0].astype("int64") if z else x
        return (difference.astype(wide) * s.astype(wide)).astype(target)

    operands = [data, scale, *([] if zero is None else [zero])]
    return elementwise(context, "dequantize", function, *operands)


@converter("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(context: NodeContext) -> list[Value | relax.Expr]:
    """Quantize to uint8 with the smallest scale that covers the data's range, including zero."""
    return list(dynamically_quantized(context, context.input(0)))


def dynamically_quantized(context: NodeContext, data: relax.Expr) -> tuple[Value, relax.Expr, relax.Expr]:
    """Return (quantized data, scale, zero point), the last two scalars."""
    zero = relax.const(0.0, "float32")
    low = context.emit(R.minimum(context.emit(R.min(data)), zero))
    high = context.emit(R.maximum(context.emit(R.max(data)), zero))
    span = context.emit(R.subtract(high, low))
    # A tensor of zeros has no range; any scale works.
    scale = context.emit(
        R.where(
            context.emit(R.equal(span, zero)),
            relax.const(1.0, "float32"),
            context.emit(R.divide(span, relax.const(255.0, "float32"))),
        )
    )
    start = context.emit(R.subtract(zero, context.emit(R.divide(low, scale))))
    rounded = context.emit(R.round(context.emit(R.clip(start, 0, 255))))
    zero_point = context.emit(R.astype(rounded, "uint8"))
    return quantized(context, data, Parameters(scale, zero_point, None), "uint8"), scale, zero_point
