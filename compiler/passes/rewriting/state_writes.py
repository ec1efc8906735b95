"""Kernels that overwrite part of a tensor, in a form that `update-states` can turn into in-place writes.

Such a kernel is functional: it copies one operand to its result, then writes the new parts. The kernel's attribute
`UPDATES` is that operand's position, the copy is its first statement, and nothing after it reads the operand. Without
the first statement, and with one buffer for operand and result, the same kernel thus writes in place.

Also kernels that extend a state by rows at computed positions, in a form that `with_capacity` recognizes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.artifact.entries import CHECK_MARK
from compiler.passes.rewriting.graph import kernel_attribute
from schedules.annotations import UPDATES
from schedules.attention.cache.call import AttentionOptions, cached_attention
from schedules.attention.cache.description import (
    ATTRIBUTE,
    BIAS,
    FIRST_ROW,
    FIRST_TOKEN,
    KEY,
    POSITION,
    QUERY,
    SINKS,
    SLOT,
    TOKENS,
    VALUE,
    CachedAttention,
    parse,
)
from schedules.instructions.masks import VECTOR_DTYPES
from schedules.ir.tvm_types import BlockBuilder, Call, Expr, Stmt, Tensor, Type

_LANES = 16  # per vector; LLVM splits it for narrower registers
Positions: TypeAlias = "tuple[Expr, ...]"


def write_rows(builder: relax.BlockBuilder, state: Expr, rows: Expr, position: Expr, axis: int) -> relax.Var:
    """Write `rows` into `state` along `axis` from `position` on, in the form that is always done in place.

    Args:
        builder: inside of a binding block.
        state: a tensor of known rank, (..., capacity, ...).
        rows: the same shape and dtype except for the number of rows along `axis`.
        position: int64, () for all, or (batch,) for each entry of axis 0 (then `axis` is not 0).
        axis: axis of the rows; negative counts from the end.

    Returns:
        The new value, of the type of `state`. If a row would be out of bounds, the run fails with one error, before
        this state is written.
    """
    axis %= len(state.ty.shape)

    def kernel(old: te.Tensor, new: te.Tensor, first: te.Tensor) -> te.Tensor:
        return updated(old, [new, first], partial(_write_run, old, new, axis), "write_rows")

    return _emitted(builder, kernel, [state, rows, position], state)


def write_positions(builder: relax.BlockBuilder, state: Expr, rows: Expr, positions: Expr, axis: int) -> relax.Var:
    """`state` with `rows[i]` written at `positions[i]` (int64, (rows,)) along `axis`, in order; see `write_rows`."""
    axis %= len(state.ty.shape)

    def kernel(old: te.Tensor, new: te.Tensor, each: te.Tensor) -> te.Tensor:
        return updated(old, [new, each], partial(_write_each, old, new, axis), "write_places")

    return _emitted(builder, kernel, [state, rows, positions], state)


def write_sequences(builder: relax.BlockBuilder, state: Expr, rows: Expr, sequences: Expr, axis: int = 1) -> relax.Var:
    """Write new rows of some sequences into a cache of several sequences; see `write_rows`.

    Args:
        builder: inside of a binding block.
        state: (slots, heads, capacity, ...).
        rows: (1, tokens, heads, ...), with each sequence's rows contiguous; or (1, heads, tokens, ...).
        sequences: int64 (sequences, 5), each (slot, first row, first token, tokens, is a prompt), as
            `schedules.attention.cache.call.cached_attention` reads them.
        axis: of the tokens in `rows`, 1 or 2.
    """

    def kernel(old: te.Tensor, new: te.Tensor, each: te.Tensor) -> te.Tensor:
        return updated(old, [new, each], partial(_write_sequences, old, new, axis), "write_sequences")

    return _emitted(builder, kernel, [state, rows, sequences], state)


def _emitted(
    builder: relax.BlockBuilder, kernel: Callable[..., Tensor], operands: list[Expr], state: Expr
) -> relax.Var:
    call = builder.call_te(kernel, *operands, primfunc_name_hint="update_state", primfunc_attrs={UPDATES: 0})
    variable: relax.Var = builder.emit(relax.Call(call.op, call.args, call.attrs, [state.ty], ret_ty=state.ty))
    return variable


def updated(old: te.Tensor, others: list[te.Tensor], write: Callable[..., None], name: str) -> te.Tensor:
    """Return the result of such a kernel: `old`, with what `write(result, *others)` writes into the buffer `result`."""

    def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source, *rest = ins
        result = outs[0]
        with IRBuilder() as builder:
            with T.seq_scope():
                _each_element(
                    old.shape, old.dtype, lambda indices: T.buffer_store(result, source[indices], list(indices))
                )
                write(result, *rest)
            return builder.get()

    out = tirx.decl_buffer(old.shape, old.dtype, name, layout=None)
    return te.extern([old.shape], [old, *others], generate, dtype=old.dtype, out_buffers=[out], name=name)


def _write_run(old: te.Tensor, new: te.Tensor, axis: int, result: Expr, rows: Expr, position: Expr) -> None:
    samples = list(position.shape)
    last = old.shape[axis] - new.shape[axis]
    with T.serial(0, samples[0] if samples else tirx.const(1, "int64")) as sample:
        first = position[(sample,) if samples else ()]
        _check(tirx.all(first >= 0, first <= last))

    def write(indices: Positions) -> None:
        target = [*indices]
        target[axis] = _within(position[(indices[0],) if samples else ()], last) + indices[axis]
        T.buffer_store(result, rows[indices], target)

    _each_element(new.shape, new.dtype, write)


def _write_each(old: te.Tensor, new: te.Tensor, axis: int, result: Expr, rows: Expr, positions: Expr) -> None:
    with T.serial(0, new.shape[axis]) as row:
        _check(tirx.all(positions[row] >= 0, positions[row] < old.shape[axis]))

    def write(indices: Positions) -> None:
        target = [*indices]
        target[axis] = _within(positions[indices[axis]], old.shape[axis] - 1)
        T.buffer_store(result, rows[indices], target)

    _each_element(new.shape, new.dtype, write, in_vectors=axis < len(new.shape) - 1)


def _write_sequences(old: te.Tensor, new: te.Tensor, axis: int, result: Expr, rows: Expr, sequences: Expr) -> None:
    slots, heads, capacity, *inner = old.shape
    total = new.shape[axis]

    def fits(start: Expr, count: Expr, limit: Expr) -> Expr:
        return tirx.all(start >= 0, start <= limit, count <= limit - start)

    with T.serial(0, sequences.shape[0]) as one:
        slot, position, first, count = (sequences[one, column] for column in (SLOT, FIRST_ROW, FIRST_TOKEN, TOKENS))
        _check(
            tirx.all(slot >= 0, slot < slots, count >= 0, fits(position, count, capacity), fits(first, count, total))
        )
    with (
        T.serial(0, sequences.shape[0]) as sequence,
        T.serial(0, tirx.min(sequences[sequence, TOKENS], total)) as row,
        T.serial(0, heads) as head,
    ):
        target = [
            _within(sequences[sequence, SLOT], slots - 1),
            head,
            _within(sequences[sequence, FIRST_ROW] + row, capacity - 1),
        ]
        token = _within(sequences[sequence, FIRST_TOKEN] + row, total - 1)
        source = [0, token, head] if axis == 1 else [0, head, token]

        def write(indices: Positions) -> None:
            T.buffer_store(result, rows[(*source, *indices)], [*target, *indices])

        _each_element(inner, new.dtype, write)


def _check(condition: Expr) -> None:
    with T.Assert(condition, f"{CHECK_MARK}[the state: a row would be written outside of its capacity]"):
        pass


def _within(index: Expr, last: Expr) -> Expr:
    """Clamp a checked position; GPUs check nothing, and must not write out of bounds."""
    return tirx.max(tirx.min(index, last), tirx.const(0, "int64"))


def _each_element(
    shape: Sequence[Expr], dtype: Type, body: Callable[[Positions], None], *, in_vectors: bool = True
) -> None:
    """Run `body` for each position of a shape in order, vectorized along the last axis if the dtype permits."""
    if not len(shape):
        body(())
        return
    with contextlib.ExitStack() as loops:
        outer = tuple(loops.enter_context(T.serial(0, extent)) for extent in list(shape)[:-1])
        if not in_vectors or str(dtype) not in VECTOR_DTYPES:
            body((*outer, loops.enter_context(T.serial(0, shape[-1]))))
            return
        lanes = tirx.const(_LANES, "int64")
        vectors = tirx.floordiv(shape[-1], lanes)
        with T.seq_scope():
            with T.serial(0, vectors) as block, T.vectorized(0, lanes) as lane:
                body((*outer, block * lanes + lane))
            with T.serial(0, tirx.floormod(shape[-1], lanes)) as rest:
                body((*outer, vectors * lanes + rest))


APPENDS = "tensorwright.appends"
"""Attribute of such a kernel: the axis of the rows. Its operands are the state, the rows and their start."""


def append_rows(builder: BlockBuilder, state: Expr, rows: Expr, starts: Expr, length: Expr, axis: int) -> Call:
    """Return a longer state: the old rows before `starts`, the new ones from there on, then zeros.

    Args:
        builder: inside of a binding block; the call is not yet bound to a variable.
        state: (batch, ..., past, ...).
        rows: the same shape and dtype except for the number of rows along `axis`.
        starts: int64 (batch,), for each entry of axis 0, between 0 and `past`.
        length: size of the result along `axis`.
        axis: axis of the rows; not 0.
    """

    def longer(old: te.Tensor, new: te.Tensor, first: te.Tensor, size: Expr) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            def before() -> Expr:
                is_old = tirx.all(indices[axis] < first[indices[0]], indices[axis] < old.shape[axis])
                return tirx.if_then_else(is_old, old[indices], tirx.const(0, old.dtype))

            return placed(new, first, axis, indices, before)

        return te.compute((*old.shape[:axis], size, *old.shape[axis + 1 :]), element, name="longer")

    return builder.call_te(
        longer, state, rows, starts, length, primfunc_name_hint="append_rows", primfunc_attrs={APPENDS: axis}
    )


def placed(rows: te.Tensor, starts: te.Tensor, axis: int, indices: Sequence[Expr], other: Callable[[], Expr]) -> Expr:
    """Return the element at an index, with `rows` starting at `starts[position[0]]` along an axis; `other` outside of
    them."""
    start, count = starts[indices[0]], rows.shape[axis]
    inner = tirx.max(tirx.min(indices[axis] - start, count - 1), tirx.const(0, "int64"))
    is_new = tirx.all(indices[axis] >= start, indices[axis] < start + count)
    return tirx.Select(is_new, rows[(*indices[:axis], inner, *indices[axis + 1 :])], other())


@dataclass(frozen=True)
class PlacedAppend:
    """The operands of a call created by `append_rows`."""

    state: Expr
    rows: Expr
    starts: Expr
    axis: int


def placed_append(call: Expr, functions: Mapping[Any, Any]) -> PlacedAppend | None:
    """Return the operands if an expression is such a call; `functions` are its module's."""
    axis = kernel_attribute(call, functions, APPENDS)
    if axis is None:
        return None
    state, rows, starts, *_ = call.args[1].fields  # and the length
    return PlacedAppend(state, rows, starts, int(axis))


@dataclass(frozen=True)
class CausalAttention:
    """A call of `cached_attention` in which each query sees the rows up to its own position."""

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
        """Return the same attention over longer keys and values, with queries that end within the old ones; `renewed`
        returns the other operands."""
        operands = {role: renewed(each) for role, each in self.operands.items() if role not in (KEY, VALUE)}
        description = self.description
        options = AttentionOptions(
            position=operands.get(POSITION),
            scale=description.scale,
            window=description.window,
            chunk=description.chunk,
            softcap=description.softcap,
            sinks=operands.get(SINKS),
            bias=operands.get(BIAS),
            rounds=description.rounds,
        )
        return cached_attention(builder, operands[QUERY], key, value, options)


def attention_call(call: Expr, functions: Mapping[Any, Any]) -> CausalAttention | None:
    """Return the causal attention that a call computes, or None; `functions` are its module's."""
    text = kernel_attribute(call, functions, ATTRIBUTE)
    if text is None:
        return None
    description = parse(str(text))
    operands = dict(zip(description.operands, call.args[1].fields, strict=True))
    known = {QUERY, KEY, VALUE, POSITION, BIAS, SINKS}
    return CausalAttention(description, operands) if description.causal and set(operands) <= known else None
