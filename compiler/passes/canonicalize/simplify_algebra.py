"""simplify-algebra: remove operators that do nothing and replace some by cheaper ones.

Results may differ from the original's in the sign of a zero (x + 0), in one rounding when two constants are combined,
and in cases where combining them avoids an intermediate overflow. NaN and infinity are preserved. For float16 and
bfloat16 every rounding is kept, since one more or less shows in the third digit.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import (
    BINARY,
    Array,
    as_constant,
    both_orders,
    constant_array,
    dtype_of,
    is_float,
    is_non_negative,
    rank_of,
    same_shape,
    scalar_of,
    shape_of,
)
from compiler.support.powers import by_squaring

_MAX_PRODUCT = 8  # at most four multiplications: a relative error of up to 7 * 2**-24 in float32
rules = RuleTable()
op = relax.op


@graph_pass("simplify-algebra", summary="Remove operators that do nothing; replace some by cheaper ones")
def simplify_algebra(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the rules below; each is one algebraic identity."""
    return rules.apply(mod)


def keeps_type(call: Call, operand: Expr) -> bool:
    """True if `operand` can replace `call`: equal data type and provably equal shape."""
    return dtype_of(call) == dtype_of(operand) != "" and same_shape(shape_of(call), shape_of(operand))


def split_constant(graph: Graph, call: Call) -> tuple[Expr, Array] | None:
    """Return the operands of a commutative call as (variable, constant)."""
    for variable, other in both_orders(call):
        constant = constant_array(graph, other)
        if constant is not None and constant_array(graph, variable) is None:
            return variable, constant
    return None


def all_equal(array: Array, number: float) -> bool:
    """True if every element is `number`."""
    return array.size > 0 and bool((array == number).all())


@rules.on(*BINARY)
def scalar_constant(graph: Graph, call: Call) -> Expr | None:
    """Drop the dimensions of a one-element constant if the other operand has as many"""
    operands = list(call.args)
    for position in (0, 1):
        constant, other = constant_array(graph, operands[position]), rank_of(operands[1 - position])
        if constant is not None and constant.size == 1 and other is not None and 0 < constant.ndim <= other:
            operands[position] = as_constant(constant.reshape(()))
            return relax.Call(call.op, operands, call.attrs)
    return None


@rules.on("relax.add")
def add_zero(graph: Graph, call: Call) -> Expr | None:
    """x + 0 => x"""
    found = split_constant(graph, call)
    return found[0] if found and keeps_type(call, found[0]) and all_equal(found[1], 0) else None


@rules.on("relax.multiply")
def multiply_one(graph: Graph, call: Call) -> Expr | None:
    """x * 1 => x, x * -1 => -x"""
    operands = split_constant(graph, call)
    if operands is None or not keeps_type(call, operands[0]):
        return None
    if all_equal(operands[1], 1):
        return operands[0]
    return op.negative(operands[0]) if is_float(call) and all_equal(operands[1], -1) else None


@rules.on("relax.equal", "relax.not_equal", "relax.less_equal", "relax.greater_equal")
def compare_with_itself(graph: Graph, call: Call) -> Expr | None:
    """x != x => isnan(x), x == x => not isnan(x): TVM would fold them to false and true"""
    left, right = call.args
    if not left.same_as(right) or not _is_numpy_float(left):
        return None
    test = op.isnan(left)
    return test if call.op.name == "relax.not_equal" else op.logical_not(graph.emit(test))


@rules.on("relax.subtract")
def subtract_constant(graph: Graph, call: Call) -> Expr | None:
    """x - 0 => x, x - c => x + (-c) (exact for floats), x - (-y) => x + y"""
    left, right = call.args
    constant = constant_array(graph, right)
    if constant is not None and keeps_type(call, left) and all_equal(constant, 0):
        return left
    if constant is not None and is_float(call) and constant.dtype.kind == "f":
        return op.add(left, as_constant(-constant))
    inner = graph.call(right, "relax.negative")
    return op.add(left, inner.args[0]) if inner is not None and is_float(call) else None


@rules.on("relax.add")
def add_negative(graph: Graph, call: Call) -> Expr | None:
    """x + (-y) => x - y"""
    for variable, other in both_orders(call):
        inner = graph.call(other, "relax.negative")
        if inner is not None and is_float(call):
            return op.subtract(variable, inner.args[0])
    return None


