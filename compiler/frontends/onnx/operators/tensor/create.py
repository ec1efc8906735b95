"""Tensors created from sizes or a single value: ConstantOfShape, Expand, Tile, Range, EyeLike, OneHot, Constant."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import numpy_helper
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import require_shape
from compiler.frontends.onnx.broadcasting import broadcast_shapes, broadcast_to, const
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.loading.loader import dense_from_sparse
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.structure import MAX_DIMENSION
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import Constant, Symbolic, Value, tensor_shape
from schedules.ir.tvm_types import Expr

# Tensors of one value, also used by other families.


def filled(context: NodeContext, value: float | np.generic, dtype: str, sizes: Sequence[Dim]) -> relax.Expr:
    """Return a tensor of one value."""
    scalar = context.literal(value, dtype)
    carrier = dtypes.carrier(dtype)
    # TVM's full() fails on infinities.
    if dtypes.is_float(dtype) and not np.isfinite(np.float64(value)):
        return context.emit(R.broadcast_to(scalar, sizes_expr(sizes)))
    return context.emit(R.full(sizes_expr(sizes), scalar, carrier))


def sizes_expr(sizes: Sequence[Dim]) -> relax.ShapeExpr:
    """Convert sizes to a Relax shape."""
    return relax.ShapeExpr([expression(size) for size in sizes])


# Constant and Identity.

_SCALARS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


@converter("Constant")
def constant(context: NodeContext) -> Value:
    """Return the value in any of its forms: a tensor, a sparse tensor, numbers or strings."""
    reader = context.importer.model.reader
    names = [attribute.name for attribute in context.node.attribute]
    if len(names) != 1:
        context.invalid(f"it must have exactly one value, not {names}")
    (name,) = names
    if name == "value":
        return reader.constant(context.required_attribute(name), f"the value of Constant {context.name!r}")
    if name == "sparse_value":
        sparse = context.required_attribute(name)
        return Constant(dense_from_sparse(sparse, f"the value of Constant {context.name!r}", reader))
    value = context.required_attribute(name)
    if name in ("value_string", "value_strings"):
        return Constant(np.array(value, object), "string")
    if name not in _SCALARS:
        context.invalid(f"it has the unknown attribute {name!r}")
    return Constant(np.array(value, _SCALARS[name]))


@converter("Identity")
def identity(context: NodeContext) -> Value:
    """Return the same value, of any kind."""
    return context.value(0)


def checked_sizes(context: NodeContext, sizes: list[Dim]) -> list[Dim]:
    """Return the sizes of a new tensor; InvalidModelError for negative or absurd ones."""
    known = [size for size in sizes if isinstance(size, int)]
    if any(size < 0 for size in known) or math.prod(size for size in known if size) > MAX_DIMENSION:
        context.invalid(f"the shape {sizes} is absurd")
    return sizes


@converter("ConstantOfShape")
def constant_of_shape(context: NodeContext) -> relax.Expr:
    """Return a tensor of one value."""
    tensor = context.attribute("value", None)
    value = np.zeros(1, np.float32) if tensor is None else numpy_helper.to_array(tensor)
    dtype = "float32" if tensor is None else dtypes.NAMES[tensor.data_type]
    sizes = checked_sizes(context, context.shape_values(0))
    return filled(context, value.reshape(-1)[0], dtype, sizes)


@converter("Expand")
def expand(context: NodeContext) -> relax.Expr:
    """Broadcast with a shape, in both directions."""
    sizes = checked_sizes(context, context.shape_values(1))
    try:
        shape, _ = broadcast_shapes(context, [context.shape(0), sizes])
    except ValueError as error:
        context.invalid(str(error))
    return broadcast_to(context, context.input(0), shape)


@converter("Tile", since=6)
def tile(context: NodeContext) -> relax.Expr:
    """Repeat along each axis; counts may be known only at run time."""
    repeats = checked_sizes(context, context.shape_values(1))
    data, shape = context.input(0), context.shape(0)
    if len(repeats) != len(shape):
        context.invalid(f"{len(repeats)} repeats for {len(shape)} axes")
    if all(isinstance(count, int) for count in repeats):
        return R.tile(data, repeats) if any(count != 1 for count in repeats) else data
    sizes = [context.arithmetic.multiply(size, count) for size, count in zip(shape, repeats, strict=True)]

    def repeat(source: te.Tensor, *counts: Expr) -> te.Tensor:
        target = [size for pair in zip(counts, source.shape, strict=True) for size in pair]
        return te.compute(target, lambda *indices: source(*indices[1::2]), name="tile")

    repeated = context.emit_te(repeat, data, *map(expression, repeats), primfunc_name_hint="tile")
    return context.reshape(repeated, sizes)


@converter("Range")
def arange(context: NodeContext) -> relax.Expr:
    """start, start + delta, ... up to limit; sizes that depend on run-time values are read at run time."""
    dtype = context.dtype(0)
    if dtypes.is_integer(dtype):
        start, limit, delta = (context.shape_values(i, signed=True)[0] for i in range(3))
        return _integer_range(context, start, limit, delta, dtype)
    if any(context.known(i) is None for i in range(3)):
        numbers = [_whole_number(context, i) for i in range(3)]
        if all(number is not None for number in numbers):
            return _integer_range(context, numbers[0], numbers[1], numbers[2], dtype)
        return _computed_range(context, dtype)
    start, limit, delta = (context.scalar(i) for i in range(3))
    if delta == 0:
        context.invalid("delta is 0")
    count = max(0, math.ceil((limit - start) / delta))
    checked_sizes(context, [count])
    numpy_type = dtypes.numpy_dtype(dtype)
    return Constant((start + np.arange(count) * delta).astype(numpy_type), dtype).expr()


def _whole_number(context: NodeContext, index: int) -> Dim | None:
    """Return a float operand as an integer if possible: a constant, or a cast size; otherwise None."""
    known = context.known(index)
    if known is not None:
        number = context.scalar(index)
        return int(number) if math.isfinite(number) and number == int(number) else None
    value = context.tensor(index)
    element = value.array.reshape(-1)[0] if isinstance(value, Symbolic) else None
    if isinstance(element, tirx.Cast) and str(element.value.ty.dtype) == "int64":
        return element.value
    return int(element) if isinstance(element, float | int) and element == int(element) else None


def _computed_range(context: NodeContext, dtype: str) -> relax.Expr:
    """Range of floats whose length is computed at run time."""
    first, last, step = (context.reshape(context.input(i), ()) for i in range(3))
    span = context.emit(R.divide(context.emit(R.subtract(last, first)), step))
    length = context.reshape(context.emit(R.astype(context.emit(R.ceil(span)), "int64")), (1,))
    (count,) = context.importer.builder.shape_values(length, signed=False)

    def values(size: Expr, begin: te.Tensor, stride: te.Tensor) -> te.Tensor:
        return te.compute((size,), lambda i: begin() + i.astype(dtype) * stride(), name="range")

    result = context.emit_te(values, expression(count), first, step, primfunc_name_hint="arange")
    return context.with_simple_sizes(result)


def _integer_range(context: NodeContext, start: Dim, limit: Dim, delta: Dim, dtype: str) -> relax.Expr:
    arithmetic = context.arithmetic
    if isinstance(delta, int) and delta == 0:
        context.invalid("delta is 0")
    span = arithmetic.subtract(limit, start)
    if isinstance(delta, int):
        up = delta > 0
        steps = arithmetic.ceil_divide(span if up else arithmetic.negative(span), abs(delta))
    else:
        distance = arithmetic.select(arithmetic.less(0, delta), span, arithmetic.negative(span))
        steps = arithmetic.ceil_divide(distance, arithmetic.maximum(arithmetic.absolute(delta), 1))
    count = arithmetic.maximum(steps, 0)
    checked_sizes(context, [count])

    def values(size: Expr, first: Expr, step: Expr) -> te.Tensor:
        return te.compute((size,), lambda i: (first + i * step).astype(dtype), name="range")

    result = context.emit_te(values, *map(expression, (count, start, delta)), primfunc_name_hint="arange")
    return context.with_simple_sizes(result)


@converter("EyeLike")
def eye_like(context: NodeContext) -> relax.Expr:
    """Ones on the k-th diagonal of a matrix with the input's shape."""
    dtype = dtypes.NAMES[context.attribute("dtype", dtypes.NUMBERS[context.dtype(0)])]
    offset = context.attribute("k", 0)
    one, zero = (tirx.const(number, dtypes.carrier(dtype)) for number in (1, 0))

    def eye(*sizes: Expr) -> te.Tensor:
        return te.compute(sizes, lambda i, j: tirx.Select(j - i == offset, one, zero), name="eye")

    if context.rank(0) != 2:
        context.invalid(f"its input has rank {context.rank(0)}, not 2")
    return context.emit_te(eye, *map(expression, context.shape(0)), primfunc_name_hint="eye")


