"""Elementwise functions of two or more tensors: arithmetic, comparison, logic, bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
from tvm import relax, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import broadcasting, dtypes
from compiler.frontends.onnx.broadcasting import broadcast, const, elementwise, in_float32
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.registry import converter
from schedules.ir.tvm_types import Expr

Binary = Callable[[relax.Expr, relax.Expr], relax.Expr]
_MAXIMUM_SMALL_EXPONENT = 4


def operands(context: NodeContext, *indices: int) -> list[relax.Expr]:
    """The inputs, all of one type, ready to be combined."""
    names = {context.dtype(i) for i in indices}
    if len(names) != 1:
        context.invalid(f"its inputs have different types: {', '.join(sorted(names))}")
    return broadcast(context, [context.input(i) for i in indices])


@converter("Add", "Sub", "Mul", since=7)
def arithmetic(context: NodeContext) -> relax.Expr:
    """Sum, difference or product; integers wrap around."""
    functions: dict[str, Binary] = {"Add": R.add, "Sub": R.subtract, "Mul": R.multiply}
    return functions[context.operator](*operands(context, 0, 1))


@converter("Div", since=7)
def divide(context: NodeContext) -> relax.Expr:
    """Quotient; of integers truncated toward zero."""
    a, b = operands(context, 0, 1)
    if not dtypes.is_integer(context.dtype(0)):
        return R.divide(a, b)
    divisor = context.known(1)
    if divisor is not None and not np.any((divisor == 0) | (divisor == -1)):
        return R.divide(a, b)
    return elementwise(context, "truncated_division", broadcasting.truncated_division, a, b)


@converter("Mod", since=10)
def modulo(context: NodeContext) -> relax.Expr:
    """Remainder with the sign of the divisor, or of the dividend with fmod=1."""
    a, b = operands(context, 0, 1)
    truncated, dtype = bool(context.attribute("fmod", 0)), context.dtype(0)
    if dtypes.is_integer(dtype):
        function = broadcasting.truncated_remainder if truncated else broadcasting.floored_remainder
        return elementwise(context, "remainder", function, a, b)
    wide = "float32" if dtypes.bits(dtype) < 32 else dtype

    def of_floats(x: Expr, y: Expr) -> Expr:
        x, y = x.astype(wide), y.astype(wide)
        remainder = tirx.truncmod(x, y)
        return (
            remainder if truncated else tirx.Select(broadcasting.opposite_signs(remainder, y), remainder + y, remainder)
        )

    return elementwise(context, "remainder", of_floats, a, b, dtype=dtype)


@converter("Pow", since=7)
def power(context: NodeContext) -> relax.Expr:
    """base ** exponent in the type of the base; the exponent may be of another type."""
    base, exponent = context.dtype(0), context.dtype(1)
    small = _small_exponent(context)
    if small is not None:
        return reduce(R.multiply, [context.input(0)] * small) if small < 3 else _product(context, small)
    if dtypes.is_float(base):
        wide = "float32" if dtypes.bits(base) < 32 else base
        a, b = (_as(context, i, wide) for i in (0, 1))
        result = context.emit(R.power(*broadcast(context, [a, b])))
        return result if wide == base else R.astype(result, base)
    if dtypes.is_float(exponent):
        return elementwise(
            context,
            "power",
            lambda x, y: tirx.pow(x.astype("float64"), y.astype("float64")),
            context.input(0),
            context.input(1),
            dtype=base,
        )
    return elementwise(context, "power", broadcasting.integer_power, context.input(0), context.input(1))


def _as(context: NodeContext, index: int, dtype: str) -> relax.Expr:
    data = context.input(index)
    return data if context.dtype(index) == dtype else context.emit(R.astype(data, dtype))


def _small_exponent(context: NodeContext) -> int | None:
    """The exponent, when it is one small positive integer for all elements and does not change the shape."""
    known = context.known(1)
    if known is None or known.size != 1 or known.ndim > context.rank(0):
        return None
    value = known.reshape(-1)[0].item()
    return int(value) if value in range(1, _MAXIMUM_SMALL_EXPONENT + 1) else None


def _product(context: NodeContext, exponent: int) -> relax.Expr:
    base = context.input(0)
    square = context.emit(R.multiply(base, base))
    return R.multiply(square, base if exponent == 3 else square)


@converter("Max", "Min", since=6)
def extremum(context: NodeContext) -> relax.Expr:
    """Largest or smallest of any number of tensors; NaN wins."""
    tensors = operands(context, *range(len(context.inputs)))
    greatest = context.operator == "Max"
    if not dtypes.is_float(context.dtype(0)):
        return _chain(context, R.maximum if greatest else R.minimum, tensors)
    function = broadcasting.maximum if greatest else broadcasting.minimum
    return _chain(context, lambda a, b: elementwise(context, context.operator.lower(), function, a, b), tensors)


@converter("Sum", since=6)
def total(context: NodeContext) -> relax.Expr:
    """Sum of any number of tensors."""
    return _chain(context, R.add, operands(context, *range(len(context.inputs))))


@converter("Mean", since=6)
def mean(context: NodeContext) -> relax.Expr:
    """Mean of any number of tensors."""
    count = len(context.inputs)
    summed = context.emit(_chain(context, R.add, operands(context, *range(count))))
    return R.divide(summed, context.literal(count, context.dtype(0)))


def _chain(context: NodeContext, function: Binary, tensors: list[relax.Expr]) -> relax.Expr:
    result = tensors[0]
    for tensor in tensors[1:]:
        result = context.emit(function(result, tensor))
    return result


_COMPARISONS: dict[str, Binary] = {
    "Equal": R.equal,
    "Greater": R.greater,
    "GreaterOrEqual": R.greater_equal,
    "Less": R.less,
    "LessOrEqual": R.less_equal,
}


@converter(*_COMPARISONS, since=7)
def comparison(context: NodeContext) -> relax.Expr:
    """Elementwise comparison."""
    a, b = operands(context, 0, 1)
    if context.dtype(0) == "bool":
        # TVM's code generator has no comparison of booleans.
        a, b = (context.emit(R.astype(tensor, "int8")) for tensor in (a, b))
    return _COMPARISONS[context.operator](a, b)


@converter("And", "Or", "Xor", since=7)
def logic(context: NodeContext) -> relax.Expr:
    """Logic of booleans."""
    functions: dict[str, Binary] = {"And": R.logical_and, "Or": R.logical_or, "Xor": R.logical_xor}
    return functions[context.operator](*operands(context, 0, 1))


@converter("BitwiseAnd", "BitwiseOr", "BitwiseXor", since=18)
def bitwise(context: NodeContext) -> relax.Expr:
    """Logic of the bits of integers."""
    functions: dict[str, Binary] = {"BitwiseAnd": R.bitwise_and, "BitwiseOr": R.bitwise_or, "BitwiseXor": R.bitwise_xor}
    return functions[context.operator](*operands(context, 0, 1))


@converter("BitShift", since=11)
def bit_shift(context: NodeContext) -> relax.Expr:
    """Shift by any number of bits; past the width, nothing but the sign is left."""
    left = context.required_attribute("direction") == "LEFT"
    dtype = context.dtype(0)
    width = dtypes.bits(dtype)

    def shift(x: Expr, y: Expr) -> Expr:
        count = y.astype("int64")
        inside = tirx.all(count >= 0, count < width)
        amount = tirx.Select(inside, count, tirx.const(width - 1, "int64")).astype(dtype)
        shifted = x << amount if left else x >> amount
        if not left and not dtypes.is_unsigned(dtype):
            return shifted
        return tirx.Select(inside, shifted, const(0, x))

    return elementwise(context, "bit_shift", shift, *operands(context, 0, 1))


@converter("Where", since=9)
def where(context: NodeContext) -> relax.Expr:
    """The second input where the condition holds, else the third."""
    if context.dtype(1) != context.dtype(2):
        context.invalid(f"it chooses between {context.dtype(1)} and {context.dtype(2)}")
    return R.where(*broadcast(context, [context.input(i) for i in range(3)]))


@converter("Clip", since=6)
def clip_by_attributes(context: NodeContext) -> relax.Expr:
    """Clip to limits given as attributes."""
    dtype = context.dtype(0)
    limits = np.finfo(dtypes.numpy_dtype(dtype))
    low, high = context.attribute("min", float(limits.min)), context.attribute("max", float(limits.max))
    return _clip(context, context.literal(low, dtype), context.literal(high, dtype))


@converter("Clip", since=11)
def clip(context: NodeContext) -> relax.Expr:
    """Clip to limits given as inputs, each of which may be missing; the upper one wins when they cross."""
    low = context.input(1) if context.has_input(1) else None
    high = context.input(2) if context.has_input(2) else None
    return _clip(context, low, high)


def _clip(context: NodeContext, low: relax.Expr | None, high: relax.Expr | None) -> relax.Expr:
    data = context.input(0)
    is_float = dtypes.is_float(context.dtype(0))
    for index in range(1, len(context.inputs) if context.opset >= 11 else 1):
        if context.has_input(index) and context.rank(index) and context.shape(index) != (1,):
            context.invalid(f"its limit has shape {context.shape(index)}; it must be a scalar")
    low, high = (context.emit(R.reshape(v, ())) if v is not None and v.ty.ndim else v for v in (low, high))
    given = [limit for limit in (low, high) if limit is not None]
    if not given:
        return data

    def function(x: Expr, *limits: Expr) -> Expr:
        result = x
        if low is not None:
            result = tirx.max(result, limits[0])
        if high is not None:
            result = tirx.min(result, limits[-1])
        return tirx.Select(broadcasting.is_nan(x), x, result) if is_float else result

    return in_float32(context, lambda *wide: elementwise(context, "clip", function, *wide), data, *given)
