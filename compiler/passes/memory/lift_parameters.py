"""lift-parameters: turn constants into trailing parameters of `main`.

share-constants: make equal constants one object, so that tensors derived from them are computed and stored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from tvm import relax
from tvm.ir import GenericConst, GlobalVar, IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_pool import ConstantPool
from compiler.passes.rewriting.expansion import Expansion, Expansions
from compiler.passes.rewriting.graph import update_functions, with_body
from compiler.passes.rewriting.substitution import leaves, replace_leaves, used_as_values
from schedules.ir.tvm_private import set_type
from schedules.ir.tvm_types import Expr, Function

ENTRY = "main"


@graph_pass(
    "lift-parameters", summary="Make constants trailing parameters of main, so that the library holds only code"
)
def lift_parameters(mod: IRModule, context: PipelineContext) -> IRModule:
    """Turns constants with at least one dimension, in `main` and its callees, into parameters of `main`.

    The values go to `context.parameters`, in parameter order; equal constants share one.
    """
    pool = ConstantPool()
    expanded = [index for each in context.expansions.chosen if (index := pool.index(each)) is not None]
    lifted, indices = lift_constants(mod, pool, last=expanded)
    context.parameters.clear()
    context.parameters.update({pool.name(index): pool.arrays[index] for index in indices})
    return lifted


def lift_constants(mod: IRModule, pool: ConstantPool, last: Sequence[int] = ()) -> tuple[IRModule, list[int]]:
    """Turn constants into trailing parameters of `main`; return the module and their indices in `pool`, in order.

    Those of `last` come last in `main`, in that order; each must be in use.

    Private functions that need constants take them as trailing parameters too, passed on by their callers. A function
    used as a value keeps its constants, since its callers are unknown.
    """
    functions = {var: f for var, f in mod.functions_items() if isinstance(f, relax.Function)}
    needs = _needs(functions, _used_as_values(functions), pool)
    if not any(needs.values()):
        return mod, []
    entry = next(var for var in functions if var.name_hint == ENTRY)
    needs[entry] = [*(index for index in needs[entry] if index not in last), *last]
    return _rewrite(mod, functions, needs, pool), needs[entry]


def _used_as_values(functions: dict[GlobalVar, Function]) -> set[str]:
    """Return the names of functions that are used other than by direct call, or callable from outside."""
    exported = {
        var.name_hint
        for var, function in functions.items()
        if var.name_hint != ENTRY and "global_symbol" in (function.attrs or {})
    }
    return exported | used_as_values(functions)


def _needs(functions: dict[GlobalVar, Function], fixed: set[str], pool: ConstantPool) -> dict[GlobalVar, list[int]]:
    """Return, for each function, the constants that it and its callees need, in order."""
    needed: dict[GlobalVar, list[int]] = {}
    calls: dict[GlobalVar, list[str]] = {}
    for var, function in functions.items():
        all_leaves = list(leaves(function.body))
        calls[var] = [leaf.name_hint for leaf in all_leaves if isinstance(leaf, GlobalVar)]
        indices = [pool.index(leaf) for leaf in all_leaves if isinstance(leaf, GenericConst)]
        lifted = var.name_hint not in fixed
        needed[var] = list(dict.fromkeys(i for i in indices if i is not None)) if lifted else []
    by_name = {var.name_hint: var for var in functions}
    changed = True
    while changed:
        changed = False
        for var in functions:
            if var.name_hint in fixed:
                continue
            callees = [by_name[name] for name in calls[var] if name in by_name]
            merged = list(dict.fromkeys([*needed[var], *(i for callee in callees for i in needed[callee])]))
            changed |= merged != needed[var]
            needed[var] = merged
    return needed


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
        lifted = parameters[var]
        body = replace_leaves(
            function.body,
            partial(_replacement, own=lifted, renamed=renamed, pool=pool),
            partial(_arguments, own=lifted, needs=needs),
        )
        params = [*function.params, *lifted.values()]
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


@graph_pass("share-constants", summary="Store equal constants once")
def share_constants(mod: IRModule, context: PipelineContext) -> IRModule:
    """Replace each constant with dimensions by the first one with the same bits, type and shape.

    Of equal constants the one with a smaller form (`context.expansions`) is kept. A filter packed both for Winograd and
    for direct convolution is stored only in the Winograd form.
    """
    shared = _kept(mod, context.expansions)
    changed = {}
    for variable, function in _functions(mod):
        body = replace_leaves(function.body, lambda leaf: shared.get(leaf, leaf))
        if body is not function.body:
            changed[variable] = with_body(function, body)
    _store_filters_once(set(shared.values()), context.expansions)
    return update_functions(mod, changed) if changed else mod


def constants_of(mod: IRModule) -> dict[Expr, None]:
    """Return the distinct constant objects that the module's functions read, in order."""
    return dict.fromkeys(
        leaf for _, function in _functions(mod) for leaf in leaves(function.body) if isinstance(leaf, GenericConst)
    )


def _functions(mod: IRModule) -> Iterator[tuple[GlobalVar, Function]]:
    for variable, function in mod.functions_items():
        if isinstance(function, relax.Function):
            yield variable, function


def _kept(mod: IRModule, expansions: Expansions) -> dict[Expr, Expr]:
    """Map each constant with dimensions to the equal one to use."""
    pool = ConstantPool()
    indices = {constant: index for constant in constants_of(mod) if (index := pool.index(constant)) is not None}
    chosen: dict[int, Expr] = {}
    for known in (expansions.known, expansions.repacked, indices):
        for constant, index in indices.items():
            if constant in known:
                chosen.setdefault(index, constant)
    return {constant: chosen[index] for constant, index in indices.items()}


def _store_filters_once(used: set[Expr], expansions: Expansions) -> None:
    """Derive direct convolution filters from stored Winograd filters."""
    stored = {key: array for key, (constant, array) in expansions.filters.items() if constant in used}
    for constant, (key, kernel) in expansions.repacked.items():
        if constant in used and constant not in expansions.known and key in stored:
            expansions.known[constant] = Expansion((stored[key],), kernel, "repack_filter")
