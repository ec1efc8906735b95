"""lift-parameters: constants become trailing parameters of `main`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tvm import relax
from tvm.ir import GenericConst, GlobalVar, IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_pool import ConstantPool
from compiler.passes.rewriting.substitution import leaves, replace_leaves, used_as_values
from schedules.ir.tvm_private import set_type

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Function

ENTRY = "main"


@graph_pass(
    "lift-parameters",
    summary="Make constants trailing parameters of main, so that the library holds only code",
)
def lift_parameters(mod: IRModule, context: PipelineContext) -> IRModule:
    """Constants with at least one dimension, in `main` and in what it calls, become parameters of `main`.

    The values go to `context.parameters`, in the order of the parameters; equal constants share one.
    """
    pool = ConstantPool()
    expanded = [index for each in context.expansions.chosen if (index := pool.index(each)) is not None]
    lifted, indices = lift_constants(mod, pool, last=expanded)
    context.parameters.clear()
    context.parameters.update({pool.name(index): pool.arrays[index] for index in indices})
    return lifted


def lift_constants(mod: IRModule, pool: ConstantPool, last: Sequence[int] = ()) -> tuple[IRModule, list[int]]:
    """`mod` with the constants as trailing parameters of `main`, and their indices in `pool`, in order.

    Those of `last` come last in `main`, in that order; each must be in use.

    Private functions get the constants they need as trailing parameters too, and callers hand them on.
    A constant stays where it is in a function that is used as a value: its callers cannot be seen.
    """
    functions = {var: f for var, f in mod.functions_items() if isinstance(f, relax.Function)}
    needs = _needs(functions, _used_as_values(functions), pool)
    if not any(needs.values()):
        return mod, []
    entry = _entry(functions)
    needs[entry] = [*(index for index in needs[entry] if index not in last), *last]
    return _rewrite(mod, functions, needs, pool), needs[entry]


def _entry(functions: dict[GlobalVar, Function]) -> GlobalVar:
    return next(var for var in functions if var.name_hint == ENTRY)


def _used_as_values(functions: dict[GlobalVar, Function]) -> set[str]:
    """Names of functions that are not only called by name, and of those that can be called from outside."""
    exported = {
        var.name_hint
        for var, function in functions.items()
        if var.name_hint != ENTRY and "global_symbol" in (function.attrs or {})
    }
    return exported | used_as_values(functions)


def _needs(functions: dict[GlobalVar, Function], fixed: set[str], pool: ConstantPool) -> dict[GlobalVar, list[int]]:
    """For each function, the constants that it and what it calls need, in order."""
    own: dict[GlobalVar, list[int]] = {}
    calls: dict[GlobalVar, list[str]] = {}
    for var, function in functions.items():
        found = list(leaves(function.body))
        calls[var] = [leaf.name_hint for leaf in found if isinstance(leaf, GlobalVar)]
        indices = [pool.index(leaf) for leaf in found if isinstance(leaf, GenericConst)]
        lifted = var.name_hint not in fixed
        own[var] = list(dict.fromkeys(i for i in indices if i is not None)) if lifted else []
    by_name = {var.name_hint: var for var in functions}
    changed = True
    while changed:
        changed = False
        for var in functions:
            if var.name_hint in fixed:
                continue
            callees = [by_name[name] for name in calls[var] if name in by_name]
            wanted = list(dict.fromkeys([*own[var], *(i for callee in callees for i in own[callee])]))
            changed |= wanted != own[var]
            own[var] = wanted
    return own


def _rewrite(
    mod: IRModule, functions: dict[GlobalVar, Function], needs: dict[GlobalVar, list[int]], pool: ConstantPool
) -> IRModule:
    parameters = {
        var: {i: relax.Var(pool.name(i), pool.constants[i].ty) for i in indices} for var, indices in needs.items()
    }
    renamed = {}
    for var, function in functions.items():
        if needs[var]:
            types = [each.ty for each in (*function.params, *parameters[var].values())]
            renamed[var] = GlobalVar(var.name_hint)
            set_type(renamed[var], relax.FuncType(types, function.ret_ty, function.is_pure))
    result = {var: function for var, function in mod.functions_items() if var not in functions}
    for var, function in functions.items():
        own = parameters[var]
        body = replace_leaves(
            function.body,
            partial(_replacement, own=own, renamed=renamed, pool=pool),
            partial(_arguments, own=own, needs=needs),
        )
        params = [*function.params, *own.values()]
        result[renamed.get(var, var)] = relax.Function(
            params, body, function.ret_ty, function.is_pure, function.attrs, function.span
        )
    return relax.transform.Normalize()(IRModule(result, mod.attrs, mod.global_infos))


def _replacement(leaf: Expr, own: dict[int, Expr], renamed: dict[GlobalVar, GlobalVar], pool: ConstantPool) -> Expr:
    if isinstance(leaf, GlobalVar):
        return renamed.get(leaf, leaf)
    if isinstance(leaf, GenericConst):
        index = pool.index(leaf)
        return leaf if index is None else own.get(index, leaf)
    return leaf


def _arguments(
    callee: GlobalVar, given: list[Expr], own: dict[int, Expr], needs: dict[GlobalVar, list[int]]
) -> list[Expr]:
    return [*given, *(own[index] for index in needs.get(callee, ()))]
