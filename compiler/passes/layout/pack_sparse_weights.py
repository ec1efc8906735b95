"""pack-sparse-weights: products skip zeros of constant weights, whole blocks or all but N of every M, where that is
faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.ir import GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.context import PipelineContext
from compiler.passes.layout.packer import pack_all
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import operator_name
from compiler.passes.rewriting.matching import array_of, as_constant, dtype_of, shape_of
from schedules.ir.tvm_types import Call, Expr
from schedules.machine import Machine
from schedules.matmul.n_of_m import matmul_n_of_m, pack_groups_of
from schedules.matmul.packed_operand import FUSABLE, pack_panels
from schedules.matmul.sparse import SparseForm, matmul_sparse, pack_blocks, sparse_form

Kernel = Callable[..., Any]


@graph_pass(
    "pack-sparse-weights", summary="Skip zeros of weights, in blocks or N of M, where it pays", only="processor"
)
def pack_sparse_weights(mod: IRModule, context: PipelineContext) -> IRModule:
    """matmul(x, a 2-D constant of float32 with zeros in the right places) => a product of the other numbers.

    Does nothing without a machine to pack for, or where weights are rounded to bfloat16: dense products of those are
    faster still. Convolutions are packed where their layout is planned.
    """
    if context.machine is None or context.options.precision != "float32":
        return mod
    return pack_all(_Packer(mod, context.machine), mod)


@mutator
class _Packer(PyExprMutator):
    def __init__(self, mod: IRModule, machine: Machine) -> None:
        super().__init__(mod)
        self.machine = machine
        self.count = 0
        self._packed: dict[Any, tuple[Kernel, list[Any], dict[str, int]]] = {}

    def visit_call_(self, call: Call) -> Expr:
        call = self.visit_expr_post_order(call)
        if operator_name(call) != "relax.matmul":
            return call
        data, weight = call.args
        form = self._form(data, weight, call)
        if form is None:
            return call
        self.count += 1
        kernel, operands, numbers = self._kernel(weight, form)
        return self.builder_.call_te(
            kernel,
            data,
            *operands,
            columns=int(weight.ty.shape.values[1]),
            **numbers,
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": FUSABLE},
        )

    def _form(self, data: Expr, weight: Expr, call: Call) -> SparseForm | None:
        """Storage of the weight; None when the call is left alone."""
        if not isinstance(weight, GenericConst) or weight.ty.ndim != 2:
            return None
        if any(dtype_of(each) != "float32" for each in (data, weight, call)):
            return None
        shape, values = shape_of(data), array_of(weight)
        if shape is None or len(shape) < 2 or 0 in shape or not len(values):
            return None
        if values.shape[1] < self.machine.lanes("float32"):
            return None
        known = all(isinstance(size, int) for size in shape)
        return sparse_form(values, int(np.prod(shape[:-1])) if known else 0, self.machine)

    def _kernel(self, weight: Expr, form: SparseForm) -> tuple[Kernel, list[Expr], dict[str, int]]:
        """The kernel with its constants and numbers; each weight is packed once."""
        key = (weight, form)
        if key not in self._packed:
            panels = pack_panels(array_of(weight), form.width)
            if form.groups is None:
                packed = pack_blocks(panels)
                arrays: tuple[Any, ...] = packed.values, packed.index
                kernel: Kernel = matmul_sparse
                numbers = {"longest": packed.longest}
            else:
                arrays = pack_groups_of(panels, form.groups)
                kernel, numbers = matmul_n_of_m, {"keep": form.groups.keep, "of": form.groups.of}
            self._packed[key] = kernel, [as_constant(each) for each in arrays], numbers
        return self._packed[key]
