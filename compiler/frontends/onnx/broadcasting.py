"""ONNX broadcasting that is correct for every value of a symbolic size: a size that is 1 at run time is broadcast.

Also scalar expressions for kernels for which TVM has no exact operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.symbolic import Arithmetic, Dim, expression
from compiler.frontends.onnx.values import tensor_shape
from schedules.ir.tvm_types import Expr


def broadcast_dim(arithmetic: Arithmetic, a: Dim, b: Dim) -> tuple[Dim, bool]:
    """Return (size, sure): the broadcast of two sizes, and whether TVM's own operators can infer it.

    Raises ValueError for two different sizes other than 1.
    """
    if arithmetic.equal_is_proved(a, b):
        return a, True
    if isinstance(a, int) and isinstance(b, int):
        if 1 not in (a, b):
            raise ValueError(f"sizes {a} and {b} do not broadcast")
        return (b if a == 1 else a), True
    if a == 1 if isinstance(a, int) else False:
        return b, True
    if b == 1 if isinstance(b, int) else False:
        return a, True
    if isinstance(a, int):
        return a, False
    if isinstance(b, int):
        return b, False
    return arithmetic.select(tirx.EQ(expression(a), expression(1)), b, a), False


def common_size(context: NodeContext, a: Dim, b: Dim) -> tuple[Dim, bool]:
    """Like `broadcast_dim`, with a run-time check if not sure: a mismatched size would be read out of bounds."""
    size, sure = broadcast_dim(context.arithmetic, a, b)
    if not sure:
        context.importer.builder.require(a, "broadcast", b)
    return size, sure


def broadcast_shapes(context: NodeContext, shapes: Sequence[Sequence[Dim]]) -> tuple[list[Dim], bool]:
    """Return the common shape, and whether all its sizes are sure; the others are checked before or during a run."""
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim] = [1] * rank
    sure = True
    for shape in shapes:
        offset = rank - len(shape)
        for axis, size in enumerate(shape):
            result[offset + axis], known = common_size(context, result[offset + axis], size)
            sure = sure and known
    return result, sure


def broadcast(context: NodeContext, tensors: Sequence[relax.Expr]) -> list[relax.Expr]:
    """Broadcast the tensors explicitly if TVM's operators cannot infer the common shape."""
    shapes = [tensor_shape(tensor) for tensor in tensors]
    try:
        shape, sure = broadcast_shapes(context, shapes)
    except ValueError as error:
        context.invalid(str(error))
    if sure:
        return list(tensors)
    return of_one_shape(context, [broadcast_to(context, tensor, shape) for tensor in tensors])


def of_one_shape(context: NodeContext, tensors: Sequence[relax.Expr]) -> list[relax.Expr]:
    """Match tensors whose shapes are equal at run time to the first one's sizes."""
    first, *rest = tensors
    named = tensor_shape(first)
    return [first, *(_matched(context, tensor, named) for tensor in rest)]


def _matched(context: NodeContext, tensor: relax.Expr, shape: Sequence[Dim]) -> relax.Expr:
    own = tensor_shape(tensor)
    equal = all(context.arithmetic.equal_is_proved(a, b) for a, b in zip(own, shape, strict=True))
    return tensor if equal else context.match_shape(tensor, shape)


def broadcast_to(context: NodeContext, tensor: relax.Expr, shape: Sequence[Dim]) -> relax.Expr:
    """Broadcast a tensor to `shape`, whose sizes are the tensor's own or replace a 1, possibly known only at run
    time."""
    old_shape = tensor_shape(tensor)
    if len(old_shape) == len(shape) and all(
        context.arithmetic.equal_is_proved(a, b) for a, b in zip(old_shape, shape, strict=True)
    ):
        return tensor
    tail = list(shape)[len(shape) - len(old_shape) :]
    if all(
        (isinstance(a, int) and a == 1) or context.arithmetic.equal_is_proved(a, b)
        for a, b in zip(old_shape, tail, strict=True)
    ):
        repeated = context.emit(R.broadcast_to(tensor, relax.ShapeExpr([expression(size) for size in shape])))
        return context.with_simple_sizes(repeated)

    def repeat(data: te.Tensor, *sizes: Expr) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            own_indices = indices[len(indices) - len(data.shape) :]
            zero = tirx.const(0, "int64")
            return data(*(tirx.Select(size == 1, zero, i) for size, i in zip(data.shape, own_indices, strict=True)))

        return te.compute(sizes, element, name="broadcast")

    repeated = context.emit_te(repeat, tensor, *(expression(size) for size in shape), primfunc_name_hint="broadcast")
    return context.with_simple_sizes(repeated)


