"""Recurrent sequence mixers as kernels: causal convolution, selective scan, gated delta rule.

The selective scan is that of Mamba and Mamba-2 (arXiv:2312.00752, 2405.21060): a state for each channel, updated by
each row. A task is a block of channels (a head of Mamba-2): its part of the state is contiguous and stays in the L1
cache over all rows. The gated delta rule (arXiv:2412.06464) is linear attention whose state is a matrix for each head,
updated by each row; a task is some columns of the values of a head.

A state is updated in place: each kernel begins with a copy of the state to its last result, and reads only the result
from there on. `UPDATES` names the operand, so that the copy is removed if the state belongs to the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from schedules.annotations import OPAQUE, UPDATES
from schedules.attention.cache.description import FIRST_ROW, FIRST_TOKEN, SLOT, TOKENS
from schedules.codegen.nest import (
    allocate,
    allocate_tile,
    broadcast,
    lanes_of,
    load,
    parallel,
    repeat,
    sequence,
    store,
    when,
)
from schedules.ir.expression import expression
from schedules.ir.stages import shape_of
from schedules.ir.tir import BlockBuilder, Buffer, Expr, Stmt, relax, te, tirx

_LANES = 16
_MAX_COLUMNS = 64  # per task: its accumulators are four vectors of 16


@dataclass(frozen=True)
class Columns:
    """Columns of a matrix (n, width), float32, starting at `start`."""

    data: Expr
    start: int = 0


@dataclass(frozen=True)
class Rows:
    """The rows of one sequence in a run: its state entry (none if there is only one), and the range of its tokens."""

    slot: tuple[Expr, ...]
    first: Expr
    count: Expr
    begins: Expr | None


def vector_width(columns: int) -> int:
    """Vector lanes for a number of columns."""
    return next(lanes for lanes in (_LANES, 8, 4, 2, 1) if columns % lanes == 0)


def task_width(columns: int) -> int:
    """Columns of a task: the largest divisor that is at most four vectors of 16."""
    return next(width for width in range(min(_MAX_COLUMNS, columns), 0, -1) if columns % width == 0)


@dataclass(frozen=True)
class Buffers:
    """The buffers of a kernel: operands by role, the first column of those that are columns of a larger matrix, the
    result (n, width) and the state."""

    named: Mapping[str, Buffer]
    starts: Mapping[str, int]
    result: Buffer
    state: Buffer

    def each_sequence(self, body: Callable[[Rows], Stmt]) -> Stmt:
        """The body for each sequence of a run, int64 (sequences, 5) as in attention over a cache, or for all rows."""
        sequences, zero = self.named.get("sequences"), expression(0)
        rows, slots = (expression(shape_of(each)[0]) for each in (self.result, self.state))
        if sequences is None:
            return body(Rows((), zero, rows, None))

        def one(number: Expr) -> Stmt:
            def column(at: int) -> Expr:
                return load(sequences, number, at)

            def within(value: Expr, maximum: Expr) -> Expr:
                return tirx.max(tirx.min(value, maximum), zero)

            slot = within(column(SLOT), slots - 1)
            first = within(column(FIRST_TOKEN), rows)
            count = within(column(TOKENS), rows - first)
            begins = tirx.EQ(column(FIRST_ROW), zero)
            return tirx.IfThenElse(count > 0, body(Rows((slot,), first, count, begins)), None)

        return repeat("sequence", shape_of(sequences)[0], one)

    def column(self, role: str, row: Expr, start: Expr, lanes: int = 1, offset: int = 0) -> Expr:
        """Neighbors in a row of some columns of a matrix, starting at `start + offset`."""
        return load(self.named[role], row, lanes_of(start + (offset + self.starts[role]), lanes))


def cleared(state: Buffer, at: Sequence[Expr | int], shape: Sequence[int], begins: Expr | None) -> Stmt | None:
    """Clear the part `at` of a state, of `shape`, at the beginning of a sequence."""
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
    columns: Mapping[str, Columns | None],
    others: Mapping[str, Expr | None],
    state: Expr,
    width: int,
    body: Callable[[Buffers], Stmt],
) -> tuple[Expr, Expr]:
    """Emit a kernel that computes float32 (n, width) and the next value of a state.

    Args:
        builder: inside a function.
        columns, others: operands of the kernel other than the state, by role; the first has n rows. None is omitted.
        state: float32.
        width: columns of the result.
        body: writes the loops.
    """
    starts = {role: each.start for role, each in columns.items() if each is not None}
    operands = {role: each.data for role, each in columns.items() if each is not None}
    operands |= {role: each for role, each in others.items() if each is not None}

    def compute(*tensors: te.Tensor) -> list[te.Tensor]:
        first, old = tensors[0], tensors[-1]
        shapes = [(first.shape[0], width), tuple(old.shape)]
        outputs = [
            tirx.decl_buffer(shape, "float32", each, layout=None)
            for shape, each in zip(shapes, (name, "next_state"), strict=True)
        ]

        def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
            named = dict(zip(operands, ins, strict=False))
            return sequence(_copy(ins[-1], outs[1]), body(Buffers(named, starts, *outs)))

        result = te.extern(shapes, list(tensors), generate, name, ["float32"] * 2, out_buffers=outputs)
        return list(result)

    attrs = {"op_pattern": OPAQUE, UPDATES: len(operands)}
    call = builder.call_te(compute, *operands.values(), state, primfunc_name_hint=name, primfunc_attrs=attrs)
    result = builder.emit(call)
    return builder.emit(relax.TupleGetItem(result, 0)), builder.emit(relax.TupleGetItem(result, 1))


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


# Causal convolution of each channel over the rows of a sequence; its state is a window of the last rows.


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """Operands of a convolution, all float32.

    Attributes:
        x: (n, channels).
        weight: (taps, channels), the last tap is for the row itself.
        bias: (channels,).
        window: (taps - 1, channels), the rows before x, or (slots, ...) for several sequences.
        factor: (n, channels), multiplied with x first; None: x unchanged.
        gate: (n, channels), multiplied with the result; None: the result unchanged.
        activated: whether silu is applied to the result.
        sequences: int64 (sequences, 5), as in `cached_attention`; None: all rows are one sequence.
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
    """Emit the convolution: the result (n, channels) and the next window."""
    columns = {"x": given.x, "factor": given.factor, "gate": given.gate}
    inputs = {"weight": given.weight, "bias": given.bias, "sequences": given.sequences}
    taps, channels = (int(each) for each in given.weight.ty.shape.values)

    def body(buffers: Buffers) -> Stmt:
        return ConvolutionLoops(buffers, taps, activated=given.activated).code(channels)

    return with_state(builder, "causal_convolution", columns, inputs, given.window, channels, body)


