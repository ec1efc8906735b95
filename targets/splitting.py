"""Rewrites splits as slices, for accelerators whose operators have one result."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from schedules.ir.tvm_types import Expr


def slices_for_splits(mod: tvm.IRModule) -> tvm.IRModule:
    """Replace each part of a split by a strided slice of its operand; the values are the same."""
    variable = mod.get_global_var("main")
    return tvm.IRModule({**mod.functions, variable: _Slicer(mod).visit_expr(mod["main"])}, attrs=mod.attrs)


@mutator
class _Slicer(PyExprMutator):
    def visit_tuple_getitem_(self, op: Expr) -> Expr:
        split = op.tuple_value
        if isinstance(split, relax.Var):
            split = self.lookup_binding(split)
        bounds = _bounds(split, op.index)
        if bounds is None:
            return super().visit_tuple_getitem_(op)
        axis, begin, end = bounds
        return self.builder_.normalize(relax.op.strided_slice(split.args[0], [axis], [begin], [end]))


def _bounds(split: Expr, index: int) -> tuple[int, int, int] | None:
    """(axis, begin, end) of a part; None if it is not a split, or has a dynamic size."""
    if not isinstance(split, relax.Call) or getattr(split.op, "name", None) != "relax.split":
        return None
    rank = int(split.args[0].ty.ndim)
    axis = int(split.attrs.axis) % rank
    size = split.args[0].ty.shape.values[axis] if isinstance(split.args[0].ty.shape, relax.ShapeExpr) else None
    if not isinstance(size, tvm.tirx.IntImm):
        return None
    sections = split.attrs.indices_or_sections
    if isinstance(sections, int | tvm.tirx.IntImm):
        each = -(-int(size) // int(sections))
        edges = [min(each * number, int(size)) for number in range(int(sections) + 1)]
    else:
        edges = [0, *(int(edge) for edge in sections), int(size)]
    return axis, edges[index], edges[index + 1]
