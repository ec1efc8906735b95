"""Mixtures of experts: routing of rows to experts, and matmuls of each row with its expert's weight.

Rows are sorted by expert once, so that a prompt reads each expert's weights once for all of its rows, and a single
token reads only those of its own experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.passes.rewriting.block_weights import BlockWeight, rounded_rows
from compiler.passes.rewriting.graph import Expr
from compiler.passes.rewriting.matching import Array, as_constant
from schedules.annotations import FUSABLE, OPAQUE
from schedules.ir.tvm_types import Stmt
from schedules.matmul.blocks.expressions import PANEL, expert_matmul


@dataclass(frozen=True)
class Routing:
    """Routing of rows. A slot is one row of data at one of its experts; slots are sorted by expert.

    Attributes:
        experts: int64 (slots,), the expert of each slot.
        rows: int64 (slots,), the row of data that each slot holds.
        slots: int64 (rows, chosen), the slots of each row.
        scores: float32 (rows, chosen), the scores of the chosen experts, largest first.
    """

    experts: Expr
    rows: Expr
    slots: Expr
    scores: Expr


def route(builder: relax.BlockBuilder, scores: Expr, chosen: int) -> Routing:
    """Choose the experts with the largest scores; ties go to the first.

    Args:
        builder: inside a function.
        scores: float32 (rows, experts); the number of rows may be symbolic.
        chosen: number of experts per row.
    """
    call = builder.call_te(_routes, scores, chosen, primfunc_name_hint="route", primfunc_attrs={"op_pattern": OPAQUE})
    found = builder.emit(call)
    experts, rows, slots, taken = (builder.emit(relax.TupleGetItem(found, index)) for index in range(4))
    return Routing(experts, rows, slots, taken)


def limited_to_groups(builder: relax.BlockBuilder, scores: Expr, groups: int, chosen: int, best: int) -> Expr:
    """Set scores (rows, experts) of experts outside the best groups of neighbors to the lowest number, emitted.

    Args:
        builder: inside a function.
        scores: float32.
        groups, chosen: number of groups, and of groups kept; ties go to the first.
        best: rank groups by their largest score (1) or by the sum of their two largest (2).
    """

    def compute(scores: te.Tensor) -> te.Tensor:
        rows, per_group = scores.shape[0], int(scores.shape[1]) // groups
        least = tirx.min_value("float32")
        axes = [te.reduce_axis((0, per_group), name=name) for name in ("first", "second")[:best]]

        def counted(row: Expr, group: Expr) -> Expr:
            parts = [scores[row, group * per_group + axis] for axis in axes]
            total = parts[0] if best == 1 else tirx.if_then_else(axes[0] < axes[1], parts[0] + parts[1], least)
            return te.max(total, axis=axes)

        counts = te.compute((rows, groups), counted, name="group_scores")
        other = te.reduce_axis((0, groups), name="other")

        def better(row: Expr, group: Expr) -> Expr:
            mine, its = counts[row, group], counts[row, other]
            first = tirx.any(its > mine, tirx.all(tirx.EQ(its, mine), other < group))
            return te.sum(tirx.if_then_else(first, tirx.const(1, "int32"), tirx.const(0, "int32")), axis=other)

        ranks = te.compute((rows, groups), better, name="group_ranks")

        def kept(row: Expr, expert: Expr) -> Expr:
            return tirx.if_then_else(ranks[row, tirx.floordiv(expert, per_group)] < chosen, scores[row, expert], least)

        return te.compute(scores.shape, kept, name="limited")

    return builder.emit_te(compute, scores, primfunc_name_hint="limit_to_groups")


def expert_product(
    builder: relax.BlockBuilder, data: Expr, weight: BlockWeight, columns: int, experts: Expr, activations: str
) -> Expr:
    """Multiply each slot by the weight of its expert: float32 (slots, columns), emitted.

    Args:
        builder: inside a function.
        data: the result of `expert_rows`, or float32 (slots, depth).
        weight: the experts' weights one after another, each `columns` columns rounded up to whole panels of 32.
        columns: number of columns of one expert.
        experts: int64 (slots,), sorted.
        activations: see `block_product`; bfloat16 weights are multiplied by float32 data.

    Raises ValueError if the weight does not consist of whole experts.
    """
    each = -(-columns // PANEL) * PANEL
    if weight.columns % each:
        raise ValueError(f"{weight.columns} columns are not a whole number of experts of {each}")
    if weight.order is not None:
        data = _ordered(builder, data, weight.order, experts)
    if str(data.ty.dtype) != "int32":
        data = rounded_rows(builder, data, weight, activations)
    form = {**weight.form, "columns": columns}
    return builder.emit(
        builder.call_te(
            expert_matmul,
            data,
            experts,
            *weight.constants(),
            **form,
            primfunc_name_hint="expert_matmul",
            primfunc_attrs={"op_pattern": FUSABLE},
        )
    )


def padded_experts(values: Array) -> Array:
    """Flatten weights (experts, columns, depth) to one matrix (experts * columns, depth), zero-padding each expert to
    whole panels of columns."""
    missing = -values.shape[1] % PANEL
    whole = np.pad(values, ((0, 0), (0, missing), (0, 0))) if missing else values
    return whole.reshape(-1, values.shape[2])


def expert_rows(
    builder: relax.BlockBuilder, data: Expr, routing: Routing, weight: BlockWeight, activations: str
) -> Expr:
    """Gather rows (rows, depth) into slots, quantized as matmuls with a weight read them, unless experts have their own
    orders, in which case the matmuls quantize."""
    if weight.order is None:
        data = rounded_rows(builder, data, weight, activations)
    return builder.emit(R.take(data, routing.rows, axis=0))


def scaled_slots(builder: relax.BlockBuilder, data: Expr, scores: Expr, routing: Routing) -> Expr:
    """Gather rows (rows, depth) into slots, each multiplied by the score (rows, experts) of its expert: (slots,
    depth)."""

    def compute(data: te.Tensor, scores: te.Tensor, rows: te.Tensor, experts: te.Tensor) -> te.Tensor:
        def element(slot: Expr, at: Expr) -> Expr:
            return data[rows[slot], at] * scores[rows[slot], experts[slot]]

        return te.compute((rows.shape[0], data.shape[1]), element, name="scaled_slots")

    call = builder.call_te(
        compute,
        data,
        scores,
        routing.rows,
        routing.experts,
        primfunc_name_hint="scaled_slots",
        primfunc_attrs={"op_pattern": OPAQUE},
    )
    return builder.emit(call)


def _ordered(builder: relax.BlockBuilder, data: Expr, order: Array, experts: Expr) -> Expr:
    """Permute data (slots, depth) to the order of each slot's expert."""

    def compute(rows: te.Tensor, orders: te.Tensor, chosen: te.Tensor) -> te.Tensor:
        return te.compute(rows.shape, lambda slot, at: rows[slot, orders[chosen[slot], at]], name="ordered")

    return builder.emit_te(compute, data, as_constant(order), experts, primfunc_name_hint="in_order_of_experts")


