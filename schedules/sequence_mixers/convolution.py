"""Causal convolution of each channel over the rows of a sequence; its state is a window of the last rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schedules.codegen.nest import (
    allocate_tile,
    expression,
    lanes_of,
    load,
    parallel,
    repeat,
    sequence,
    store,
)
from schedules.ir.stages import shape_of
from schedules.ir.tir import BlockBuilder, Buffer, Expr, Index, Stmt, tirx
from schedules.sequence_mixers.operands import (
    Columns,
    Rows,
    cleared,
    each_sequence,
    silu,
    task_width,
    vector_width,
    with_state,
)


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """Operands of a convolution, all float32.

    Attributes:
        x: (n, channels).
        weight: (taps, channels), the last tap for the row itself.
        bias: (channels,).
        window: (taps - 1, channels), the rows before x, or (slots, ...) of several sequences.
        factor: (n, channels), x is multiplied with it at first; None for x as it is.
        gate: (n, channels), the result is multiplied with it; None for the result as it is.
        activated: the result becomes silu of it.
        sequences: int64 (sequences, 5), as `cached_attention` takes them; None: all rows are of one sequence.
    """

    x: Columns
    weight: Expr
    bias: Expr
    window: Expr
    factor: Columns | None = None
    gate: Columns | None = None
    activated: bool = False
    sequences: Expr | None = None


def causal_convolution(builder: BlockBuilder, given: Convolution) -> tuple[Expr, Expr]:
    """The result (n, channels) and the window that follows, emitted."""
    columns = {"x": given.x, "factor": given.factor, "gate": given.gate}
    starts = {role: each.start for role, each in columns.items() if each is not None}
    operands = [each.data for each in columns.values() if each is not None]
    operands += [given.weight, given.bias, *([] if given.sequences is None else [given.sequences])]
    taps, channels = (int(each) for each in given.weight.ty.shape.values)

    def body(ins: Sequence[Buffer], result: Buffer, window: Buffer) -> Stmt:
        loops = _Loops(dict(zip(starts, ins, strict=False)), starts, ins[len(starts) :], result, window)
        return loops.code(taps, channels, activated=given.activated)

    return with_state(builder, "causal_convolution", operands, given.window, channels, body)


class _Loops:
    """The loops of one kernel: tasks are neighbouring channels."""

    def __init__(
        self,
        columns: dict[str, Buffer],
        starts: dict[str, int],
        others: Sequence[Buffer],
        result: Buffer,
        window: Buffer,
    ) -> None:
        self._columns, self._starts = columns, starts
        self._weight, self._bias, *sequences = others
        self._sequences = sequences[0] if sequences else None
        self._result, self._window = result, window

    def code(self, taps: int, channels: int, *, activated: bool) -> Stmt:
        """The statement."""
        self._taps, self._activated = taps, activated
        width = task_width(channels)
        self._lanes = vector_width(width)
        rows: Index = shape_of(self._result)[0]
        slots = shape_of(self._window)[0] if self._sequences is not None else 1

        def task(number: Expr) -> Stmt:
            start = expression(number) * width
            starts = [start + at for at in range(0, width, self._lanes)]
            return each_sequence(self._sequences, rows, slots, lambda one: self._sequence(one, start, width, starts))

        return parallel("channels", channels // width, task)

    def _sequence(self, rows: Rows, start: Expr, width: int, starts: list[Expr]) -> Stmt:
        before = self._taps - 1
        head = tirx.min(rows.count, expression(before))

        def early(row: Expr) -> Stmt:
            return sequence([self._row(rows, expression(row), at, reads_window=True) for at in starts])

        def late(row: Expr) -> Stmt:
            place = expression(row) + before
            return sequence([self._row(rows, place, at, reads_window=False) for at in starts])

        return sequence(
            cleared(self._window, [*rows.slot, start], (before, width), rows.begins) if before else None,
            repeat("row", head, early) if before else None,
            repeat("row", rows.count - head, late),
            [self._follow(rows, at) for at in starts],
        )

    def _row(self, rows: Rows, row: Expr, at: Expr, *, reads_window: bool) -> Stmt:
        """One vector of one row of the result."""
        (total,), made = allocate_tile("total", (1, self._lanes), "float32")
        where = lanes_of(0, self._lanes)
        steps = [*made, store(total, load(self._bias, lanes_of(at, self._lanes)), where)]
        for tap in range(self._taps):
            place = row + (tap - self._taps + 1)
            weight = load(self._weight, tap, lanes_of(at, self._lanes))

            def added(value: Expr, weight: Expr = weight) -> Stmt:
                return store(total, load(total, where) + weight * value, where)

            new = added(self._value(rows.first + place, at))
            if reads_window and tap < self._taps - 1:
                old = added(load(self._window, *rows.slot, row + tap, lanes_of(at, self._lanes)))
                steps.append(tirx.IfThenElse(place < 0, old, new))
            else:
                steps.append(new)
        found = load(total, where)
        found = silu(found, self._lanes) if self._activated else found
        if "gate" in self._columns:
            found = found * self._column("gate", rows.first + row, at)
        return sequence(*steps, store(self._result, found, rows.first + row, lanes_of(at, self._lanes)))

    def _follow(self, rows: Rows, at: Expr) -> Stmt:
        """The last rows of the window and the sequence together."""
        before = self._taps - 1
        steps = []
        for row in range(before):
            source = rows.count + row
            where = (*rows.slot, row, lanes_of(at, self._lanes))
            shifted = store(self._window, load(self._window, *rows.slot, source, lanes_of(at, self._lanes)), *where)
            new = store(self._window, self._value(rows.first + source - before, at), *where)
            steps.append(tirx.IfThenElse(source < before, shifted, new))
        return sequence(*steps)

    def _value(self, row: Expr, at: Expr) -> Expr:
        """The convolved value."""
        value = self._column("x", row, at)
        return value * self._column("factor", row, at) if "factor" in self._columns else value

    def _column(self, role: str, row: Expr, at: Expr) -> Expr:
        return load(self._columns[role], row, lanes_of(at + self._starts[role], self._lanes))
