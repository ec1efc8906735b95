"""Cast, CastLike, BitCast.

float8 and float4 are carried as their bits in a byte, and computed in float32.

TVM's own casts of these types are wrong (0 becomes 2**-7, ...) or missing, so ours use tables: of the value of each
code, and of the bounds between adjacent values: the nearest code is the number of bounds below a value.
"""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.broadcasting import elementwise
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.registry import TORCH_DOMAIN, converter
from compiler.frontends.onnx.values import Constant, Value
from schedules.ir.tvm_types import Expr


@converter("Cast")
def cast(context: NodeContext) -> relax.Expr | Value:
    """Cast the input to the type in attribute `to`."""
    target = dtypes.dtype_name(context.required_attribute("to"))
    if target is None:
        context.invalid(f"its target type {context.required_attribute('to')} is unknown")
    return cast_to(context, target)


@converter("CastLike", since=15)
def cast_like(context: NodeContext) -> relax.Expr | Value:
    """Cast the input to the type of the second one."""
    return cast_to(context, context.dtype(1))


def cast_to(context: NodeContext, target: str) -> relax.Expr | Value:
    """Cast input 0 to another type."""
    source = context.dtype(0)
    if source == target:
        return context.tensor(0)
    if "string" in (source, target) or target.startswith("complex") or source.startswith("complex"):
        context.refuse(f"casting {source} to {target} is not supported")
    return converted(context, context.input(0), source, target)


def converted(context: NodeContext, data: relax.Expr, source: str, target: str) -> relax.Expr | Value:
    """Cast a tensor of type `source` to type `target`."""
    if dtypes.is_float8_or_float4(source):
        data, source = decoded(context, data, source), "float32"
        return data if target == source else converted(context, data, source, target)
    if dtypes.is_float8_or_float4(target):
        wide = data if source == "float32" else context.emit(R.astype(data, "float32"))
        saturate = bool(context.attribute("saturate", 1))
        return encoded(context, wide, target, saturate=saturate, rounding=context.attribute("round_mode", "up"))
    if dtypes.is_float(source) and target == "bool":
        return R.not_equal(data, context.literal(0, source))
    if dtypes.is_float(source) and dtypes.is_integer(target):
        data = _float_to_integer(context, data, source, target)
    if dtypes.carrier(target) != target:
        return _to_packed(context, data, target)
    return _rounded(context, data) if (source, target) == ("float32", "bfloat16") else R.astype(data, target)


def _rounded(context: NodeContext, data: relax.Expr) -> relax.Expr:
    """Round to the nearest bfloat16, to even at ties, by the bits of a float32: TVM computes the bfloat16 values within
    a kernel in float32, without the rounding of a plain cast."""

    def rounded(x: te.Tensor) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            value = x(*indices)
            bits = tirx.reinterpret("uint32", value)
            half = tirx.const(0x7FFF, "uint32") + tirx.bitwise_and(bits >> 16, tirx.const(1, "uint32"))
            kept = tirx.bitwise_and(bits + half, tirx.const(0xFFFF0000, "uint32"))
            return tirx.Select(tirx.isnan(value), value, tirx.reinterpret("float32", kept)).astype("bfloat16")

        return te.compute(x.shape, element, name="round")

    return context.emit_te(rounded, data, primfunc_name_hint="round")


def _float_to_integer(context: NodeContext, data: relax.Expr, source: str, target: str) -> relax.Expr:
    """Cast through a sufficiently wide integer, so that values out of range wrap around like in other ONNX runtimes."""
    if dtypes.bits(source) < 32:
        data = context.emit(R.astype(data, "float32"))
    if target == "uint32":
        return context.emit(R.astype(data, "int64"))
    return context.emit(R.astype(data, "int32")) if dtypes.bits(target) < 32 else data


def _to_packed(context: NodeContext, data: relax.Expr, target: str) -> Value:
    """Return the low bits, sign-extended for signed types, in the byte that carries the type."""
    carrier, width = dtypes.carrier(target), dtypes.bits(target)
    data = context.emit(R.astype(data, carrier))
    if dtypes.is_unsigned(target):
        masked = R.bitwise_and(data, context.literal(2**width - 1, carrier))
        return context.runtime(masked, target)
    shift = context.literal(8 - width, carrier)
    moved = context.emit(R.left_shift(data, shift))
    return context.runtime(R.right_shift(moved, shift), target)


@converter("BitCast", since=26)
def bit_cast(context: NodeContext) -> relax.Expr | Value:
    """Reinterpret the bits as another type of the same width."""
    return _bits_as(context, dtypes.dtype_name(context.required_attribute("to")))