def scores_of_chosen(builder: relax.BlockBuilder, scores: Expr, routing: Routing) -> Expr:
    """Gather from scores (rows, experts) those of each row's selected experts: float32 (rows, chosen)."""

    def compute(scores: te.Tensor, positions: te.Tensor, experts: te.Tensor) -> te.Tensor:
        return te.compute(
            positions.shape, lambda row, at: scores[row, experts[positions[row, at]]], name="chosen_scores"
        )

    return builder.emit_te(compute, scores, routing.slots, routing.experts, primfunc_name_hint="chosen_scores")


def combined(builder: relax.BlockBuilder, results: Expr, routing: Routing, weights: Expr) -> Expr:
    """Sum each row's slots, weighted by float32 (rows, chosen): (slots, width) -> (rows, width)."""

    def compute(slots: te.Tensor, positions: te.Tensor, factors: te.Tensor) -> te.Tensor:
        chosen = int(positions.shape[1])

        def element(row: Expr, column: Expr) -> Expr:
            parts = [factors[row, at] * slots[positions[row, at], column] for at in range(chosen)]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            return total

        return te.compute((positions.shape[0], slots.shape[1]), element, name="combined")

    return builder.emit_te(compute, results, routing.slots, weights, primfunc_name_hint="combine_experts")


