"""Operands that the recurrent mixers share: columns of a matrix, rows of several sequences, and states.

A state is updated in place: each kernel begins with a copy of the state to its last result, and reads the result alone
from there on. `UPDATES` names the operand, so that the copy goes away where the
state is a module's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schedules.annotations import UPDATES
from schedules.attention.cache.description import FIRST_ROW, FIRST_TOKEN, SLOT, TOKENS
from schedules.codegen.nest import broadcast, expression, lanes_of, load, repeat, sequence, store, when
from schedules.ir.stages import shape_of
from schedules.ir.tir import BlockBuilder, Buffer, Expr, Index, Stmt, tirx

from tvm import relax, te  # isort: skip


_OPAQUE = 8  # relax's pattern kind that is fused with nothing
_LANES = 16
_MOST_COLUMNS = 64  # of a task: its accumulators are four vectors of 16


@dataclass(frozen=True)
class Columns:
    """Columns of a matrix (n, width), float32, from `start` on."""

    data: Expr
    start: int = 0


@dataclass(frozen=True)
class Rows:
    """The rows of one sequence in a run: its entry of the states (none for a single one), and where its tokens are."""

    slot: tuple[Expr, ...]
    first: Expr
    count: Expr
    begins: Expr | None


def vector_width(columns: int) -> int:
    """Vector lanes for a number of columns."""
    return next(lanes for lanes in (_LANES, 8, 4, 2, 1) if columns % lanes == 0)


def task_width(columns: int) -> int:
    """Columns of a task: the largest divisor up to four vectors of 16."""
    return next(width for width in range(min(_MOST_COLUMNS, columns), 0, -1) if columns % width == 0)


def each_sequence(sequences: Buffer | None, rows: Index, slots: Index, body: Callable[[Rows], Stmt]) -> Stmt:
    """The body for each sequence of a run, int64 (sequences, 5) as of attention over a cache, or for all rows."""
    zero = expression(0)
    if sequences is None:
        return body(Rows((), zero, expression(rows), None))

    def one(number: Expr) -> Stmt:
        def column(at: int) -> Expr:
            return load(sequences, number, at)

        def within(value: Expr, most: Expr) -> Expr:
            return tirx.max(tirx.min(value, most), zero)

        slot = within(column(SLOT), expression(slots) - 1)
        first = within(column(FIRST_TOKEN), expression(rows))
        count = within(column(TOKENS), expression(rows) - first)
        begins = tirx.EQ(column(FIRST_ROW), zero)
        found = body(Rows((slot,), first, count, begins))
        return tirx.IfThenElse(count > 0, found, None)

    return repeat("sequence", shape_of(sequences)[0], one)


def cleared(state: Buffer, at: Sequence[Expr | int], shape: Sequence[int], begins: Expr | None) -> Stmt | None:
    """Zeros in the part `at` of a state, of `shape`, where a sequence begins."""
    if begins is None:
        return None
    *outer, width = shape
    lanes = vector_width(width)

    def nested(point: list[Expr], extents: Sequence[int]) -> Stmt:
        if extents:
            return repeat("row", extents[0], lambda row: nested([*point, row], extents[1:]))
        zeros = broadcast(tirx.const(0.0, "float32"), lanes)
        start = at[-1]
        return repeat(
            "part",
            width // lanes,
            lambda part: store(state, zeros, *at[:-1], *point, lanes_of(expression(start) + part * lanes, lanes)),
        )

    return when(begins, nested([], outer))


def with_state(
    builder: BlockBuilder,
    name: str,
    operands: Sequence[Expr],
    state: Expr,
    width: int,
    body: Callable[[Sequence[Buffer], Buffer, Buffer], Stmt],
) -> tuple[Expr, Expr]:
    """Emit a kernel that computes float32 (n, width) and the next value of a state.

    Args:
        builder: inside a function.
        operands: operands of the kernel beside the state; the first has n rows.
        state: float32.
        width: columns of the result.
        body: writes the loops, from the buffers of the operands, of the result and of the state.
    """

    def compute(*tensors: te.Tensor) -> list[te.Tensor]:
        first, old = tensors[0], tensors[-1]
        shapes = [(first.shape[0], width), tuple(old.shape)]
        outputs = [
            tirx.decl_buffer(shape, "float32", each, layout=None)
            for shape, each in zip(shapes, (name, "next_state"), strict=True)
        ]

        def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
            return sequence(_copy(ins[-1], outs[1]), body(ins[:-1], outs[0], outs[1]))

        found = te.extern(shapes, list(tensors), generate, name, ["float32"] * 2, out_buffers=outputs)
        return list(found)

    found = builder.emit(
        builder.call_te(
            compute,
            *operands,
            state,
            primfunc_name_hint=name,
            primfunc_attrs={"op_pattern": _OPAQUE, UPDATES: len(operands)},
        )
    )
    return builder.emit(relax.TupleGetItem(found, 0)), builder.emit(relax.TupleGetItem(found, 1))


def _copy(source: Buffer, target: Buffer) -> Stmt:
    shape = shape_of(source)
    lanes = vector_width(int(shape[-1]))

    def nested(point: list[Expr]) -> Stmt:
        if len(point) < len(shape) - 1:
            return repeat("row", shape[len(point)], lambda row: nested([*point, row]))

        def part(number: Expr) -> Stmt:
            at = [*point, lanes_of(expression(number) * lanes, lanes)]
            return store(target, load(source, *at), *at)

        return repeat("part", int(shape[-1]) // lanes, part)

    return nested([])


def silu(value: Expr, lanes: int) -> Expr:
    """x * sigmoid(x)"""
    return value * sigmoid(value, lanes)


def sigmoid(value: Expr, lanes: int = 1) -> Expr:
    """1 / (1 + exp(-x))"""
    one, zero = (broadcast(tirx.const(each, "float32"), lanes) for each in (1.0, 0.0))
    return one / (one + tirx.exp(zero - value))


def softplus(value: Expr) -> Expr:
    """log(1 + exp(x)), without overflow, of a scalar."""
    one, zero = tirx.const(1.0, "float32"), tirx.const(0.0, "float32")
    return tirx.max(value, zero) + tirx.log(one + tirx.exp(zero - tirx.abs(value)))