@converter("OneHot", since=9)
def one_hot(context: NodeContext) -> relax.Expr:
    """values[1] at the index along a new axis, values[0] elsewhere; negative indices count from the end."""
    indices, values = context.input(0), context.input(2)
    require_shape(context, context.shape(2), [2], "its values")
    depth = _depth(context)
    shape = context.shape(0)
    axis = context.axis(context.attribute("axis", -1), len(shape) + 1)
    sizes = [*shape[:axis], depth, *shape[axis:]]

    def encode(index: te.Tensor, pair: te.Tensor, *target: Expr) -> te.Tensor:
        def element(*position: Expr) -> Expr:
            hot = index(*position[:axis], *position[axis + 1 :]).astype("int64")
            hot = tirx.Select(hot < const(0, hot), hot + target[axis], hot)
            return tirx.Select(hot == position[axis], pair(1), pair(0))

        return te.compute(target, element, name="one_hot")

    return context.emit_te(encode, indices, values, *map(expression, sizes), primfunc_name_hint="one_hot")


def _depth(context: NodeContext) -> Dim:
    is_integer = dtypes.is_integer(context.dtype(1))
    depth = context.shape_values(1)[0] if is_integer else int(context.scalar(1))
    checked_sizes(context, [depth])
    return depth


@converter("Size", "Shape")
def of_no_tensor(context: NodeContext) -> Value:
    """Shapes of tensors are known during import; inputs that reach this converter are not tensors."""
    tensor_shape(context.input(0))
    context.refuse("its input is not a tensor")
