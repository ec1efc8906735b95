"""Matmuls and convolutions of 8-bit integers, accumulated exactly in int32.

Raw integers are multiplied wherever zero points permit, so that integer dot-product instructions can be used; the
contribution of the zero points is subtracted afterwards: (A - a)(B - b) = AB - a * colsum(B) - b * rowsum(A - a).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import require_multiple, with_size
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.math.matrix import matrix_product
from compiler.frontends.onnx.operators.nn.spatial import auto_pad, padded, window_of
from compiler.frontends.onnx.operators.precision import cast
from compiler.frontends.onnx.operators.quantization.linear import Parameters, quantized
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim
from compiler.frontends.onnx.values import Constant, Value, tensor_shape
from schedules.ir.tvm_types import Index

_CONVOLUTIONS = {1: R.nn.conv1d, 2: R.nn.conv2d, 3: R.nn.conv3d}


@dataclass(frozen=True)
class Operand:
    """An integer tensor and its zero point: None for zero, otherwise an int32 tensor that broadcasts over it."""

    data: relax.Expr
    zero_point: relax.Expr | None


def operand(context: NodeContext, index: int, zero_point: int, axis: int) -> Operand:
    """Return input `index` with the zero point of input `zero_point`, a scalar or one value per entry of `axis`.

    For constants the zero point is subtracted; the difference is stored, in int8 if it fits.
    """
    if not context.has_input(zero_point):
        return Operand(context.input(index), None)
    zero, data = context.known(zero_point), context.tensor(index)
    if zero is not None and not np.any(zero):
        return Operand(context.input(index), None)
    rank = len(data.shape)
    if zero is not None and isinstance(data, Constant):
        difference = data.array.astype(np.int32) - _reshaped(zero.astype(np.int32), axis, rank)
        fits = difference.size == 0 or (difference.min() >= -128 and difference.max() <= 127)
        return Operand(Constant(difference.astype(np.int8 if fits else np.int16)).expr(), None)
    if zero is not None:
        return Operand(context.input(index), Constant(_reshaped(zero.astype(np.int32), axis, rank)).expr())
    wide = cast(context, context.input(zero_point), "int32")
    shape = tensor_shape(wide)
    if len(shape) == 1 and shape[0] != 1:
        target = [1] * rank
        target[axis] = shape[0]
        wide = context.reshape(wide, target)
    elif len(shape) == 1:
        wide = context.reshape(wide, ())
    return Operand(context.input(index), wide)


def _reshaped(zero: np.ndarray, axis: int, rank: int) -> np.ndarray:
    if zero.size == 1:
        return zero.reshape(())
    if zero.ndim > 1:
        return zero
    shape = [1] * rank
    shape[axis] = zero.size
    return zero.reshape(shape)


def _shifted(context: NodeContext, item: Operand) -> relax.Expr:
    """Subtract the zero point from the tensor, int32."""
    wide = cast(context, item.data, "int32")
    return wide if item.zero_point is None else context.emit(R.subtract(wide, item.zero_point))


def integer_matmul(context: NodeContext, a: Operand, b: Operand) -> relax.Expr:
    """Return the int32 matmul of two operands."""
    rank_a, rank_b = len(tensor_shape(a.data)), len(tensor_shape(b.data))
    if rank_a < 2 or rank_b < 2:
        return matrix_product(context, _shifted(context, a), _shifted(context, b))
    product = matrix_product(context, a.data, b.data, out_dtype="int32")
    if a.zero_point is not None:
        columns = context.emit(R.sum(cast(context, b.data, "int32"), axis=[-2], keepdims=True))
        product = context.emit(R.subtract(product, context.emit(R.multiply(columns, a.zero_point))))
    if b.zero_point is not None:
        rows = context.emit(R.sum(_shifted(context, a), axis=[-1], keepdims=True))
        product = context.emit(R.subtract(product, context.emit(R.multiply(rows, b.zero_point))))
    return product


def integer_conv(context: NodeContext, x: Operand, w: Operand) -> relax.Expr:
    """Return the int32 convolution of two operands with the node's geometry. `x` has one zero point."""
    weight = w.data if w.zero_point is None else cast(context, _shifted(context, w), "int16")
    shape, kernel = tensor_shape(x.data), tensor_shape(weight)[2:]
    rank = len(shape) - 2
    if rank not in _CONVOLUTIONS or len(kernel) != rank:
        context.refuse(f"{rank} spatial dimensions with a kernel of {len(kernel)}; 1 to 3 are supported")
    if not all(isinstance(size, int) for size in kernel):
        context.refuse("the kernel's size is not known when compiling")
    if list(context.attribute("kernel_shape", list(kernel))) != list(kernel):
        context.invalid(f"kernel_shape does not fit weights of shape {list(tensor_shape(weight))}")
    window = window_of(context, kernel, shape[2:])
    group, filters = context.attribute("group", 1), tensor_shape(weight)
    if group < 1:
        context.invalid(f"group must be at least 1, not {group}")
    require_multiple(context, filters[0], group)
    data = with_size(context, x.data, 1, context.arithmetic.multiply(filters[1], group))
    padding = [*window.before, *window.after]
    if x.zero_point is not None or not window.has_static_padding():
        # Padding represents zero, which is the zero point.
        dtype = str(data.ty.dtype)
        fill = context.literal(0, dtype) if x.zero_point is None else cast(context, x.zero_point, dtype)
        data = padded(context, data, window.before, window.after, fill, auto_pad(context))
        padding = [0] * (2 * rank)
    product = context.emit(
        _CONVOLUTIONS[rank](
            data,
            weight,
            strides=list(window.strides),
            padding=padding,
            dilation=list(window.dilations),
            groups=group,
            out_dtype="int32",
        )
    )
    if x.zero_point is None:
        return product
    sums = context.emit(R.sum(cast(context, weight, "int32"), axis=list(range(1, rank + 2))))
    offset = context.emit(R.multiply(sums, x.zero_point))
    return context.emit(R.subtract(product, _channels(context, offset, rank)))


