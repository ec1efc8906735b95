"""check-sizes: assert that sizes computed at run time do not overflow or divide by zero.

Sizes of tensors and storages are computed in int64 by small functions on the shape heap. An overflowing product would
allocate too little storage, so each of these functions starts with an assertion that its sums and products, computed
again in float64, are below 2**63. Factors of a product count as at least 1, which also rejects shapes such as (2**62,
0): loops over them would not end.

name-checks: failing size checks name the model node that requires them.

TVM's checks carry an error message. TVM's own shows the mismatched type, with names made by passes; ours is the
frontend's description of the check: `context.options.checks[N]` for the check that binds `check_N_`.

drop-result-checks: do not check results for the shape they were allocated with.

`lower-shapes` ends a function with a check of each result with dynamic sizes. Most results are tensors that the
function allocated with that very shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tvm import relax, tirx
from tvm.ir import Call, IRModule, StringImm
from tvm.ir.prim import expr as prim

from compiler.artifact.entries import CHECK_MARK
from compiler.passes.context import PipelineContext
from compiler.passes.lower.shape_heap import (
    EQUALS_NUMBER,
    EQUALS_PLACE,
    IS_NUMBER,
    IS_PLACE,
    MAKE_SHAPE,
    MATCH_SHAPE,
    Dimension,
    called,
    made,
    matched,
    number,
    rewrite_shape_functions,
)
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import operator_name, with_body
from compiler.passes.rewriting.substitution import leaves
from schedules.ir.expression import DIVISIONS
from schedules.ir.tvm_private import set_type
from schedules.ir.tvm_types import Binding, Expr, SeqExpr, Stmt, Var

_LIMIT = 2.0**63 - 2.0**40  # leaves room for the rounding of some thousand operations in float64
_TEXT = f"{CHECK_MARK}[sizes: a size that is computed from the inputs is larger than any memory, or divided by zero] "
_LOGICAL = (prim.And, prim.Or)
_COMPARISONS = (prim.EQ, prim.NE, prim.LT, prim.LE, prim.GT, prim.GE)
_BINARY = (prim.Add, prim.Sub, prim.Mul, prim.Min, prim.Max, *_LOGICAL, *DIVISIONS, *_COMPARISONS)


@graph_pass("check-sizes", summary="Raise an error if a computed size would overflow or divide by zero", required=False)
def check_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs after `lower-shapes`: every function that computes on the shape heap starts with an assertion."""
    return rewrite_shape_functions(mod, _checked)


def _checked(function: tirx.PrimFunc) -> tirx.PrimFunc | None:
    """Return the function with an assertion; None if nothing in it can overflow."""
    body = function.body
    statements = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    if not all(isinstance(each, tirx.BufferStore) for each in statements):
        return None
    conditions = overflow_conditions([each.value for each in statements])
    if not conditions:
        return None
    # TVM's Python class swaps the names of the first two arguments.
    message = StringImm("RuntimeError"), [StringImm(_TEXT)]
    assertion: Stmt = tirx.AssertStmt(tirx.all(*conditions), *message)
    return function.with_body(tirx.SeqStmt([assertion, *statements]), function.span)


def overflow_conditions(values: list[Expr]) -> list[Expr]:
    """Return the conditions under which no sum or product in these int64 expressions overflows, and no divisor is 0.

    Sizes read from the heap are below 2**62, so that sums of two of them are not checked.
    """
    conditions: dict[str, Expr] = {}
    for value in values:
        _in_float(value, conditions)
    return list(conditions.values())


def _in_float(value: Expr, conditions: dict[str, Expr]) -> Expr:
    """Return a size expression in float64 (booleans unchanged); records its conditions by their text."""
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
    if not isinstance(value, _BINARY):  # a number, or a size read from the heap
        return value if str(value.ty.dtype) == "bool" else value.astype("float64")
    a, b = _in_float(value.a, conditions), _in_float(value.b, conditions)
    if isinstance(value, _LOGICAL):
        return type(value)(a, b)
    if isinstance(value, DIVISIONS) and str(value.ty.dtype) == "int64" and not isinstance(value.b, tirx.IntImm):
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
    """Return a product in float64 with factors counted as at least 1."""
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
    """Return a selection, of which only one side is evaluated."""
    condition = _in_float(value.args[0], conditions)
    sides = []
    for side, skipped in ((value.args[1], tirx.Not(condition)), (value.args[2], condition)):
        side_conditions: dict[str, Expr] = {}
        sides.append(_in_float(side, side_conditions))
        conditions.update({f"{skipped} or {text}": tirx.Or(skipped, each) for text, each in side_conditions.items()})
    return tirx.Select(condition, *sides)


def _quotient(a: Expr, b: Expr, *, floors: bool) -> Expr:
    return tirx.floor(a / b) if floors else tirx.trunc(a / b)


def _absolute(value: Expr) -> Expr:
    return tirx.max(value, tirx.const(0.0, "float64") - value)


def _is_small(value: Expr) -> Expr:
    return value < tirx.const(_LIMIT, "float64")


def _is_computed(value: Expr) -> bool:
    return isinstance(value, prim.Add | prim.Sub | prim.Mul | prim.Select | prim.Min | prim.Max | Call)


_TVM_TEXT = "ErrorContext(match_cast"
_NAME = re.compile(r"check_(\d+)_")