@rules.on("relax.divide")
def divide_constant(graph: Graph, call: Call) -> Expr | None:
    """x / 1 => x; x / c => x * (1/c) when every 1/c is exact: c is a power of two"""
    left, right = call.args
    constant = constant_array(graph, right)
    if constant is None or constant_array(graph, left) is not None:
        return None
    if keeps_type(call, left) and all_equal(constant, 1):
        return left
    if constant.dtype.kind != "f" or not is_float(call):
        return None
    with np.errstate(all="ignore"):
        inverse = (1 / constant.astype(np.float64)).astype(constant.dtype)
    mantissa, _ = np.frexp(constant.astype(np.float64))
    tiny = ml_dtypes.finfo(constant.dtype).tiny
    exact = (np.abs(mantissa) == 0.5) & np.isfinite(inverse) & (np.abs(inverse) >= tiny)
    return op.multiply(left, as_constant(inverse)) if bool(exact.all()) else None


@rules.on("relax.add", "relax.multiply")
def join_constants(graph: Graph, call: Call) -> Expr | None:
    """(x + a) + b => x + (a + b), (x * a) * b => x * (a * b), for constants a and b"""
    operands = split_constant(graph, call)
    if operands is None or not _may_round_anew(call):
        return None
    inner = graph.call(operands[0], str(call.op.name))
    if inner is None or not graph.only_use(operands[0]):
        return None
    nested = split_constant(graph, inner)
    if nested is None or operands[1].dtype.kind != "f":
        return None
    outer, first = operands[1], nested[1]
    combine = np.add if call.op.name == "relax.add" else np.multiply
    with np.errstate(all="ignore"):
        joined = np.asarray(combine(first.astype(np.float64), outer.astype(np.float64)).astype(first.dtype))
    grows = joined.size > 4 * max(outer.size, first.size)
    if grows or not _is_tame(joined) or not (_is_tame(outer) and _is_tame(first)):
        return None
    return relax.Call(call.op, [nested[0], as_constant(joined)])


@rules.on("relax.matmul")
def join_scales(graph: Graph, call: Call) -> Expr | None:
    """(x * a) @ (y * b) => (x * (a * b)) @ y, for numbers a and b"""
    sides = [graph.call(operand, "relax.multiply") for operand in call.args]
    if sides[0] is None or sides[1] is None or not graph.only_use(*call.args):
        return None
    if not all(_may_round_anew(side) for side in sides):
        return None
    operands = [split_constant(graph, side) for side in sides]
    if operands[0] is None or operands[1] is None or operands[0][1].ndim or operands[1][1].ndim:
        return None
    (x, a), (y, b) = operands[0], operands[1]
    joined = np.asarray(a.astype(np.float64) * b.astype(np.float64), a.dtype)
    if not all(_is_tame(number) for number in (a, b, joined)):
        return None
    scaled = graph.emit(op.multiply(x, as_constant(joined)))
    return relax.Call(call.op, [scaled, y], call.attrs)


def _may_round_anew(call: Expr) -> bool:
    """True if one rounding more or less is negligible for the data type."""
    return dtype_of(call) in ("float32", "float64")


def _is_tame(array: Array) -> bool:
    """True if all values are finite, and far from overflow and underflow unless zero."""
    info = ml_dtypes.finfo(array.dtype)
    magnitude = np.abs(array[array != 0]).astype(np.float64)
    low, high = float(info.tiny) ** 0.5, float(info.max) ** 0.5
    return bool(np.isfinite(array).all() and ((magnitude > low) & (magnitude < high)).all())


@rules.on("relax.negative", "relax.logical_not", "relax.bitwise_not")
def cancel_involution(graph: Graph, call: Call) -> Expr | None:
    """-(-x) => x, not not x => x"""
    inner = graph.call(call.args[0], str(call.op.name))
    return None if inner is None else inner.args[0]


@rules.on("relax.abs", "relax.nn.relu", "relax.floor", "relax.ceil", "relax.round", "relax.trunc", "relax.sign")
def drop_repeated(graph: Graph, call: Call) -> Expr | None:
    """f(f(x)) => f(x) for idempotent f"""
    return call.args[0] if graph.call(call.args[0], str(call.op.name)) is not None else None


@rules.on("relax.abs")
def drop_on_non_negative(graph: Graph, call: Call) -> Expr | None:
    """|x| => x if x is a square, an exponential, ..."""
    return call.args[0] if is_non_negative(graph, call.args[0]) else None


