"""cancel-transposes: move transposes and reshapes towards the outputs until they merge or cancel.

    transpose(transpose(x))       => transpose(x), or x
    reshape(reshape(x))           => reshape(x), or x              also flatten, squeeze, expand_dims
    transpose(x)                  => reshape(x)                    when only axes of size 1 move
    f(transpose(x))               => transpose(f(x))               f: elementwise, reduction, pad, slice, concatenation
    f(reshape(x))                 => reshape(f(x))                 f: elementwise, or a matmul with a matrix
    f(reshape(x @ w), y)          => reshape(f(x @ w, reshape(y))) f: binary

A transpose moves only if it has a single consumer, so that none is computed twice. It does not move past softmax or
normalizations, whose kernels need their axis last. Reshapes are preferred to transposes: they copy nothing.

cancel-reshapes: remove a reshape and its inverse, even with elementwise functions between them.

    reshape(f(...reshape(x))) => f(...x), if the outer reshape restores x's shape
    reshape(f(reshape(x), y)) => f(x, reshape(y)), if the inner reshape only inserts dimensions of 1

Kernels then end after the elementwise functions, not at the first reshape, and attention with a mask per image window
is recognized.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.dimension_orders import axes_of, differ_by_ones, order_of_result
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable, operator_name
from compiler.passes.rewriting.matching import (
    BINARY,
    UNARY,
    as_constant,
    constant_array,
    is_one,
    rank_of,
    same_shape,
    same_size,
    shape_of,
)
from schedules.ir.tvm_types import Index

rules = RuleTable()
last_rules = RuleTable()  # after the other rules: a reshape does not merge with a transpose
op = relax.op

PERMUTE = "relax.permute_dims"
RESHAPES = ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims", "relax.nn.batch_flatten")
REDUCTIONS = ("relax.sum", "relax.mean", "relax.max", "relax.min", "relax.prod", "relax.variance", "relax.std")


@graph_pass("cancel-transposes", summary="Move transposes and reshapes down until they merge or cancel")
def cancel_transposes(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return last_rules.apply(rules.apply(mod))


def permuted(graph: Graph, expr: Expr) -> tuple[Expr, list[int]] | None:
    """Return (x, axes) if `expr` is a transpose of x with a single consumer."""
    call = graph.call(expr, PERMUTE)
    axes = axes_of(call) if call is not None and graph.only_use(expr) else None
    return None if call is None or axes is None else (call.args[0], axes)


def reshaped(graph: Graph, expr: Expr) -> Expr | None:
    """Return x if `expr` is a reshape of x with a single consumer."""
    call = graph.call(expr, *RESHAPES)
    return call.args[0] if call is not None and graph.only_use(expr) else None


@rules.on(PERMUTE)
def merge_transposes(graph: Graph, call: Call) -> Expr | None:
    """transpose(transpose(x)) => transpose(x); an identity transpose => x"""
    outer = axes_of(call)
    if outer is None:
        return None
    if outer == list(range(len(outer))):
        return call.args[0]
    inner = graph.call(call.args[0], PERMUTE)
    axes = axes_of(inner) if inner is not None else None
    if inner is None or axes is None:
        return None
    merged = [axes[axis] for axis in outer]
    return inner.args[0] if merged == list(range(len(merged))) else op.permute_dims(inner.args[0], merged)


@rules.on(PERMUTE)
def merge_transposes_around_ones(graph: Graph, call: Call) -> Expr | None:
    """transpose(reshape(transpose(x))) => reshape(transpose(x)), when the reshape adds or drops axes of size 1 only"""
    outer, inner = axes_of(call), graph.call(call.args[0], *RESHAPES)
    first = graph.call(inner.args[0], PERMUTE) if inner is not None else None
    if outer is None or inner is None or first is None:
        return None
    old_shape, new_shape, result = shape_of(inner.args[0]), shape_of(call.args[0]), shape_of(call)
    if old_shape is None or new_shape is None or result is None:
        return None
    if not differ_by_ones(old_shape, new_shape):
        return None
    moved = graph.emit(op.permute_dims(inner.args[0], list(order_of_result(outer, old_shape, new_shape))))
    return op.reshape(moved, relax.ShapeExpr(result))


@last_rules.on(PERMUTE)
def transpose_of_ones(graph: Graph, call: Call) -> Expr | None:
    """transpose(x) => reshape(x), when the axes of size > 1 keep their order"""
    axes, shape, result = axes_of(call), shape_of(call.args[0]), shape_of(call)
    if axes is None or shape is None or result is None:
        return None
    moving = [axis for axis in axes if not is_one(shape[axis])]
    return op.reshape(call.args[0], relax.ShapeExpr(result)) if moving == sorted(moving) else None


@last_rules.on(*RESHAPES)
@rules.on(*RESHAPES)
def merge_reshapes(graph: Graph, call: Call) -> Expr | None:
    """reshape(reshape(x)) => reshape(x), or x"""
    inner = graph.call(call.args[0], *RESHAPES)
    result = shape_of(call)
    if inner is None or result is None:
        return None
    source = inner.args[0]
    return source if same_shape(shape_of(source), result) else op.reshape(source, relax.ShapeExpr(result))


@rules.on(*UNARY)
def move_past_unary(graph: Graph, call: Call) -> Expr | None:
    """f(transpose(x)) => transpose(f(x)); f(reshape(x)) => reshape(f(x))"""
    transpose = permuted(graph, call.args[0])
    if transpose is not None:
        return op.permute_dims(graph.emit(_applied(call, [transpose[0], *list(call.args)[1:]])), transpose[1])
    source, result = reshaped(graph, call.args[0]), shape_of(call)
    if source is None or result is None:
        return None
    return op.reshape(graph.emit(_applied(call, [source, *list(call.args)[1:]])), relax.ShapeExpr(result))


def _applied(call: Call, operands: Sequence[Expr]) -> Call:
    return relax.Call(call.op, list(operands), call.attrs, call.ty_args)


@rules.on(*BINARY)
def transpose_past_binary(graph: Graph, call: Call) -> Expr | None:
    """f(transpose(x), transpose(y)) => transpose(f(x, y)); y may be a constant, which is transposed back"""
    rank = rank_of(call)
    sides = [permuted(graph, operand) for operand in call.args]
    axes = next((side[1] for side in sides if side is not None), None)
    if axes is None or len(axes) != rank:
        return None
    operands: list[Expr] = []
    for operand, side in zip(call.args, sides, strict=True):
        moved = _transposed_back(graph, operand, axes) if side is None else (side[0] if side[1] == axes else None)
        if moved is None:
            return None
        operands.append(moved)
    return op.permute_dims(graph.emit(_applied(call, operands)), axes)


def _transposed_back(graph: Graph, operand: Expr, axes: list[int]) -> Expr | None:
    """Return the constant whose transpose by `axes` is `operand`; scalars are returned unchanged."""
    if rank_of(operand) == 0:
        return operand
    constant = constant_array(graph, operand)
    if constant is None:
        return None
    full = constant.reshape((1,) * (len(axes) - constant.ndim) + constant.shape)
    return as_constant(np.transpose(full, np.argsort(axes)))


@rules.on(*BINARY)
def reshape_past_binary(graph: Graph, call: Call) -> Expr | None:
    """f(reshape(x), reshape(y)) => reshape(f(x, y)) for x and y of equal shape; y may be a scalar"""
    result = shape_of(call)
    sources = [reshaped(graph, operand) for operand in call.args]
    first = next((source for source in sources if source is not None), None)
    if first is None or result is None:
        return None
    operands: list[Expr] = []
    for operand, source in zip(call.args, sources, strict=True):
        if rank_of(operand) == 0:
            operands.append(operand)
            continue
        aligned = source is not None and same_shape(shape_of(operand), result)
        if not aligned or not same_shape(shape_of(source), shape_of(first)):
            return None
        operands.append(source)
    return op.reshape(graph.emit(_applied(call, operands)), relax.ShapeExpr(result))


@rules.on(*BINARY)
def reshape_past_epilogue(graph: Graph, call: Call) -> Expr | None:
    """f(reshape(x), y) => f(x, reshape(y)) for a matmul or convolution x, whose epilogue f then is; y has the shape of
    the result, or is a vector along the last axis, which the reshape keeps"""
    result = shape_of(call)
    for position, operand in enumerate(call.args):
        product, addend = reshaped(graph, operand), call.args[1 - position]
        if product is None or result is None or graph.call(product, "relax.matmul") is None:
            continue
        inner, outer, theirs = shape_of(product), shape_of(operand), shape_of(addend)
        if inner is None or outer is None or theirs is None or not same_shape(outer, result):
            continue
        if same_shape(theirs, result):
            addend = graph.emit(op.reshape(addend, relax.ShapeExpr(inner)))
        elif len(theirs) != 1 or not inner or not same_size(inner[-1], outer[-1]):
            continue
        operands = [product, addend] if position == 0 else [addend, product]
        return op.reshape(graph.emit(_applied(call, operands)), relax.ShapeExpr(result))
    return None


@rules.on("relax.matmul")
def reshape_past_matmul(graph: Graph, call: Call) -> Expr | None:
    """reshape(x) @ w => reshape(x @ w) for a matrix w, if the reshape keeps the last axis"""
    inner = graph.call(call.args[0], *RESHAPES)
    result = shape_of(call)
    if inner is None or result is None or rank_of(call.args[1]) != 2:
        return None
    before, after = shape_of(inner.args[0]), shape_of(call.args[0])
    if before is None or after is None or len(before) < 2 or len(after) < 2 or not same_size(before[-1], after[-1]):
        return None
    product = relax.Call(call.op, [inner.args[0], call.args[1]], call.attrs)
    return op.reshape(graph.emit(product), relax.ShapeExpr(result))


@rules.on(*REDUCTIONS)
def transpose_past_reduction(graph: Graph, call: Call) -> Expr | None:
    """reduce(transpose(x), axes) => transpose(reduce(x, those axes)), without the transpose if none is left"""
    transpose = permuted(graph, call.args[0])
    if transpose is None:
        return None
    source, axes = transpose
    rank, wanted, keep = len(axes), call.attrs.axis, bool(call.attrs.keepdims)
    reduced = list(range(rank)) if wanted is None else [int(axis) % rank for axis in wanted]
    moved = getattr(op, str(call.op.name).removeprefix("relax."))(source, [axes[axis] for axis in reduced], keep)
    if keep:
        return op.permute_dims(graph.emit(moved), axes)
    left = [axes[axis] for axis in range(rank) if axis not in reduced]
    order = [sorted(left).index(axis) for axis in left]
    return moved if order == sorted(order) else op.permute_dims(graph.emit(moved), order)


@rules.on("relax.concat")
def transpose_past_concat(graph: Graph, call: Call) -> Expr | None:
    """concat(transpose(x), transpose(y), ...) => transpose(concat(x, y, ...)); some may be constants"""
    if not isinstance(call.args[0], relax.Tuple) or call.attrs.axis is None:
        return None
    fields = list(call.args[0].fields)
    sides = [permuted(graph, operand) for operand in fields]
    axes = next((side[1] for side in sides if side is not None), None)
    if axes is None:
        return None
    operands: list[Expr] = []
    for operand, side in zip(fields, sides, strict=True):
        constant = side is None and rank_of(operand) == len(axes)
        moved = _transposed_back(graph, operand, axes) if constant else None
        if side is not None and side[1] == axes:
            moved = side[0]
        if moved is None:
            return None
        operands.append(moved)
    axis = axes[int(call.attrs.axis) % len(axes)]
    return op.permute_dims(graph.emit(op.concat(operands, axis)), axes)


@rules.on("relax.nn.pad")
def transpose_past_pad(graph: Graph, call: Call) -> Expr | None:
    """pad(transpose(x)) => transpose(pad(x))"""
    transpose = permuted(graph, call.args[0])
    widths = [int(width) for width in call.attrs.pad_width]
    if transpose is None or len(widths) != 2 * len(transpose[1]):
        return None
    source, axes = transpose
    moved = [0] * len(widths)
    for axis, origin in enumerate(axes):
        moved[2 * origin : 2 * origin + 2] = widths[2 * axis : 2 * axis + 2]
    padded = op.nn.pad(source, moved, str(call.attrs.pad_mode), float(call.attrs.pad_value))
    return op.permute_dims(graph.emit(padded), axes)


@rules.on("relax.strided_slice")
def transpose_past_slice(graph: Graph, call: Call) -> Expr | None:
    """slice(transpose(x)) => transpose(slice(x))"""
    transpose = permuted(graph, call.args[0])
    if transpose is None or not isinstance(call.args[1], relax.Tuple):
        return None
    source, axes = transpose
    moved = relax.Tuple([relax.prim_value(axes[int(axis) % len(axes)]) for axis in call.args[1].fields])
    return op.permute_dims(graph.emit(_applied(call, [source, moved, *list(call.args)[2:]])), axes)


_FUNCTIONS = frozenset(
    {
        *(f"relax.{name}" for name in ("astype", "clip", "erf", "exp", "negative", "sigmoid", "sqrt", "tanh")),
        *(f"relax.nn.{name}" for name in ("gelu", "gelu_tanh", "relu", "relu6", "silu")),
    }
)
_OF_TWO = frozenset(f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum"))
_WITH_SCALARS = frozenset(
    f"relax.{name}" for name in ("quantize", "dequantize", "add", "subtract", "multiply", "divide")
)


reshape_rules = RuleTable()


@graph_pass("cancel-reshapes", summary="Remove reshapes that a later reshape undoes")
def cancel_reshapes(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return reshape_rules.apply(mod)


@reshape_rules.on("relax.reshape")
def reshaped_back(graph: Graph, call: Call) -> Expr | None:
    """reshape(f(reshape(x))) => f(x)"""
    functions: list[Call] = []
    expr = call.args[0]
    while graph.only_use(expr):
        inner = graph.definition(expr)
        if operator_name(inner) == "relax.reshape":
            if not functions or not same_shape(shape_of(inner.args[0]), shape_of(call)):
                return None
            return _on_another_value(graph, functions, inner.args[0])
        if not _is_of_single_elements(graph, inner):
            return None
        functions.append(inner)
        expr = inner.args[0]
    return None


@reshape_rules.on("relax.reshape")
def inserted_dimensions(graph: Graph, call: Call) -> Expr | None:
    """reshape(f(reshape(x), y)) => f(x, reshape(y)), if the inner reshape inserts dimensions of 1"""
    outer = graph.definition(call.args[0])
    if operator_name(outer) not in _OF_TWO or not graph.only_use(call.args[0]):
        return None
    for index, operand in enumerate(outer.args):
        inner = graph.call(operand, "relax.reshape")
        if inner is None or not same_shape(shape_of(inner.args[0]), shape_of(call)):
            continue
        inserted = _inserted(shape_of(inner.args[0]), shape_of(inner))
        outer_operand = outer.args[1 - index]
        shape = None if inserted is None else _without(shape_of(outer_operand), inserted, len(shape_of(inner) or ()))
        if shape is None or not same_shape(shape_of(outer), shape_of(inner)):
            continue
        arguments = [inner.args[0], graph.emit(relax.op.reshape(outer_operand, shape))]
        return relax.Call(outer.op, arguments if index == 0 else arguments[::-1], outer.attrs, outer.ty_args)
    return None


def _inserted(old_shape: Sequence[Index] | None, new_shape: Sequence[Index] | None) -> list[int] | None:
    """Return the axes of `after`, each of extent 1, that are not in `before`; None if the two differ otherwise."""
    if old_shape is None or new_shape is None or len(new_shape) <= len(old_shape):
        return None
    remaining = list(old_shape)
    inserted: list[int] = []
    for axis, size in enumerate(new_shape):
        if remaining and same_shape([size], remaining[:1]) and (size != 1 or len(new_shape) - axis == len(remaining)):
            remaining.pop(0)
        elif isinstance(size, int) and size == 1:
            inserted.append(axis)
        else:
            return None
    return None if remaining else inserted


def _without(shape: Sequence[Index] | None, axes: Sequence[int], rank: int) -> list[Index] | None:
    """Return the shape of a tensor broadcast to `rank` dimensions, without the given axes, whose extent must be 1."""
    if shape is None or len(shape) > rank:
        return None
    full = [*(1 for _ in range(rank - len(shape))), *shape]
    if any(not isinstance(full[axis], int) or full[axis] != 1 for axis in axes):
        return None
    return [size for axis, size in enumerate(full) if axis not in axes]


def _is_of_single_elements(graph: Graph, call: Expr) -> bool:
    """True if each element of the result depends on a single element of the first operand, at any position."""
    name = operator_name(call)
    if name in _FUNCTIONS:
        return True
    if name not in _WITH_SCALARS:
        return False
    arrays = [constant_array(graph, each) for each in list(call.args)[1:]]
    return all(array is not None and array.ndim == 0 for array in arrays)


def _on_another_value(graph: Graph, functions: list[Call], value: Expr) -> Expr:
    """Apply the functions, listed last first, to another value."""
    for function in reversed(functions):
        value = graph.emit(relax.Call(function.op, [value, *list(function.args)[1:]], function.attrs, function.ty_args))
    return value
