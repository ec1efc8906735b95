"""Reductions as they are written in blocks: `out = out + value`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schedules.expression import buffers_loaded
from schedules.kernel import Stage
from schedules.tir import structural_equal, tirx, tvm

Expr = Any


@dataclass(frozen=True, eq=False)
class Combiner:
    """How partial results join, and the value to start from that changes nothing (None: the stage's own init)."""

    name: str
    combine: Callable[[Expr, Expr], Expr]
    identity: float | None


COMBINERS = {
    tirx.Add: Combiner("add", lambda a, b: a + b, 0.0),
    tirx.Mul: Combiner("multiply", lambda a, b: a * b, 1.0),
    # These may meet the start value more than once, so they start from the stage's own.
    tirx.Max: Combiner("maximum", tirx.Max, None),
    tirx.Min: Combiner("minimum", tirx.Min, None),
}


@dataclass(frozen=True, eq=False)
class Reduction:
    """A stage `out[...] = combine(out[...], value)` that starts at `start`."""

    combiner: Combiner
    value: Expr
    start: Expr
    store: Any

    @property
    def dtype(self) -> str:
        return str(self.store.buffer.dtype)

    def identity(self) -> Expr:
        """What an accumulator starts from when the start value joins at the end."""
        if self.combiner.identity is None:
            return self.start
        return tirx.const(self.combiner.identity, self.dtype)

    def joins_start(self) -> bool:
        """Whether the start value has yet to be combined in, after accumulating from `identity`."""
        return self.combiner.identity is not None and not _is_number(self.start, self.combiner.identity)


def _is_number(expr: Expr, number: float) -> bool:
    return isinstance(expr, (tirx.IntImm, tirx.FloatImm)) and float(expr.value) == number


def reduction_of(stage: Stage) -> Reduction | None:
    """The reduction that a stage performs, None when it has another form."""
    store = stage.store
    if store is None or not stage.reduction or not isinstance(stage.init, tirx.BufferStore):
        return None
    if not stage.init.buffer.same_as(store.buffer) or not _same_place(stage.init.indices, store.indices):
        return None
    lets: list[tuple[Any, Expr]] = []
    value = store.value
    while isinstance(value, tirx.Let):
        lets.append((value.var, value.value))
        value = value.body
    combiner = COMBINERS.get(type(value))
    if combiner is None:
        return None
    for accumulator, operand in ((value.a, value.b), (value.b, value.a)):
        if not _is_own_load(accumulator, store):
            continue
        for var, bound in reversed(lets):
            operand = tirx.Let(var, bound, operand)
        if any(load.source.same_as(store.buffer) for load in buffers_loaded(operand)):
            return None
        return Reduction(combiner, operand, stage.init.value, store)
    return None


def _is_own_load(expr: Expr, store: Any) -> bool:
    return (
        isinstance(expr, tvm.ir.TensorLoad)
        and bool(expr.source.same_as(store.buffer))
        and _same_place(expr.indices, store.indices)
    )


def _same_place(left: Any, right: Any) -> bool:
    return len(left) == len(right) and bool(structural_equal(list(left), list(right)))
