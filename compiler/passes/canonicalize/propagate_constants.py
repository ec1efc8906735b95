"""Constants that callers hand to private functions become constants of these functions.

Loops are imported as functions that call themselves, and what their body reads from outside is a parameter: without
this, nothing that depends on it is computed when compiling, and weights are not packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from tvm import relax
from tvm.ir import GenericConst, GlobalVar, IRModule
from tvm.tirx import IntImm

from compiler.passes.rewriting.graph import rewritable_functions
from compiler.passes.rewriting.substitution import calls_of_functions, replace_leaves, used_as_values
from schedules.ir.tvm_private import set_type

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Function

_UNKNOWN = object()  # no call seen yet
_VARIES = object()
_Values = dict[tuple[str, int], Any]


def propagate_constants(mod: IRModule) -> IRModule:
    """`mod` without the parameters that are the same constant at every call, through calls of itself too; `mod` itself
    when there are none.

    Functions that are used as values or can be called from outside keep theirs.
    """
    functions = {var: f for var, f in mod.functions_items() if isinstance(f, relax.Function)}
    if len(functions) < 2:
        return mod
    private = {var.name_hint: f for var, f in rewritable_functions(mod) if "global_symbol" not in (f.attrs or {})}
    for name in used_as_values(functions):
        private.pop(name, None)
    known = _known(functions, private)
    return _without(mod, functions, known) if known else mod


def _known(functions: dict[GlobalVar, Function], private: dict[str, Function]) -> _Values:
    """The constant of each parameter that has one."""
    places = {each: (name, index) for name, f in private.items() for index, each in enumerate(f.params)}
    values: _Values = dict.fromkeys((place for each, place in places.items() if _has_known_shape(each)), _UNKNOWN)
    arguments = [found for f in functions.values() for found in _arguments(f.body, values)]
    changed = True
    while changed:
        changed = False
        for place, argument in arguments:
            source = places.get(argument)
            inherited = _VARIES if source is None else values.get(source, _VARIES)
            met = _meet(values[place], argument if isinstance(argument, GenericConst) else inherited)
            changed |= met is not values[place]
            values[place] = met
    return {place: value for place, value in values.items() if value is not _UNKNOWN and value is not _VARIES}


def _has_known_shape(parameter: Expr) -> bool:
    """True if removing the parameter removes no definition of a symbolic size."""
    ty = parameter.ty
    shape = ty.shape if isinstance(ty, relax.TensorType) else None
    return isinstance(shape, relax.ShapeExpr) and all(isinstance(size, IntImm) for size in shape.values)


def _arguments(body: Expr, values: _Values) -> Iterator[tuple[tuple[str, int], Expr]]:
    for call in calls_of_functions(body):
        for index, argument in enumerate(call.args):
            if (call.op.name_hint, index) in values:
                yield (call.op.name_hint, index), argument


def _meet(first: Any, second: Any) -> Any:
    """Meet of two calls in the lattice of constants."""
    if second is _UNKNOWN:
        return first
    if first is _UNKNOWN:
        return second
    if first is _VARIES or second is _VARIES:
        return _VARIES
    return first if first.same_as(second) else _VARIES


def _without(mod: IRModule, functions: dict[GlobalVar, Function], known: _Values) -> IRModule:
    """The module with known parameters replaced by their values."""
    dropped: dict[str, set[int]] = {}
    for name, index in known:
        dropped.setdefault(name, set()).add(index)
    renamed = {var: GlobalVar(var.name_hint) for var in functions if var.name_hint in dropped}
    result = {var: function for var, function in mod.functions_items() if var not in functions}
    for var, function in functions.items():
        own = dropped.get(var.name_hint, set())
        constants = {each: known[var.name_hint, index] for index, each in enumerate(function.params) if index in own}
        replace = partial(_replaced, {**constants, **renamed})
        body = replace_leaves(function.body, replace, partial(_kept, dropped))
        params = [each for index, each in enumerate(function.params) if index not in own]
        rebuilt = relax.Function(params, body, function.ret_ty, function.is_pure, function.attrs, function.span)
        if var in renamed:
            set_type(renamed[var], relax.FuncType([each.ty for each in params], function.ret_ty, function.is_pure))
        result[renamed.get(var, var)] = rebuilt
    return relax.transform.Normalize()(IRModule(result, mod.attrs, mod.global_infos))


def _replaced(values: dict[Expr, Expr], leaf: Expr) -> Expr:
    return values.get(leaf, leaf)


def _kept(dropped: dict[str, set[int]], callee: GlobalVar, arguments: list[Expr]) -> list[Expr]:
    gone = dropped.get(callee.name_hint, ())
    return [each for index, each in enumerate(arguments) if index not in gone]