@rules.on("relax.power")
def power_of_number(graph: Graph, call: Call) -> Expr | None:
    """x**n => products for n up to 8, x**-1 => 1/x; x**0.5 => sqrt(x), x**-0.5 => rsqrt(x) for x >= 0"""
    base, exponent = call.args
    number = scalar_of(graph, exponent)
    if number is None or not is_float(call) or not keeps_type(call, base):
        return None
    if number in (1, 2) or (number in range(3, _MAX_PRODUCT + 1) and _may_round_anew(call)):
        return by_squaring(base, int(number), lambda a, b: graph.emit(op.multiply(a, b)))
    if number == -1:
        return op.divide(as_constant(np.ones((), dtype_of(base))), base) if _is_numpy_float(base) else None
    if number in (0.5, -0.5) and is_non_negative(graph, base):
        return op.sqrt(base) if number > 0 else op.rsqrt(base)
    return None


def _is_numpy_float(expr: Expr) -> bool:
    return dtype_of(expr) in ("float16", "float32", "float64")


@rules.on("relax.astype")
def join_casts(graph: Graph, call: Call) -> Expr | None:
    """Drop a cast to the same type; skip an intermediate wider type."""
    source = call.args[0]
    if dtype_of(source) == dtype_of(call) != "":
        return source
    inner = graph.call(source, "relax.astype")
    if inner is None:
        return None
    origin = inner.args[0]
    if not _is_lossless(dtype_of(origin), dtype_of(source)):
        return None
    if dtype_of(origin) == dtype_of(call):
        return origin
    return op.astype(origin, dtype_of(call))


def _is_lossless(source: str, target: str) -> bool:
    """True if `target` represents every value of `source`, so that the cast is lossless."""
    known = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    known |= {"float16", "float32", "float64"}
    if source == "bfloat16":
        return target in ("bfloat16", "float32", "float64")
    return {source, target} <= known and np.can_cast(source, target, "safe")


@rules.on(
    "relax.reshape",
    "relax.flatten",
    "relax.squeeze",
    "relax.expand_dims",
    "relax.broadcast_to",
    "relax.collapse_sum_to",
    "relax.strided_slice",
    "relax.tile",
    "relax.repeat",
)
def drop_identity(graph: Graph, call: Call) -> Expr | None:
    """Drop such an operator if it keeps the shape (a slice: with positive steps)."""
    source = call.args[0]
    if not keeps_type(call, source):
        return None
    if call.op.name == "relax.strided_slice" and len(call.args) > 4:
        strides = getattr(call.args[4], "fields", None)
        if strides is None or any(int(stride) != 1 for stride in strides):
            return None
    return source


@rules.on("relax.take")
def take_of_neighbours(graph: Graph, call: Call) -> Expr | None:
    """take(x, [i, i + 1, ...]) => a slice of x; take(x, i) => a slice of x without the axis"""
    index, shape, result = constant_array(graph, call.args[1]), shape_of(call.args[0]), shape_of(call)
    if index is None or shape is None or result is None or index.ndim > 1 or not 0 < index.size <= 65536:
        return None
    axis = 0 if call.attrs.axis is None else int(call.attrs.axis) % len(shape)
    first, size = int(index.flat[0]), shape[axis]
    if (call.attrs.axis is None and len(shape) != 1) or not isinstance(size, int):
        return None
    if bool((index.reshape(-1) != np.arange(first, first + index.size)).any()):
        return None
    if first < 0 or first + index.size > size:
        return None  # depends on the mode
    piece = op.strided_slice(call.args[0], [axis], [first], [first + index.size])
    return piece if index.ndim == 1 else op.reshape(graph.emit(piece), relax.ShapeExpr(result))


@rules.on("relax.nn.pad")
def drop_empty_pad(graph: Graph, call: Call) -> Expr | None:
    """Drop padding of width zero"""
    return call.args[0] if all(int(width) == 0 for width in call.attrs.pad_width) else None


@rules.on("relax.concat")
def drop_single_concat(graph: Graph, call: Call) -> Expr | None:
    """concat(x) => x"""
    operands = call.args[0]
    fields = list(operands.fields) if isinstance(operands, relax.Tuple) else []
    return fields[0] if len(fields) == 1 and keeps_type(call, fields[0]) else None


@rules.on("relax.sum", "relax.mean", "relax.prod")
def drop_empty_reduction(graph: Graph, call: Call) -> Expr | None:
    """Drop a reduction over axes of size one with keepdims (for max and min this ignores NaN handling)."""
    source = call.args[0]
    return source if keeps_type(call, source) and bool(call.attrs.keepdims) else None
