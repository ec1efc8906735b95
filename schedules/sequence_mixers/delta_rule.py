"""Gated delta rule (arXiv:2412.06464): linear attention whose state is a matrix for each head, overwritten by each row.

A task is some columns of the values of a head: its part of the state stays in the caches while all rows pass.
"""

from __future__ import annotations

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
from schedules.sequence_mixers import (
    Columns,
    Rows,
    cleared,
    each_sequence,
    sigmoid,
    softplus,
    task_width,
    vector_width,
    with_state,
)

_RATE, _TOTAL = range(2)
_EPSILON = 1e-6  # of the lengths of queries and keys


@dataclass(frozen=True, kw_only=True)
class DeltaRule:
    """Operands of the rule, all float32.

    Heads of values share heads of keys evenly: neighbours the same, or where `tiled` every so many.

    Attributes:
        query, key: (n, key heads * key size); their lengths become 1, and the query is divided by sqrt(key size).
        value: (n, heads * value size).
        step: (n, heads): the state is multiplied with exp(decay * softplus(step + bias)); or (n, heads * key size), a
            step for each row of the state (Kimi Delta Attention, arXiv:2510.26692).
        rate: (n, heads): the correction of what the state holds for a key is multiplied with `rate_scale` *
            sigmoid(rate).
        decay, bias: (heads,), the bias as many as steps.
        state: (heads, key size, value size), or (slots, ...) of several sequences.
        key_heads, tiled: how many there are, and see above.
        rate_scale: see above.
        sequences: int64 (sequences, 5), as `cached_attention` takes them; None: all rows are of one sequence.
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
    """state = kept * state; state += key (value - key state) rate; result = query state, of each head.

    Returns the result (n, heads * value size) and the state that follows, emitted.
    """
    columns = {each: getattr(given, each) for each in ("query", "key", "value", "step", "rate")}
    starts = {role: each.start for role, each in columns.items()}
    roles = [*starts, "decay", "bias", *([] if given.sequences is None else ["sequences"])]
    operands = [each.data for each in columns.values()] + [given.decay, given.bias]
    operands += [] if given.sequences is None else [given.sequences]
    heads, _, size = (int(each) for each in given.state.ty.shape.values[-3:])

    def body(ins: Sequence[Buffer], result: Buffer, state: Buffer) -> Stmt:
        return _Loops(given, dict(zip(roles, ins, strict=True)), starts, result, state).code()

    return with_state(builder, "gated_delta_rule", operands, given.state, heads * size, body)


class _Loops:
    """The loops of one kernel."""

    def __init__(
        self, given: DeltaRule, named: dict[str, Buffer], starts: dict[str, int], result: Buffer, state: Buffer
    ) -> None:
        self._given, self._named, self._starts = given, named, starts
        self._result, self._state = result, state
        self._heads, self._keys, self._values = (int(each) for each in shape_of(state)[-3:])
        self._width = task_width(self._values)
        self._lanes = vector_width(self._width)
        self._vectors = self._width // self._lanes
        self._by_row = int(shape_of(named["bias"])[0]) != self._heads

    def code(self) -> Stmt:
        """The statement."""
        sequences = self._named.get("sequences")
        slots = shape_of(self._state)[0] if sequences is not None else 1
        parts = self._values // self._width

        def task(number: Expr) -> Stmt:
            head = tirx.floordiv(expression(number), expression(parts))
            first = tirx.floormod(expression(number), expression(parts)) * self._width
            return each_sequence(
                sequences, shape_of(self._result)[0], slots, lambda rows: self._sequence(rows, head, first)
            )

        return parallel("part", self._heads * parts, task)

    def _sequence(self, rows: Rows, head: Expr, first: Expr) -> Stmt:
        sums, sums_made = allocate_tile("sum", (self._vectors, self._lanes), "float32")
        parts, parts_made = allocate_tile("delta", (self._vectors, self._lanes), "float32")
        (key, key_made), (query, query_made) = (
            allocate(name, (self._keys,), "float32", "local") for name in ("key", "query")
        )
        scalars, scalars_made = allocate("scalars", (2,), "float32", "local")
        kept_rows, kept_made = allocate("kept", (self._keys if self._by_row else 1,), "float32", "local")
        every, vectors = lanes_of(0, self._lanes), range(self._vectors)
        zero = broadcast(tirx.const(0.0, "float32"), self._lanes)

        def state(index: Expr, at: int) -> tuple[Expr, ...]:
            return (*rows.slot, head, index, lanes_of(first + at * self._lanes, self._lanes))

        def remembered(index: Expr) -> Stmt:
            found = load(key, index) * load(kept_rows, index) if self._by_row else load(key, index)
            factor = broadcast(found, self._lanes)
            return sequence(
                [store(sums, load(sums, at, every) + load(self._state, *state(index, at)) * factor, at, every)
                 for at in vectors]
            )  # fmt: skip

        def updated(index: Expr) -> Stmt:
            factor, wanted = (broadcast(load(each, index), self._lanes) for each in (key, query))
            kept = broadcast(load(kept_rows, index if self._by_row else 0), self._lanes)
            steps = []
            for at in vectors:
                where = state(index, at)
                new = load(self._state, *where) * kept + load(parts, at, every) * factor
                steps.append(store(self._state, new, *where))
                steps.append(store(sums, load(sums, at, every) + load(self._state, *where) * wanted, at, every))
            return sequence(steps)

        def row(number: Expr) -> Stmt:
            place = rows.first + number
            rate = broadcast(load(scalars, _RATE), self._lanes)
            # Sums over rows of the state that are kept alike are multiplied once.
            shared = broadcast(tirx.const(1.0, "float32") if self._by_row else load(kept_rows, 0), self._lanes)
            clear = [store(sums, zero, at, every) for at in vectors]
            deltas = [
                store(parts, (self._value(place, head, first, at) - load(sums, at, every) * shared) * rate, at, every)
                for at in vectors
            ]
            results = [
                store(self._result, load(sums, at, every), place,
                      lanes_of(head * self._values + first + at * self._lanes, self._lanes))
                for at in vectors
            ]  # fmt: skip
            return sequence(
                self._scalars(scalars, kept_rows, place, head),
                self._normalized(key, "key", scalars, place, head, 1.0),
                self._normalized(query, "query", scalars, place, head, self._keys**-0.5),
                clear,
                repeat("index", self._keys, remembered),
                deltas,
                clear,
                repeat("index", self._keys, updated),
                results,
            )

        made = [sums_made, parts_made, [key_made, query_made, scalars_made, kept_made]]
        begin = cleared(self._state, [*rows.slot, head, first], (self._keys, self._width), rows.begins)
        return sequence(*made, begin, repeat("row", rows.count, row))

    def _scalars(self, scalars: Buffer, kept: Buffer, row: Expr, head: Expr) -> list[Stmt]:
        """The rate, and what is kept of the state, or of each of its rows."""
        count = self._keys if self._by_row else 1
        rate = load(self._named["rate"], row, head + self._starts["rate"])

        def keep(index: Expr) -> Stmt:
            place = head * count + index
            step = load(self._named["step"], row, place + self._starts["step"]) + load(self._named["bias"], place)
            return store(kept, tirx.exp(load(self._named["decay"], head) * softplus(step)), index)

        scale = tirx.const(self._given.rate_scale, "float32")
        return [repeat("index", count, keep), store(scalars, scale * sigmoid(rate), _RATE)]

    def _normalized(
        self, target: Buffer, role: str, scalars: Buffer, row: Expr, head: Expr, scale: float
    ) -> list[Stmt]:
        """A vector of length `scale`, in a buffer."""
        keys = self._given.key_heads
        shared = (
            tirx.floormod(head, expression(keys))
            if self._given.tiled
            else tirx.floordiv(head, expression(self._heads // keys))
        )
        start = shared * self._keys + self._starts[role]

        def square(index: Expr) -> Stmt:
            value = load(self._named[role], row, start + index)
            return store(scalars, load(scalars, _TOTAL) + value * value, _TOTAL)

        def copy(index: Expr) -> Stmt:
            return store(target, load(self._named[role], row, start + index) * load(scalars, _TOTAL), index)

        length = tirx.sqrt(load(scalars, _TOTAL) + tirx.const(_EPSILON, "float32"))
        return [
            store(scalars, tirx.const(0.0, "float32"), _TOTAL),
            repeat("index", self._keys, square),
            store(scalars, tirx.const(scale, "float32") / length, _TOTAL),
            repeat("index", self._keys, copy),
        ]

    def _value(self, row: Expr, head: Expr, first: Expr, at: int) -> Expr:
        start = head * self._values + first + (at * self._lanes + self._starts["value"])
        return load(self._named["value"], row, lanes_of(start, self._lanes))
