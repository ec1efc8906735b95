"""Kernels that make a state longer by rows whose places are computed, in a form that `with_capacity` recognizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import te, tirx

from compiler.passes.rewriting.graph import kernel_attribute
from schedules.attention.cache.call import AttentionOptions, cached_attention
from schedules.attention.cache.description import (
    ATTRIBUTE,
    BIAS,
    KEY,
    POSITION,
    QUERY,
    SINKS,
    VALUE,
    CachedAttention,
    parse,
)

if TYPE_CHECKING:
    from schedules.ir.tvm_types import BlockBuilder, Call, Expr

APPENDS = "tensorwright.appends"
"""Attribute of such a kernel: the axis of the rows. Its operands are the state, the rows and where they start."""


def append_rows(builder: BlockBuilder, state: Expr, rows: Expr, starts: Expr, length: Expr, axis: int) -> Call:
    """A longer state: the old rows before `starts`, the new ones from there on, and zeros behind them.

    Args:
        builder: inside of a binding block; the call is not yet bound to a variable.
        state: (batch, ..., past, ...).
        rows: the same shape and dtype but for the number of rows along `axis`.
        starts: int64 (batch,), of each entry of axis 0, between 0 and `past`.
        length: of the result along `axis`.
        axis: of the rows; not 0.
    """

    def longer(old: te.Tensor, new: te.Tensor, first: te.Tensor, size: Expr) -> te.Tensor:
        def element(*place: Expr) -> Expr:
            def before() -> Expr:
                is_old = tirx.all(place[axis] < first[place[0]], place[axis] < old.shape[axis])
                return tirx.if_then_else(is_old, old[place], tirx.const(0, old.dtype))

            return placed(new, first, axis, place, before)

        return te.compute((*old.shape[:axis], size, *old.shape[axis + 1 :]), element, name="longer")

    return builder.call_te(
        longer, state, rows, starts, length, primfunc_name_hint="append_rows", primfunc_attrs={APPENDS: axis}
    )


def placed(rows: te.Tensor, starts: te.Tensor, axis: int, place: Sequence[Expr], other: Callable[[], Expr]) -> Expr:
    """The element at a place where `rows` start at `starts[place[0]]` along an axis; `other` outside of them."""
    start, count = starts[place[0]], rows.shape[axis]
    inner = tirx.max(tirx.min(place[axis] - start, count - 1), tirx.const(0, "int64"))
    is_new = tirx.all(place[axis] >= start, place[axis] < start + count)
    return tirx.Select(is_new, rows[(*place[:axis], inner, *place[axis + 1 :])], other())


@dataclass(frozen=True)
class PlacedAppend:
    """The operands of a call that `append_rows` made."""

    state: Expr
    rows: Expr
    starts: Expr
    axis: int


def placed_append(call: Expr, functions: Mapping[Any, Any]) -> PlacedAppend | None:
    """The operands where an expression is such a call; `functions` are those of its module."""
    axis = kernel_attribute(call, functions, APPENDS)
    if axis is None:
        return None
    state, rows, starts, *_ = call.args[1].fields  # and the length
    return PlacedAppend(state, rows, starts, int(axis))


@dataclass(frozen=True)
class CausalAttention:
    """A call of `cached_attention` each of whose queries sees the rows up to its own position."""

    description: CachedAttention
    operands: Mapping[str, Expr]

    @property
    def key(self) -> Expr:
        """(batch, key heads, rows, size)."""
        return self.operands[KEY]

    @property
    def value(self) -> Expr:
        """(batch, key heads, rows, value size)."""
        return self.operands[VALUE]

    @property
    def position(self) -> Expr | None:
        """The row of the first query; None: the queries are the last rows."""
        return self.operands.get(POSITION)

    def over(self, builder: BlockBuilder, key: Expr, value: Expr, renewed: Callable[[Expr], Expr]) -> Call:
        """The same over longer keys and values, where the queries end within the old ones; `renewed` gives the other
        operands."""
        given = {role: renewed(each) for role, each in self.operands.items() if role not in (KEY, VALUE)}
        description = self.description
        options = AttentionOptions(
            position=given.get(POSITION),
            scale=description.scale,
            window=description.window,
            softcap=description.softcap,
            sinks=given.get(SINKS),
            bias=given.get(BIAS),
            rounds=description.rounds,
        )
        return cached_attention(builder, given[QUERY], key, value, options)


def attention_call(call: Expr, functions: Mapping[Any, Any]) -> CausalAttention | None:
    """Causal attention that a call computes, or None; `functions` are those of its module."""
    text = kernel_attribute(call, functions, ATTRIBUTE)
    if text is None:
        return None
    description = parse(str(text))
    operands = dict(zip(description.operands, call.args[1].fields, strict=True))
    known = {QUERY, KEY, VALUE, POSITION, BIAS, SINKS}
    return CausalAttention(description, operands) if description.causal and set(operands) <= known else None
