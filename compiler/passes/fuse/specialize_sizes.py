"""specialize-sizes: kernels that were written for a symbolic size and are called with a known one have the known one.

Constant folding makes sizes known. A single kernel works with either; but TVM cannot merge a group of kernels in which
some know a size and others do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.canonicalize.kernels_of_sizes import kernel_tensors
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import bindings_of, operator_name, rewritable_functions

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Call, Expr, PrimFunc


@graph_pass("specialize-sizes", summary="Give kernels the sizes that are known where they are called", required=True)
def specialize_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Every such call reads a copy of its kernel of known sizes."""
    if not any(
        _is_kernel_call(binding.value) and _known(mod[binding.value.args[0]], binding.value) is not None
        for _, function in rewritable_functions(mod)
        for binding in bindings_of(function.body)
    ):
        return mod
    caller = _Caller(mod)
    for variable, function in rewritable_functions(mod):
        caller.builder_.update_func(variable, caller.visit_expr(function))
    return relax.transform.DeadCodeElimination(["main"])(caller.builder_.finalize())


def _is_kernel_call(value: Expr) -> bool:
    return operator_name(value) == "relax.call_tir"


def _known(kernel: PrimFunc, call: Call) -> tuple[int, list[Expr]] | None:
    """A parameter with a symbolic size that the call knows, and its shape with that; None where there is none."""
    if not isinstance(kernel, tirx.PrimFunc):
        return None
    for index, (parameter, ty) in enumerate(zip(kernel.params, kernel_tensors(call), strict=False)):
        shape = ty.shape if isinstance(ty, relax.TensorType) else None
        if not isinstance(shape, relax.ShapeExpr) or not isinstance(parameter.ty, tirx.BufferType):
            continue
        sizes = _joined(list(parameter.ty.shape), list(shape.values))
        if sizes is not None:
            return index, sizes
    return None


def _joined(own: Sequence[Expr], given: Sequence[Expr]) -> list[Expr] | None:
    known = [isinstance(a, tirx.Var) and isinstance(b, tirx.IntImm) for a, b in zip(own, given, strict=True)]
    return [b if new else a for a, b, new in zip(own, given, known, strict=True)] if any(known) else None


def _specialized(kernel: PrimFunc, call: Call) -> PrimFunc:
    while (found := _known(kernel, call)) is not None:
        index, shape = found
        parameter = kernel.params[index]
        ty = parameter.ty
        buffer = tirx.decl_buffer(shape, ty.dtype, parameter.name, strides=ty.strides, elem_offset=ty.elem_offset)
        kernel = kernel.specialize({parameter: buffer})
    return kernel


@mutator
class _Caller(PyExprMutator):
    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        self._mod = mod

    def visit_call_(self, call: Call) -> Expr:
        call = super().visit_call_(call)
        if not _is_kernel_call(call):
            return call
        kernel = self._mod[call.args[0]]
        special = _specialized(kernel, call)
        if special is kernel:
            return call
        variable = self.builder_.add_func(special, call.args[0].name_hint)
        return relax.Call(call.op, [variable, *list(call.args)[1:]], call.attrs, call.ty_args, call.span)
