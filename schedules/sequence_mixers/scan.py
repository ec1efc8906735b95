"""Selective scan of Mamba and Mamba-2 (arXiv:2312.00752, 2405.21060): a state of each channel, overwritten by each row.

A task is a block of channels (a head of Mamba-2): its part of the state is contiguous and stays in the first cache
while all rows pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from schedules.codegen.nest import (
    allocate,
    allocate_tile,
    broadcast,
    expression,
    lanes_of,
    load,
    parallel,
    repeat,
    sequence,
    store,
)
from schedules.ir.stages import shape_of
from schedules.ir.tir import BlockBuilder, Buffer, Expr, Stmt, tirx
from schedules.sequence_mixers.operands import (
    Columns,
    Rows,
    cleared,
    each_sequence,
    silu,
    softplus,
    vector_width,
    with_state,
)

_STEP, _KEPT = range(2)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Operands of a scan, all float32.

    Channels are in blocks, and blocks share groups evenly. With `per_block`, steps and decays are one for each block.

    Attributes:
        x: (n, channels).
        step: (n, blocks), to which `bias` is added before softplus and `limits`; or (n, channels) as they are.
        bias: (blocks,), with `per_block` alone.
        decay: negative: (blocks,), or (sizes, channels).
        write, read: (n, groups * sizes), what goes into the state and comes out of it.
        skip: (channels,), times x, added to the result.
        state: (blocks, sizes, channels of a block), or (slots, ...) of several sequences.
        gate: (n, channels), the result is multiplied with silu of it; None for the result as it is.
        limits: limits of the steps.
        per_block: see above.
        groups: how many there are.
        scaled: x is multiplied with the step as it is written.
        sequences: int64 (sequences, 5), as `cached_attention` takes them; None: all rows are of one sequence.
    """

    x: Columns
    step: Columns
    bias: Expr | None
    decay: Expr
    write: Columns
    read: Columns
    skip: Expr
    state: Expr
    gate: Columns | None = None
    limits: tuple[float, float] = (0.0, math.inf)
    per_block: bool = False
    groups: int = 1
    scaled: bool = True
    sequences: Expr | None = None


def selective_scan(builder: BlockBuilder, given: Scan) -> tuple[Expr, Expr]:
    """state = exp(step * decay) * state + step * x * write; result = (sum(state * read) + skip * x) * silu(gate).

    Returns the result (n, channels) and the state that follows, emitted.
    """
    columns = {"x": given.x, "step": given.step, "write": given.write, "read": given.read, "gate": given.gate}
    starts = {role: each.start for role, each in columns.items() if each is not None}
    operands = [each.data for each in columns.values() if each is not None]
    others = {"decay": given.decay, "skip": given.skip, "bias": given.bias, "sequences": given.sequences}
    roles = [role for role, each in others.items() if each is not None]
    operands += [each for each in others.values() if each is not None]
    blocks, _, width = (int(each) for each in given.state.ty.shape.values[-3:])

    def body(ins: Sequence[Buffer], result: Buffer, state: Buffer) -> Stmt:
        named = dict(zip([*starts, *roles], ins, strict=True))
        return _Loops(given, named, starts, result, state).code()

    return with_state(builder, "selective_scan", operands, given.state, blocks * width, body)


