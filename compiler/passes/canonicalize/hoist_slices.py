"""hoist-slices: move slices towards the inputs, so that dropped elements are not computed, copied or moved.

    slice(transpose(x)) => transpose(slice(x))
    slice(reshape(x))   => reshape(slice(x))     if the slice maps to one axis of x
    slice(f(x))         => f(slice(x))           f: elementwise, unary or with a constant operand
    slice(x @ w)        => x @ slice(w)          w constant: splits packed projections without a copy

Only past values read by nothing but slices; if these do not overlap, together they do no more work than the original.
"""

from __future__ import annotations

import math

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.canonicalize.cancel_transposes import PERMUTE
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_products import MATMUL, as_linear
from compiler.passes.rewriting.dimension_orders import axes_of
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import (
    BINARY,
    UNARY,
    as_constant,
    constant_array,
    plain,
    same_shape,
    shape_of,
    static_shape,
)

rules = RuleTable()
op = relax.op

SLICE = "relax.strided_slice"


@graph_pass("hoist-slices", summary="Move slices towards the inputs, past transposes, reshapes and arithmetic")
def hoist_slices(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return rules.apply(mod)


def _cut(call: Call) -> tuple[int, int, int] | None:
    """Return (axis, begin, end) of a slice along one axis without strides, with known bounds inside the axis."""
    shape = shape_of(call.args[0])
    fields = [list(getattr(argument, "fields", ())) for argument in list(call.args)[1:]]
    if shape is None or any(len(field) != 1 for field in fields):
        return None
    numbers = [plain(field[0]) for field in fields]
    if not all(isinstance(number, int) for number in numbers) or (len(numbers) > 3 and numbers[3] != 1):
        return None
    axis = numbers[0] % len(shape)
    size = shape[axis]
    if not isinstance(size, int):
        return None
    begin, end = (number + size if number < 0 else min(number, size) for number in numbers[1:3])
    return (axis, begin, end) if 0 <= begin < end <= size else None


def _fits(graph: Graph, call: Call) -> tuple[int, int, int] | None:
    """Return the cut if only slices read its operand and that many of this size fit without overlap."""
    cut, shape = _cut(call), shape_of(call.args[0])
    if cut is None or shape is None or not graph.only_read_by(call.args[0], SLICE):
        return None
    share = graph.uses(call.args[0]) * (cut[2] - cut[1])
    return cut if share <= shape[cut[0]] else None


def _slice(data: Expr, axis: int, begin: int, end: int) -> Expr:
    return op.strided_slice(data, [axis], [begin], [end])


@rules.on(SLICE)
def past_transpose(graph: Graph, call: Call) -> Expr | None:
    """slice(transpose(x)) => transpose(slice(x))"""
    inner = graph.call(call.args[0], PERMUTE)
    axes = axes_of(inner) if inner is not None else None
    cut = _fits(graph, call) if axes is not None else None
    if inner is None or axes is None or cut is None:
        return None
    return op.permute_dims(graph.emit(_slice(inner.args[0], axes[cut[0]], *cut[1:])), axes)


@rules.on(SLICE)
def past_unary(graph: Graph, call: Call) -> Expr | None:
    """slice(f(x)) => f(slice(x))"""
    inner = graph.call(call.args[0], *UNARY)
    cut = _fits(graph, call) if inner is not None else None
    if inner is None or cut is None:
        return None
    piece = graph.emit(_slice(inner.args[0], *cut))
    return relax.Call(inner.op, [piece, *list(inner.args)[1:]], inner.attrs, inner.ty_args)


@rules.on(SLICE)
def past_constant_operand(graph: Graph, call: Call) -> Expr | None:
    """slice(x + c) => slice(x) + slice(c)"""
    inner = graph.call(call.args[0], *BINARY)
    cut = _fits(graph, call) if inner is not None else None
    if inner is None or cut is None:
        return None
    axis, begin, end = cut
    operands = list(inner.args)
    for position in (0, 1):
        constant, operand = constant_array(graph, operands[position]), operands[1 - position]
        if constant is None or not same_shape(shape_of(operand), shape_of(inner)):
            continue
        constant_axis = axis - len(shape_of(inner) or ()) + constant.ndim
        if constant_axis >= 0 and constant.shape[constant_axis] > 1:
            operands[position] = as_constant(constant[(slice(None),) * constant_axis + (slice(begin, end),)])
        operands[1 - position] = graph.emit(_slice(operand, axis, begin, end))
        return relax.Call(inner.op, operands, inner.attrs)
    return None


@rules.on(SLICE)
def past_matmul(graph: Graph, call: Call) -> Expr | None:
    """slice(x @ w) => x @ slice(w), the columns; slice(w @ x) => slice(w) @ x, the rows"""
    inner = graph.call(call.args[0], MATMUL)
    linear = as_linear(graph, inner) if inner is not None else None
    cut = _fits(graph, call) if linear is not None else None
    if linear is None or cut is None or cut[0] != linear.channel_axis:
        return None
    columns = (slice(None),) * linear.out_axis + (slice(cut[1], cut[2]),)
    return linear.rebuilt(linear.weight[columns])


@rules.on(SLICE)
def past_reshape(graph: Graph, call: Call) -> Expr | None:
    """slice(reshape(x)) => reshape(slice(x))"""
    inner = graph.call(call.args[0], "relax.reshape")
    cut = _fits(graph, call) if inner is not None else None
    source, middle, result = (
        (static_shape(inner.args[0]), static_shape(call.args[0]), static_shape(call))
        if inner is not None
        else (None, None, None)
    )
    if inner is None or cut is None or source is None or middle is None or result is None:
        return None
    axis, begin, end = cut
    split = _outer_axis(source, middle, axis)
    if split is None:
        return None
    outer, step = split
    return op.reshape(graph.emit(_slice(inner.args[0], outer, begin * step, end * step)), relax.ShapeExpr(result))


def _outer_axis(source: tuple[int, ...], middle: tuple[int, ...], axis: int) -> tuple[int, int] | None:
    """Return the axis of `source` whose outermost part is `axis` of `middle`, and its number of elements per step.

    Row-major: the axes before `axis`, and the axes up to and including it, must each be whole axes of `source`.
    """
    leading = math.prod(middle[:axis])
    for outer in range(len(source)):
        if math.prod(source[:outer]) == leading and source[outer] > 1:
            step, rest = divmod(source[outer], middle[axis])
            return (outer, step) if rest == 0 else None
    return None
