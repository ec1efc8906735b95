"""check-sizes: sizes that are computed when a module runs cannot overflow, nor be divided by zero.

Sizes and storages are computed in int64 by small functions on the shape heap. A product that wraps around would give a
storage too small for what is written to it, so each of these functions begins with an assertion: its sums and products,
computed again in float64, stay below 2**63. Factors of a product count as at least 1, which refuses shapes such as
(2**62, 0) too: loops over them would not end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Call, IRModule, StringImm
from tvm.ir.prim import expr as prim

from compiler.artifact.entries import CHECK_MARK
from compiler.passes.context import PipelineContext
from compiler.passes.lower.shape_heap import rewrite_shape_functions
from compiler.passes.registry import graph_pass

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Stmt

_LIMIT = 2.0**63 - 2.0**40  # with room for the rounding of some thousand operations in float64
_TEXT = f"{CHECK_MARK}[sizes: a size that is computed from the inputs is larger than any memory, or divided by zero] "
_LOGICAL = (prim.And, prim.Or)
_DIVISIONS = (prim.FloorMod, prim.Mod, prim.FloorDiv, prim.Div)
_COMPARISONS = (prim.EQ, prim.NE, prim.LT, prim.LE, prim.GT, prim.GE)
_BINARY = (prim.Add, prim.Sub, prim.Mul, prim.Min, prim.Max, *_LOGICAL, *_DIVISIONS, *_COMPARISONS)


@graph_pass(
    "check-sizes", summary="Raise an error where a computed size would overflow or divide by zero", required=False
)
def check_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """After `lower-shapes`: every function on the shape heap that computes begins with an assertion."""
    return rewrite_shape_functions(mod, _checked)


def _checked(function: tirx.PrimFunc) -> tirx.PrimFunc | None:
    """The function behind an assertion; None when nothing in it can overflow."""
    body = function.body
    statements = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    if not all(isinstance(each, tirx.BufferStore) for each in statements):
        return None
    conditions = overflow_conditions([each.value for each in statements])
    if not conditions:
        return None
    # TVM's Python class names the first two arguments the wrong way round.
    message = StringImm("RuntimeError"), [StringImm(_TEXT)]
    assertion: Stmt = tirx.AssertStmt(tirx.all(*conditions), *message)
    return function.with_body(tirx.SeqStmt([assertion, *statements]), function.span)


def overflow_conditions(values: list[Expr]) -> list[Expr]:
    """Conditions under which no sum or product in these expressions of int64 overflows, and no divisor is 0.

    Sizes that are read are below 2**62, so that sums of two of them are not checked.
    """
    conditions: dict[str, Expr] = {}
    for value in values:
        _in_float(value, conditions)
    return list(conditions.values())


def _in_float(value: Expr, conditions: dict[str, Expr]) -> Expr:
    """An expression of sizes computed in float64 (truth values as they are); notes its conditions, by their text."""
    if isinstance(value, prim.Cast):
        return _in_float(value.value, conditions).astype("float64")
    if isinstance(value, prim.Select):
        condition, yes, no = (
            _in_float(each, conditions) for each in (value.condition, value.true_value, value.false_value)
        )
        return tirx.Select(condition, yes, no)
    if isinstance(value, prim.Not):
        return tirx.Not(_in_float(value.a, conditions))
    if isinstance(value, Call):
        return _call_in_float(value, conditions)
    if not isinstance(value, _BINARY):  # a number, or a size that is read
        return value if str(value.ty.dtype) == "bool" else value.astype("float64")
    a, b = _in_float(value.a, conditions), _in_float(value.b, conditions)
    if isinstance(value, _LOGICAL):
        return type(value)(a, b)
    if isinstance(value, _DIVISIONS) and str(value.ty.dtype) == "int64" and not isinstance(value.b, tirx.IntImm):
        conditions[f"{value.b} != 0"] = b != tirx.const(0.0, "float64")
    if isinstance(value, prim.FloorMod | prim.Mod):
        return a - _quotient(a, b, floors=isinstance(value, prim.FloorMod)) * b
    if isinstance(value, prim.FloorDiv | prim.Div):
        is_float = str(value.ty.dtype).startswith("float")
        return a / b if is_float else _quotient(a, b, floors=isinstance(value, prim.FloorDiv))
    if isinstance(value, prim.Mul) and str(value.ty.dtype) == "int64":
        conditions[str(value)] = _is_small(_product_bound(value))
    result = type(value)(a, b)
    if isinstance(value, prim.Add | prim.Sub) and _is_computed(value.a) | _is_computed(value.b):
        conditions[str(value)] = _is_small(_absolute(result))
    return result


def _product_bound(value: Expr) -> Expr:
    """A product in float64 whose factors count as at least 1."""
    if isinstance(value, prim.Mul):
        return _product_bound(value.a) * _product_bound(value.b)
    return tirx.max(_absolute(_in_float(value, {})), tirx.const(1.0, "float64"))


def _call_in_float(value: Expr, conditions: dict[str, Expr]) -> Expr:
    name = str(value.op.name).rpartition(".")[2]
    if name == "if_then_else":
        return _choice_in_float(value, conditions)
    arguments = [_in_float(each, conditions) for each in value.args]
    functions = {"floor": tirx.floor, "ceil": tirx.ceil, "trunc": tirx.trunc, "round": tirx.round}
    return functions[name](arguments[0]) if name in functions else value.astype("float64")


def _choice_in_float(value: Expr, conditions: dict[str, Expr]) -> Expr:
    """A choice of which one side alone is computed."""
    condition = _in_float(value.args[0], conditions)
    sides = []
    for side, skipped in ((value.args[1], tirx.Not(condition)), (value.args[2], condition)):
        own: dict[str, Expr] = {}
        sides.append(_in_float(side, own))
        conditions.update({f"{skipped} or {text}": tirx.Or(skipped, each) for text, each in own.items()})
    return tirx.Select(condition, *sides)


def _quotient(a: Expr, b: Expr, *, floors: bool) -> Expr:
    return tirx.floor(a / b) if floors else tirx.trunc(a / b)


def _absolute(value: Expr) -> Expr:
    return tirx.max(value, tirx.const(0.0, "float64") - value)


def _is_small(value: Expr) -> Expr:
    return value < tirx.const(_LIMIT, "float64")


def _is_computed(value: Expr) -> bool:
    return isinstance(value, prim.Add | prim.Sub | prim.Mul | prim.Select | prim.Min | prim.Max | Call)
