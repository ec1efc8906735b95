"""Substitution of variables, constants and function references in Relax functions; detection of recursion, as which
ONNX loops are imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import tvm
from tvm import relax
from tvm.ir import GenericConst, GlobalVar

from compiler.passes.rewriting.graph import with_body
from schedules.ir.tvm_types import Binding, Call, Expr, Function, SeqExpr

Replace: TypeAlias = "Callable[[Expr], Expr]"
Arguments: TypeAlias = "Callable[[GlobalVar, list[Expr]], list[Expr]]"


def leaves(expr: Expr) -> Iterator[Expr]:
    """Yield every variable, constant and function reference read in `expr`, branches and closures included."""
    if isinstance(expr, relax.Var | GenericConst | GlobalVar):
        yield expr
        return
    for child in children(expr):
        yield from leaves(child)


def children(expr: Expr) -> list[Expr]:
    """Return the subexpressions of `expr`, in the order in which `replace_leaves` rebuilds them."""
    # Slices: iterating over a TVM array asks for its length at each element.
    if isinstance(expr, relax.Call):
        return [expr.op, *expr.args[:]]
    if isinstance(expr, relax.Tuple):
        return list(expr.fields[:])
    if isinstance(expr, relax.TupleGetItem):
        return [expr.tuple_value]
    if isinstance(expr, relax.SeqExpr):
        values = [binding.value for block in expr.blocks for binding in block.bindings[:]]
        return [*values, expr.body]
    if isinstance(expr, relax.If):
        return [expr.cond, expr.true_branch, expr.false_branch]
    if isinstance(expr, relax.Function):
        return [expr.body]
    return []


def calls_of_functions(expr: Expr) -> Iterator[Call]:
    """Yield each call of a global function in `expr`."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, GlobalVar):
        yield expr
    for child in children(expr):
        yield from calls_of_functions(child)


def called_functions(expr: Expr) -> Iterator[GlobalVar]:
    """Yield the GlobalVar of each call of a global function in `expr`."""
    return (call.op for call in calls_of_functions(expr))


def used_as_values(functions: Mapping[GlobalVar, Function]) -> set[str]:
    """Return the names of functions that are referenced other than as a callee."""
    names: set[str] = set()
    for function in functions.values():
        mentioned = Counter(leaf.name_hint for leaf in leaves(function.body) if isinstance(leaf, GlobalVar))
        called = Counter(var.name_hint for var in called_functions(function.body))
        names.update(name for name, count in mentioned.items() if count > called[name])
    return names


def replace_leaves(expr: Expr, replace: Replace, arguments: Arguments = lambda _callee, given: given) -> Expr:
    """Return `expr` with `replace(leaf)` in place of each leaf; unchanged parts stay the same objects.

    A replacement has the type of the leaf, except for a function reference, whose result has the type it had.
    `arguments(callee, given)` returns the arguments of each call of a global function.
    """
    if isinstance(expr, relax.Var | GenericConst | GlobalVar):
        return replace(expr)
    old = children(expr)
    new = [replace_leaves(child, replace, arguments) for child in old]
    if isinstance(expr, relax.Call) and isinstance(old[0], GlobalVar):
        new = [new[0], *arguments(old[0], new[1:])]
    if len(new) == len(old) and all(after is before for after, before in zip(new, old, strict=True)):
        return expr
    return _rebuild(expr, new)


def _rebuild(expr: Expr, children: list[Expr]) -> Expr:
    if isinstance(expr, relax.Call):
        return relax.Call(children[0], children[1:], expr.attrs, expr.ty_args, expr.span, ret_ty=expr.ty)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple(children, expr.span)
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(children[0], expr.index)
    if isinstance(expr, relax.If):
        return relax.If(*children, expr.span)
    if isinstance(expr, relax.Function):
        return with_body(expr, children[0])
    return _rebuild_sequence(expr, iter(children))


def _rebuild_sequence(expr: Expr, children: Iterator[Expr]) -> SeqExpr:
    blocks = []
    for block in expr.blocks:
        bindings = [_rebind(binding, next(children)) for binding in block.bindings]
        kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
        blocks.append(kind(bindings, block.span))
    return relax.SeqExpr(blocks, next(children), expr.span)


def _rebind(binding: Binding, value: Expr) -> Binding:
    if isinstance(binding, relax.MatchCast):
        return relax.MatchCast(binding.var, value, binding.ty, binding.span)
    return relax.VarBinding(binding.var, value, binding.span)


def loops(mod: tvm.IRModule) -> bool:
    """True if any Relax function is (mutually) recursive."""
    calls = {
        variable.name_hint: {callee.name_hint for callee in called_functions(function.body)}
        for variable, function in mod.functions_items()
        if isinstance(function, relax.Function)
    }
    return any(name in _reached(calls, name) for name in calls)


def _reached(calls: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = list(calls[start])
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(calls.get(name, ()))
    return reached
