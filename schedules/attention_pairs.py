"""Operands of attention as pairs of bfloat16: keys and values made once, rows of queries and weights in each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schedules.bf16_dot import narrowed, rounded_pair
from schedules.conv_workload import ceil_div
from schedules.kernel import shape_of
from schedules.machine import Machine
from schedules.nest import expression, lanes_of
from schedules.parallel import Extent, loops, pays_off, repeat
from schedules.tir import tirx

Expr = Any
Stmt = Any
# The element of a row at a step of the sum.
Operand = Callable[[Any, Expr], Expr]

VECTORIZED = tirx.ForKind.VECTORIZED


@dataclass(frozen=True, eq=False)
class Pairs:
    """A matrix (..., depth, columns) of float32 and its `words`, int32 (..., ceil(depth / 2), columns): two neighbours
    along the depth each, the first in the low half; behind an odd depth stands 0."""

    source: Any
    words: Any

    @classmethod
    def of(cls, source: Any) -> Pairs:
        *lead, depth, columns = shape_of(source)
        shape = [*lead, ceil_div(depth, 2), columns]
        name = f"{source.name}_pairs"
        return cls(source, tirx.decl_buffer([expression(size) for size in shape], "int32", name, layout=None))

    def made(self, machine: Machine) -> list[Stmt]:
        """The statements that allocate and fill the words."""
        *lead, depth, columns = shape_of(self.source)
        lanes = machine.lanes("float32")
        amount: Any = depth * columns
        for extent in lead:
            amount = amount * extent

        def row(values: list[Expr], *, whole: bool) -> Stmt:
            outer, step = values[:-1], values[-1]

            def word(column: Expr) -> Stmt:
                low = tirx.BufferLoad(self.source, [*outer, step * 2, column])
                high = tirx.BufferLoad(self.source, [*outer, step * 2 + 1, column])
                value = rounded_pair(low, high if whole else tirx.FloatImm("float32", 0.0))
                return tirx.BufferStore(self.words, value, [*outer, step, column])

            return _vectors("column", columns, lanes, word)

        extents = [Extent(f"lead{i}", extent) for i, extent in enumerate(lead)]
        threads = pays_off(amount, machine)
        steps = [*extents, Extent("step", depth // 2)]
        parts = [tirx.AllocBuffer(self.words), loops(steps, lambda at: row(at, whole=True), machine, parallel=threads)]
        if depth % 2:
            last = expression(depth // 2)
            parts.append(loops(extents, lambda at: row([*at, last], whole=False), machine, parallel=False))
        return parts


def narrowed_rows(name: str, rows: int, depth: int, value: Operand, lanes: int) -> tuple[list[Stmt], Operand]:
    """Rows rounded to bfloat16: the statements that make them, and the pair of row i at a step of the sum."""
    width = depth + depth % 2
    buffer = tirx.decl_buffer([expression(rows), expression(width)], "uint16", name, layout=None)

    def row(i: Expr) -> Stmt:
        return _vectors("k", depth, lanes, lambda k: tirx.BufferStore(buffer, narrowed(value(i, k)), [i, k]))

    def clear(i: Expr) -> Stmt:
        return tirx.BufferStore(buffer, tirx.IntImm("uint16", 0), [i, expression(depth)])

    made = [tirx.AllocBuffer(buffer), repeat("row", rows, row)]
    if depth % 2:
        made.append(repeat("row", rows, clear))

    def pair(i: Any, step: Expr) -> Expr:
        return tirx.reinterpret("int32", tirx.BufferLoad(buffer, [expression(i), lanes_of(step * 2, 2)]))

    return made, pair


def _vectors(name: str, extent: int, lanes: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """A loop in vectors, the last of which may be shorter."""
    whole, rest = divmod(extent, lanes)

    def vector(at: Expr, size: int) -> Stmt:
        return repeat("lane", size, lambda lane: body(at + lane), VECTORIZED)

    parts = [repeat(name, whole, lambda run: vector(run * lanes, lanes))] if whole else []
    if rest:
        parts.append(vector(expression(whole * lanes), rest))
    return parts[0] if len(parts) == 1 else tirx.SeqStmt(parts)
