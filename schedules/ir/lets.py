"""Rewrites Lets and divisions of indices into forms that TVM accepts.

Seen with apache-tvm 0.27: its LLVM code generator computes bounds of the integers and conditions that Lets bind. This
fails for vectors of comparisons, for floats divided by selects, and for a Let in the extent of a loop, which it bounds
twice, with different results. Its pass NarrowDataType bounds the variable of a Let both inside it and on its own, and
fails if the two differ.

Also keeps TVM from misreading divisions of indices that run backwards, or that are divisions plus an offset.

Its pass FlattenBuffer turns `x[(27 - i) // 14, (13 - i) % 14]` into `x[14 - i]` (27 - i is right): the iteration-map
simplifier loses an offset if a loop variable with a negative sign is divided, as after a reshape that is read in
reverse. It loses the offset of a division inside another one, too: `((i + 1) % 4 + 1) % 2` becomes `(i + 1) % 2`. Such
a numerator is hidden from it behind `| 0`, which costs no instruction.
"""

from __future__ import annotations

from schedules.ir.expression import DIVISIONS, buffers_loaded, index, nodes, substitute, uses
from schedules.ir.tir import Expr, Stmt, StructuralKey, Var, structural_equal, structural_map, tirx, tvm

_FLOATS = ("float16", "float32", "float64")


def fresh_lets(root: Stmt) -> Stmt:
    """Make every Let bind its own variable, even if one expression occurs several times."""

    def renew(let: Expr) -> Expr:
        fresh = tirx.Var(str(let.var.name), let.var.ty)
        return tirx.Let(fresh, let.value, substitute(let.body, {let.var: fresh}))

    return structural_map(root, (tirx.Let, renew))


def hoisted_lets(value: Expr) -> Expr:
    """Move the Lets of a value, each with its own variable, around the whole value, except those guarded by a branch.

    TVM's simplifier visits the value of a Let twice, and fails at a nested Let that it has already bound.
    """
    branches = [
        call
        for call in nodes(value, tvm.ir.Call)
        if isinstance(call.op, tvm.ir.Op) and str(call.op.name) == "prim.if_then_else"
    ]
    guarded: set[Var] = {let.var for call in branches for arm in call.args[1:] for let in nodes(arm, tirx.Let)}
    bindings: list[tuple[Var, Expr]] = []

    def hoist(let: Expr) -> Expr:
        while isinstance(let, tirx.Let) and let.var not in guarded:
            bindings.append((let.var, without(let.value)))
            let = let.body
        return let

    def without(part: Expr) -> Expr:
        return hoist(structural_map(hoist(part), (tirx.Let, hoist), order="pre"))

    result = without(value)
    for variable, bound in reversed(bindings):
        result = tirx.Let(variable, bound, result)
    return result


def own_differences(root: Stmt) -> Stmt:
    """Keep x - x and x * 0 of a bound x, which TVM folds to 0, so that NaN and infinities are preserved.

    TVM's pass VectorizeLoop visits factors that became constants twice, and rejects a Let that it has already seen.
    """

    def difference(operation: Expr) -> Expr:
        if not isinstance(operation.a, tirx.Var) or not operation.a.same_as(operation.b):
            return operation
        return _zero_of(operation.a)

    def product(operation: Expr) -> Expr:
        for factor, other in ((operation.a, operation.b), (operation.b, operation.a)):
            if isinstance(factor, tirx.Var) and isinstance(other, tirx.FloatImm | tirx.IntImm) and not other.value:
                return _zero_of(factor)
        return operation

    def used(let: Expr) -> Expr:
        return let if uses(let.body, let.var) else let.body

    replaced = structural_map(structural_map(root, (tirx.Sub, difference)), (tirx.Mul, product))
    return structural_map(replaced, (tirx.Let, used))


def kept_differences(root: Stmt) -> Stmt:
    """Keep differences of floats that TVM's simplifier would cancel as if they were exact: x - x, (x + y) - x etc.

    Its results hold for real numbers, not for NaN, infinite or rounded values. LLVM turns them back into subtractions.
    """

    def visit(node: Expr) -> Expr:
        if str(node.ty).partition("x")[0] not in _FLOATS or (_is_leaf(node.a, node.b) and _is_leaf(node.b, node.a)):
            return node
        return tirx.Add(node.a, tirx.Mul(node.b, tirx.const(-1.0, str(node.ty))))

    return structural_map(root, (tirx.Sub, visit))


def _is_leaf(value: Expr, other: Expr) -> bool:
    """True if an operand of a difference cannot cancel against the other one."""
    if isinstance(value, tirx.FloatImm | tirx.Broadcast):
        return isinstance(value, tirx.FloatImm) or isinstance(value.value, tirx.FloatImm)
    simple = isinstance(value, tirx.Var | tirx.Mul | tirx.Div | tvm.ir.Call | tvm.ir.TensorLoad)
    return simple and not structural_equal(value, other)


def _zero_of(variable: Var) -> Expr:
    dtype = str(variable.ty)
    if "float" not in dtype:
        return index(0, dtype)
    return tirx.Add(variable, tirx.Mul(variable, tirx.FloatImm(dtype, -1.0)))


