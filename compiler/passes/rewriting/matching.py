"""Queries on expressions for rules: constants, shapes, data types; elementwise operators, non-negative results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm.sym import Analyzer

from compiler.passes.rewriting.graph import Expr, Graph, operator_name
from schedules.ir.tvm_types import Index

_ALIGNMENT = 64  # bytes


Array = np.ndarray


def both_orders(call: Expr) -> tuple[tuple[Expr, Expr], tuple[Expr, Expr]]:
    """Return the two operands of a commutative call in both orders."""
    left, right = call.args
    return (left, right), (right, left)


def constant_array(graph: Graph, expr: Expr) -> Array | None:
    """Return the value if `expr` is a constant: a read-only view of the constant's memory."""
    value = graph.definition(expr)
    return array_of(value) if isinstance(value, GenericConst) else None


def array_of(constant: Expr) -> Array:
    """Return the value of a constant; a copy only for data types numpy lacks, such as bfloat16."""
    try:
        view: Array = np.from_dlpack(constant.value)
    except (RuntimeError, TypeError, BufferError):
        return constant.value.numpy()
    view.flags.writeable = False
    return view


def as_constant(array: Array) -> Expr:
    """Convert `array` to a constant of the same data type (`relax.const` would turn int64 into int32)."""
    return relax.const(tvm.runtime.tensor(np.ascontiguousarray(array).reshape(array.shape)))


def shared_constant(array: Array) -> Expr:
    """Convert `array` to a constant that shares its memory if it is aligned like kernels' constants: it must not be
    modified afterwards."""
    aligned = array.ctypes.data % _ALIGNMENT == 0 and array.flags.c_contiguous and array.flags.writeable
    return relax.const(tvm.runtime.from_dlpack(array)) if array.size and aligned else as_constant(array)


def scalar_of(graph: Graph, expr: Expr) -> float | int | bool | None:
    """Return the number if `expr` is a one-element constant, or one with few, equal elements."""
    array = constant_array(graph, expr)
    if array is None or array.size == 0 or array.size > 65536:
        return None
    first = array.flat[0]
    if array.size > 1 and not bool((array == first).all()):
        return None
    number: float | int | bool = first.item()
    return number


def is_scalar_constant(graph: Graph, expr: Expr, number: float) -> bool:
    """True if `expr` is a one-element constant close to `number` (to the precision of its data type)."""
    value = graph.definition(expr)
    if not isinstance(value, GenericConst):
        return False
    array = array_of(value)
    if array.size != 1:
        return False
    rounding = 1e-3 if array.dtype.itemsize <= 2 else 1e-6
    return abs(float(array.reshape(())) - number) <= rounding * max(1.0, abs(number))


def shape_of(expr: Expr) -> list[Index] | None:
    """Return the dimensions of a tensor: ints if known, otherwise symbolic expressions; None if unknown."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        return None
    return [plain(value) for value in ty.shape.values]


def plain(value: Expr) -> Index:
    """Convert integer literals to int."""
    return int(value) if isinstance(value, int | tvm.tirx.IntImm) else value


def static_shape(expr: Expr) -> tuple[int, ...] | None:
    """Return the dimensions if all are known."""
    shape = shape_of(expr)
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(shape)


def rank_of(expr: Expr) -> int | None:
    """Return the number of dimensions of a tensor, None if unknown."""
    ty = expr.ty
    return int(ty.ndim) if isinstance(ty, relax.TensorType) and ty.ndim >= 0 else None


def dtype_of(expr: Expr) -> str:
    """Return the data type of a tensor, "" for other values or if unknown."""
    ty = expr.ty
    return str(ty.dtype) if isinstance(ty, relax.TensorType) and ty.dtype is not None else ""


def is_one(size: Index) -> bool:
    """True if a dimension is known to be 1."""
    return isinstance(size, int) and size == 1


def without_ones(shape: Sequence[Index]) -> list[Index]:
    """Return the sizes of a shape other than 1."""
    return [size for size in shape if not is_one(size)]


def same_size(left: Index, right: Index) -> bool:
    """True if two dimensions are provably equal."""
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    return bool(Analyzer().can_prove_equal(left, right))


def same_shape(left: Sequence[Index] | None, right: Sequence[Index] | None) -> bool:
    """True if two shapes are provably equal; False if either is unknown."""
    if left is None or right is None or len(left) != len(right):
        return False
    return all(same_size(a, b) for a, b in zip(left, right, strict=True))


def is_float(expr: Expr) -> bool:
    """True if `expr` is a tensor of floating-point numbers."""
    return "float" in dtype_of(expr)


_UNARY = """
    abs acos acosh asin asinh astype atan atanh bitwise_not ceil clip cos cosh erf exp floor isfinite isinf isnan log
    logical_not negative round rsqrt sigmoid sign sin sinh sqrt square tan tanh trunc
    nn.gelu nn.gelu_tanh nn.leakyrelu nn.relu nn.selu nn.silu nn.softplus
"""
_BINARY = """
    add atan2 bitwise_and bitwise_or bitwise_xor divide equal floor_divide floor_mod greater greater_equal left_shift
    less less_equal log_add_exp logical_and logical_or logical_xor maximum minimum mod multiply not_equal power
    right_shift subtract
"""

# One tensor operand, the first; further operands are numbers.
UNARY = tuple(f"relax.{name}" for name in _UNARY.split())
# Two tensor operands that broadcast against each other.
BINARY = tuple(f"relax.{name}" for name in _BINARY.split())


_ALWAYS = {"exp", "sigmoid", "abs", "square", "nn.softmax", "variance", "std", "nn.softplus"}
# Operators whose results are non-negative if their operands are.
_INHERITED = {"sum", "mean", "max", "min", "prod", "reshape", "add", "multiply", "divide", "permute_dims"}
_INHERITED |= {"broadcast_to", "maximum", "minimum", "expand_dims", "squeeze", "astype", "strided_slice"}
_INHERITED |= {"sqrt", "rsqrt", "nn.relu", "take"}


def is_non_negative(graph: Graph, expr: Expr, depth: int = 6) -> bool:
    """True if every element that is not NaN is provably at least +0 (-0 is not: 1/sqrt(-0) is -inf)."""
    constant = constant_array(graph, expr)
    if constant is not None:
        return constant.size <= 4096 and not bool((np.signbit(constant) | np.isnan(constant)).any())
    value = graph.definition(expr)
    name = (operator_name(value) or "").removeprefix("relax.")
    if not name or depth == 0:
        return False
    if name in _ALWAYS or (name == "multiply" and value.args[0].same_as(value.args[1])):
        return True
    tensors = value.args[:1] if name == "take" else [each for each in value.args if dtype_of(each)]
    return name in _INHERITED and all(is_non_negative(graph, operand, depth - 1) for operand in tensors)