@graph_pass("name-checks", summary="Let failing size checks name the node that requires them")
def name_checks(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs after `lower-shapes`: the checks before the variable that they are for get its text."""
    described = context.options.checks
    if not described:
        return mod
    result = dict(mod.functions_items())
    changed = False
    for variable, function in mod.functions_items():
        if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
            body = _named(function.body, described)
            if body is not function.body:
                changed = True
                result[variable] = with_body(function, body)
    return IRModule(result, mod.attrs, mod.global_infos) if changed else mod


def _named(sequence: SeqExpr, described: Sequence[str]) -> Expr:
    """Return the sequence with texts for its checks; itself if there are none."""
    blocks, changed = [], False
    for block in sequence.blocks:
        bindings = list(block.bindings)
        pending: list[int] = []
        for index, binding in enumerate(bindings):
            if _is_check(binding.value):
                pending.append(index)
                continue
            match = _NAME.match(str(binding.var.name)) if isinstance(binding, relax.MatchCast) else None
            if match is not None and int(match[1]) < len(described):
                for each in pending:
                    bindings[each] = _with_text(bindings[each], described[int(match[1])])
                    changed = True
            if isinstance(binding, relax.MatchCast):
                pending = []
            elif isinstance(binding.value, relax.If):
                bindings[index] = _with_branches(binding, described)
                changed |= bindings[index] is not binding
        blocks.append(relax.BindingBlock(bindings))
    return relax.SeqExpr(blocks, sequence.body, sequence.span) if changed else sequence


def _with_branches(binding: Binding, described: Sequence[str]) -> Binding:
    """Return the binding of an If whose branches have texts for their checks; itself if there are none."""
    choice = binding.value
    branches = [choice.true_branch, choice.false_branch]
    named = [_named(branch, described) if isinstance(branch, relax.SeqExpr) else branch for branch in branches]
    if all(new is old for new, old in zip(named, branches, strict=True)):
        return binding
    value = relax.If(choice.cond, *named, choice.span)
    set_type(value, choice.ty)
    return relax.VarBinding(binding.var, value, binding.span)


def _is_check(value: Expr) -> bool:
    return (
        isinstance(value, relax.Call)
        and isinstance(value.op, relax.ExternFunc)
        and any(isinstance(each, StringImm) and each.value.startswith(_TVM_TEXT) for each in value.args)
    )


def _with_text(binding: Binding, text: str) -> Binding:
    call = binding.value
    arguments = [StringImm(f"{CHECK_MARK}[{text}] ") if isinstance(each, StringImm) else each for each in call.args]
    named = relax.Call(call.op, arguments, call.attrs, call.ty_args, call.span, ret_ty=call.ty)
    return relax.VarBinding(binding.var, named, binding.span)


_ALLOCATE = "relax.vm.alloc_tensor"
_SHAPE_ARGUMENT = 2  # position in an allocation: storage, offset, shape, element type
_SAME = {EQUALS_NUMBER: IS_NUMBER, EQUALS_PLACE: IS_PLACE}


@graph_pass("drop-result-checks", summary="Do not check results for the shape they were allocated with")
def drop_result_checks(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs after `share-shapes`; the heap's positions are written once, so that equal ones have equal values."""
    changed = {}
    for variable, function in mod.functions_items():
        if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
            bindings = [binding for block in function.body.blocks for binding in block.bindings]
            needed = _kept(bindings, function.body.body)
            if len(needed) < len(bindings):
                body = relax.SeqExpr([relax.BindingBlock(needed)], function.body.body, function.body.span)
                changed[variable] = with_body(function, body)
    return IRModule({**dict(mod.functions_items()), **changed}, mod.attrs, mod.global_infos) if changed else mod


def _kept(bindings: list[Binding], result: Expr) -> list[Binding]:
    values = {binding.var: binding.value for binding in bindings if isinstance(binding, relax.VarBinding)}
    needed = [binding for binding in bindings if not _is_known(binding.value, values)]
    if len(needed) == len(bindings):
        return bindings
    read = {leaf for binding in needed for leaf in leaves(binding.value)} | set(leaves(result))
    return [binding for binding in needed if not isinstance(binding.value, relax.TupleGetItem) or binding.var in read]


def _is_known(value: Expr, values: dict[Var, Expr]) -> bool:
    """True for a check that cannot fail."""
    if called(value) != MATCH_SHAPE:
        return False
    allocation = values.get(_source(value.args[0], values))
    if allocation is None or operator_name(allocation) != _ALLOCATE:
        return False
    shape = _dimensions(allocation.args[_SHAPE_ARGUMENT], values)
    expected = matched(value)
    return len(expected) == len(shape) and all(
        code in _SAME and (_SAME[code], size) == given for (code, size), given in zip(expected, shape, strict=True)
    )


def _source(variable: Var, values: dict[Var, Expr]) -> Expr:
    """Follow tuples and aliases to the variable first bound to a tensor."""
    value = values.get(variable)
    if isinstance(value, relax.Var):
        return _source(value, values)
    if isinstance(value, relax.TupleGetItem):
        fields = values.get(value.tuple_value)
        if isinstance(fields, relax.Tuple):
            return _source(fields.fields[value.index], values)
    return variable


def _dimensions(shape: Expr, values: dict[Var, Expr]) -> list[Dimension]:
    """Return the kind of each dimension of a shape; none for an unknown shape."""
    if isinstance(shape, relax.ShapeExpr):
        return [(IS_NUMBER, number(size)) for size in shape.values]
    value = values.get(shape)
    return made(value) if called(value) == MAKE_SHAPE else []
