"""NonMaxSuppression: one vector operation compares a candidate with a block of the boxes kept so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.bounds import require_shape
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.data_dependent import first_entries, parts, size_from
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_sequence, int64
from compiler.frontends.onnx.operators.tensor.top_k import first_positions
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import expression
from compiler.frontends.onnx.values import tensor_shape
from schedules.ir.tvm_types import Expr, Stmt, Tensor

_BLOCK = 16  # kept boxes compared at once: a vector of AVX-512
_AREA = 4  # the row of areas, after those of the four corners


@converter("NonMaxSuppression", since=10)
def non_max_suppression(context: NodeContext) -> relax.Expr:
    """Return (batch, class, box) of the boxes kept: int64 (count, 3); inputs: boxes, scores, maximum per class, overlap
    limit, score threshold.

    In each class the boxes are processed by descending score, ties by position; a box is dropped if its overlap with a
    kept one (intersection over union) exceeds the limit.
    """
    boxes, scores = context.input(0), context.input(1)
    batch, classes, count = context.shape(1)
    require_shape(context, context.shape(0), [batch, count, 4], "the boxes")
    rows = context.arithmetic.product((batch, classes))
    flat = context.reshape(scores, [rows, count])
    order = context.emit_te(
        lambda tensor: first_positions(tensor, tensor.shape[1], descending=True), flat, primfunc_name_hint="positions"
    )
    limits = [_scalar(context, 2, 0, "int64"), _scalar(context, 3, 0.0, "float32"), _scalar(context, 4, 0.0, "float32")]
    kernel = _suppression_kernel(bool(context.attribute("center_point_box", 0)), context.has_input(4))
    operands = [boxes, flat, order, *limits, expression(classes)]
    results = context.emit_te(kernel, *operands, primfunc_name_hint="non_max_suppression")
    selected, number = parts(context, results)
    return first_entries(context, selected, size_from(context, number, "selected"))


def _scalar(context: NodeContext, index: int, default: float, dtype: str) -> relax.Expr:
    if not context.has_input(index):
        return context.literal(default, dtype, (1,))
    expr = context.input(index)
    return expr if tensor_shape(expr) == (1,) else context.reshape(expr, (1,))


def _suppression_kernel(centered: bool, has_threshold: bool) -> Callable[..., list[Tensor]]:
    def kernel(boxes: te.Tensor, scores: te.Tensor, order: te.Tensor, *operands: Expr) -> list[te.Tensor]:
        *limits, classes = operands
        rows, count = scores.shape
        capacity = count + int64(_BLOCK)

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            box, score, positions, most, overlap, least = (FlatBuffer(item) for item in ins)
            chosen, number, first, is_kept, kept_rows, is_hit, position = (FlatBuffer(out) for out in outs)
            kept_boxes = _KeptBoxes(kept_rows, is_hit, position, capacity, overlap[0])
            with IRBuilder() as builder, T.seq_scope():
                number[0] = int64(0)
                with T.serial(0, rows) as row, T.seq_scope():
                    first[0] = number[0]
                    with in_sequence(count, "a box depends on the ones kept before it") as i, T.seq_scope():
                        index = positions[row * count + i]
                        selected = number[0] - first[0]
                        candidate = _box(box, tirx.floordiv(row, classes) * count + index, centered)
                        is_kept[0] = tirx.Select(selected < most[0], int64(1), int64(0))
                        if has_threshold:
                            with T.If(tirx.Not(score[row * count + index] > least[0])), T.Then():
                                is_kept[0] = int64(0)
                        kept_boxes.compare(candidate, selected, is_kept)
                        with T.If(is_kept[0] == int64(1)), T.Then(), T.seq_scope():
                            kept_boxes.append(candidate, selected)
                            entry = (tirx.floordiv(row, classes), tirx.floormod(row, classes), index)
                            for part, value in enumerate(entry):
                                chosen[number[0] * int64(3) + int64(part)] = value
                            number[0] = number[0] + int64(1)
            return builder.get()

        one = [int64(1)]
        shapes = [[rows * count, int64(3)], one, one, one, [int64(5) * capacity], [int64(_BLOCK)], one]
        dtypes = ["int64", "int64", "int64", "int64", "float32", "int32", "int64"]
        operands = (boxes, scores, order, *limits)
        outputs = te.extern(shapes, list(operands), generate, dtype=dtypes, name="non_max_suppression")
        return [outputs[0], outputs[1]]

    return kernel


def _box(box: Expr, position: Expr, centered: bool) -> list[Expr]:
    """Return two low corners, two high ones in the same order, and the area."""
    a, b, c, d = (box[position * int64(4) + int64(i)] for i in range(4))
    if centered:
        half = tirx.const(2.0, "float32")
        corners = [b - d / half, a - c / half, b + d / half, a + c / half]
    else:
        corners = [tirx.min(a, c), tirx.min(b, d), tirx.max(a, c), tirx.max(b, d)]
    return [*corners, (corners[2] - corners[0]) * (corners[3] - corners[1])]


class _KeptBoxes:
    """Boxes kept of a class, as rows of corners and areas: (5 * capacity,), filled in whole blocks."""

    def __init__(self, rows: Expr, is_hit: Expr, position: Expr, capacity: Expr, limit: Expr) -> None:
        self._rows, self._is_hit, self._position = rows, is_hit, position
        self._capacity, self._limit = capacity, limit

    def compare(self, candidate: Sequence[Expr], count: Expr, is_kept: Expr) -> None:
        """Set `is_kept` to 0 if the candidate overlaps with one of the first `count` boxes."""
        position, is_hit = self._position, self._is_hit
        position[0] = int64(0)
        with T.While(tirx.all(is_kept[0] == int64(1), position[0] < count)), T.seq_scope():
            with T.vectorized(0, int64(_BLOCK)) as lane:
                others = [self._rows[self._offset(part, position[0] + lane)] for part in range(5)]
                is_hit[lane] = tirx.Cast("int32", self._overlaps(candidate, others))
            with T.serial(0, int64(_BLOCK)) as lane:
                is_kept[0] = tirx.Select(is_hit[lane] != tirx.const(0, "int32"), int64(0), is_kept[0])
            position[0] = position[0] + int64(_BLOCK)

    def append(self, candidate: Sequence[Expr], count: Expr) -> None:
        """Append the candidate after `count` others."""
        # A new block is cleared first: a box without area overlaps with none.
        with T.serial(0, tirx.Select(tirx.floormod(count, int64(_BLOCK)) == int64(0), int64(_BLOCK), int64(0))) as lane:
            self._rows[self._offset(_AREA, count + lane)] = tirx.const(0.0, "float32")
        for part, value in enumerate(candidate):
            self._rows[self._offset(part, count)] = value

    def _offset(self, part: int, index: Expr) -> Expr:
        return int64(part) * self._capacity + index

    def _overlaps(self, first: Sequence[Expr], second: Sequence[Expr]) -> Expr:
        zero = tirx.const(0.0, "float32")
        height = tirx.max(tirx.min(first[2], second[2]) - tirx.max(first[0], second[0]), zero)
        width = tirx.max(tirx.min(first[3], second[3]) - tirx.max(first[1], second[1]), zero)
        common = height * width
        union = first[_AREA] + second[_AREA] - common
        is_sound = tirx.all(common > zero, first[_AREA] > zero, second[_AREA] > zero, union > zero)
        return tirx.all(is_sound, common / union > self._limit)
