"""Keep TVM from misreading divisions of indices that run backwards, or that are divisions plus an offset.

Its pass FlattenBuffer turns `x[(27 - i) // 14, (13 - i) % 14]` into `x[14 - i]` (27 - i is right): the iteration-map
simplifier loses an offset where a loop variable with a negative sign is divided, as after a reshape that is read in
reverse. It loses the offset of a division inside of another one too: `((i + 1) % 4 + 1) % 2` becomes `(i + 1) % 2`.
Such a numerator is hidden from it behind `| 0`, which costs no instruction.
"""

from __future__ import annotations

from schedules.ir.expression import nodes
from schedules.ir.tir import Expr, Stmt, StructuralKey, structural_map, tirx, tvm

_DIVISIONS = (tirx.FloorDiv, tirx.FloorMod, tirx.Div, tirx.Mod)
_COMPOSED = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Cast)  # no other numerator can be misread


def hide_backward_divisions(root: Stmt) -> Stmt:
    """The statement with every numerator that runs backwards hidden."""

    known: dict[StructuralKey, bool] = {}  # a kernel repeats few numerators very often

    def hide(division: Expr) -> Expr:
        numerator = division.a
        if not isinstance(numerator, _COMPOSED):
            return division
        key = StructuralKey(numerator)
        if key not in known:
            is_integer = str(numerator.ty).startswith("int")
            known[key] = is_integer and (_runs_backwards(numerator) or _offsets_division(numerator))
        # Not two reinterpretations: where bfloat16 is not native, TVM stops at those.
        hidden = tirx.bitwise_or(numerator, tirx.IntImm(str(numerator.ty), 0)) if known[key] else numerator
        return type(division)(hidden, division.b) if known[key] else division

    return structural_map(root, (_DIVISIONS, hide))


def _runs_backwards(expr: Expr) -> bool:
    """True if a variable is subtracted, or multiplied by a negative number, outside of inner divisions."""
    if isinstance(expr, tirx.Sub):
        return _has_variable(expr.b) or _runs_backwards(expr.a)
    if isinstance(expr, tirx.Add):
        return _runs_backwards(expr.a) or _runs_backwards(expr.b)
    if isinstance(expr, tirx.Mul):
        factors = (expr.a, expr.b)
        negative = any(isinstance(each, tirx.IntImm) and int(each.value) < 0 for each in factors)
        return (negative and _has_variable(expr)) or any(map(_runs_backwards, factors))
    return isinstance(expr, tirx.Cast) and _runs_backwards(expr.value)


def _offsets_division(expr: Expr) -> bool:
    """True if the expression is a sum of a division and a constant, and maybe more."""
    divisions = nodes(expr, *_DIVISIONS) if isinstance(expr, tirx.Add | tirx.Sub) and _has_constant_term(expr) else []
    return any(map(_has_variable, divisions))


def _has_constant_term(expr: Expr) -> bool:
    if isinstance(expr, tirx.Add | tirx.Sub):
        return _has_constant_term(expr.a) or _has_constant_term(expr.b)
    return isinstance(expr, tirx.IntImm) and int(expr.value) != 0


def _has_variable(expr: Expr) -> bool:
    return bool(nodes(expr, tvm.ir.Var))
