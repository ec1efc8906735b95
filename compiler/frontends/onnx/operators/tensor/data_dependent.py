"""NonZero, Compress, Unique: one kernel counts, the count becomes a size, another kernel fills."""

from __future__ import annotations

from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.sort_kernels import (
    comes_before,
    in_sequence,
    int64,
    product,
    sorted_positions,
)
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import tensor_shape
from schedules.annotations import OPAQUE
from schedules.ir.tvm_types import Buffer, Expr, Stmt

_COUNTS = "places follow from a running count"


def size_from(context: NodeContext, count: relax.Expr, name: str = "count") -> Dim:
    """Return a new symbolic size with the value of a one-element int64 tensor."""
    builder = context.importer.builder
    size = builder.dimension(name)
    shape = builder.block_builder.emit(R.tensor_to_shape(count))
    builder.block_builder.match_cast(shape, relax.ShapeType([size]))
    return size


def first_entries(context: NodeContext, data: relax.Expr, size: Dim) -> relax.Expr:
    """Return the first `size` entries along the first axis."""

    def take(tensor: te.Tensor, length: Expr) -> te.Tensor:
        return te.compute((length, *tensor.shape[1:]), lambda *i: tensor(*i), name="first_entries")

    # Opaque, so that it is never fused: a fused kernel would not know a size missing from its inputs' shapes.
    return context.emit_te(
        take, data, expression(size), primfunc_name_hint="first_entries", primfunc_attrs={"op_pattern": OPAQUE}
    )


def parts(context: NodeContext, results: relax.Expr) -> list[relax.Expr]:
    """Return the fields of a kernel's results."""
    count = len(results.ty.fields)
    return [context.block_builder.emit(relax.TupleGetItem(results, index)) for index in range(count)]


def true_positions(context: NodeContext, data: relax.Expr) -> relax.Expr:
    """Return positions in row-major order of the nonzero elements: int64 (count,)."""
    dtype = str(data.ty.dtype)

    def is_set(value: Expr) -> Expr:
        if dtype == "bool":
            return value
        # NaN is nonzero, but TVM's `!=` of floats is false for NaN, and TVM also rewrites `not ==` to it.
        return tirx.Cast("int8", value == tirx.const(0, dtype)) == tirx.const(0, "int8")

    def positions(tensor: te.Tensor) -> list[te.Tensor]:
        total = product(tensor.shape)

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            source, (rows, count) = FlatBuffer(ins[0]), (FlatBuffer(out) for out in outs)
            with IRBuilder() as builder:
                with T.seq_scope():
                    count[0] = int64(0)
                    with in_sequence(total, _COUNTS) as i, T.If(is_set(source[i])), T.Then(), T.seq_scope():
                        rows[count[0]] = i
                        count[0] = count[0] + int64(1)
                return builder.get()

        result: list[te.Tensor] = te.extern(
            [[total], [int64(1)]], [tensor], generate, dtype=["int64", "int64"], name="true_positions"
        )
        return result

    rows, count = parts(context, context.emit_te(positions, data, primfunc_name_hint="true_positions"))
    return first_entries(context, rows, size_from(context, count))


@converter("NonZero", since=9)
def nonzero(context: NodeContext) -> relax.Expr:
    """Indices of the nonzero elements: int64 (rank, count)."""
    shape, rank = context.shape(0), context.rank(0)
    data = context.input(0)
    if rank == 0:
        data = context.reshape(data, (1,))
    if any(isinstance(size, int) and size == 0 for size in shape):
        return context.emit(R.zeros(relax.ShapeExpr([rank, 0]), "int64"))
    flat_positions = true_positions(context, data)
    sizes = shape or [1]

    def coordinates(positions: te.Tensor, *extents: Expr) -> te.Tensor:
        def element(axis: Expr, entry: Expr) -> Expr:
            result: Expr = int64(0)
            for index in range(len(extents)):
                inner = product(extents[index + 1 :])
                own = tirx.floormod(tirx.floordiv(positions[entry], inner), extents[index])
                result = tirx.Select(axis == index, own, result)
            return result

        return te.compute((rank, positions.shape[0]), element, name="coordinates")

    if rank == 0:
        return context.emit(R.zeros(relax.ShapeExpr([0, tensor_shape(flat_positions)[0]]), "int64"))
    operands = [expression(size) for size in sizes]
    return context.emit_te(coordinates, flat_positions, *operands, primfunc_name_hint="coordinates")


@converter("Compress", since=9)
def compress(context: NodeContext) -> relax.Expr:
    """Select slices along an axis, or elements of the flattened tensor, by a condition.

    The condition may be shorter than the axis; the rest is not selected.
    """
    data, condition = context.input(0), context.input(1)
    if context.rank(1) != 1:
        context.invalid(f"its condition must have rank 1, not {context.rank(1)}")
    if context.has_attribute("axis"):
        axis = context.axis(context.attribute("axis", 0), context.rank(0))
    else:
        axis = 0
        data = context.reshape(data, [context.arithmetic.product(context.shape(0))])
    size, length = tensor_shape(data)[axis], context.shape(1)[0]
    if not context.arithmetic.proved(context.arithmetic.less_equal(length, size)):
        if isinstance(length, int) and isinstance(size, int):
            context.invalid(f"its condition has {length} elements for an axis of size {size}")
        condition = _not_longer(context, condition, size)
    return context.emit(R.take(data, true_positions(context, condition), axis, mode="clip"))