def _channels(context: NodeContext, vector: relax.Expr, rank: int) -> relax.Expr:
    return context.reshape(vector, [1, tensor_shape(vector)[0], *[1] * rank])


@converter("MatMulInteger", since=10)
def matmul_integer(context: NodeContext) -> relax.Expr:
    """int32 matmul; the zero points are scalars, or one value per row of A and per column of B."""
    return integer_matmul(context, operand(context, 0, 2, -2), operand(context, 1, 3, -1))


@converter("ConvInteger", since=10)
def conv_integer(context: NodeContext) -> relax.Expr:
    """int32 convolution; the zero point of the weights is a scalar or one value per filter."""
    return integer_conv(context, operand(context, 0, 2, 0), operand(context, 1, 3, 0))


def multiplier(context: NodeContext, factors: list[int], divisor: int, shape: list[Index] | None) -> relax.Expr:
    """Return the product of scales divided by one, in float32 and in this order; vectors are reshaped to `shape`.

    Order and type matter: they determine how ties are rounded.
    """
    known = [array for index in (*factors, divisor) if (array := context.known(index)) is not None]
    if len(known) == len(factors) + 1:
        result = np.ones((), np.float32)
        for array in known[:-1]:
            result = result * array.astype(np.float32)
        result = np.asarray(result / known[-1].astype(np.float32), np.float32)
        if result.size == 1:
            return Constant(result.reshape(())).expr()
        return Constant(result if shape is None or result.ndim > 1 else result.reshape(shape)).expr()
    parts = [_scale(context, index, shape) for index in (*factors, divisor)]
    product = parts[0]
    for part in parts[1:-1]:
        product = context.emit(R.multiply(product, part))
    return context.emit(R.divide(product, parts[-1]))


def _scale(context: NodeContext, index: int, shape: list[Dim] | None) -> relax.Expr:
    expr = cast(context, context.input(index), "float32")
    scale_shape = tensor_shape(expr)
    if len(scale_shape) == 1 and scale_shape[0] == 1:
        return context.reshape(expr, ())
    if len(scale_shape) == 1 and shape is not None:
        target = [scale_shape[0] if isinstance(size, int) and size == -1 else size for size in shape]
        return context.reshape(expr, target)
    return expr


def requantized(context: NodeContext, sums: relax.Expr, factor: relax.Expr, zero_point: int) -> Value:
    """Return saturate(round(sums * factor) + zero point), with the type and value of the zero point's input."""
    scaled = context.emit(R.multiply(cast(context, sums, "float32"), factor))
    target = context.dtype(zero_point)
    zero = context.input(zero_point)
    if tensor_shape(zero):
        zero = context.reshape(zero, ())
    return quantized(context, scaled, Parameters(relax.const(1.0, "float32"), zero, None), target)


@converter("QLinearMatMul", since=10)
def qlinear_matmul(context: NodeContext) -> Value:
    """Requantized matmul of quantized matrices: a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero."""
    sums = integer_matmul(context, operand(context, 0, 2, -2), operand(context, 3, 5, -1))
    return requantized(context, sums, _matmul_factor(context), 7)


def _matmul_factor(context: NodeContext) -> relax.Expr:
    rows = len(context.shape(1)) == 1 and context.shape(1)[0] != 1
    return multiplier(context, [1, 4], 6, [-1, 1] if rows else None)


@converter("QLinearConv", since=10)
def qlinear_conv(context: NodeContext) -> Value:
    """Convolution of quantized data: x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias (int32)."""
    sums = integer_conv(context, operand(context, 0, 2, 0), operand(context, 3, 5, 0))
    rank = len(tensor_shape(sums)) - 2
    if context.has_input(8):
        sums = context.emit(R.add(sums, _channels(context, context.input(8), rank)))
    factor = multiplier(context, [1, 4], 6, [1, -1, *[1] * rank])
    return requantized(context, sums, factor, 7)
