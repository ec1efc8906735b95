"""Keep the engine from misreading divisions of indices that run backwards.

Its pass FlattenBuffer turns `x[(27 - i) // 14, (13 - i) % 14]` into `x[14 - i]` (27 - i is right): the iteration-map
simplifier loses an offset where a loop variable with a negative sign is divided, as after a reshape that is read in
reverse. Such a numerator is hidden from it behind two reinterpretations, which cost no instruction.
"""

from __future__ import annotations

from typing import Any

from schedules.tir import structural_map, structural_walk, tirx, tvm

Expr = Any


def hide_backward_divisions(root: Any) -> Any:
    """The statement with every numerator that runs backwards hidden."""

    def hide(division: Any) -> Any:
        if not str(division.a.ty).startswith("int") or not _runs_backwards(division.a):
            return division
        return type(division)(_hidden(division.a), division.b)

    return structural_map(root, ((tirx.FloorDiv, tirx.FloorMod, tirx.Div, tirx.Mod), hide))


def _hidden(expr: Expr) -> Expr:
    dtype = str(expr.ty)
    # Through the unsigned type: a reinterpretation as the same type is folded at once.
    return tirx.reinterpret(dtype, tirx.reinterpret(dtype.replace("int", "uint"), expr))


def _runs_backwards(expr: Expr) -> bool:
    """Whether a variable is subtracted, or multiplied by a negative number, outside of inner divisions."""
    if isinstance(expr, tirx.Sub):
        return _has_variable(expr.b) or _runs_backwards(expr.a)
    if isinstance(expr, tirx.Add):
        return _runs_backwards(expr.a) or _runs_backwards(expr.b)
    if isinstance(expr, tirx.Mul):
        factors = (expr.a, expr.b)
        negative = any(isinstance(each, tirx.IntImm) and int(each.value) < 0 for each in factors)
        return (negative and _has_variable(expr)) or any(map(_runs_backwards, factors))
    return isinstance(expr, tirx.Cast) and _runs_backwards(expr.value)


def _has_variable(expr: Expr) -> bool:
    found = False

    def visit(_: Any) -> None:
        nonlocal found
        found = True

    structural_walk(expr, (tvm.ir.Var, visit))
    return found
