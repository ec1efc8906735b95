"""Gather and its relatives. An index outside its axis is brought inside, so that no kernel reads outside a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import limited, require, require_coordinates, require_indices, require_within
from compiler.frontends.onnx.broadcasting import elementwise
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.create import filled
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.scalars import const, select
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import Constant, tensor_shape

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr


def wrapped_index(index: Expr, size: Expr) -> Expr:
    """An index inside a kernel: counted from the end where negative, then limited to the axis."""
    index = index.astype("int64")
    counted = select(index < const(0, index), index + size, index)
    return limited(counted, 0, size - 1)


def known_indices(context: NodeContext, position: int, size: Dim) -> np.ndarray | None:
    """Known indices, made non-negative; InvalidModelError when one lies outside the axis."""
    known = context.known(position)
    if known is None or not isinstance(size, int):
        return None
    if known.size and (known.min() < -size or known.max() >= size):
        context.invalid(f"an index lies outside [-{size}, {size})")
    return np.where(known < 0, known + size, known).astype(known.dtype)


@converter("Gather")
def gather(context: NodeContext) -> relax.Expr:
    """Slices of an axis, chosen by indices of any shape."""
    data = context.input(0)
    axis = context.axis(context.attribute("axis", 0), context.rank(0))
    size = context.shape(0)[axis]
    known = known_indices(context, 1, size)
    if known is not None:
        return _take(context, data, Constant(known).expr(), axis)
    require_indices(context, 1, size)
    safe = elementwise_index(context, context.input(1), expression(size))
    return _take(context, data, safe, axis)


def elementwise_index(context: NodeContext, indices: relax.Expr, size: Expr) -> relax.Expr:
    """Run-time indices into an axis of that size, brought inside it, as int64."""

    def bring(index: te.Tensor, bound: Expr) -> te.Tensor:
        return te.compute(index.shape, lambda *i: wrapped_index(index(*i), bound), name="index")

    if isinstance(size, tirx.IntImm):
        return elementwise(context, "index", lambda i: wrapped_index(i, size), indices)
    return context.emit_te(bring, indices, size, primfunc_name_hint="index")


def _take(context: NodeContext, data: relax.Expr, indices: relax.Expr, axis: int) -> relax.Expr:
    if str(data.ty.dtype) == "bool":
        narrow = context.emit(R.astype(data, "int8"))
        return R.astype(context.emit(_take_any(context, narrow, indices, axis)), "bool")
    return _take_any(context, data, indices, axis)


def _take_any(context: NodeContext, data: relax.Expr, indices: relax.Expr, axis: int) -> relax.Expr:
    if indices.ty.ndim == 1:
        return R.take(data, indices, axis, mode="fast")
    shape = tensor_shape(data)
    if any(isinstance(size, int) and size == 0 for size in tensor_shape(indices)):
        # To TVM's reshape a 0 means the old size.
        return filled(context, 0, str(data.ty.dtype), [*shape[:axis], *tensor_shape(indices), *shape[axis + 1 :]])
    flat = context.emit(R.reshape(indices, (context.arithmetic.product(tensor_shape(indices)),)))
    taken = context.emit(R.take(data, flat, axis, mode="fast"))
    target = [*shape[:axis], *tensor_shape(indices), *shape[axis + 1 :]]
    return R.reshape(taken, relax.ShapeExpr([expression(size) for size in target]))


@converter("GatherElements", since=11)
def gather_elements(context: NodeContext) -> relax.Expr:
    """The element whose coordinate along the axis is replaced by the index at the same place."""
    axis = context.axis(context.attribute("axis", 0), context.rank(0))
    if context.rank(1) != context.rank(0):
        context.invalid(f"indices of rank {context.rank(1)} into data of rank {context.rank(0)}")
    require_indices(context, 1, context.shape(0)[axis])
    require_within(context, context.shape(1), context.shape(0), axis)

    def pick(data: te.Tensor, indices: te.Tensor) -> te.Tensor:
        def element(*place: Expr) -> Expr:
            index = wrapped_index(indices(*place), data.shape[axis])
            return data(*place[:axis], index, *place[axis + 1 :])

        return te.compute(indices.shape, element, name="gather_elements")

    return context.emit_te(pick, context.input(0), context.input(1), primfunc_name_hint="gather_elements")


@converter("GatherND", since=11)
def gather_nd(context: NodeContext) -> relax.Expr:
    """Slices at coordinates given by the last axis of the indices, within the first `batch_dims` axes."""
    batch, depth = context.attribute("batch_dims", 0), context.shape(1)[-1]
    data_shape, index_shape = context.shape(0), context.shape(1)
    if not isinstance(depth, int):
        context.refuse("the length of its coordinates is not known when compiling")
    if batch + depth > len(data_shape) or batch >= len(index_shape):
        context.invalid(f"coordinates of length {depth} after {batch} batch axes into rank {len(data_shape)}")
    require_coordinates(context, 1, data_shape[batch : batch + depth])
    for axis in range(batch):
        require(context, data_shape[axis], "equal", index_shape[axis])
    outer = len(index_shape) - 1
    sizes = [*index_shape[:-1], *data_shape[batch + depth :]]

    def pick(data: te.Tensor, indices: te.Tensor, *target: Expr) -> te.Tensor:
        def element(*place: Expr) -> Expr:
            coordinates = [
                wrapped_index(indices(*place[:outer], tirx.const(i, "int64")), data.shape[batch + i])
                for i in range(depth)
            ]
            return data(*place[:batch], *coordinates, *place[outer:])

        return te.compute(target, element, name="gather_nd")

    return context.emit_te(
        pick, context.input(0), context.input(1), *map(expression, sizes), primfunc_name_hint="gather_nd"
    )