def elementwise(
    context: NodeContext, name: str, function: Callable[..., Any], *tensors: relax.Expr, dtype: str | None = None
) -> relax.Expr:
    """Apply a scalar function over broadcast tensors, as a separate kernel called `name`.

    `function` takes TVM's scalar expressions; `dtype` casts its result.
    """
    tensors = tuple(broadcast(context, tensors))

    def compute(*arguments: te.Tensor) -> te.Tensor:
        shape = max((list(a.shape) for a in arguments), key=len)
        sizes = _common_shape([list(a.shape) for a in arguments], len(shape))

        def element(*indices: Expr) -> Expr:
            values = [argument(*_own_indices(argument, sizes, indices)) for argument in arguments]
            result = function(*values)
            return result.astype(dtype) if dtype is not None else result

        return te.compute(sizes, element, name=name)

    return context.emit_te(compute, *tensors, primfunc_name_hint=name)


def in_float32(
    context: NodeContext, kernel: Callable[..., relax.Expr], data: relax.Expr, *others: relax.Expr
) -> relax.Expr:
    """Compute a kernel that does not round in float32 if `data` is float16.

    Passes that compute float16 nets in float32 understand casts, but not the kernel.
    """
    if str(data.ty.dtype) != "float16":
        return kernel(data, *others)
    wide = [context.emit(relax.op.astype(each, "float32")) for each in (data, *others)]
    return context.emit(relax.op.astype(kernel(*wide), "float16"))


def _is_one(size: Expr) -> bool:
    return isinstance(size, tirx.IntImm) and int(size.value) == 1


def _common_shape(shapes: list[list[Expr]], rank: int) -> list[Expr]:
    result: list[Expr] = [tirx.const(1, "int64")] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            if not _is_one(size):
                result[axis] = size
    return result


def _own_indices(tensor: te.Tensor, sizes: Sequence[Expr], indices: Sequence[Expr]) -> list[Expr]:
    """Return the indices at which a tensor is read for an element of a result of shape `sizes`.

    An axis of size 1 keeps its index if the result also has one element there: TVM fuses the kernel with the
    convolution or matmul before it only if it reads and writes at the same indices.
    """
    zero, skipped = tirx.const(0, "int64"), len(indices) - len(tensor.shape)
    own = zip(tensor.shape, sizes[skipped:], indices[skipped:], strict=True)
    return [zero if _is_one(size) and not _is_one(wanted) else index for size, wanted, index in own]


def const(value: float | int | bool, like: Expr) -> Expr:
    """Return a constant of the type of `like`."""
    return tirx.const(value, str(like.ty.dtype))


def dtype_of(value: Expr) -> str:
    return str(value.ty.dtype)


def select(condition: Expr, a: Expr, b: Expr) -> Expr:
    return tirx.Select(condition, a, b)


def truncated_division(a: Expr, b: Expr) -> Expr:
    """Integer a / b toward zero; 0 for b = 0, and the wrapped -a for b = -1 (both would trap)."""
    signed = not dtypes.is_unsigned(dtype_of(a))
    zero, one = const(0, a), const(1, a)
    if not signed:
        return select(b == zero, zero, tirx.div(a, select(b == zero, one, b)))
    minus = const(-1, a)
    safe = select(tirx.any(b == zero, b == minus), one, b)
    return select(b == zero, zero, select(b == minus, zero - a, tirx.truncdiv(a, safe)))


