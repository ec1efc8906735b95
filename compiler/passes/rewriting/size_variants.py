"""Specialized copies of a model's code for known sizes: `main` dispatches on the sizes of its inputs to a specialized
function or to the generic one.

All these functions share the same constant objects, so weights that two of them need in the same layout are stored once
(`lift-parameters`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import tvm_ffi
from tvm import relax, tirx
from tvm.ir import GlobalVar, IRModule
from tvm.relax.utils import copy_with_new_vars

from schedules.ir.tvm_types import Binding, Expr, Function, SeqExpr

ENTRY = "main"
ANY_SIZE = "any_size"
"""The function that handles every size."""


def with_variants(mod: IRModule, variants: Sequence[Mapping[str, int]]) -> IRModule:
    """Return `mod` with a function for each variant, and one for all other sizes, to which `main` dispatches.
    `variants`: sizes of symbolic dimensions of `main`'s parameters, by name; the first match is used."""
    main = mod[ENTRY]
    builder = relax.BlockBuilder(IRModule({var: each for var, each in mod.functions_items() if var.name_hint != ENTRY}))
    general = builder.add_func(_private(main, {}), ANY_SIZE)
    chosen = [(sizes, builder.add_func(_private(main, sizes), variant_name(sizes))) for sizes in variants]
    functions = builder.get()
    outer = copy_with_new_vars(main)
    dimensions = symbolic_dimensions(outer.params)
    body = _call(general, functions[general], outer.params)
    for sizes, variable in reversed(chosen):
        fits = tirx.all(*(dimensions[name] == size for name, size in sizes.items()))
        body = relax.If(relax.prim_value(fits), _call(variable, functions[variable], outer.params), body)
    with builder.function(ENTRY, list(outer.params), attrs=dict(main.attrs or {})):
        result = builder.emit(body)
        builder.emit_func_output(builder.match_cast(result, outer.ret_ty))
    made = builder.get()
    return IRModule(dict(made.functions_items()), attrs=mod.attrs, global_infos=mod.global_infos)


def variant_name(sizes: Mapping[str, int]) -> str:
    """Return the name of a variant's function: "batch_8_height_224"."""
    return re.sub(r"\W", "_", "_".join(f"{name}_{size}" for name, size in sizes.items()))


def symbolic_dimensions(parameters: Sequence[Expr]) -> dict[str, Expr]:
    """Return the variables that are dimensions of parameters, by name."""
    shapes = [each.ty.shape for each in parameters if getattr(each.ty, "shape", None) is not None]
    return {str(size.name): size for shape in shapes for size in shape.values if isinstance(size, tirx.Var)}


def _private(main: Function, sizes: Mapping[str, int]) -> Function:
    function = copy_with_new_vars(main).without_attr("global_symbol")
    known = {name: tirx.const(size, "int64") for name, size in sizes.items()}
    return function.bind_symbolic_vars(known) if known else function


def _call(callee: GlobalVar, function: Function, arguments: Sequence[Expr]) -> SeqExpr:
    """Return the body of a branch: the arguments as `function` expects them, and the call."""
    bindings: list[Binding] = []
    parameters: list[Expr] = []
    for argument, parameter in zip(arguments, function.params, strict=True):
        if tvm_ffi.structural_equal(argument.ty, parameter.ty, True):
            parameters.append(argument)
            continue
        parameters.append(relax.Var(argument.name, parameter.ty))
        bindings.append(relax.MatchCast(parameters[-1], argument, parameter.ty))
    call = relax.Call(callee, parameters)
    result = relax.Var("result", relax.BlockBuilder(IRModule({callee: function})).normalize(call).ty)
    return relax.SeqExpr([relax.BindingBlock([*bindings, relax.VarBinding(result, call)])], result)