class _Loops:
    """The loops of one kernel."""

    def __init__(
        self, given: Scan, named: dict[str, Buffer], starts: dict[str, int], result: Buffer, state: Buffer
    ) -> None:
        self._given, self._named, self._starts = given, named, starts
        self._result, self._state = result, state
        self._blocks, self._sizes, self._width = (int(each) for each in shape_of(state)[-3:])
        self._lanes = vector_width(self._width)
        self._vectors = self._width // self._lanes

    def code(self) -> Stmt:
        """The statement."""
        sequences = self._named.get("sequences")
        slots = shape_of(self._state)[0] if sequences is not None else 1

        def task(number: Expr) -> Stmt:
            block = expression(number)
            return each_sequence(sequences, shape_of(self._result)[0], slots, lambda rows: self._sequence(rows, block))

        return parallel("block", self._blocks, task)

    def _sequence(self, rows: Rows, block: Expr) -> Stmt:
        sums, sums_made = allocate_tile("sum", (self._vectors, self._lanes), "float32")
        inputs, inputs_made = allocate_tile("input", (self._vectors, self._lanes), "float32")
        scalars, scalars_made = allocate("scalars", (2,), "float32", "local")
        group = tirx.floordiv(block, expression(self._blocks // self._given.groups))
        every = lanes_of(0, self._lanes)

        def row(number: Expr) -> Stmt:
            place = rows.first + number
            steps: list[Stmt] = self._scalars(scalars, place, block)
            for at in range(self._vectors):
                value = self._vector("x", place, block, at)
                scaled = value * self._step(scalars, place, block, at) if self._given.scaled else value
                steps.append(store(inputs, scaled, at, every))
                steps.append(store(sums, broadcast(tirx.const(0.0, "float32"), self._lanes), at, every))

            def size(index: Expr) -> Stmt:
                return sequence([self._update(scalars, inputs, sums, rows, place, block, group, index, at)
                                 for at in range(self._vectors)])  # fmt: skip

            steps.append(repeat("size", self._sizes, size))
            return sequence(*steps, [self._output(sums, place, block, at) for at in range(self._vectors)])

        begin = cleared(self._state, [*rows.slot, block, expression(0)], (self._sizes, self._width), rows.begins)
        return sequence(sums_made, inputs_made, scalars_made, begin, repeat("row", rows.count, row))

    def _scalars(self, scalars: Buffer, row: Expr, block: Expr) -> list[Stmt]:
        """The step of the block and what is kept of the state, where all channels share them."""
        if not self._given.per_block:
            return []
        step = load(self._named["step"], row, block + self._starts["step"])
        if self._given.bias is not None:
            low, high = self._given.limits
            step = softplus(step + load(self._named["bias"], block))
            step = tirx.max(step, tirx.const(low, "float32")) if low > 0 else step
            step = tirx.min(step, tirx.const(high, "float32")) if math.isfinite(high) else step
        return [
            store(scalars, step, _STEP),
            store(scalars, tirx.exp(load(scalars, _STEP) * load(self._named["decay"], block)), _KEPT),
        ]

    def _step(self, scalars: Buffer, row: Expr, block: Expr, at: int) -> Expr:
        if self._given.per_block:
            return broadcast(load(scalars, _STEP), self._lanes)
        return self._vector("step", row, block, at)

    def _update(
        self,
        scalars: Buffer,
        inputs: list[Buffer],
        sums: list[Buffer],
        rows: Rows,
        row: Expr,
        block: Expr,
        group: Expr,
        size: Expr,
        at: int,
    ) -> Stmt:
        """One vector of one size of the state, and its part of the result."""
        every = lanes_of(0, self._lanes)
        where = (*rows.slot, block, size, lanes_of(at * self._lanes, self._lanes))
        shared = group * self._sizes + size
        write, read = (
            broadcast(load(self._named[role], row, shared + self._starts[role]), self._lanes)
            for role in ("write", "read")
        )
        if self._given.per_block:
            kept = broadcast(load(scalars, _KEPT), self._lanes)
        else:
            channel = lanes_of(block * self._width + at * self._lanes, self._lanes)
            kept = tirx.exp(self._step(scalars, row, block, at) * load(self._named["decay"], size, channel))
        changed = store(self._state, load(self._state, *where) * kept + load(inputs, at, every) * write, *where)
        summed = store(sums, load(sums, at, every) + load(self._state, *where) * read, at, every)
        return sequence(changed, summed)

    def _output(self, sums: list[Buffer], row: Expr, block: Expr, at: int) -> Stmt:
        channel = lanes_of(block * self._width + at * self._lanes, self._lanes)
        value = load(sums, at, lanes_of(0, self._lanes))
        value = value + load(self._named["skip"], channel) * self._vector("x", row, block, at)
        if "gate" in self._named:
            value = value * silu(self._vector("gate", row, block, at), self._lanes)
        return store(self._result, value, row, channel)

    def _vector(self, role: str, row: Expr, block: Expr, at: int) -> Expr:
        start = block * self._width + (at * self._lanes + self._starts[role])
        return load(self._named[role], row, lanes_of(start, self._lanes))
