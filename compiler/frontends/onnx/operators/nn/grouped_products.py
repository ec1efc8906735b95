"""GroupedMatMul of our own domain: rows sorted by group, each multiplied with the matrix of its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.own_domain import OWN_DOMAIN
from compiler.frontends.onnx.registry import converter
from compiler.passes.rewriting.block_weights import BlockWeight
from compiler.passes.rewriting.expert_products import expert_product, padded_experts

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr


@converter("GroupedMatMul", domain=OWN_DOMAIN)
def grouped_matmul(context: NodeContext) -> Expr:
    """Rows (n, depth), weights (groups, depth, columns), and where in the rows each group ends (groups,)."""
    rows = context.input(0)
    groups = context.emit_te(_groups, rows, context.input(2), primfunc_name_hint="groups")
    weights = context.known(1) if context.dtype(0) == "float32" else None
    if weights is not None:
        columns = weights.shape[2]
        stored = BlockWeight.of_floats(padded_experts(weights.transpose(0, 2, 1)), "float32")
        return expert_product(context.block_builder, rows, stored, columns, groups, "float32")
    matrices = context.emit(R.take(context.input(1), groups, axis=0))
    return R.squeeze(context.emit(R.matmul(context.emit(R.expand_dims(rows, 1)), matrices)), [1])


def _groups(rows: te.Tensor, ends: te.Tensor) -> te.Tensor:
    """The group of each row, int64: how many end at it or before."""
    count = int(ends.shape[0])

    def group(row: Expr) -> Expr:
        place, total = tirx.Cast("int64", row), tirx.const(0, "int64")
        for each in range(count - 1):
            total = total + tirx.Cast("int64", place >= tirx.Cast("int64", ends[each]))
        return total

    return te.compute((rows.shape[0],), group, name="groups")
