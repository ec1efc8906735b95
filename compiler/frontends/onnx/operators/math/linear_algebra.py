"""Inverses of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.sort_kernels import int64, product

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Buffer, Expr, Stmt


def inverted(context: NodeContext, matrices: relax.Expr) -> relax.Expr:
    """The inverses of stacked square matrices, by Gauss-Jordan elimination with row exchanges, in float64."""
    shape = context.shape(0)
    if len(shape) < 2 or not context.arithmetic.equal_is_proved(shape[-1], shape[-2]):
        context.invalid(f"its input has shape {shape}; it needs square matrices")
    results = context.emit_te(_inverse_kernel, matrices, primfunc_name_hint="inverse")
    return relax.TupleGetItem(results, 0)


def _inverse_kernel(data: te.Tensor) -> list[te.Tensor]:
    size, dtype = data.shape[-1], str(data.dtype)

    def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
        source, (result, work, right, state) = T.buffer_proxy(ins[0]), (T.buffer_proxy(out) for out in outs)
        zero, one = tirx.const(0.0, "float64"), tirx.const(1.0, "float64")
        with IRBuilder() as builder:
            with T.serial(0, product(data.shape[:-2])) as b, T.seq_scope():
                with T.serial(0, size * size) as i, T.seq_scope():
                    work[i] = source[b * size * size + i].astype("float64")
                    right[i] = tirx.Select(tirx.floordiv(i, size) == tirx.floormod(i, size), one, zero)
                with T.serial(0, size) as column, T.seq_scope():
                    _pivot(work, right, state, column, size)
                    state[1] = one / work[column * size + column]
                    for buffer in (work, right):
                        with T.serial(0, size) as j:
                            buffer[column * size + j] = buffer[column * size + j] * state[1]
                    with T.serial(0, size) as row, T.If(row != column), T.Then(), T.seq_scope():
                        state[1] = work[row * size + column]
                        for buffer in (work, right):
                            with T.serial(0, size) as j:
                                taken = state[1] * buffer[column * size + j]
                                buffer[row * size + j] = buffer[row * size + j] - taken
                with T.serial(0, size * size) as i:
                    result[b * size * size + i] = right[i].astype(dtype)
            return builder.get()

    shapes = [list(data.shape), [size * size], [size * size], [int64(2)]]
    outputs: list[te.Tensor] = te.extern(shapes, [data], generate, dtype=[dtype, *["float64"] * 3], name="inverse")
    return outputs


def _pivot(work: Buffer, right: Buffer, state: Buffer, column: Expr, size: Expr) -> None:
    """Bring the row with the largest element of a column into its place, in both halves."""
    state[0] = column.astype("float64")
    with T.serial(0, size - column) as below:
        row, best = column + below, state[0].astype("int64")
        larger = tirx.abs(work[row * size + column]) > tirx.abs(work[best * size + column])
        with T.If(larger), T.Then():
            state[0] = row.astype("float64")
    for buffer in (work, right):
        with T.serial(0, size) as j, T.seq_scope():
            other = state[0].astype("int64") * size + j
            state[1] = buffer[column * size + j]
            buffer[column * size + j] = buffer[other]
            buffer[other] = state[1]