@converter("BitCast", domain=TORCH_DOMAIN)
def torch_bit_cast(context: NodeContext) -> relax.Expr | Value:
    """Reinterpret the bits as another type of the same width, which is given by its name."""
    return _bits_as(context, str(context.required_attribute("dtype")))


def _bits_as(context: NodeContext, target: str | None) -> relax.Expr | Value:
    source = context.dtype(0)
    if target is None or _stored_bits(target) != _stored_bits(source):
        context.invalid(f"the bits of {source} cannot be read as {target}")
    known = context.known(0)
    if known is not None and known.dtype != object:
        return Constant(known.view(dtypes.numpy_dtype(target)), target)
    return _reinterpreted(context, target)


def _stored_bits(dtype: str) -> int:
    return 8 if dtype == "bool" else dtypes.bits(dtype)


def _reinterpreted(context: NodeContext, target: str) -> relax.Expr | Value:
    source = context.dtype(0)
    if target == source:
        return context.tensor(0)
    if source == "bool":
        data = context.emit(R.astype(context.input(0), "uint8"))
        return R.astype(data, target)
    if target == "bool" or dtypes.carrier(target) != target or dtypes.carrier(source) != source:
        context.refuse(f"the bits of {source} cannot be read as {target} at run time")

    def bits(value: Expr) -> Expr:
        if source == "bfloat16":  # TVM computes in float32, and fails on a vector of such bits
            value = (tirx.reinterpret("uint32", value.astype("float32")) >> tirx.const(16, "uint32")).astype("uint16")
        return value if target == "uint16" and source == "bfloat16" else tirx.reinterpret(target, value)

    return elementwise(context, "bit_cast", bits, context.input(0))


_EXPONENT_ONLY = "float8_e8m0fnu"


def decoded(context: NodeContext, data: relax.Expr, source: str) -> relax.Expr:
    """Return the float32 values of codes of type `source`."""
    codes = np.arange(2 ** dtypes.bits(source), dtype=np.uint8)
    with np.errstate(all="ignore"):
        table = codes.view(dtypes.numpy_dtype(source)).astype(np.float32)

    def look_up(code: te.Tensor, values: te.Tensor) -> te.Tensor:
        last = len(table) - 1  # codes of less than a byte are carried in bytes, whose other bits are undefined
        return te.compute(code.shape, lambda *i: values[code(*i).astype("int32") & last], name="decode")

    return context.emit_te(look_up, data, Constant(table).expr(), primfunc_name_hint="decode")


def encoded(
    context: NodeContext, data: relax.Expr, target: str, *, saturate: bool = True, rounding: str = "up"
) -> Value:
    """Convert float32 values to codes of type `target`, rounding to nearest, half to even.

    Args:
        saturate: values out of range become the largest finite one; otherwise infinity or NaN, if the type has it.
        rounding: "up", "down" or "nearest", only for float8_e8m0.
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
        """Return the code, given the number of bounds below |x|."""
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

        def beyond(*indices: Expr) -> Expr:
            magnitude, bound = tirx.abs(numbers(*indices)), table[step]
            is_beyond = tirx.any(magnitude > bound, tirx.all(magnitude == bound, tirx.truncmod(step, 2) == 0))
            return te.sum(is_beyond.astype("int32"), axis=step)

        counts = te.compute(numbers.shape, beyond, name="count")
        return te.compute(numbers.shape, lambda *i: finished(numbers(*i), counts(*i)), name="encode")

    return context.runtime(context.emit_te(encode, data, Constant(bounds).expr(), primfunc_name_hint="encode"), target)


def _tables(target: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (values of the codes without sign, the bound below each, the largest finite code); NaN for unused
    codes."""
    count = 2 ** (dtypes.bits(target) - 1)
    with np.errstate(all="ignore"):
        values = np.arange(count, dtype=np.uint8).view(dtypes.numpy_dtype(target)).astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    bounds = np.full(count, np.nan)
    bounds[1:] = (values[1:] + values[:-1]) / 2
    return values, bounds.astype(np.float32), int(np.flatnonzero(np.isfinite(values))[-1])


def _special_codes(target: str) -> tuple[int, int]:
    """Return (code for values out of range without saturation, code for NaN)."""
    with np.errstate(all="ignore"):
        special = np.array([np.inf, np.nan], np.float32).astype(dtypes.numpy_dtype(target)).view(np.uint8)
    return int(special[0]), int(special[1])


def _exponents(context: NodeContext, data: relax.Expr, saturate: bool, rounding: str) -> relax.Expr:
    """Return the biased exponents of float32, rounded by the fraction; NaN and infinity are 255."""

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
