"""Sizes computed in int64 are asserted to fit: conditions of expressions, and the assertion in a compiled module."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import sym, tirx

from compiler.passes.lower.check_sizes import overflow_conditions

A, B = tirx.Var("a", "int64"), tirx.Var("b", "int64")
ONE = tirx.const(1, "int64")


def holds(value: Any, a: int, b: int) -> bool:
    """True if all conditions of an expression hold for the two sizes."""
    analyzer = sym.Analyzer()
    for variable, number in ((A, a), (B, b)):
        analyzer.bind(variable, tirx.const(number, "int64"))
    conditions = [analyzer.simplify(each) for each in overflow_conditions([value])]
    assert all(isinstance(each, tirx.IntImm) for each in conditions)
    return all(bool(each.value) for each in conditions)


@pytest.mark.parametrize(
    ("value", "good", "bad"),
    [
        (A * B, (2**30, 2**32), (2**32, 2**32)),
        (A * B, (2**62, 1), (2**62, 4)),
        (A * B * 4, (2**60, 1), (2**62, 0)),
        (A * A + B, (2**31, 2**40), (2**32, 0)),
        ((A + B) * 4, (2**59, 2**59), (2**61, 2**61)),
        (A + B + A, (2**61, 2**61), (2**62, 2**62)),
        (tirx.max(A - B, ONE) * B, (5, 2**40), (2**62, 2**10)),
        (tirx.floordiv(A, B), (8, 3), (8, 0)),
        (tirx.Select(A > B, A * 16, B), (2**30, 2**62), (2**61, 2**62)),
        (tirx.if_then_else(B > 0, tirx.floordiv(A, B), A), (8, 0), None),
    ],
)
def test_sums_products_and_quotients(value: Any, good: tuple[int, int], bad: tuple[int, int] | None) -> None:
    assert holds(value, *good)
    assert bad is None or not holds(value, *bad)


def test_what_cannot_overflow_has_no_condition() -> None:
    assert overflow_conditions([A, A + B, A - 1, tirx.max(A, B), tirx.floordiv(A + 3, 4)]) == []
