"""LU factors of stacked matrices with row exchanges, computed in float64 (operators of imported PyTorch models)."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.math.elimination import ELIMINATION, subtract_multiple
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_sequence, int64, product
from compiler.frontends.onnx.registry import TORCH_DOMAIN, converter
from schedules.ir.tvm_types import Buffer, Expr, Stmt


@converter("LU", domain=TORCH_DOMAIN)
def lu(context: NodeContext) -> Sequence[relax.Expr]:
    """Return L (below its unit diagonal) and U in one matrix, and LAPACK's pivots: the row, counted from 1, with which
    each row was exchanged."""
    results = context.emit_te(_lu_kernel, context.input(0), primfunc_name_hint="lu")
    return [relax.TupleGetItem(results, index) for index in range(2)]


def _lu_kernel(data: te.Tensor) -> list[te.Tensor]:
    (rows, columns), dtype = data.shape[-2:], str(data.dtype)
    steps = tirx.min(rows, columns)

    def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
        source, (result, pivots, work) = FlatBuffer(ins[0]), (FlatBuffer(out) for out in outs)
        with IRBuilder() as builder:
            with in_sequence(product(data.shape[:-2]), ELIMINATION) as b, T.seq_scope():
                base = b * rows * columns
                with T.serial(0, rows * columns) as i:
                    work[i] = source[base + i].astype("float64")
                with T.serial(0, steps) as step, T.seq_scope():
                    _exchange_rows(work, pivots, b * steps + step, step, (rows, columns))
                    nonzero = work[step * columns + step] != tirx.const(0.0, "float64")
                    with T.If(nonzero), T.Then(), T.serial(0, rows - step - 1) as down, T.seq_scope():
                        _eliminate(work, step + 1 + down, step, (rows, columns))
                with T.serial(0, rows * columns) as i:
                    result[base + i] = work[i].astype(dtype)
            return builder.get()

    shapes = [list(data.shape), [*data.shape[:-2], steps], [rows * columns + 1]]
    outputs: list[te.Tensor] = te.extern(shapes, [data], generate, dtype=[dtype, "int32", "float64"], name="lu")
    return outputs


def _exchange_rows(work: Buffer, pivots: Buffer, place: Expr, step: Expr, shape: tuple[Expr, Expr]) -> None:
    """Move the row with the largest element of a column into its position; `pivots[place]` is where it was."""
    rows, columns = shape
    spare = rows * columns
    pivots[place] = step.astype("int32")
    with T.serial(0, rows - step - 1) as down:
        row, best = step + 1 + down, pivots[place].astype("int64")
        larger = tirx.abs(work[row * columns + step]) > tirx.abs(work[best * columns + step])
        with T.If(larger), T.Then():
            pivots[place] = row.astype("int32")
    with T.serial(0, columns) as j, T.seq_scope():
        other = pivots[place].astype("int64") * columns + j
        work[spare] = work[step * columns + j]
        work[step * columns + j] = work[other]
        work[other] = work[spare]
    pivots[place] = pivots[place] + tirx.const(1, "int32")


def _eliminate(work: Buffer, row: Expr, step: Expr, shape: tuple[Expr, Expr]) -> None:
    """Subtract the multiple of row `step` that makes an element zero, and store the multiple in its place."""
    rows, columns = shape
    element = row * columns + step
    work[element] = work[element] / work[step * columns + step]
    work[rows * columns] = work[element]
    above = step * columns + step + 1
    subtract_multiple(work, element + 1, above, columns - step - 1, work[rows * columns])


@converter("ExchangedRows", domain=TORCH_DOMAIN)
def exchanged_rows(context: NodeContext) -> relax.Expr:
    """Apply the exchanges of LAPACK's pivots (input 1) to stacked rows of int64 numbers (input 0); pivots that are not
    rows are clamped to the range."""
    return context.emit_te(_exchanges_kernel, context.input(0), context.input(1), primfunc_name_hint="exchanges")


def _exchanges_kernel(order: te.Tensor, pivots: te.Tensor) -> te.Tensor:
    rows, steps = order.shape[-1], pivots.shape[-1]

    def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
        (before, exchanges), result = (FlatBuffer(each) for each in ins), FlatBuffer(outs[0])
        with IRBuilder() as builder:
            with in_sequence(product(pivots.shape[:-1]), ELIMINATION) as b, T.seq_scope():
                with T.serial(0, rows) as row:
                    result[b * rows + row] = before[b * rows + row]
                with T.serial(0, steps) as step, T.seq_scope():
                    row = exchanges[b * steps + step].astype("int64") - int64(1)
                    other = b * rows + tirx.max(tirx.min(row, rows - 1), int64(0))
                    kept = T.bind(result[b * rows + step])
                    result[b * rows + step] = result[other]
                    result[other] = kept
            return builder.get()

    return te.extern(list(order.shape), [order, pivots], generate, dtype="int64", name="exchanges")
