"""Time mixing of RWKV 7 as a kernel: a delta rule with separate keys for removing and writing.

The kernel includes the per-head operations around the rule: activations of decays and rates, normalized keys, and the
result's group norm, bonus and gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from schedules.codegen.nest import allocate, allocate_tile, broadcast, lanes_of, load, repeat, store
from schedules.ir.stages import shape_of
from schedules.ir.tir import BlockBuilder, Buffer, Expr, Stmt, tirx
from schedules.sequence_mixers import Buffers, Columns, MatrixLoops, sigmoid, with_state


@dataclass(frozen=True, kw_only=True)
class TimeMix:
    """Operands of the time mixing of RWKV 7 (arXiv:2503.14456), all float32.

    Attributes:
        query, key, value: (n, heads * size).
        decay: (n, heads * size), before activation: row i of a state is scaled by exp(-exp(-0.5) * sigmoid(decay[i])).
        rate: (n, heads * size), before its sigmoid: the in-context learning rate of each row of a state.
        gate: (n, heads * size), multiplied with the result; None for no gate.
        removal: (heads * size,), multiplied with the key to give the removal key, which is normalized to length 1.
        rate_share: (heads * size,), the key is scaled by 1 + rate_share * (sigmoid(rate) - 1).
        bonus: (heads * size,), the values times sum(query * key * bonus) of their head are added to the normed result.
        scale, bias: (heads * size,), of the group norm of the result; None for no norm.
        state: (heads, size, size), or (slots, ...) of several sequences.
        epsilon, key_epsilon: added to the variance of the norm, and to the squared length of the removal key.
        sequences: int64 (sequences, 5), like those of `cached_attention`; None if all rows are one sequence.
    """

    query: Columns
    key: Columns
    value: Columns
    decay: Columns
    rate: Columns
    gate: Columns | None
    removal: Expr
    rate_share: Expr
    bonus: Expr
    scale: Expr | None
    bias: Expr | None
    state: Expr
    epsilon: float
    key_epsilon: float
    sequences: Expr | None = None


def time_mix(builder: BlockBuilder, given: TimeMix) -> tuple[Expr, Expr]:
    """Emit state = kept * state - (rate * removed) (removed state) + key value for each head; see `TimeMix`.

    Returns the result (n, heads * size) and the next state.
    """
    columns = {each: getattr(given, each) for each in ("query", "key", "value", "decay", "rate", "gate")}
    inputs = {each: getattr(given, each) for each in ("removal", "rate_share", "bonus", "scale", "bias", "sequences")}
    heads, _, size = (int(each) for each in given.state.ty.shape.values[-3:])

    def body(buffers: Buffers) -> Stmt:
        return MatrixLoops(_TimeMix(given, buffers), buffers, size).code()

    return with_state(builder, "time_mix", columns, inputs, given.state, heads * size, body)


_KEPT_AT_LEAST = -math.exp(-0.5)  # its logarithm
_VECTORS = ("key", "query", "kept", "removed", "write")


class _TimeMix:
    """Rule of RWKV 7's time mixing; see `MatrixRule`. A task is a whole head, since heads are normalized."""

    def __init__(self, given: TimeMix, buffers: Buffers) -> None:
        self._given, self._buffers = given, buffers
        self._size = int(shape_of(buffers.state)[-1])

    def allocations(self, lanes: int, vectors: int) -> list[Stmt]:
        """See `MatrixRule`."""
        self._lanes, self._vectors, self._every = lanes, vectors, lanes_of(0, lanes)
        sizes = {**dict.fromkeys(_VECTORS, self._size), "line": lanes, "total": 1, "bonus": 1}
        allocated = {name: allocate(name, (size,), "float32", "local") for name, size in sizes.items()}
        self._local = {name: buffer for name, (buffer, _) in allocated.items()}
        self._value, value_made = allocate_tile("value", (vectors, lanes), "float32")
        return [*(allocation for _, allocation in allocated.values()), *value_made]

    def prepared(self, row: Expr, head: Expr) -> list[Stmt]:
        """See `MatrixRule`."""
        one = self._same(1.0)
        steps: list[Stmt] = []
        for at in range(self._vectors):
            decay = tirx.exp(self._same(_KEPT_AT_LEAST) * sigmoid(self._column("decay", row, head, at), self._lanes))
            share = sigmoid(self._column("rate", row, head, at), self._lanes)
            key, query = (self._column(role, row, head, at) for role in ("key", "query"))
            steps += [
                store(self._value, self._column("value", row, head, at), at, self._every),
                self._put("kept", at, decay),
                self._put("query", at, query),
                self._put("write", at, share),
                self._put("removed", at, key * self._constant("removal", head, at)),
                self._put("key", at, key * (one + self._constant("rate_share", head, at) * (share - one))),
            ]
        steps += self._sum("total", lambda at: self._get("removed", at) * self._get("removed", at))
        length = tirx.sqrt(load(self._local["total"], 0) + tirx.const(self._given.key_epsilon, "float32"))
        steps.append(store(self._local["total"], tirx.const(1.0, "float32") / length, 0))
        for at in range(self._vectors):
            removed = self._get("removed", at) * self._scalar("total")
            steps.append(self._put("removed", at, removed))
            steps.append(self._put("write", at, self._same(0.0) - self._get("write", at) * self._get("removed", at)))
        return [
            *steps,
            *self._sum(
                "bonus", lambda at: self._get("key", at) * self._get("query", at) * self._constant("bonus", head, at)
            ),
        ]

    def factors(self, index: Expr) -> tuple[Expr, Expr, Expr, Expr]:
        """See `MatrixRule`."""
        read, kept, write, query = (load(self._local[name], index) for name in ("removed", "kept", "write", "query"))
        return read, kept, write, query

    def delta(self, found: Expr, place: tuple[Expr, Expr, Expr], at: int) -> Expr:
        """See `MatrixRule`."""
        return found

    def inserted(self, index: Expr, at: int) -> Expr:
        """See `MatrixRule`."""
        return load(self._value, at, self._every) * broadcast(load(self._local["key"], index), self._lanes)

    def results(self, sums: list[Buffer], place: tuple[Expr, Expr, Expr]) -> list[Stmt]:
        """See `MatrixRule`."""
        row, head, _ = place
        steps = [] if self._given.scale is None else self._normalized(sums)
        for at in range(self._vectors):
            value = load(sums, at, self._every)
            if self._given.scale is not None:
                value = value * self._scalar("total") * self._constant("scale", head, at)
            if self._given.bias is not None:
                value = value + self._constant("bias", head, at)
            value = value + load(self._value, at, self._every) * self._scalar("bonus")
            if self._given.gate is not None:
                value = value * self._column("gate", row, head, at)
            steps.append(store(self._buffers.result, value, row, self._place(head, at)))
        return steps

    def _normalized(self, sums: list[Buffer]) -> list[Stmt]:
        """Subtract the mean of `sums`, and store 1 / standard deviation in `total`."""
        total, share = self._local["total"], tirx.const(1.0 / self._size, "float32")
        steps = self._sum("total", lambda at: load(sums, at, self._every))
        steps.append(store(total, load(total, 0) * share, 0))
        for at in range(self._vectors):
            steps.append(store(sums, load(sums, at, self._every) - self._scalar("total"), at, self._every))
        steps += self._sum("total", lambda at: load(sums, at, self._every) * load(sums, at, self._every))
        deviation = tirx.sqrt(load(total, 0) * share + tirx.const(self._given.epsilon, "float32"))
        return [*steps, store(total, tirx.const(1.0, "float32") / deviation, 0)]

    def _sum(self, name: str, vector: Callable[[int], Expr]) -> list[Stmt]:
        """Sum the elements of vectors into a scalar."""
        line, total = self._local["line"], self._local[name]
        value = vector(0)
        for at in range(1, self._vectors):
            value = value + vector(at)
        add = repeat("lane", self._lanes, lambda lane: store(total, load(total, 0) + load(line, lane), 0))
        return [store(line, value, self._every), store(total, tirx.const(0.0, "float32"), 0), add]

    def _place(self, head: Expr, at: int) -> Expr:
        return lanes_of(head * self._size + at * self._lanes, self._lanes)

    def _column(self, role: str, row: Expr, head: Expr, at: int) -> Expr:
        return self._buffers.column(role, row, head * self._size, self._lanes, at * self._lanes)

    def _constant(self, role: str, head: Expr, at: int) -> Expr:
        return load(self._buffers.named[role], self._place(head, at))

    def _get(self, name: str, at: int) -> Expr:
        return load(self._local[name], lanes_of(at * self._lanes, self._lanes))

    def _put(self, name: str, at: int, value: Expr) -> Stmt:
        return store(self._local[name], value, lanes_of(at * self._lanes, self._lanes))

    def _scalar(self, name: str) -> Expr:
        return broadcast(load(self._local[name], 0), self._lanes)

    def _same(self, value: float) -> Expr:
        return broadcast(tirx.const(value, "float32"), self._lanes)
