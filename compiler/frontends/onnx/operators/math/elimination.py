"""Steps that kernels of matrix factorizations share, on float64 elements in a workspace."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.frontends.onnx.operators.tensor.sort_kernels import in_vectors, int64
from schedules.ir.tvm_types import Buffer, Expr

ELIMINATION = "elimination, a column after the other"
_LANES = 8  # float64 numbers in the longest vectors


def vector_boundary(column: Expr, size: Expr) -> Expr:
    """Return the last vector boundary at or before a column of a row of `size`; short rows have no vectors."""
    lanes = 1 if isinstance(size, tirx.IntImm) and int(size) < _LANES else _LANES
    return tirx.floordiv(column, int64(lanes)) * int64(lanes)


def scale(buffer: Buffer, at: Expr, count: Expr, factor: Expr, *, in_lanes: bool = True) -> None:
    """Multiply `count` elements from `at` on by a number, which must not be one of them."""
    factor = T.bind(factor)
    _store(buffer, at, count, lambda j: buffer[at + j] * factor, in_lanes=in_lanes)


def subtract_multiple(
    buffer: Buffer, at: Expr, other: Expr, count: Expr, factor: Expr, *, in_lanes: bool = True
) -> None:
    """Subtract a multiple of `count` elements from `other` on from those from `at` on."""
    factor = T.bind(factor)
    _store(buffer, at, count, lambda j: buffer[at + j] - factor * buffer[other + j], in_lanes=in_lanes)


def _store(buffer: Buffer, start: Expr, count: Expr, value: Callable[[Expr], Expr], *, in_lanes: bool) -> None:
    """Store `value(j)` in the elements `start + j`."""

    def store(j: Expr) -> None:
        buffer[start + j] = value(j)

    if in_lanes:
        in_vectors(count, "float64", store)
    else:
        with T.serial(0, count) as j:
            store(j)
