"""Edits of `main` that keep every type: operands replaced, calls wrapped, inputs and outputs added."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.rewriting.graph import Call, Expr, Var, update_functions
from schedules.ir.tvm_types import Binding, BlockBuilder

Emit = Callable[[Expr], Var]
# Called with the variable, the call that defines it, and a function that emits bindings before it: the new value or
# None.
Edit = Callable[[Var, Call, Emit], Expr | None]


def main_bindings(mod: IRModule) -> list[tuple[Var, Expr]]:
    """(variable, value) of the outermost bindings of `main`, in order."""
    return [(binding.var, binding.value) for block in mod["main"].body.blocks for binding in _plain(block.bindings)]


def edit_main(
    mod: IRModule, edit: Edit | None = None, *, taps: Sequence[Var] = (), inputs: Sequence[Var] = ()
) -> IRModule:
    """`mod` with each outermost call of `main` offered to `edit`.

    Args:
        edit: returns a value of the same type as the given call; variables that it emits are in the same block.
        taps: variables of `main` (parameters or outermost bindings) that become outputs, after the others.
        inputs: parameters to add, after the others.
    """
    main = mod["main"]
    builder = relax.BlockBuilder(mod)
    tapped = set(taps)
    outer: dict[Var, Var] = {each: each for each in main.params if each in tapped}
    blocks = []
    for block in main.body.blocks:
        is_dataflow = isinstance(block, relax.DataflowBlock)
        bindings = _edited(block.bindings, edit, builder, relax.DataflowVar if is_dataflow else relax.Var)
        for binding in list(bindings):
            if binding.var in tapped:
                outer[binding.var] = relax.Var(f"tap{len(outer)}", binding.var.ty)
                bindings.append(relax.VarBinding(outer[binding.var], binding.var))
        blocks.append((relax.DataflowBlock if is_dataflow else relax.BindingBlock)(bindings))
    result = main.body.body
    if taps:
        fields = [relax.TupleGetItem(result, index) for index in range(len(result.ty.fields))]
        if isinstance(result, relax.Tuple):
            fields = list(result.fields)
        result = relax.Tuple([*fields, *(outer[each] for each in taps)])
    body = relax.SeqExpr(blocks, result)
    returned = relax.TupleType([*main.ret_ty.fields, *(each.ty for each in taps)])
    function = relax.Function([*main.params, *inputs], body, returned, main.is_pure, main.attrs)
    return update_functions(mod, {mod.get_global_var("main"): function})


def _plain(bindings: Iterable[Binding]) -> Iterable[Any]:
    return (binding for binding in bindings if isinstance(binding, relax.VarBinding))


def _edited(bindings: Iterable[Binding], edit: Edit | None, builder: BlockBuilder, kind: Any) -> list[Binding]:
    """The bindings of one block after `edit`."""
    result: list[Any] = []

    def emit(expr: Expr) -> Var:
        value = builder.normalize(expr)
        variable = kind(f"q{len(result)}", value.ty)
        result.append(relax.VarBinding(variable, value))
        return variable

    for binding in bindings:
        value = None
        if edit is not None and isinstance(binding, relax.VarBinding) and isinstance(binding.value, relax.Call):
            value = edit(binding.var, binding.value, emit)
        result.append(binding if value is None else relax.VarBinding(binding.var, builder.normalize(value)))
    return result


def with_operands(call: Call, replaced: dict[int, Expr]) -> Call:
    """The call with some of its arguments replaced, by index."""
    arguments = [replaced.get(index, argument) for index, argument in enumerate(call.args)]
    return relax.Call(call.op, arguments, call.attrs, call.ty_args)
