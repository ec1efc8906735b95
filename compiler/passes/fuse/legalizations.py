"""Operators with a lowering of our own in place of TVM's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tvm import relax, te, tirx, topi
from tvm.ir import GenericConst

from compiler.passes.rewriting.matching import array_of, dtype_of, rank_of
from schedules.ir import tvm_private

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_FLOATS = ("float16", "float32", "float64", "bfloat16")


def legalize_take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`take`; its mode "fast" promises that indices are inside, of which TVM warns each time."""
    axis, mode = call.attrs.axis, str(call.attrs.mode)
    if mode != "fast" or axis is None:
        flat = None if axis is None else int(axis)
        return builder.call_te(topi.take, call.args[0], call.args[1], flat, mode=mode)
    return builder.call_te(_take, call.args[0], call.args[1], int(axis), primfunc_name_hint="take")


def _take(data: te.Tensor, indices: te.Tensor, axis: int) -> te.Tensor:
    rank = len(indices.shape)
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])

    def element(*place: Expr) -> Expr:
        index = indices(*place[axis : axis + rank])
        return data(*place[:axis], index, *place[axis + rank :])

    return te.compute(shape, element, name="take")


def legalize_relu(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`nn.relu`, max(0, x): of a comparison with NaN TVM takes the second operand, so that NaN stays NaN."""
    zero = tirx.const(0, dtype_of(call))
    return builder.call_te(_elementwise(lambda x: te.max(zero, x)), call.args[0], primfunc_name_hint="relu")


def legalize_clip(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`clip` to two numbers, max(low, min(high, x)), in the order that keeps NaN."""
    low, high = (tirx.const(limit.value, dtype_of(call)) for limit in call.args[1:])
    limited = _elementwise(lambda x: te.max(low, te.min(high, x)))
    return builder.call_te(limited, call.args[0], primfunc_name_hint="clip")


def _elementwise(function: Callable[[Expr], Expr]) -> Callable[[te.Tensor], te.Tensor]:
    return lambda data: te.compute(data.shape, lambda *place: function(data(*place)), name="compute")


def legalize_not(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`logical_not`, as a choice: TVM would make `y <= x` of `not x < y`, which differs where one is NaN."""
    return builder.call_te(_elementwise(_inverted), call.args[0], primfunc_name_hint="logical_not")


def legalize_not_equal(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`not_equal` of floats, true where one is NaN: TVM generates an ordered comparison, false there."""
    if not dtype_of(call.args[0]).startswith(("float", "bfloat")):
        return tvm_private.legalize_binary(topi.not_equal)(builder, call)

    def compare(left: Expr, right: Expr) -> te.Tensor:
        equal = topi.equal(left, right)
        return te.compute(equal.shape, lambda *place: _inverted(equal(*place)), name="not_equal")

    return tvm_private.legalize_binary(compare)(builder, call)


def _inverted(condition: Expr) -> Expr:
    """In integers, which TVM does not treat as a comparison of floats."""
    return tirx.EQ(tirx.Cast("int8", condition), tirx.const(0, "int8"))


def legalize_divide(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`divide`; TVM would take 0 / x for 0, where 0 / 0 and 0 / NaN are NaN, and fail on x / 0."""
    (numerator, divisor), dtype = map(_one_number, call.args), dtype_of(call.args[0])
    if dtype not in _FLOATS:
        return tvm_private.legalize_binary(topi.divide)(builder, call)
    if numerator == 0 and array_of(call.args[0]).ndim == 0:
        return builder.call_te(_zero_over(numerator, dtype), call.args[1], primfunc_name_hint="divide")
    if divisor == 0 and array_of(call.args[1]).ndim == 0:
        return builder.call_te(_over_zero(divisor, dtype), call.args[0], primfunc_name_hint="divide")
    return tvm_private.legalize_binary(topi.divide)(builder, call)


def legalize_multiply(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`multiply`; TVM would take x * 0 for 0, where it is NaN or has the sign of x."""
    dtype = dtype_of(call.args[0])
    for factor, other in (call.args, reversed(call.args)):
        number = _one_number(factor)
        if dtype in _FLOATS and number == 0 and array_of(factor).ndim == 0:
            return builder.call_te(_times_zero(number, dtype), other, primfunc_name_hint="multiply")
    return tvm_private.legalize_binary(topi.multiply)(builder, call)


def _exact(function: Callable[[Expr, str], Expr], dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """An elementwise function of values and their dtype; of bfloat16, which has no operations, by way of float32."""
    if dtype != "bfloat16":
        return _elementwise(lambda x: function(x, dtype))
    return _elementwise(lambda x: tirx.Cast(dtype, function(tirx.Cast("float32", x), "float32")))


def _times_zero(zero: float, dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """x * zero: zero of the sign of both, NaN where x is infinite or NaN."""

    def product(x: Expr, dtype: str) -> Expr:
        infinity, nan = tirx.const(math.inf, dtype), tirx.const(math.nan, dtype)
        below = tirx.Select(x > tirx.const(-math.inf, dtype), _signed_zero(x, zero, dtype), nan)
        return tirx.Select(x < infinity, below, nan)

    return _exact(product, dtype)


def _signed_zero(x: Expr, zero: float, dtype: str) -> Expr:
    """Zero with the sign of x * zero. The sign goes over as a bit: TVM takes a choice between 0.0 and -0.0 for 0.0."""
    integer = dtype.replace("float", "int")
    sign = tirx.min_value(integer)
    bits = tirx.reinterpret(integer, x) & sign
    return tirx.reinterpret(dtype, bits ^ sign if math.copysign(1.0, zero) < 0 else bits)


def _over_zero(zero: float, dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """x / zero: infinity of the sign of both, NaN where x is 0 or NaN."""
    infinity = math.copysign(math.inf, zero)

    def quotient(x: Expr, dtype: str) -> Expr:
        nothing, positive, negative, nan = (tirx.const(value, dtype) for value in (0.0, infinity, -infinity, math.nan))
        return tirx.Select(x > nothing, positive, tirx.Select(x < nothing, negative, nan))

    return _exact(quotient, dtype)


def _zero_over(zero: float, dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """zero / x: zero of the sign of both, NaN where x is 0 or NaN."""

    def quotient(x: Expr, dtype: str) -> Expr:
        nothing, nan = tirx.const(0.0, dtype), tirx.const(math.nan, dtype)
        signed = _signed_zero(x, zero, dtype)
        # One choice by "or" would become x != 0, which NaN is.
        return tirx.Select(x > nothing, signed, tirx.Select(x < nothing, signed, nan))

    return _exact(quotient, dtype)


def legalize_quantize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`quantize` of float32: limited, rounded half to even (TVM's own rounds half away from zero), shifted.

    Limits come before rounding, where they are exact: what is rounded lies within int32, as vector instructions want.
    """
    data, scale, zero = call.args
    out = str(call.attrs.out_dtype)
    if dtype_of(data) != "float32" or out not in ("int8", "uint8", "int16", "uint16"):
        return tvm_private.legalize_quantize(builder, call)
    low, high = (int(limit(out).value) for limit in (tirx.min_value, tirx.max_value))
    axis = int(call.attrs.axis) % max(rank_of(data) or 1, 1)
    numbers = [_one_number(each) for each in (scale, zero)]
    operands = [each for each, number in zip((scale, zero), numbers, strict=True) if number is None]

    def kernel(values: te.Tensor, *parameters: te.Tensor) -> te.Tensor:
        def point(*at: Expr) -> Expr:
            remaining = iter(parameters)
            step, shift = (_parameter(number, remaining, at, axis) for number in numbers)
            scaled = values(*at) if step == 1.0 else values(*at) / _typed(step, "float32")
            offset = _typed(shift, "int32")
            least, most = _typed(low - shift, "float32"), _typed(high - shift, "float32")
            limited = te.min(te.max(scaled, least), most)  # NaN becomes the lower limit, as in ONNX Runtime
            return tirx.Cast(out, tirx.Cast("int32", tirx.nearbyint(limited)) + offset)

        return te.compute(values.shape, point, name="quantized")

    return builder.call_te(kernel, data, *operands, primfunc_name_hint="quantize")


def _one_number(parameter: relax.Expr) -> float | int | None:
    """The value of a constant that is one number."""
    if not isinstance(parameter, GenericConst) or array_of(parameter).size != 1:
        return None
    number: float | int = array_of(parameter).reshape(()).item()
    return number


def _parameter(number: float | int | None, remaining: Iterator[te.Tensor], at: tuple[Expr, ...], axis: int) -> Expr:
    """A parameter of a quantization at a place: a Python number where it is known."""
    if number is not None:
        return number
    tensor = next(remaining)
    whole = all(isinstance(size, tirx.IntImm) and size.value == 1 for size in tensor.shape)
    value = tensor(*(0 for _ in tensor.shape)) if whole else tensor(at[axis])
    return value if str(tensor.dtype) == "float32" else tirx.Cast("int32", value)


def _typed(value: Expr, dtype: str) -> Expr:
    return tirx.const(value, dtype) if isinstance(value, int | float) else tirx.Cast(dtype, value)


LEGALIZATIONS: dict[str, Callable[[relax.BlockBuilder, relax.Call], relax.Expr]] = {
    "relax.clip": legalize_clip,
    "relax.divide": legalize_divide,
    "relax.logical_not": legalize_not,
    "relax.multiply": legalize_multiply,
    "relax.not_equal": legalize_not_equal,
    "relax.nn.relu": legalize_relu,
    "relax.quantize": legalize_quantize,
    "relax.take": legalize_take,
}