def opaque_floats(root: Stmt) -> Stmt:
    """Hide bound float values from the bounds analysis of TVM's LLVM code generator.

    It bounds each bound value as if it were an integer, and fails to create an integer of type float32 if the value
    divides or multiplies by a `Select`. A reinterpretation as the same type generates no instruction.
    """

    def hidden(value: Expr) -> Expr:
        dtype = str(value.ty)
        if dtype.partition("x")[0] not in _FLOATS or isinstance(
            value, tirx.Var | tirx.FloatImm | tvm.ir.Call | tvm.ir.TensorLoad
        ):
            return value
        return tirx.call_intrin(dtype, "tirx.reinterpret", value)

    def let(node: Expr) -> Expr:
        return tirx.Let(node.var, hidden(node.value), node.body)

    return structural_map(
        structural_map(root, (tirx.Let, let)), (tirx.Bind, lambda b: tirx.Bind(b.var, hidden(b.value)))
    )


def inlined_divisions(root: Stmt) -> Stmt:
    """Repeat quotients and remainders of sizes and indices instead of binding them."""

    def replace(let: Expr) -> Expr:
        if not isinstance(let.value, tirx.Div | tirx.Mod) or buffers_loaded(let.value):
            return let
        # Variables bound in the body may divide the value again.
        return inlined_divisions(substitute(let.body, {let.var: let.value}))

    return structural_map(root, (tirx.Let, replace))


def chosen_conditions(root: Stmt) -> Stmt:
    """Replace a Let's comparison, or one cast to a number, by a select of 1 or 0.

    Values computed from loaded integers are bound without bounds.
    """

    def replace(let: Expr) -> Expr:
        if str(let.var.ty) != "bool":
            return tirx.Let(let.var, _unbounded(_selected(let.value)), let.body) if "int" in str(let.var.ty) else let
        number = tirx.Var(str(let.var.name), "int8")
        body = substitute(let.body, {let.var: tirx.NE(number, index(0, "int8"))})
        return tirx.Let(number, _choice(let.value, "int8"), body)

    return structural_map(root, (tirx.Let, replace))


def guarded_divisors(root: Stmt) -> Stmt:
    """Hide the variables in the condition of a Select that keeps an integer divisor from 0.

    TVM's simplifier knows a variable's value on each side of a Select, and would drop the same condition in a division
    there. A vector is divided on both sides, in all lanes.
    """

    def hidden(variable: Var) -> Expr:
        return tirx.bitwise_or(variable, index(0, str(variable.ty))) if "int" in str(variable.ty) else variable

    def guard(division: Expr) -> Expr:
        divisor = division.b
        if not isinstance(divisor, tirx.Select) or "int" not in str(divisor.ty):
            return division
        condition = structural_map(divisor.condition, (tvm.ir.Var, hidden))
        return type(division)(division.a, tirx.Select(condition, divisor.true_value, divisor.false_value))

    return structural_map(root, (DIVISIONS, guard))


def _unbounded(value: Expr) -> Expr:
    """`value | 0`, which costs no instruction; loads have no bounds anyway."""
    if isinstance(value, tvm.ir.TensorLoad) or not buffers_loaded(value):
        return value
    return tirx.bitwise_or(value, index(0, str(value.ty)))


def _selected(value: Expr) -> Expr:
    def replace(cast: Expr) -> Expr:
        return _choice(cast.value, str(cast.ty)) if str(cast.value.ty) == "bool" else cast

    return structural_map(value, (tirx.Cast, replace))


def _choice(condition: Expr, dtype: str) -> Expr:
    return tirx.Select(condition, index(1, dtype), index(0, dtype))


_COMPOSED = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Cast)  # no other numerator can be misread


def hide_backward_divisions(root: Stmt) -> Stmt:
    """The statement with every backward numerator hidden."""

    known: dict[StructuralKey, bool] = {}  # a kernel repeats a few numerators very often

    def hide(division: Expr) -> Expr:
        numerator = division.a
        if not isinstance(numerator, _COMPOSED):
            return division
        key = StructuralKey(numerator)
        if key not in known:
            is_integer = str(numerator.ty).startswith("int")
            known[key] = is_integer and (_runs_backwards(numerator) or _offsets_division(numerator))
        # Not two reinterpretations: if bfloat16 is not native, TVM fails on those.
        hidden = tirx.bitwise_or(numerator, tirx.IntImm(str(numerator.ty), 0)) if known[key] else numerator
        return type(division)(hidden, division.b) if known[key] else division

    return structural_map(root, (DIVISIONS, hide))


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
    """True if the expression is a sum of a division and a constant, possibly with other terms."""
    divisions = nodes(expr, *DIVISIONS) if isinstance(expr, tirx.Add | tirx.Sub) and _has_constant_term(expr) else []
    return any(map(_has_variable, divisions))


def _has_constant_term(expr: Expr) -> bool:
    if isinstance(expr, tirx.Add | tirx.Sub):
        return _has_constant_term(expr.a) or _has_constant_term(expr.b)
    return isinstance(expr, tirx.IntImm) and int(expr.value) != 0


def _has_variable(expr: Expr) -> bool:
    return bool(nodes(expr, tvm.ir.Var))
