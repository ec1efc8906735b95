"""Vectorized clamping that propagates NaN: TVM's own NaN test has no vector form and is scalarized."""

from __future__ import annotations

from schedules.instructions import vector_math
from schedules.ir.inline import call_name
from schedules.ir.tir import Expr, Stmt, structural_equal, structural_map, tirx


def vector_limits(body: Stmt, used: set[str]) -> Stmt:
    """A statement with each `isnan(x) ? x : min(max(x, low), high)` of float32 as one function; `used` receives it."""

    def visit(choice: Expr) -> Expr:
        value = choice.true_value
        tested = choice.condition
        if call_name(tested) != "tirx.isnan" or str(value.ty) != "float32":
            return choice
        limits = _limits(choice.false_value, value) if structural_equal(tested.args[0], value) else None
        if limits is None:
            return choice
        used.add(vector_math.LIMIT)
        return vector_math.call(vector_math.LIMIT, value, *limits)

    return structural_map(body, (tirx.Select, visit))


def _limits(expr: Expr, value: Expr) -> tuple[Expr, Expr] | None:
    """(low, high) of `min(max(value, low), high)`, or of either alone."""
    low, high = tirx.FloatImm("float32", -float("inf")), tirx.FloatImm("float32", float("inf"))
    if isinstance(expr, tirx.Min) and isinstance(expr.b, tirx.FloatImm):
        expr, high = expr.a, expr.b
    if isinstance(expr, tirx.Max) and isinstance(expr.b, tirx.FloatImm):
        expr, low = expr.a, expr.b
    return (low, high) if structural_equal(expr, value) else None
