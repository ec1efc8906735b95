"""Scalar expressions inside kernels for which TVM has no exact operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from tvm import ir, te, tirx

from compiler.frontends.onnx import dtypes

Expr: TypeAlias = ir.Expr


def const(value: float | int | bool, like: Expr) -> Expr:
    """A constant of the type of `like`."""
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
    """True where one is positive and the other negative."""
    zero = const(0, a)
    return tirx.any(tirx.all(a < zero, b > zero), tirx.all(a > zero, b < zero))


def integer_power(base: Expr, exponent: Expr) -> Expr:
    """base ** exponent of integers, wrapped around; negative exponents give the truncated reciprocal.

    Of exponents from 64 on only the powers of -1, 0 and 1 do not overflow; what others give is not specified.
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
    """True where a float is NaN; TVM knows it for types of 16 bits up, but not for bfloat16 and float8."""
    return tirx.isnan(a if dtype_of(a) in ("float16", "float32", "float64") else a.astype("float32"))


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger one; NaN when either is."""
    if not dtypes.is_float(dtype_of(a)):
        return tirx.max(a, b)
    return select(is_nan(a), a, select(is_nan(b), b, tirx.max(a, b)))


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller one; NaN when either is."""
    if not dtypes.is_float(dtype_of(a)):
        return tirx.min(a, b)
    return select(is_nan(a), a, select(is_nan(b), b, tirx.min(a, b)))


def lowest(dtype: str) -> float | int:
    """The smallest value of a type: -inf for floats."""
    if dtype == "bool":
        return 0
    return -np.inf if dtypes.is_float(dtype) else dtypes.integer_limits(dtype)[0]


def highest(dtype: str) -> float | int:
    """The largest value of a type: inf for floats."""
    if dtype == "bool":
        return 1
    return np.inf if dtypes.is_float(dtype) else dtypes.integer_limits(dtype)[1]


def extremum_reducer(dtype: str, *, greatest: bool) -> Callable[..., Expr]:
    """A commutative reducer of `te` to the largest or smallest value, NaN before all of them."""
    combine = maximum if greatest else minimum
    identity = lowest(dtype) if greatest else highest(dtype)
    return te.comm_reducer(combine, lambda t: tirx.const(identity, str(t)), name="extremum")