def truncated_remainder(a: Expr, b: Expr) -> Expr:
    """Integer remainder with the sign of a (C's %); 0 for b = 0."""
    return a - truncated_division(a, b) * b if dtypes.is_unsigned(dtype_of(a)) else _signed_remainder(a, b)


def _signed_remainder(a: Expr, b: Expr) -> Expr:
    unsafe = tirx.any(b == const(0, a), b == const(-1, a))
    return select(unsafe, const(0, a), tirx.truncmod(a, select(unsafe, const(1, a), b)))


def floored_remainder(a: Expr, b: Expr) -> Expr:
    """Integer remainder with the sign of b (Python's %); 0 for b = 0."""
    remainder = truncated_remainder(a, b)
    if dtypes.is_unsigned(dtype_of(a)):
        return remainder
    return select(opposite_signs(remainder, b), remainder + b, remainder)


def opposite_signs(a: Expr, b: Expr) -> Expr:
    """True if one is positive and the other negative."""
    zero = const(0, a)
    return tirx.any(tirx.all(a < zero, b > zero), tirx.all(a > zero, b < zero))


def integer_power(base: Expr, exponent: Expr) -> Expr:
    """base ** exponent of integers, wrapping around; negative exponents give the truncated reciprocal.
    Exponents of 64 and more only work for -1, 0 and 1, whose powers do not overflow; other results are unspecified.
    """
    zero, one = const(0, base), const(1, base)
    last = const(1, exponent)
    exponent = select(exponent > const(63, exponent), const(62, exponent) + (exponent & last), exponent)
    result, power = one, base
    for bit in range(6):
        taken = (exponent >> const(bit, exponent)) & const(1, exponent)
        result = select(taken == const(1, exponent), result * power, result)
        power = power * power
    if dtypes.is_unsigned(dtype_of(exponent)):
        return result
    odd = (exponent & const(1, exponent)) == const(1, exponent)
    reciprocal = select(base == one, one, zero)
    if not dtypes.is_unsigned(dtype_of(base)):
        minus = const(-1, base)
        reciprocal = select(base == minus, select(odd, minus, one), reciprocal)
    return select(exponent < const(0, exponent), reciprocal, result)


def is_nan(a: Expr) -> Expr:
    """True if a float is NaN; TVM supports this for float16 to float64, but not for bfloat16 and float8."""
    return tirx.isnan(a if dtype_of(a) in ("float16", "float32", "float64") else a.astype("float32"))


def maximum(a: Expr, b: Expr) -> Expr:
    """Return the larger one; NaN if either is."""
    if not dtypes.is_float(dtype_of(a)):
        return tirx.max(a, b)
    return select(is_nan(a), a, select(is_nan(b), b, tirx.max(a, b)))


def minimum(a: Expr, b: Expr) -> Expr:
    """Return the smaller one; NaN if either is."""
    if not dtypes.is_float(dtype_of(a)):
        return tirx.min(a, b)
    return select(is_nan(a), a, select(is_nan(b), b, tirx.min(a, b)))


def lowest(dtype: str) -> float | int:
    """Return the smallest value of a type: -inf for floats."""
    if dtype == "bool":
        return 0
    return -np.inf if dtypes.is_float(dtype) else dtypes.integer_limits(dtype)[0]


def highest(dtype: str) -> float | int:
    """Return the largest value of a type: inf for floats."""
    if dtype == "bool":
        return 1
    return np.inf if dtypes.is_float(dtype) else dtypes.integer_limits(dtype)[1]


def extremum_reducer(dtype: str, *, greatest: bool) -> Callable[..., Expr]:
    """Return a commutative `te` reducer to the largest or smallest value that propagates NaN."""
    combine = maximum if greatest else minimum
    identity = lowest(dtype) if greatest else highest(dtype)
    return te.comm_reducer(combine, lambda t: tirx.const(identity, str(t)), name="extremum")
