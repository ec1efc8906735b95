"""check-parameters-once: check parameters at module load, not on every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TypeAlias

from tvm import relax
from tvm.ir import GlobalVar, IRModule
from tvm.relax.utils import copy_with_new_vars
from tvm_ffi import structural_equal

from compiler.artifact.entries import CHECK_ENTRY, MAIN_ENTRY
from compiler.passes.context import PipelineContext
from compiler.passes.lower.shape_heap import CHECK_TYPE, EQUALS_NUMBER, MATCH_SHAPE, called, matched
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.substitution import called_functions, children, leaves
from schedules.ir.tvm_types import Binding, Call, Expr, Function

Keep: TypeAlias = "Callable[[Call], bool]"


@graph_pass(
    "check-parameters-once", summary="Check parameters when a module is loaded, not on every run", required=False
)
def check_parameters_once(mod: IRModule, context: PipelineContext) -> IRModule:
    """Move the checks of `main`'s trailing parameters to a separate function, `CHECK_ENTRY(*parameters)`.

    Private functions drop the checks of parameters whose arguments always have the checked type.
    TVM checks type and shape of every argument on every call: 0.15 us each, which for a small network is a tenth of its
    time.
    """
    functions = {var: each for var, each in mod.functions_items() if isinstance(each, relax.Function)}
    entry = next((var for var in functions if var.name_hint == MAIN_ENTRY), None)
    count = len(context.parameters)
    if not count or entry is None:
        return mod
    result = dict(mod.functions_items())
    result[entry] = _without_checks(functions[entry], list(functions[entry].params)[-count:])
    if result[entry].same_as(functions[entry]):
        return mod
    result[GlobalVar(CHECK_ENTRY)] = _check_function(functions[entry], count)
    called = [call for function in functions.values() for call in _calls(function.body)]
    for var, function in functions.items():
        if (
            not var.same_as(entry)
            and "global_symbol" not in (function.attrs or {})
            and not _used_as_value(var, functions)
        ):
            result[var] = _without_checks(function, _always_as_typed(function, var, called))
    return IRModule(result, mod.attrs, mod.global_infos)


def _calls(expr: Expr) -> Iterator[Call]:
    """Yield every call of a global function, including those in branches."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, GlobalVar):
        yield expr
    for child in children(expr):
        yield from _calls(child)


def _used_as_value(var: GlobalVar, functions: Mapping[GlobalVar, Function]) -> bool:
    mentioned = sum(
        isinstance(leaf, GlobalVar) and leaf == var for each in functions.values() for leaf in leaves(each.body)
    )
    called = sum(each == var for function in functions.values() for each in called_functions(function.body))
    return mentioned > called


def _always_as_typed(function: relax.Function, var: GlobalVar, calls: Sequence[Call]) -> list[Expr]:
    """Return the parameters of a function whose arguments have the same static type at every call."""
    argument_lists = [call.args for call in calls if call.op == var]
    return [
        parameter
        for index, parameter in enumerate(function.params)
        if all(structural_equal(arguments[index].ty, parameter.ty) for arguments in argument_lists)
    ]


def _bindings(function: relax.Function) -> list[Binding]:
    blocks = function.body.blocks if isinstance(function.body, relax.SeqExpr) else ()
    return [binding for block in blocks for binding in block.bindings]


def _checks_of(function: relax.Function, parameters: Sequence[Expr]) -> set[Binding]:
    """Return the bindings that check one of the parameters."""
    among = set(parameters)
    return {binding for binding in _bindings(function) if _is_check_of(binding, among)}


def _is_check_of(binding: Binding, parameters: Set[Expr]) -> bool:
    """True if a binding only checks one of the parameters."""
    call = binding.value
    name = called(call)
    if name not in (MATCH_SHAPE, CHECK_TYPE) or call.args[0] not in parameters:
        return False
    return name == CHECK_TYPE or all(code == EQUALS_NUMBER for code, _ in matched(call))


def _check_function(main: relax.Function, count: int) -> relax.Function:
    """Return a function with the checks of the last `count` parameters, and the allocation of the shape heap they
    use."""
    parameters = list(main.params)[-count:]
    checks = _checks_of(main, parameters)
    heaps = {argument for check in checks for argument in check.value.args[1:2] if isinstance(argument, relax.Var)}

    def kept(binding: Binding) -> bool:
        return binding in checks or binding.var in heaps

    function = _with_bindings(main, parameters, kept, relax.Tuple([]))
    return copy_with_new_vars(function).with_attr("global_symbol", CHECK_ENTRY)


def _without_checks(function: relax.Function, parameters: list[Expr]) -> relax.Function:
    """Remove the parameters' checks; return the same function if there are none."""
    checks = _checks_of(function, parameters)
    if not checks:
        return function
    return _with_bindings(function, list(function.params), lambda binding: binding not in checks, function.body.body)


def _with_bindings(function: relax.Function, params: list[Expr], kept: Keep, result: Expr) -> relax.Function:
    blocks = [relax.BindingBlock([each for each in block.bindings if kept(each)]) for block in function.body.blocks]
    body = relax.SeqExpr([block for block in blocks if block.bindings], result)
    # The result's own type may refer to sizes known only in the body; the function's does not.
    ty = function.ret_ty if result.same_as(function.body.body) else result.ty
    return relax.Function(params, body, ty, function.is_pure, function.attrs)
