"""Sequence operations of state space models: causal convolution and selective scan, with their states."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Buffer, Expr, Stmt


_OPAQUE = 8  # relax's pattern kind that is fused with nothing
_LANES = 16


def causal_convolution(
    builder: relax.BlockBuilder, x: Expr, state: Expr, weight: Expr, bias: Expr
) -> tuple[Expr, Expr]:
    """A convolution of each channel with the rows before it, and the state that follows.

    Args:
        builder: inside a function.
        x: float32 (n, channels).
        state: float32 (taps - 1, channels), the rows before x.
        weight: float32 (taps, channels), the last tap for the row itself.
        bias: float32 (channels,).
    """
    taps = int(weight.ty.shape[0])

    def before(x: te.Tensor, state: te.Tensor, row: Expr, channel: Expr) -> Expr:
        """A row counted from the first of the state."""
        last = tirx.const(taps - 1, "int64")
        old = tirx.max(tirx.min(row, last - 1), tirx.const(0, "int64"))
        new = tirx.max(row - last, tirx.const(0, "int64"))
        return tirx.if_then_else(row < last, state[old, channel], x[new, channel])

    def convolve(x: te.Tensor, state: te.Tensor, weight: te.Tensor, bias: te.Tensor) -> te.Tensor:
        def element(row: Expr, channel: Expr) -> Expr:
            total = bias[channel]
            for tap in range(taps):
                total = total + weight[tap, channel] * before(x, state, row + tap, channel)
            return total

        return te.compute(x.shape, element, name="convolved")

    def follow(x: te.Tensor, state: te.Tensor) -> te.Tensor:
        rows = x.shape[0]
        return te.compute(state.shape, lambda row, channel: before(x, state, row + rows, channel), name="last_rows")

    result = builder.emit_te(convolve, x, state, weight, bias, primfunc_name_hint="causal_convolution")
    return result, builder.emit_te(follow, x, state, primfunc_name_hint="last_rows")


@dataclass(frozen=True)
class ScanOperands:
    """Operands of a selective scan, all float32.

    Attributes:
        x, step: (n, channels), the data and the length of each step.
        decay: (sizes, channels), negative, or (1, channels) where it is one for all places of the state.
        write, read: (n, groups, sizes), what goes into the state and comes out of it; channels share groups evenly.
        skip: (channels,), times x, added to the result.
        state: (sizes, channels).
    """

    x: Expr
    step: Expr
    decay: Expr
    write: Expr
    read: Expr
    skip: Expr
    state: Expr


def selective_scan(builder: relax.BlockBuilder, operands: ScanOperands) -> tuple[Expr, Expr]:
    """state = exp(step * decay) * state + step * x * write; result = sum(state * read) + skip * x, for each row.

    Returns the result (n, channels) and the last state, emitted.
    """
    o = operands
    call = builder.call_te(
        _scan,
        *(o.x, o.step, o.decay, o.write, o.read, o.skip, o.state),
        primfunc_name_hint="selective_scan",
        primfunc_attrs={"op_pattern": _OPAQUE},
    )
    found = builder.emit(call)
    return builder.emit(relax.TupleGetItem(found, 0)), builder.emit(relax.TupleGetItem(found, 1))


def _scan(*operands: te.Tensor) -> list[te.Tensor]:
    x, state = operands[0], operands[-1]
    outputs = [
        tirx.decl_buffer(shape, "float32", name, layout=None)
        for shape, name in ((x.shape, "scanned"), (state.shape, "last_state"))
    ]

    def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
        channels, groups = int(x.shape[1]), int(operands[3].shape[1])
        each = channels // groups
        # Channels of a vector read the same group.
        lanes = next(size for size in (_LANES, 8, 4, 1) if each % size == 0)
        with IRBuilder() as builder:
            with T.serial(0, tirx.const(channels // lanes, "int64")) as block, T.seq_scope():
                _Block(ins, outs, block, lanes, each).write()
            return builder.get()

    shapes = [tuple(x.shape), tuple(state.shape)]
    return list(te.extern(shapes, list(operands), generate, dtype=["float32"] * 2, out_buffers=outputs, name="scan"))


class _Block:
    """All rows of some neighbouring channels: their part of the state stays in the first cache."""

    def __init__(
        self, ins: Sequence[Buffer], outs: Sequence[Buffer], block: Expr, lanes: int, channels_of_group: int
    ) -> None:
        self._ins, self._outs, self._lanes = ins, outs, lanes
        self._first = block * lanes
        self._group = tirx.floordiv(self._first, tirx.const(channels_of_group, "int64"))

    def write(self) -> None:
        """The loops."""
        x, step, decay, write, read, skip, state = self._ins
        result, last = self._outs
        rows, sizes = x.shape[0], state.shape[0]
        shared = int(decay.shape[0]) == 1
        with self._each_lane() as at, T.serial(0, sizes) as size:
            T.buffer_store(last, state[size, at], [size, at])
        with T.serial(0, rows) as row, T.seq_scope():
            with self._each_lane() as at:
                T.buffer_store(result, skip[at] * x[row, at], [row, at])
            with T.serial(0, sizes) as size, T.seq_scope():
                with self._each_lane() as at:
                    kept = tirx.exp(step[row, at] * decay[0 if shared else size, at]) * last[size, at]
                    added = step[row, at] * x[row, at] * write[row, self._group, size]
                    T.buffer_store(last, kept + added, [size, at])
                with self._each_lane() as at:
                    T.buffer_store(result, result[row, at] + last[size, at] * read[row, self._group, size], [row, at])

    @contextlib.contextmanager
    def _each_lane(self) -> Any:
        kind = T.serial if self._lanes == 1 else T.vectorized
        with kind(0, tirx.const(self._lanes, "int64")) as lane:
            yield self._first + lane
