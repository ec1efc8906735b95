"""TopK and NonMaxSuppression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.onnx.bounds import require, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.data_dependent import first_entries, parts, size_from
from compiler.frontends.onnx.operators.tensor.reshape import reshaped
from compiler.frontends.onnx.operators.tensor.sort_kernels import int64, sorted_positions
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import tensor_shape

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Stmt, Tensor


@converter("TopK")
def top_k_by_attribute(context: NodeContext) -> list[relax.Expr]:
    """The first version: k is an attribute."""
    return _top_k(context, int(context.required_attribute("k")))


@converter("TopK", since=10)
def top_k(context: NodeContext) -> list[relax.Expr]:
    """The k largest or smallest along an axis and their positions, in order; equal ones by position.

    k may be known, symbolic, or computed when the module runs.
    """
    axis = context.axis(context.attribute("axis", -1), context.rank(0))
    if context.known(1) is None:
        require_values(context, 1, 0, context.arithmetic.add(context.shape(0)[axis], 1))
    if context.known(1) is None and any(not isinstance(size, int) for size in context.shape(1)):
        (k,) = context.importer.builder.shape_values(context.match_shape(context.input(1), [1]), signed=False)
    else:
        (k,) = context.shape_values(1)
    return _top_k(context, k)


def _top_k(context: NodeContext, k: Dim) -> list[relax.Expr]:
    shape, rank = list(context.shape(0)), context.rank(0)
    axis = context.axis(context.attribute("axis", -1), rank)
    if isinstance(k, int) and (k < 0 or (isinstance(shape[axis], int) and k > shape[axis])):
        context.invalid(f"k is {k} for an axis of size {shape[axis]}")
    require(context, shape[axis], "at least", k)
    order = [*(i for i in range(rank) if i != axis), axis]
    data = context.input(0)
    moved = data if axis == rank - 1 else context.emit(R.permute_dims(data, order))
    outer = [shape[i] for i in order[:-1]]
    rows = context.arithmetic.product(outer)
    flat = reshaped(context, moved, [rows, shape[axis]])
    largest = bool(context.attribute("largest", 1))
    results = parts(context, context.emit_te(_top_k_kernel(largest), flat, expression(k), primfunc_name_hint="top_k"))
    back = [order.index(i) for i in range(rank)]
    shaped = [reshaped(context, result, [*outer, k]) for result in results]
    return shaped if axis == rank - 1 else [context.emit(R.permute_dims(r, back)) for r in shaped]


def _top_k_kernel(largest: bool) -> Callable[..., Sequence[Tensor]]:
    def kernel(data: te.Tensor, k: Expr) -> list[te.Tensor]:
        order = sorted_positions(data, descending=largest)
        rows = data.shape[0]
        positions = te.compute((rows, k), lambda r, i: order[r, i], name="positions")
        values = te.compute((rows, k), lambda r, i: data[r, order[r, i]], name="values")
        return [values, positions]

    return kernel


@converter("NonMaxSuppression", since=10)
def non_max_suppression(context: NodeContext) -> relax.Expr:
    """(batch, class, box) of the boxes kept: int64 (count, 3); boxes, scores, most a class, overlap, least score.

    In each class the boxes go by falling score, equal ones by position; one is dropped when its overlap with one
    that was kept (intersection over union) is above the limit.
    """
    boxes, scores = context.input(0), context.input(1)
    batch, classes, count = context.shape(1)
    require_shape(context, context.shape(0), [batch, count, 4], "the boxes")
    rows = context.arithmetic.product((batch, classes))
    flat = context.emit(R.reshape(scores, relax.ShapeExpr([expression(rows), expression(count)])))
    order = context.emit_te(
        lambda tensor: sorted_positions(tensor, descending=True), flat, primfunc_name_hint="sorted_positions"
    )
    limits = [
        _scalar(context, 2, 0, "int64"),
        _scalar(context, 3, 0.0, "float32"),
        _scalar(context, 4, 0.0, "float32"),
    ]
    kernel = _suppression_kernel(bool(context.attribute("center_point_box", 0)), context.has_input(4))
    operands = [boxes, flat, order, *limits, expression(classes)]
    results = context.emit_te(kernel, *operands, primfunc_name_hint="non_max_suppression")
    selected, number = parts(context, results)
    return first_entries(context, selected, size_from(context, number, "selected"))


def _scalar(context: NodeContext, index: int, default: float, dtype: str) -> relax.Expr:
    if not context.has_input(index):
        return context.literal(default, dtype, (1,))
    expr = context.input(index)
    return expr if tensor_shape(expr) == (1,) else context.emit(R.reshape(expr, (1,)))


def _suppression_kernel(centered: bool, has_threshold: bool) -> Callable[..., Tensor]:
    def kernel(boxes: te.Tensor, scores: te.Tensor, order: te.Tensor, *operands: Expr) -> list[te.Tensor]:
        *limits, classes = operands
        rows, count = scores.shape

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            box, score, places, most, overlap, least = (T.buffer_proxy(item) for item in ins)
            chosen, number, state = (T.buffer_proxy(out) for out in outs)

            def corners(row: Expr, index: Expr) -> list[Expr]:
                """(low y, low x, high y, high x)."""
                base = (tirx.floordiv(row, classes) * count + index) * int64(4)
                a, b, c, d = (box[base + int64(i)] for i in range(4))
                if centered:
                    half = tirx.const(2.0, "float32")
                    return [b - d / half, a - c / half, b + d / half, a + c / half]
                return [tirx.min(a, c), tirx.min(b, d), tirx.max(a, c), tirx.max(b, d)]

            def overlaps(row: Expr, first: Expr, second: Expr) -> Expr:
                p, q = corners(row, first), corners(row, second)
                zero = tirx.const(0.0, "float32")
                height = tirx.max(tirx.min(p[2], q[2]) - tirx.max(p[0], q[0]), zero)
                width = tirx.max(tirx.min(p[3], q[3]) - tirx.max(p[1], q[1]), zero)
                common = height * width
                area_p, area_q = (p[2] - p[0]) * (p[3] - p[1]), (q[2] - q[0]) * (q[3] - q[1])
                union = area_p + area_q - common
                sound = tirx.all(common > zero, area_p > zero, area_q > zero, union > zero)
                return tirx.all(sound, common / union > overlap[0])

            with IRBuilder() as builder:
                with T.seq_scope():
                    number[0] = int64(0)
                    with T.serial(0, rows) as row, T.seq_scope():
                        state[0] = number[0]  # where this class begins
                        with T.serial(0, count) as i, T.seq_scope():
                            index = places[row * count + i]
                            state[1] = tirx.Select(number[0] - state[0] < most[0], int64(1), int64(0))
                            if has_threshold:
                                with T.If(tirx.Not(score[row * count + index] > least[0])), T.Then():
                                    state[1] = int64(0)
                            unsettled = state[1] == int64(1)
                            with T.serial(0, number[0] - state[0]) as k, T.If(unsettled), T.Then():
                                kept = chosen[(state[0] + k) * int64(3) + int64(2)]
                                with T.If(overlaps(row, index, kept)), T.Then():
                                    state[1] = int64(0)
                            with T.If(state[1] == int64(1)), T.Then(), T.seq_scope():
                                place = number[0] * int64(3)
                                chosen[place] = tirx.floordiv(row, classes)
                                chosen[place + int64(1)] = tirx.floormod(row, classes)
                                chosen[place + int64(2)] = index
                                number[0] = number[0] + int64(1)
                return builder.get()

        inputs = [boxes, scores, order, *limits]
        shapes = [[rows * count, int64(3)], [int64(1)], [int64(2)]]
        outputs = te.extern(shapes, inputs, generate, dtype=["int64"] * 3, name="non_max_suppression")
        return [outputs[0], outputs[1]]

    return kernel