def _not_longer(context: NodeContext, condition: relax.Expr, size: Dim) -> relax.Expr:
    """Crop the condition to the size of the axis."""

    def cut(tensor: te.Tensor, limit: Expr) -> te.Tensor:
        return te.compute(tensor.shape, lambda i: tirx.all(i < limit, tensor[i]), name="condition")

    return context.emit_te(cut, condition, expression(size), primfunc_name_hint="condition")


@converter("Unique", since=11)
def unique(context: NodeContext) -> list[relax.Expr]:
    """Distinct elements, or slices along an axis; with their first positions, each input's index among them, and
    counts."""
    data, shape = context.input(0), list(context.shape(0))
    arithmetic = context.arithmetic
    by_axis = context.has_attribute("axis")
    axis = context.axis(context.attribute("axis", 0), len(shape)) if by_axis else 0
    if any(isinstance(size, int) and size == 0 for size in shape):
        nothing = context.emit(R.zeros(relax.ShapeExpr([0]), "int64"))
        distinct = data if by_axis else context.emit(R.zeros(relax.ShapeExpr([0]), str(data.ty.dtype)))
        return [distinct, nothing, nothing, nothing]
    if not by_axis:
        shape = [arithmetic.product(shape)]
        data = context.reshape(data, [shape[0]])
    width = arithmetic.product(d for i, d in enumerate(shape) if i != axis)
    items = data
    if axis:
        order = [axis, *(i for i in range(len(shape)) if i != axis)]
        items = context.emit(R.permute_dims(data, order))
    items = context.reshape(items, [1, shape[axis], width])
    in_order = bool(context.attribute("sorted", 1))
    results = context.emit_te(lambda tensor: _unique_kernel(tensor, in_order), items, primfunc_name_hint="unique")
    first, inverse, counts, number = parts(context, results)
    size = size_from(context, number, "distinct")
    first = first_entries(context, first, size)
    distinct = context.emit(R.take(data, first, axis, mode="clip"))
    return [distinct, first, inverse, first_entries(context, counts, size)]


def _unique_kernel(data: te.Tensor, in_order: bool) -> list[te.Tensor]:
    """Return (first, inverse, counts, number) of the items of (1, n, width); sorted by first occurrence unless
    `in_order`."""
    count, width, dtype = data.shape[1], data.shape[2], str(data.dtype)
    order = sorted_positions(data, width=width)

    def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source, positions = (FlatBuffer(item) for item in ins)
        first, inverse, counts, number, names, state = (FlatBuffer(out) for out in outs)
        with IRBuilder() as builder:
            with T.seq_scope():
                number[0] = int64(0)
                with in_sequence(count, _COUNTS) as i, T.seq_scope():
                    # state[0]: whether the item differs from the previous one in the order.
                    state[0] = tirx.Select(i == int64(0), int64(1), int64(0))
                    previous = positions[tirx.max(i - int64(1), int64(0))]
                    with T.serial(0, width) as k:
                        a, b = source[previous * width + k], source[positions[i] * width + k]
                        with T.If(comes_before(a, b, dtype, descending=False)), T.Then():
                            state[0] = int64(1)
                    with T.If(state[0] == int64(1)), T.Then(), T.seq_scope():
                        first[number[0]] = positions[i]
                        counts[number[0]] = int64(0)
                        number[0] = number[0] + int64(1)
                    inverse[positions[i]] = number[0] - int64(1)
                    counts[number[0] - int64(1)] = counts[number[0] - int64(1)] + int64(1)
                if not in_order:
                    _by_first_occurrence(first, inverse, counts, number, names, state, count)
            return builder.get()

    shapes = [[count], [count], [count], [int64(1)], [count], [int64(1)]]
    outputs = te.extern(shapes, [data, order], generate, dtype=["int64"] * 6, name="unique")
    return [outputs[index] for index in range(4)]


def _by_first_occurrence(
    first: Buffer, inverse: Buffer, counts: Buffer, number: Buffer, names: Buffer, state: Buffer, count: Expr
) -> None:
    """Renumber the groups by first occurrence; `names` maps old group numbers to new ones."""
    state[0] = int64(0)
    with T.serial(0, count) as i, T.If(first[inverse[i]] == i), T.Then(), T.seq_scope():
        names[inverse[i]] = state[0]
        state[0] = state[0] + int64(1)
    with T.serial(0, count) as i:
        inverse[i] = names[inverse[i]]
    # Now recompute the counts and the first positions.
    with T.serial(0, number[0]) as g:
        counts[g] = int64(0)
    with T.serial(0, count) as back, T.seq_scope():
        i = count - int64(1) - back
        first[inverse[i]] = i
        counts[inverse[i]] = counts[inverse[i]] + int64(1)
