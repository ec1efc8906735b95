"""Cast, CastLike, BitCast."""

from __future__ import annotations

from tvm import relax, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.broadcasting import elementwise
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.narrow_floats import decoded, encoded
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Constant, Value


@converter("Cast")
def cast(context: NodeContext) -> relax.Expr | Value:
    """To the type of attribute `to`."""
    target = dtypes.dtype_name(context.required_attribute("to"))
    if target is None:
        context.invalid(f"its target type {context.required_attribute('to')} is unknown")
    return cast_to(context, target)


@converter("CastLike", since=15)
def cast_like(context: NodeContext) -> relax.Expr | Value:
    """To the type of the second input."""
    return cast_to(context, context.dtype(1))


def cast_to(context: NodeContext, target: str) -> relax.Expr | Value:
    """Input 0 in another type."""
    source = context.dtype(0)
    if source == target:
        return context.tensor(0)
    if "string" in (source, target) or target.startswith("complex") or source.startswith("complex"):
        context.refuse(f"casting {source} to {target} is not supported")
    return converted(context, context.input(0), source, target)


def converted(context: NodeContext, data: relax.Expr, source: str, target: str) -> relax.Expr | Value:
    """A tensor of type `source` in type `target`."""
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
    return R.astype(data, target)


def _float_to_integer(context: NodeContext, data: relax.Expr, source: str, target: str) -> relax.Expr:
    """Through an integer wide enough, so that values out of range wrap around as they do in ONNX's other runtimes."""
    if dtypes.bits(source) < 32:
        data = context.emit(R.astype(data, "float32"))
    if target == "uint32":
        return context.emit(R.astype(data, "int64"))
    return context.emit(R.astype(data, "int32")) if dtypes.bits(target) < 32 else data


def _to_packed(context: NodeContext, data: relax.Expr, target: str) -> Value:
    """The low bits, sign-extended where the type is signed, in the byte that carries the type."""
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
    """The same bits read as another type of the same width."""
    target = dtypes.dtype_name(context.required_attribute("to"))
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
    return elementwise(context, "bit_cast", lambda x: tirx.reinterpret(target, x), context.input(0))
