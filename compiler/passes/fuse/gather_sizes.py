"""gather-sizes: a group of kernels takes the sizes that it reads as one shape.

Grouping gives a function the sizes that its tensors' shapes do not tell as one shape, and those that its kernels take
as arguments one by one. Merging a group that has both fails in TVM (a size is redefined). Such a group takes
all of them in the shape, from which, unlike from single sizes, TVM also derives the type of a call:

    group(a, total, shape(seq, past))  =>  group(a, shape(seq, past, total))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import relax
from tvm.ir import GlobalVar, IRModule, PrimType
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import rewritable_functions

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Call, Expr


@graph_pass("gather-sizes", summary="Give groups of kernels their sizes as one shape", required=True)
def gather_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Groups with both a size and a shape among their parameters take the size in the shape."""
    mixed = {variable: function for variable, function in mod.functions.items() if _is_mixed(function)}
    if not mixed:
        return mod
    caller = _Caller(mod, mixed)
    for variable, function in rewritable_functions(mod):
        caller.builder_.update_func(variable, caller.visit_expr(function))
    result = caller.builder_.finalize()
    for variable in mixed:
        del result[variable]
    return result


def _is_mixed(function: Expr) -> bool:
    if not isinstance(function, relax.Function) or "Primitive" not in (function.attrs or {}):
        return False
    return any(map(_is_size, function.params)) and any(map(_is_shape, function.params))


def _is_size(value: Expr) -> bool:
    return isinstance(value.ty, PrimType)


def _is_shape(value: Expr) -> bool:
    return isinstance(value.ty, relax.ShapeType)


def _gathered(function: Expr) -> Expr:
    """The function with a shape as its last parameter in place of all sizes and shapes."""
    shape = relax.Var("sizes", relax.ShapeType(_sizes(function.params, function.params)))
    return relax.Function(
        [*_others(function.params, function.params), shape],
        function.body,
        function.ret_ty,
        function.is_pure,
        function.attrs,
    )


def _sizes(values: Sequence[Expr], parameters: Sequence[Expr]) -> list[Expr]:
    """The sizes among parameters or arguments: those of shapes, then single ones."""
    pairs = list(zip(values, parameters, strict=True))
    of_shapes = [size for value, parameter in pairs if _is_shape(parameter) for size in value.ty.values]
    return [*of_shapes, *(value for value, parameter in pairs if _is_size(parameter))]


def _others(values: Sequence[Expr], parameters: Sequence[Expr]) -> list[Expr]:
    return [
        value
        for value, parameter in zip(values, parameters, strict=True)
        if not _is_size(parameter) and not _is_shape(parameter)
    ]


@mutator
class _Caller(PyExprMutator):
    """Calls the changed functions in place of the mixed ones."""

    def __init__(self, mod: IRModule, mixed: dict[GlobalVar, Expr]) -> None:
        super().__init__(mod)
        self._parameters = {variable: function.params for variable, function in mixed.items()}
        self._changed = {
            variable: self.builder_.add_func(_gathered(function), variable.name_hint)
            for variable, function in mixed.items()
        }

    def visit_call_(self, call: Call) -> Call:
        if call.op not in self._changed:
            return super().visit_call_(call)
        parameters = self._parameters[call.op]
        arguments = [*_others(call.args, parameters), relax.ShapeExpr(_sizes(call.args, parameters))]
        return relax.Call(self._changed[call.op], arguments, call.attrs, call.ty_args, call.span)
