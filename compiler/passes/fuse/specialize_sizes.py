"""specialize-sizes: kernels that were written for a symbolic size and are called with a known one have the known one.

Constant folding makes sizes known. A single kernel works with either; but TVM cannot merge a group of kernels in which
some know a size and others do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import relax, tirx
from tvm.ir import IRModule

from compiler.passes.canonicalize.kernels_of_sizes import kernel_tensors, with_changed_calls
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Call, Expr, PrimFunc


@graph_pass("specialize-sizes", summary="Give kernels the sizes that are known where they are called", required=True)
def specialize_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Every such call reads a copy of its kernel of known sizes."""
    return with_changed_calls(mod, lambda kernel, call: _known(kernel, call) is not None, _specialized_call)


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


def _specialized_call(builder: relax.BlockBuilder, kernel: PrimFunc, call: Call) -> Call:
    special = _specialized(kernel, call)
    if special is kernel:
        return call
    variable = builder.add_func(special, call.args[0].name_hint)
    return relax.Call(call.op, [variable, *list(call.args)[1:]], call.attrs, call.ty_args, call.span)