def _routes(scores: te.Tensor, chosen: int) -> list[te.Tensor]:
    """Return (experts, rows, slots, scores), then the experts of each row and a count per expert, which are unused."""
    rows, count, each = scores.shape[0], scores.shape[1], tirx.const(chosen, "int64")
    shapes = [(rows * each,), (rows * each,), (rows, each), (rows, each), (rows, each), (count,)]
    names = ["experts", "rows", "slots", "scores", "choice", "ends"]
    dtypes = ["int64", "int64", "int64", "float32", "int64", "int64"]
    outputs = [
        tirx.decl_buffer(shape, dtype, name, layout=None)
        for shape, dtype, name in zip(shapes, dtypes, names, strict=True)
    ]

    def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                _choose(ins[0], outs[3], outs[4])
                _sort(outs[4], outs[5], outs)
            return builder.get()

    found = te.extern(shapes, [scores], generate, dtype=dtypes, out_buffers=outputs, name="route")
    return list(found)


def _choose(scores: Expr, chosen_scores: Expr, choice: Expr) -> None:
    """Choose the largest scores of each row one after another: each is the largest below the one before it."""
    rows, chosen = choice.shape
    zero = tirx.const(0, "int64")
    with T.serial(0, rows) as row, T.serial(0, chosen) as at, T.seq_scope():
        previous = tirx.max(at - 1, zero)
        # If no score compares, e.g. NaN, the choice stays within the experts.
        T.buffer_store(choice, at, [row, at])
        T.buffer_store(chosen_scores, tirx.min_value("float32"), [row, at])
        with T.serial(0, scores.shape[1]) as expert, T.seq_scope():
            score = scores[row, expert]
            last, last_expert = chosen_scores[row, previous], choice[row, previous]
            later = tirx.any(score < last, tirx.all(tirx.EQ(score, last), expert > last_expert))
            best = tirx.all(score > chosen_scores[row, at], tirx.any(tirx.EQ(at, zero), later))
            with T.If(best), T.Then(), T.seq_scope():
                T.buffer_store(chosen_scores, score, [row, at])
                T.buffer_store(choice, expert, [row, at])


def _sort(choice: Expr, ends: Expr, outs: list[Expr]) -> None:
    """Counting sort: stable, so that slots of one expert are in row order."""
    rows, chosen = choice.shape
    count = ends.shape[0]
    one = tirx.const(1, "int64")
    with T.serial(0, count) as expert:
        T.buffer_store(ends, tirx.const(0, "int64"), [expert])
    with T.serial(0, rows) as row, T.serial(0, chosen) as at:
        T.buffer_store(ends, ends[choice[row, at]] + one, [choice[row, at]])
    with T.serial(0, count - 1) as expert:
        T.buffer_store(ends, ends[expert + 1] + ends[expert], [expert + 1])
    # Backwards, so that each count becomes the position of the last remaining slot.
    with T.serial(0, rows) as row, T.serial(0, chosen) as at, T.seq_scope():
        from_row, from_at = rows - 1 - row, chosen - 1 - at
        expert = choice[from_row, from_at]
        T.buffer_store(ends, ends[expert] - one, [expert])
        T.buffer_store(outs[0], expert, [ends[expert]])
        T.buffer_store(outs[1], from_row, [ends[expert]])
        T.buffer_store(outs[2], ends[expert], [from_row, from_at])
