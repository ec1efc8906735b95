"""Eigenvalues and singular values of stacked matrices by Jacobi's rotations, in float64 (operators of imported PyTorch
models).

Rotations make the rows of one matrix orthogonal (singular values, Hestenes' method) or one symmetric matrix diagonal
(eigenvalues), a pair of rows after the other (Golub and Van Loan, Matrix Computations, 8.5 and 8.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.math.matrix import order
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_sequence, int64, product
from compiler.frontends.onnx.registry import TORCH_DOMAIN, converter
from schedules.ir.tvm_types import Buffer, Expr, Stmt

_SWEEPS = 40  # some 6 to 10 are needed
_PRECISION = 1e-15
_ROTATIONS = "rotations, one after the other"
_ZERO, _ONE = tirx.const(0.0, "float64"), tirx.const(1.0, "float64")
# Numbers of a rotation: its cosine and sine, those from which it is found, and whether a sweep needed one.
_COSINE, _SINE, _FIRST, _SECOND, _BOTH, _ROTATES = (int64(index) for index in range(6))


@converter("OrthogonalRows", domain=TORCH_DOMAIN)
def orthogonal_rows(context: NodeContext) -> Sequence[relax.Expr]:
    """Return V A for matrices A, with orthogonal rows, and the orthogonal matrices V."""
    return _rotated(context, _row_products)


@converter("Diagonalized", domain=TORCH_DOMAIN)
def diagonalized(context: NodeContext) -> Sequence[relax.Expr]:
    """Return V A V' for symmetric matrices A, which is diagonal, and the orthogonal matrices V."""
    order(context)
    return _rotated(context, _elements, both_sides=True)


_Pair = Callable[[Buffer, Buffer, Expr, Expr, Expr], None]


def _rotated(context: NodeContext, pair: _Pair, *, both_sides: bool = False) -> Sequence[relax.Expr]:
    def kernel(data: te.Tensor) -> list[te.Tensor]:
        rows, columns = data.shape[-2:]

        def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
            source, (result, turned, work, unit, numbers) = FlatBuffer(ins[0]), (FlatBuffer(out) for out in outs)
            with IRBuilder() as builder:
                with in_sequence(product(data.shape[:-2]), _ROTATIONS) as b, T.seq_scope():
                    with T.serial(0, rows * columns) as i:
                        work[i] = source[b * rows * columns + i].astype("float64")
                    with T.serial(0, rows) as row, T.serial(0, rows) as column:
                        unit[row * rows + column] = tirx.Select(row == column, _ONE, _ZERO)
                    numbers[_ROTATES] = _ONE
                    with T.serial(0, _SWEEPS), T.If(numbers[_ROTATES] != _ZERO), T.Then(), T.seq_scope():
                        numbers[_ROTATES] = _ZERO
                        with T.serial(0, rows) as p, T.serial(0, rows - p - 1) as after, T.seq_scope():
                            q = p + 1 + after
                            pair(work, numbers, p, q, columns)
                            small = tirx.sqrt(tirx.abs(numbers[_FIRST])) * tirx.sqrt(tirx.abs(numbers[_SECOND]))
                            with T.If(tirx.abs(numbers[_BOTH]) > small * _PRECISION), T.Then(), T.seq_scope():
                                _find_rotation(numbers)
                                _rotate(work, numbers, p * columns, q * columns, int64(1), columns)
                                _rotate(unit, numbers, p * rows, q * rows, int64(1), rows)
                                if both_sides:
                                    _rotate(work, numbers, p, q, columns, rows)
                    with T.serial(0, rows * columns) as i:
                        result[b * rows * columns + i] = work[i]
                    with T.serial(0, rows * rows) as i:
                        turned[b * rows * rows + i] = unit[i]
                return builder.get()

        shapes = [list(data.shape), [*data.shape[:-1], rows], [rows * columns], [rows * rows], [int64(6)]]
        outputs: list[te.Tensor] = te.extern(shapes, [data], generate, dtype=["float64"] * 5, name="rotations")
        return outputs

    results = context.emit_te(kernel, context.input(0), primfunc_name_hint="rotations")
    return [relax.TupleGetItem(results, index) for index in range(2)]


def _row_products(work: Buffer, numbers: Buffer, p: Expr, q: Expr, columns: Expr) -> None:
    """Store the products of two rows with themselves and with each other."""
    for place, one, other in ((_FIRST, p, p), (_SECOND, q, q), (_BOTH, p, q)):
        numbers[place] = _ZERO
        with T.serial(0, columns) as j:
            numbers[place] = numbers[place] + work[one * columns + j] * work[other * columns + j]


def _elements(work: Buffer, numbers: Buffer, p: Expr, q: Expr, columns: Expr) -> None:
    """Store two elements of the diagonal, and the one beside both."""
    for place, row, column in ((_FIRST, p, p), (_SECOND, q, q), (_BOTH, p, q)):
        numbers[place] = work[row * columns + column]


def _find_rotation(numbers: Buffer) -> None:
    """Find the rotation that makes the matrix [[first, both], [both, second]] diagonal, by the smaller angle."""
    numbers[_ROTATES] = _ONE
    numbers[_SECOND] = (numbers[_SECOND] - numbers[_FIRST]) / (numbers[_BOTH] * tirx.const(2.0, "float64"))
    size = tirx.abs(numbers[_SECOND])
    numbers[_FIRST] = _ONE / (size + tirx.sqrt(size * size + _ONE))
    numbers[_FIRST] = tirx.Select(numbers[_SECOND] < _ZERO, _ZERO - numbers[_FIRST], numbers[_FIRST])
    numbers[_COSINE] = _ONE / tirx.sqrt(numbers[_FIRST] * numbers[_FIRST] + _ONE)
    numbers[_SINE] = numbers[_FIRST] * numbers[_COSINE]


def _rotate(matrix: Buffer, numbers: Buffer, first: Expr, second: Expr, step: Expr, count: Expr) -> None:
    """Rotate two rows (step 1) or columns of a matrix, given their first elements."""
    cosine, sine = T.bind(numbers[_COSINE]), T.bind(numbers[_SINE])
    with T.serial(0, count) as j, T.seq_scope():
        one, other = T.bind(matrix[first + j * step]), T.bind(matrix[second + j * step])
        matrix[first + j * step] = cosine * one - sine * other
        matrix[second + j * step] = sine * one + cosine * other
