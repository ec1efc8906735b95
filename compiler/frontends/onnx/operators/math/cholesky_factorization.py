"""Factors of stacked positive definite matrices, computed in float64 (an operator of imported PyTorch models)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.math.elimination import ELIMINATION, subtract_multiple, vector_boundary
from compiler.frontends.onnx.operators.math.matrix import order
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_sequence, product
from compiler.frontends.onnx.registry import TORCH_DOMAIN, converter
from schedules.ir.tvm_types import Buffer, Expr, Stmt


@converter("Cholesky", domain=TORCH_DOMAIN)
def cholesky(context: NodeContext) -> relax.Expr:
    """Factorize stacked matrices, of which the triangle of the factor (attribute `upper`) is read; NaN if a matrix is
    not positive definite."""
    if order(context) == 0:
        return context.input(0)
    kernel = _cholesky_kernel(bool(context.attribute("upper", 0)))
    results = context.emit_te(kernel, context.input(0), primfunc_name_hint="cholesky")
    return relax.TupleGetItem(results, 0)


def _cholesky_kernel(upper: bool) -> Callable[[te.Tensor], list[te.Tensor]]:
    def kernel(data: te.Tensor) -> list[te.Tensor]:
        size, dtype = data.shape[-1], str(data.dtype)

        def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
            source, (result, work) = FlatBuffer(ins[0]), (FlatBuffer(out) for out in outs)
            with IRBuilder() as builder:
                with in_sequence(product(data.shape[:-2]), ELIMINATION) as b, T.seq_scope():
                    base = b * size * size
                    with T.serial(0, size) as row, T.serial(0, size) as column:
                        place = row * size + column if upper else column * size + row
                        work[row * size + column] = source[base + place].astype("float64")
                    _eliminate(work, size)
                    with T.serial(0, size) as row, T.serial(0, size) as column:
                        place = row * size + column if upper else column * size + row
                        outside = column < row if upper else column > row
                        value = tirx.Select(outside, tirx.const(0.0, "float64"), work[place])
                        result[base + row * size + column] = value.astype(dtype)
                return builder.get()

        shapes = [list(data.shape), [size * size + 1]]
        outputs: list[te.Tensor] = te.extern(shapes, [data], generate, dtype=[dtype, "float64"], name="cholesky")
        return outputs

    return kernel


def _eliminate(work: Buffer, size: Expr) -> None:
    """Replace the upper triangle of a symmetric matrix by its factor U, U' U being the matrix, a row at a time.

    Rows are updated from a vector boundary at or before their diagonal: what is below the diagonal is not read for
    results. The last element is a spare.
    """
    spare = size * size
    with T.serial(0, size) as column, T.seq_scope():
        above = column * size
        work[spare] = tirx.const(1.0, "float64") / tirx.sqrt(work[above + column])
        with T.serial(0, size - column) as j:
            work[above + column + j] = work[above + column + j] * work[spare]
        with T.serial(0, size - column - 1) as down, T.seq_scope():
            row = column + 1 + down
            work[spare] = work[above + row]
            start = vector_boundary(row, size)
            subtract_multiple(work, row * size + start, above + start, size - start, work[spare])
