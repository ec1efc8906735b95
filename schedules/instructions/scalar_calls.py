"""Elementary functions that TVM's code generator cannot vectorize, or supports only in wider dtypes.

Measured on apache-tvm 0.27 by generating a vector loop around each function: those of `_SCALAR` fail in every type,
those of `_WIDE` in float16. In float32 `vector_math` has the first.
"""

from __future__ import annotations

from schedules.ir.inline import call_name
from schedules.ir.tir import Call, Expr, Stmt, structural_map, structural_walk, tirx, tvm

_SCALAR = frozenset({"tirx.sinh", "tirx.cosh"})
_WIDE = _SCALAR | {
    f"tirx.{name}"
    for name in (
        *("log1p", "asin", "acos", "atan", "asinh", "acosh", "erf"),
        *("atan2", "hypot", "copysign", "nextafter", "ldexp"),
    )
}
_NARROW = ("float16", "bfloat16")


def widen_narrow_calls(root: Stmt) -> Stmt:
    """Compute functions of narrow floats in float32, and round the result."""

    def widen(call: Call) -> Expr:
        dtype = str(call.ty)
        # The neighbour of a number depends on its type.
        if dtype not in _NARROW or call_name(call) not in _WIDE - {"tirx.nextafter"}:
            return call
        arguments = [tirx.Cast("float32", each) if str(each.ty) == dtype else each for each in call.args]
        return tirx.Cast(dtype, tirx.call_intrin("float32", call_name(call), *arguments))

    return structural_map(root, (tvm.ir.Call, widen))


def serialize_scalar_loops(root: Stmt) -> Stmt:
    """Serialize vectorized loops around a function without a vector form."""

    def serialize(loop: Stmt) -> Stmt:
        if loop.kind != tirx.ForKind.VECTORIZED or not _has_scalar_call(loop.body):
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return structural_map(root, (tirx.For, serialize))


def _has_scalar_call(root: Stmt) -> bool:
    found = False

    def visit(call: Call) -> None:
        nonlocal found
        found = found or (call_name(call) in _SCALAR and str(call.ty) == "float64")

    structural_walk(root, (tvm.ir.Call, visit))
    return found
