"""pack-grouped-weights: products read weights of 4 or 8 bits with one scale per group as they are stored."""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.context import PipelineContext
from compiler.passes.layout.packer import pack_all
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import operator_name
from compiler.passes.rewriting.grouped_weights import GroupedWeight, grouped_weight
from compiler.passes.rewriting.matching import Array, as_constant, dtype_of, rank_of, shape_of
from schedules.ir.tvm_types import Call, Expr, Var
from schedules.machine import Machine
from schedules.matmul.grouped import PER_WORD, matmul_grouped, pack_words, panel_width
from schedules.matmul.packed_operand import FUSABLE, pack_panels


@graph_pass(
    "pack-grouped-weights",
    summary="Multiply with weights of 4 or 8 bits and one scale per group as they are",
    only="processor",
)
def pack_grouped_weights(mod: IRModule, context: PipelineContext) -> IRModule:
    """matmul(x, a weight as `grouped_weights` writes it) => one kernel; nothing without a machine to pack for."""
    if context.machine is None:
        return mod
    return pack_all(_Packer(mod, context.machine), mod)


@mutator
class _Packer(PyExprMutator):
    def __init__(self, mod: IRModule, machine: Machine) -> None:
        super().__init__(mod)
        self.machine = machine
        self.count = 0
        self._packed: dict[Var, tuple[GroupedWeight, list[Expr]]] = {}

    def visit_call_(self, call: Call) -> Expr:
        call = self.visit_expr_post_order(call)
        if operator_name(call) != "relax.matmul" or dtype_of(call) != "float32" or not self._serves(call.args[0]):
            return call
        found = self._weight(call.args[1])
        if found is None:
            return call
        weight, operands = found
        self.count += 1
        return self.builder_.call_te(
            matmul_grouped,
            call.args[0],
            *operands,
            columns=weight.values.shape[1],
            group=weight.group,
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": FUSABLE},
        )

    def _serves(self, data: Expr) -> bool:
        shape = shape_of(data)
        return dtype_of(data) == "float32" and (rank_of(data) or 0) >= 2 and shape is not None and 0 not in shape

    def _weight(self, expr: Expr) -> tuple[GroupedWeight, list[Expr]] | None:
        """The weight, and the constants of the kernel; each weight is packed once."""
        if expr not in self._packed:
            weight = grouped_weight(expr, self._define)
            if weight is None or not _pays_off(weight):
                return None
            width = panel_width(weight.values.shape[1], self.machine)
            arrays: list[Array] = [
                (pack_words if weight.bits == 4 else pack_panels)(weight.values, width),
                *(pack_panels(each, width) for each in (weight.scales, weight.zeros) if each is not None),
            ]
            self._packed[expr] = weight, [as_constant(each) for each in arrays]
        return self._packed[expr]

    def _define(self, expr: Expr) -> Expr:
        bound = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        return expr if bound is None else bound


def _pays_off(weight: GroupedWeight) -> bool:
    """True if groups are whole words; of 8 bits with one scale per column, `keep-weights-narrow` takes care."""
    plain = weight.bits == 8 and len(weight.scales) == 1 and weight.zeros is None
    return weight.group % PER_WORD == 0 and not plain
