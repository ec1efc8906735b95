"""float8 and float4: carried as their bits in a byte, computed with as float32.

TVM's own casts of these types are wrong (0 becomes 2**-7, ...) or missing, so ours are tables: of each code's
value, and of the bounds between neighbouring values: the nearest code is the number of bounds below a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tvm import relax, te, tirx

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.broadcasting import elementwise
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.values import Constant, Value

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_EXPONENT_ONLY = "float8_e8m0fnu"


def decoded(context: NodeContext, data: relax.Expr, source: str) -> relax.Expr:
    """The float32 values of codes of type `source`."""
    codes = np.arange(2 ** dtypes.bits(source), dtype=np.uint8)
    with np.errstate(all="ignore"):
        table = codes.view(dtypes.numpy_dtype(source)).astype(np.float32)

    def look_up(code: te.Tensor, values: te.Tensor) -> te.Tensor:
        last = len(table) - 1  # codes of less than a byte come in bytes, whose other bits mean nothing
        return te.compute(code.shape, lambda *i: values[code(*i).astype("int32") & last], name="decode")

    return context.emit_te(look_up, data, Constant(table).expr(), primfunc_name_hint="decode")


def encoded(
    context: NodeContext, data: relax.Expr, target: str, *, saturate: bool = True, rounding: str = "up"
) -> Value:
    """float32 values as codes of type `target`, to the nearest, halves to even.

    Args:
        saturate: values out of range become the largest finite one, else infinity or NaN, whichever there is.
        rounding: "up", "down" or "nearest", of float8_e8m0 alone.
    """
    if target == _EXPONENT_ONLY:
        return context.runtime(_exponents(context, data, saturate, rounding), target)
    values, bounds, largest = _tables(target)
    overflow, not_a_number = _special_codes(target)
    over = 2 * float(values[largest]) - float(values[largest - 1])
    limit = (float(values[largest]) + over) / 2
    sign_bit = 1 << (dtypes.bits(target) - 1)
    has_minus_zero = not target.endswith("fnuz")

    def finished(x: Expr, count: Expr) -> Expr:
        """The code, from the number of bounds that |x| is beyond."""
        code, magnitude = count, tirx.abs(x)
        if not saturate:
            beyond = magnitude >= limit if largest % 2 else magnitude > limit
            code = tirx.Select(beyond, tirx.const(overflow, "int32"), code)
        negative = tirx.reinterpret("uint32", x) >= tirx.const(0x80000000, "uint32")
        signed = negative if has_minus_zero else tirx.all(negative, code > 0, code < sign_bit)
        code = tirx.Select(signed, tirx.bitwise_or(code, tirx.const(sign_bit, "int32")), code)
        return tirx.Select(tirx.isnan(x), tirx.const(not_a_number, "int32"), code).astype("uint8")

    def encode(numbers: te.Tensor, table: te.Tensor) -> te.Tensor:
        step = te.reduce_axis((1, len(bounds)), "step")

        def beyond(*place: Expr) -> Expr:
            magnitude, bound = tirx.abs(numbers(*place)), table[step]
            is_beyond = tirx.any(magnitude > bound, tirx.all(magnitude == bound, tirx.truncmod(step, 2) == 0))
            return te.sum(is_beyond.astype("int32"), axis=step)

        counts = te.compute(numbers.shape, beyond, name="count")
        return te.compute(numbers.shape, lambda *i: finished(numbers(*i), counts(*i)), name="encode")

    return context.runtime(context.emit_te(encode, data, Constant(bounds).expr(), primfunc_name_hint="encode"), target)


def _tables(target: str) -> tuple[np.ndarray, np.ndarray, int]:
    """(values of the codes without sign, the bound below each, the largest finite code); NaN where nothing is."""
    count = 2 ** (dtypes.bits(target) - 1)
    with np.errstate(all="ignore"):
        values = np.arange(count, dtype=np.uint8).view(dtypes.numpy_dtype(target)).astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    bounds = np.full(count, np.nan)
    bounds[1:] = (values[1:] + values[:-1]) / 2
    return values, bounds.astype(np.float32), int(np.flatnonzero(np.isfinite(values))[-1])


def _special_codes(target: str) -> tuple[int, int]:
    """(what is out of range without saturation, NaN)."""
    with np.errstate(all="ignore"):
        special = np.array([np.inf, np.nan], np.float32).astype(dtypes.numpy_dtype(target)).view(np.uint8)
    return int(special[0]), int(special[1])


def _exponents(context: NodeContext, data: relax.Expr, saturate: bool, rounding: str) -> relax.Expr:
    """The biased exponents of float32, rounded by the fraction; NaN and infinity are 255."""

    def exponent_of(x: Expr) -> Expr:
        bits = tirx.reinterpret("uint32", x).astype("int64")
        exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
        rounds_up: Expr = tirx.const(False, "bool")
        if rounding == "up":
            rounds_up = fraction > 0
        elif rounding == "nearest":
            half = tirx.const(0x400000, "int64")
            rounds_up = tirx.any(fraction > half, tirx.all(fraction == half, exponent > 0))
        if saturate:
            rounds_up = tirx.all(rounds_up, exponent < 0xFE)
        rounds_up = tirx.all(rounds_up, exponent < 0xFF)
        return (exponent + tirx.Select(rounds_up, tirx.const(1, "int64"), tirx.const(0, "int64"))).astype("uint8")

    return elementwise(context, "exponents", exponent_of, data)


def is_narrow_float(dtype: str) -> bool:
    """True if a float type has less than 32 bits."""
    return dtypes.is_float(dtype) and dtypes.bits(dtype) < 32
