"""Code for one Winograd transform: a constant matrix times a vector of SIMD vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schedules.codegen.nest import bind, splat
from schedules.conv.winograd_transforms import Matrix
from schedules.ir.tir import Expr, Stmt


class Transform:
    """Writes products of matrices with vectors of `lanes` lanes; names what it binds."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.names = 0

    def apply(self, matrix: Matrix, values: Sequence[Expr], put: Callable[[int, Expr], Stmt], dtype: str) -> list[Stmt]:
        """`put(i, row i of matrix @ values)`. Rows that differ in the signs of their odd columns alone (points come as
        p and -p) share both halves."""
        statements: list[Stmt] = []
        done: set[int] = set()
        for i, row in enumerate(matrix):
            if i in done:
                continue
            mate = _mirrored(matrix, i)
            if mate is None:
                statements.append(put(i, self._combine(row, values, dtype)))
                continue
            j, sign = mate
            even, bind_even = self._named(self._combine(_every_other(row, 0), values, dtype), dtype)
            odd, bind_odd = self._named(self._combine(_every_other(row, 1), values, dtype), dtype)
            statements += [bind_even, bind_odd, put(i, even + odd)]
            statements.append(put(j, even - odd if sign > 0 else odd - even))
            done.add(j)
        return statements

    def _combine(self, coefficients: Sequence[float], values: Sequence[Expr], dtype: str) -> Expr:
        total: Expr = None
        for coefficient, value in zip(coefficients, values, strict=True):
            if coefficient == 0:
                continue
            if abs(coefficient) == 1 and total is not None:
                total = total + value if coefficient == 1 else total - value
                continue
            term = value if coefficient == 1 else value * splat(coefficient, dtype, self.lanes)
            total = term if total is None else total + term
        return total

    def _named(self, value: Expr, dtype: str) -> tuple[Expr, Stmt]:
        self.names += 1
        return bind(f"part{self.names}", value, dtype, self.lanes)


def _every_other(row: Sequence[float], start: int) -> list[float]:
    return [entry if column % 2 == start else 0.0 for column, entry in enumerate(row)]


def _mirrored(matrix: Matrix, i: int) -> tuple[int, int] | None:
    """A later row that equals row i but for the sign of its odd columns (+1) or of its even columns (-1)."""
    even, odd = _every_other(matrix[i], 0), _every_other(matrix[i], 1)
    if not any(even) or not any(odd):
        return None
    for j in range(i + 1, len(matrix)):
        if list(matrix[j]) == [e - o for e, o in zip(even, odd, strict=True)]:
            return j, 1
        if list(matrix[j]) == [o - e for e, o in zip(even, odd, strict=True)]:
            return j, -1
    return None