class ConvolutionLoops:
    """The loops of one kernel: tasks are neighboring channels."""

    def __init__(self, buffers: Buffers, taps: int, *, activated: bool) -> None:
        self._buffers, self._window = buffers, buffers.state
        self._taps, self._activated = taps, activated

    def code(self, channels: int) -> Stmt:
        """The statement."""
        width = task_width(channels)
        self._lanes = vector_width(width)

        def task(number: Expr) -> Stmt:
            start = expression(number) * width
            starts = [start + at for at in range(0, width, self._lanes)]
            return self._buffers.each_sequence(lambda rows: self._sequence(rows, start, width, starts))

        return parallel("channels", channels // width, task)

    def _sequence(self, rows: Rows, start: Expr, width: int, starts: list[Expr]) -> Stmt:
        history = self._taps - 1
        head = tirx.min(rows.count, expression(history))

        def early(row: Expr) -> Stmt:
            return sequence([self._row(rows, expression(row), at, reads_window=True) for at in starts])

        def late(row: Expr) -> Stmt:
            position = expression(row) + history
            return sequence([self._row(rows, position, at, reads_window=False) for at in starts])

        return sequence(
            cleared(self._window, [*rows.slot, start], (history, width), rows.begins) if history else None,
            repeat("row", head, early) if history else None,
            repeat("row", rows.count - head, late),
            [self._follow(rows, at) for at in starts],
        )

    def _row(self, rows: Rows, row: Expr, at: Expr, *, reads_window: bool) -> Stmt:
        """One vector of one row of the result."""
        (total,), allocations = allocate_tile("total", (1, self._lanes), "float32")
        where = lanes_of(0, self._lanes)
        steps = [*allocations, store(total, load(self._buffers.named["bias"], lanes_of(at, self._lanes)), where)]
        for tap in range(self._taps):
            position = row + (tap - self._taps + 1)
            weight = load(self._buffers.named["weight"], tap, lanes_of(at, self._lanes))

            def added(value: Expr, weight: Expr = weight) -> Stmt:
                return store(total, load(total, where) + weight * value, where)

            new = added(self._value(rows.first + position, at))
            if reads_window and tap < self._taps - 1:
                old = added(load(self._window, *rows.slot, row + tap, lanes_of(at, self._lanes)))
                steps.append(tirx.IfThenElse(position < 0, old, new))
            else:
                steps.append(new)
        result = load(total, where)
        result = silu(result, self._lanes) if self._activated else result
        if "gate" in self._buffers.starts:
            result = result * self._buffers.column("gate", rows.first + row, at, self._lanes)
        return sequence(*steps, store(self._buffers.result, result, rows.first + row, lanes_of(at, self._lanes)))

    def _follow(self, rows: Rows, at: Expr) -> Stmt:
        """The last rows of the window and the sequence together."""
        history = self._taps - 1
        steps = []
        for row in range(history):
            source = rows.count + row
            where = (*rows.slot, row, lanes_of(at, self._lanes))
            shifted = store(self._window, load(self._window, *rows.slot, source, lanes_of(at, self._lanes)), *where)
            new = store(self._window, self._value(rows.first + source - history, at), *where)
            steps.append(tirx.IfThenElse(source < history, shifted, new))
        return sequence(*steps)

    def _value(self, row: Expr, at: Expr) -> Expr:
        """The convolved value."""
        value = self._buffers.column("x", row, at, self._lanes)
        if "factor" in self._buffers.starts:
            value = value * self._buffers.column("factor", row, at, self._lanes)
        return value


_RATE, _TOTAL = range(2)
_EPSILON = 1e-6  # for the norms of queries and keys


@dataclass(frozen=True, kw_only=True)
class DeltaRule:
    """Operands of the rule, all float32.

    Value heads share key heads evenly: neighboring ones, or with `tiled` those at equal distances.

    Attributes:
        query, key: (n, heads * key size); they are normalized to length 1, and the query is divided by sqrt(key size).
        value: (n, heads * value size).
        step: (n, heads): the state is multiplied with exp(decay * softplus(step + bias)); or (n, heads * key size), a
            step for each row of the state (Kimi Delta Attention, arXiv:2510.26692).
        rate: (n, heads): the correction of the state's value for a key is multiplied with `rate_scale` * sigmoid(rate).
        decay, bias: (heads,), as many biases as steps.
        state: (heads, key size, value size), or (slots, ...) for several sequences.
        key_heads, tiled: number of key heads; see above.
        rate_scale: see above.
        sequences: int64 (sequences, 5), as in `cached_attention`; None: all rows are one sequence.
    """

    query: Columns
    key: Columns
    value: Columns
    step: Columns
    rate: Columns
    decay: Expr
    bias: Expr
    state: Expr
    key_heads: int
    tiled: bool = False
    rate_scale: float = 1.0
    sequences: Expr | None = None


def gated_delta_rule(builder: BlockBuilder, given: DeltaRule) -> tuple[Expr, Expr]:
    """state = kept * state; state += key (value - key state) rate; result = query state, for each head.

    Emits them, and returns the result (n, heads * value size) and the next state.
    """
    columns = {each: getattr(given, each) for each in ("query", "key", "value", "step", "rate")}
    inputs = {"decay": given.decay, "bias": given.bias, "sequences": given.sequences}
    heads, _, size = (int(each) for each in given.state.ty.shape.values[-3:])

    def body(buffers: Buffers) -> Stmt:
        return MatrixLoops(_GatedDelta(given, buffers), buffers, task_width(size)).code()

    return with_state(builder, "gated_delta_rule", columns, inputs, given.state, heads * size, body)


class MatrixRule(Protocol):
    """Update of a matrix state by one row: state = kept * state + write delta(read state) + inserted."""

    def allocations(self, lanes: int, vectors: int) -> list[Stmt]:
        """Allocate the vectors of one head and row."""

    def prepared(self, row: Expr, head: Expr) -> list[Stmt]:
        """Compute these vectors."""

    def factors(self, index: Expr) -> tuple[Expr, Expr, Expr, Expr]:
        """Factors of one row of the state: read, kept, write, query."""

    def delta(self, found: Expr, place: tuple[Expr, Expr, Expr], at: int) -> Expr:
        """Return the vector to write, given read times state. `place`: row, head, first column of the task."""

    def inserted(self, index: Expr, at: int) -> Expr | None:
        """Return a vector to add to a row of the state, or None."""

    def results(self, sums: list[Buffer], place: tuple[Expr, Expr, Expr]) -> list[Stmt]:
        """Store the results of a row; `sums` are query times state."""


class MatrixLoops:
    """Loops of a kernel with one matrix state per head. A task is a block of value columns of a head."""

    def __init__(self, rule: MatrixRule, buffers: Buffers, width: int) -> None:
        self._rule, self._buffers, self._state = rule, buffers, buffers.state
        self._heads, self._keys, self._values = (int(each) for each in shape_of(self._state)[-3:])
        self._width, self._lanes = width, vector_width(width)
        self._vectors = width // self._lanes

    def code(self) -> Stmt:
        """The statement."""
        parts = self._values // self._width

        def task(number: Expr) -> Stmt:
            head = tirx.floordiv(expression(number), expression(parts))
            first = tirx.floormod(expression(number), expression(parts)) * self._width
            return self._buffers.each_sequence(lambda rows: self._sequence(rows, head, first))

        return parallel("part", self._heads * parts, task)

    def _sequence(self, rows: Rows, head: Expr, first: Expr) -> Stmt:
        sums, sums_made = allocate_tile("sum", (self._vectors, self._lanes), "float32")
        deltas, deltas_made = allocate_tile("delta", (self._vectors, self._lanes), "float32")
        every, vectors = lanes_of(0, self._lanes), range(self._vectors)
        clear = [store(sums, broadcast(tirx.const(0.0, "float32"), self._lanes), at, every) for at in vectors]

        def state(index: Expr, at: int) -> tuple[Expr, ...]:
            return (*rows.slot, head, index, lanes_of(first + at * self._lanes, self._lanes))

        def remembered(index: Expr) -> Stmt:
            factor = broadcast(self._rule.factors(index)[0], self._lanes)
            return sequence(
                [store(sums, load(sums, at, every) + load(self._state, *state(index, at)) * factor, at, every)
                 for at in vectors]
            )  # fmt: skip

        def updated(index: Expr) -> Stmt:
            _, decay, write, query = (broadcast(each, self._lanes) for each in self._rule.factors(index))
            steps = []
            for at in vectors:
                where = state(index, at)
                new = load(self._state, *where) * decay + load(deltas, at, every) * write
                inserted = self._rule.inserted(index, at)
                steps.append(store(self._state, new if inserted is None else new + inserted, *where))
                steps.append(store(sums, load(sums, at, every) + load(self._state, *where) * query, at, every))
            return sequence(steps)

        def row(number: Expr) -> Stmt:
            place = rows.first + number, head, first
            return sequence(
                self._rule.prepared(*place[:2]),
                clear,
                repeat("index", self._keys, remembered),
                [store(deltas, self._rule.delta(load(sums, at, every), place, at), at, every) for at in vectors],
                clear,
                repeat("index", self._keys, updated),
                self._rule.results(sums, place),
            )

        allocations = [sums_made, deltas_made, self._rule.allocations(self._lanes, self._vectors)]
        begin = cleared(self._state, [*rows.slot, head, first], (self._keys, self._width), rows.begins)
        return sequence(*allocations, begin, repeat("row", rows.count, row))


class _GatedDelta:
    """The gated delta rule; see `MatrixRule`."""

    def __init__(self, given: DeltaRule, buffers: Buffers) -> None:
        self._given, self._buffers, self._named = given, buffers, buffers.named
        self._heads, self._keys, self._values = (int(each) for each in shape_of(buffers.state)[-3:])
        self._by_row = int(shape_of(self._named["bias"])[0]) != self._heads

    def allocations(self, lanes: int, vectors: int) -> list[Stmt]:
        """See `MatrixRule`."""
        self._lanes, self._vectors = lanes, vectors
        sizes = {"key": self._keys, "query": self._keys, "kept": self._keys if self._by_row else 1, "scalars": 2}
        allocated = {name: allocate(name, (size,), "float32", "local") for name, size in sizes.items()}
        self._local = {name: buffer for name, (buffer, _) in allocated.items()}
        return [allocation for _, allocation in allocated.values()]

    def prepared(self, row: Expr, head: Expr) -> list[Stmt]:
        """See `MatrixRule`."""
        return [
            *self._scalars(row, head),
            *self._normalized("key", row, head, 1.0),
            *self._normalized("query", row, head, self._keys**-0.5),
        ]

    def factors(self, index: Expr) -> tuple[Expr, Expr, Expr, Expr]:
        """See `MatrixRule`."""
        key, kept = load(self._local["key"], index), load(self._local["kept"], index if self._by_row else 0)
        return key * kept if self._by_row else key, kept, key, load(self._local["query"], index)

    def delta(self, found: Expr, place: tuple[Expr, Expr, Expr], at: int) -> Expr:
        """See `MatrixRule`."""
        row, head, first = place
        value = self._buffers.column("value", row, head * self._values + first, self._lanes, at * self._lanes)
        # If all rows of the state have the same decay, it multiplies the sums over rows once.
        shared = tirx.const(1.0, "float32") if self._by_row else load(self._local["kept"], 0)
        rate = broadcast(load(self._local["scalars"], _RATE), self._lanes)
        return (value - found * broadcast(shared, self._lanes)) * rate

    def inserted(self, index: Expr, at: int) -> None:
        """See `MatrixRule`."""

    def results(self, sums: list[Buffer], place: tuple[Expr, Expr, Expr]) -> list[Stmt]:
        """See `MatrixRule`."""
        row, head, first = place
        return [
            store(self._buffers.result, load(sums, at, lanes_of(0, self._lanes)), row,
                  lanes_of(head * self._values + first + at * self._lanes, self._lanes))
            for at in range(self._vectors)
        ]  # fmt: skip

    def _scalars(self, row: Expr, head: Expr) -> list[Stmt]:
        """The rate, and the decay factor of the state, or of each of its rows."""
        count = self._keys if self._by_row else 1
        rate = self._buffers.column("rate", row, head)

        def keep(index: Expr) -> Stmt:
            position = head * count + index
            step = self._buffers.column("step", row, position) + load(self._named["bias"], position)
            return store(self._local["kept"], tirx.exp(load(self._named["decay"], head) * softplus(step)), index)

        scale = tirx.const(self._given.rate_scale, "float32")
        return [repeat("index", count, keep), store(self._local["scalars"], scale * sigmoid(rate), _RATE)]

    def _normalized(self, role: str, row: Expr, head: Expr, scale: float) -> list[Stmt]:
        """A vector scaled to length `scale`, in a buffer."""
        keys, scalars = expression(self._given.key_heads), self._local["scalars"]
        of_neighbours = tirx.floordiv(head, expression(self._heads // self._given.key_heads))
        shared = tirx.floormod(head, keys) if self._given.tiled else of_neighbours
        start = shared * self._keys + self._buffers.starts[role]

        def square(index: Expr) -> Stmt:
            value = load(self._named[role], row, start + index)
            return store(scalars, load(scalars, _TOTAL) + value * value, _TOTAL)

        def copy(index: Expr) -> Stmt:
            value = load(self._named[role], row, start + index) * load(scalars, _TOTAL)
            return store(self._local[role], value, index)

        length = tirx.sqrt(load(scalars, _TOTAL) + tirx.const(_EPSILON, "float32"))
        return [
            store(scalars, tirx.const(0.0, "float32"), _TOTAL),
            repeat("index", self._keys, square),
            store(scalars, tirx.const(scale, "float32") / length, _TOTAL),
            repeat("index", self._keys, copy),
        ]


def decayed_maximum(
    builder: BlockBuilder, values: Expr, logs: Expr, state: Expr, sequences: Expr | None
) -> tuple[Expr, Expr]:
    """state = max(state + log, value) for each column of float32 (n, columns), row by row.

    Emits it, and returns the state at each row (n, columns) and the next state, (columns,) or (slots, columns).
    """

    columns = int(values.ty.shape.values[-1])

    def body(buffers: Buffers) -> Stmt:
        named, state = buffers.named, buffers.state

        def row(rows: Rows, position: Expr) -> Stmt:
            def column(at: Expr) -> Stmt:
                where = (*rows.slot, at)
                maximum = tirx.max(
                    load(state, *where) + load(named["logs"], position, at), load(named["values"], position, at)
                )
                return sequence(store(state, maximum, *where), store(buffers.result, load(state, *where), position, at))

            return repeat("column", columns, column)

        def one(rows: Rows) -> Stmt:
            begin = cleared(state, [*rows.slot, expression(0)], (columns,), rows.begins)
            return sequence(begin, repeat("row", rows.count, lambda number: row(rows, rows.first + number)))

        return buffers.each_sequence(one)

    others = {"values": values, "logs": logs, "sequences": sequences}
    return with_state(builder, "decayed_maximum", {}, others, state, columns, body)


_STEP, _DECAY = range(2)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Operands of a scan, all float32.

    Channels are in blocks, and blocks share groups evenly. With `per_block`, there is one step and decay per block.

    Attributes:
        x: (n, channels).
        step: (n, blocks), to which `bias` is added before softplus and `limits`; or (n, channels), used directly.
        bias: (blocks,), only with `per_block`.
        decay: negative: (blocks,), or (sizes, channels).
        write, read: (n, groups * sizes), the state's input and output vectors (B and C in Mamba).
        skip: (channels,), multiplied with x and added to the result.
        state: (blocks, sizes, channels of a block), or (slots, ...) for several sequences.
        gate: (n, channels), its silu is multiplied with the result; None: the result unchanged.
        limits: limits of the steps.
        per_block: see above.
        groups: number of groups.
        scaled: whether x is multiplied with the step when it is written to the state.
        sequences: int64 (sequences, 5), as in `cached_attention`; None: all rows are one sequence.
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

    Emits it, and returns the result (n, channels) and the next state.
    """
    columns = {"x": given.x, "step": given.step, "write": given.write, "read": given.read, "gate": given.gate}
    inputs = {"decay": given.decay, "skip": given.skip, "bias": given.bias, "sequences": given.sequences}
    blocks, _, width = (int(each) for each in given.state.ty.shape.values[-3:])

    def body(buffers: Buffers) -> Stmt:
        return ScanLoops(given, buffers).code()

    return with_state(builder, "selective_scan", columns, inputs, given.state, blocks * width, body)


class ScanLoops:
    """The loops of one kernel."""

    def __init__(self, given: Scan, buffers: Buffers) -> None:
        self._given, self._buffers = given, buffers
        self._named, self._state = buffers.named, buffers.state
        self._blocks, self._sizes, self._width = (int(each) for each in shape_of(self._state)[-3:])
        self._lanes = vector_width(self._width)
        self._vectors = self._width // self._lanes

    def code(self) -> Stmt:
        """The statement."""

        def task(number: Expr) -> Stmt:
            block = expression(number)
            return self._buffers.each_sequence(lambda rows: self._sequence(rows, block))

        return parallel("block", self._blocks, task)

    def _sequence(self, rows: Rows, block: Expr) -> Stmt:
        sums, sums_made = allocate_tile("sum", (self._vectors, self._lanes), "float32")
        inputs, inputs_made = allocate_tile("input", (self._vectors, self._lanes), "float32")
        scalars, scalars_made = allocate("scalars", (2,), "float32", "local")
        group = tirx.floordiv(block, expression(self._blocks // self._given.groups))
        every = lanes_of(0, self._lanes)

        def row(number: Expr) -> Stmt:
            position = rows.first + number
            steps: list[Stmt] = self._scalars(scalars, position, block)
            for at in range(self._vectors):
                value = self._vector("x", position, block, at)
                scaled = value * self._step(scalars, position, block, at) if self._given.scaled else value
                steps.append(store(inputs, scaled, at, every))
                steps.append(store(sums, broadcast(tirx.const(0.0, "float32"), self._lanes), at, every))

            def size(index: Expr) -> Stmt:
                return sequence([self._update(scalars, inputs, sums, rows, position, block, group, index, at)
                                 for at in range(self._vectors)])  # fmt: skip

            steps.append(repeat("size", self._sizes, size))
            return sequence(*steps, [self._output(sums, position, block, at) for at in range(self._vectors)])

        begin = cleared(self._state, [*rows.slot, block, expression(0)], (self._sizes, self._width), rows.begins)
        return sequence(sums_made, inputs_made, scalars_made, begin, repeat("row", rows.count, row))

    def _scalars(self, scalars: Buffer, row: Expr, block: Expr) -> list[Stmt]:
        """The step of the block and the decay factor of its state, if all channels share them."""
        if not self._given.per_block:
            return []
        step = self._buffers.column("step", row, block)
        if self._given.bias is not None:
            low, high = self._given.limits
            step = softplus(step + load(self._named["bias"], block))
            step = tirx.max(step, tirx.const(low, "float32")) if low > 0 else step
            step = tirx.min(step, tirx.const(high, "float32")) if math.isfinite(high) else step
        return [
            store(scalars, step, _STEP),
            store(scalars, tirx.exp(load(scalars, _STEP) * load(self._named["decay"], block)), _DECAY),
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
        """One vector of the state for one of its sizes, and its part of the result."""
        every = lanes_of(0, self._lanes)
        where = (*rows.slot, block, size, lanes_of(at * self._lanes, self._lanes))
        shared = group * self._sizes + size
        write, read = (broadcast(self._buffers.column(role, row, shared), self._lanes) for role in ("write", "read"))
        if self._given.per_block:
            decay = broadcast(load(scalars, _DECAY), self._lanes)
        else:
            channel = lanes_of(block * self._width + at * self._lanes, self._lanes)
            decay = tirx.exp(self._step(scalars, row, block, at) * load(self._named["decay"], size, channel))
        changed = store(self._state, load(self._state, *where) * decay + load(inputs, at, every) * write, *where)
        summed = store(sums, load(sums, at, every) + load(self._state, *where) * read, at, every)
        return sequence(changed, summed)

    def _output(self, sums: list[Buffer], row: Expr, block: Expr, at: int) -> Stmt:
        channel = lanes_of(block * self._width + at * self._lanes, self._lanes)
        value = load(sums, at, lanes_of(0, self._lanes))
        value = value + load(self._named["skip"], channel) * self._vector("x", row, block, at)
        if "gate" in self._named:
            value = value * silu(self._vector("gate", row, block, at), self._lanes)
        return store(self._buffers.result, value, row, channel)

    def _vector(self, role: str, row: Expr, block: Expr, at: int) -> Expr:
        return self._buffers.column(role, row, block * self._width, self._lanes, at * self._lanes)
