"""NaN tests as comparisons: TVM's `x != x` has no vector form and is scalarized."""

from __future__ import annotations

from schedules.ir.inline import call_name
from schedules.ir.tir import Call, Expr, Stmt, structural_map, tirx, tvm

# IEEE 754: the bits of infinity; of a NaN, without the sign, they are greater.
_INFINITY = {"float16": ("int16", 0x7C00), "float32": ("int32", 0x7F800000), "float64": ("int64", 0x7FF << 52)}


def vector_nan_tests(body: Stmt) -> Stmt:
    """Replace each `isnan` in a statement by a comparison: of the numbers in a select, otherwise of their bits."""
    return structural_map(structural_map(body, (tirx.Select, _choice)), (tvm.ir.Call, _test))


def _choice(select: Expr) -> Expr:
    """isnan(x) ? a : b => x >= -inf ? b : a, one instruction (`not x >= -inf` would become `x < -inf`)"""
    if call_name(select.condition) != "tirx.isnan":
        return select
    value = select.condition.args[0]
    if str(value.ty) not in _INFINITY:
        return select
    least = tirx.FloatImm(str(value.ty), -float("inf"))
    return tirx.Select(value >= least, select.false_value, select.true_value)


def _test(call: Call) -> Expr:
    if call_name(call) != "tirx.isnan":
        return call
    known = _INFINITY.get(str(call.args[0].ty))
    if known is None:
        return call
    dtype, infinity = known
    magnitude = tirx.reinterpret(dtype, call.args[0]) & tirx.const(_largest(dtype), dtype)
    return magnitude > tirx.const(infinity, dtype)


def _largest(dtype: str) -> int:
    return (1 << int(dtype.removeprefix("int")) - 1) - 1
