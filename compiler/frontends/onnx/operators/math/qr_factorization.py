"""QR factors of stacked matrices by Householder reflections, in float64 (an operator of imported PyTorch models)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.math.elimination import ELIMINATION
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_sequence, in_vectors, int64, product
from compiler.frontends.onnx.registry import TORCH_DOMAIN, converter
from schedules.ir.tvm_types import Buffer, Expr, Stmt

_ZERO, _ONE = tirx.const(0.0, "float64"), tirx.const(1.0, "float64")


@converter("QR", domain=TORCH_DOMAIN)
def qr(context: NodeContext) -> Sequence[relax.Expr]:
    """Return Q and R with the signs of LAPACK; Q is square with the attribute `complete`."""
    kernel = _qr_kernel(bool(context.attribute("complete", 0)))
    results = context.emit_te(kernel, context.input(0), primfunc_name_hint="qr")
    return [relax.TupleGetItem(results, index) for index in range(2)]


def _qr_kernel(complete: bool) -> Callable[[te.Tensor], list[te.Tensor]]:
    def kernel(data: te.Tensor) -> list[te.Tensor]:
        (rows, columns), dtype = data.shape[-2:], str(data.dtype)
        steps = tirx.min(rows, columns)
        width = rows if complete else steps

        def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
            source, (left, right, work, unit, *state) = FlatBuffer(ins[0]), (FlatBuffer(out) for out in outs)
            reflections = _Reflections(work, rows, columns, *state)
            with IRBuilder() as builder:
                with in_sequence(product(data.shape[:-2]), ELIMINATION) as b, T.seq_scope():
                    with T.serial(0, rows * columns) as i:
                        work[i] = source[b * rows * columns + i].astype("float64")
                    with T.serial(0, steps) as step, T.seq_scope():
                        reflections.find(step)
                        reflections.apply(step, work, columns, step + 1)
                    with T.serial(0, rows) as row, T.serial(0, width) as column:
                        unit[row * width + column] = tirx.Select(row == column, _ONE, _ZERO)
                    with T.serial(0, steps) as back:
                        reflections.apply(steps - 1 - back, unit, width, steps - 1 - back)
                    with T.serial(0, rows * width) as i:
                        left[b * rows * width + i] = unit[i].astype(dtype)
                    with T.serial(0, width) as row, T.serial(0, columns) as column:
                        value = tirx.Select(column < row, _ZERO, work[row * columns + column])
                        right[(b * width + row) * columns + column] = value.astype(dtype)
                return builder.get()

        stack = data.shape[:-2]
        shapes = [[*stack, rows, width], [*stack, width, columns], [rows * columns], [rows * width]]
        shapes += [[steps], [tirx.max(columns, width)], [int64(1)]]
        dtypes = [dtype, dtype, *["float64"] * 5]
        outputs: list[te.Tensor] = te.extern(shapes, [data], generate, dtype=dtypes, name="qr")
        return outputs

    return kernel


class _Reflections:
    """Reflections I - factor v v', a column at a time: v starts with 1, and its rest is stored below the diagonal."""

    def __init__(self, work: Buffer, rows: Expr, columns: Expr, factors: Buffer, sums: Buffer, spare: Buffer) -> None:
        self._work, self._rows, self._columns = work, rows, columns
        self._factors, self._sums, self._spare = factors, sums, spare

    def find(self, step: Expr) -> None:
        """Find the reflection that maps a column, from its diagonal on, to a multiple of the first unit vector."""
        work, spare, zero = self._work, self._spare, int64(0)
        diagonal = step * self._columns + step
        spare[zero] = _ZERO
        self._factors[step] = _ZERO
        with T.serial(0, self._rows - step - 1) as down:
            element = work[diagonal + (down + 1) * self._columns]
            spare[zero] = spare[zero] + element * element
        with T.If(spare[zero] != _ZERO), T.Then(), T.seq_scope():
            spare[zero] = tirx.sqrt(spare[zero] + work[diagonal] * work[diagonal])
            spare[zero] = tirx.Select(work[diagonal] < _ZERO, spare[zero], _ZERO - spare[zero])
            self._factors[step] = (spare[zero] - work[diagonal]) / spare[zero]
            work[diagonal] = work[diagonal] - spare[zero]
            with T.serial(0, self._rows - step - 1) as down:
                element = diagonal + (down + 1) * self._columns
                work[element] = work[element] / work[diagonal]
            work[diagonal] = spare[zero]

    def apply(self, step: Expr, matrix: Buffer, width: Expr, start: Expr) -> None:
        """Apply a reflection to the columns of a matrix from `start` on."""
        sums, spare, zero, count = self._sums, self._spare, int64(0), width - start

        def row_of(down: Expr) -> tuple[Expr, Expr]:
            """Return the offset of a row, and its element of v."""
            stored = self._work[(step + down) * self._columns + step]
            spare[zero] = tirx.Select(down == zero, _ONE, stored)
            return (step + down) * width + start, T.bind(spare[zero])

        in_vectors(count, "float64", lambda j: sums.__setitem__(j, _ZERO))
        with T.serial(0, self._rows - step) as down, T.seq_scope():
            row, element = row_of(down)
            in_vectors(count, "float64", lambda j: sums.__setitem__(j, sums[j] + element * matrix[row + j]))
        with T.serial(0, self._rows - step) as down, T.seq_scope():
            row, element = row_of(down)
            factor = T.bind(self._factors[step] * element)
            in_vectors(count, "float64", lambda j: matrix.__setitem__(row + j, matrix[row + j] - factor * sums[j]))
