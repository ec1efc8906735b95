"""TopK."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax, te
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import require, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.data_dependent import parts
from compiler.frontends.onnx.operators.tensor.reshape import reshaped
from compiler.frontends.onnx.operators.tensor.selection_kernels import first_positions
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from schedules.ir.tvm_types import Expr, Tensor


@converter("TopK")
def top_k_by_attribute(context: NodeContext) -> list[relax.Expr]:
    """The first version: k is an attribute."""
    return _top_k(context, int(context.required_attribute("k")))


@converter("TopK", since=10)
def top_k(context: NodeContext) -> list[relax.Expr]:
    """The k largest or smallest along an axis and their positions, in order; equal ones by position.

    k may be known, symbolic, or computed when the module runs.
    """
    axis = context.axis(context.attribute("axis", -1), context.rank(0))
    if context.known(1) is None:
        require_values(context, 1, 0, context.arithmetic.add(context.shape(0)[axis], 1))
    if context.known(1) is None and any(not isinstance(size, int) for size in context.shape(1)):
        (k,) = context.importer.builder.shape_values(context.match_shape(context.input(1), [1]), signed=False)
    else:
        (k,) = context.shape_values(1)
    return _top_k(context, k)


def _top_k(context: NodeContext, k: Dim) -> list[relax.Expr]:
    shape, rank = list(context.shape(0)), context.rank(0)
    axis = context.axis(context.attribute("axis", -1), rank)
    if isinstance(k, int) and (k < 0 or (isinstance(shape[axis], int) and k > shape[axis])):
        context.invalid(f"k is {k} for an axis of size {shape[axis]}")
    require(context, shape[axis], "at least", k)
    order = [*(i for i in range(rank) if i != axis), axis]
    data = context.input(0)
    moved = data if axis == rank - 1 else context.emit(R.permute_dims(data, order))
    outer = [shape[i] for i in order[:-1]]
    rows = context.arithmetic.product(outer)
    flat = reshaped(context, moved, [rows, shape[axis]])
    largest = bool(context.attribute("largest", 1))
    results = parts(context, context.emit_te(_top_k_kernel(largest), flat, expression(k), primfunc_name_hint="top_k"))
    back = [order.index(i) for i in range(rank)]
    shaped = [reshaped(context, result, [*outer, k]) for result in results]
    return shaped if axis == rank - 1 else [context.emit(R.permute_dims(r, back)) for r in shaped]


def _top_k_kernel(largest: bool) -> Callable[..., Sequence[Tensor]]:
    def kernel(data: te.Tensor, k: Expr) -> list[te.Tensor]:
        positions = first_positions(data, k, descending=largest)
        values = te.compute(positions.shape, lambda r, i: data[r, positions[r, i]], name="values")
        return [values, positions]

    return kernel
