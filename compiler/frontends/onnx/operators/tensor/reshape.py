"""Operators that change a shape without moving elements: Reshape, Flatten, Squeeze, Unsqueeze; and Transpose."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, tirx
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import Symbolic


@converter("Reshape", since=5)
def reshape(context: NodeContext) -> relax.Expr:
    """Reshape; sizes of -1 are inferred and of 0 copied (unless allowzero), also for shapes known only at run time."""
    arithmetic, old = context.arithmetic, context.shape(0)
    target = context.shape_values(1, signed=True)
    if not context.attribute("allowzero", 0):
        target = [_copied(context, size, old, axis) for axis, size in enumerate(target)]
    elements = arithmetic.product(old)
    if any(isinstance(size, int) and size == -1 for size in target):
        target = _inferred(context, target, elements)
    elif not all(_is_size(context, size) for size in target):
        target = _inferred_at_run_time(context, target, elements)
    new = arithmetic.product(target)
    if isinstance(elements, int) and isinstance(new, int) and elements != new:
        context.invalid(f"a tensor of shape {list(old)} cannot take the shape {target}")
    data = context.input(0)
    if not arithmetic.equal_is_proved(elements, new):
        # TVM's reshape has no checks; a wrong size would read out of bounds.
        data = context.match_shape(context.reshape(data, [elements]), [new])
    return context.with_simple_sizes(context.reshape(data, target))


def _inferred_at_run_time(context: NodeContext, target: list[Dim], elements: Dim) -> list[Dim]:
    """Replace sizes that may be -1 at run time, at most one of them, by the inferred size."""
    arithmetic = context.arithmetic
    unknown = [arithmetic.less(size, 0) for size in target]
    rest = arithmetic.product(arithmetic.select(u, 1, size) for u, size in zip(unknown, target, strict=True))
    filler = arithmetic.floor_divide(elements, arithmetic.maximum(rest, 1))
    return [arithmetic.select(u, filler, size) for u, size in zip(unknown, target, strict=True)]


def _is_size(context: NodeContext, value: Dim) -> bool:
    return context.arithmetic.not_negative(value)


def _copied(context: NodeContext, size: Dim, old: Sequence[Dim], axis: int) -> Dim:
    """Return the size; 0 means the old size of the same axis."""
    if isinstance(size, int):
        if size == 0 and axis >= len(old):
            context.invalid(f"size 0 at axis {axis} copies a size that a tensor of rank {len(old)} does not have")
        return old[axis] if size == 0 else size
    if axis >= len(old) or context.arithmetic.equal_is_proved(size, old[axis]):
        return size
    if isinstance(context.tensor(1), Symbolic) and _is_size(context, size):
        # A size computed from sizes is 0 only if the tensor is empty.
        return size
    return context.arithmetic.select(tirx.EQ(size, expression(0)), old[axis], size)


def _inferred(context: NodeContext, target: list[Dim], elements: Dim) -> list[Dim]:
    arithmetic = context.arithmetic
    positions = [axis for axis, size in enumerate(target) if isinstance(size, int) and size == -1]
    known = [size for axis, size in enumerate(target) if axis not in positions]
    if len(positions) > 1 or any(isinstance(size, int) and size < 0 for size in known):
        context.invalid(f"the shape {target} has more than one unknown size")
    rest = arithmetic.product(known)
    if isinstance(rest, int) and isinstance(elements, int) and (rest == 0 or elements % rest):
        context.invalid(f"a tensor of {elements} elements cannot take the shape {target}")
    if isinstance(rest, int) and rest == 0:
        context.refuse(f"the size at -1 in the shape {target} is not determined")
    filled = list(target)
    filled[positions[0]] = arithmetic.floor_divide(elements, rest)
    return filled


@converter("Reshape")
def reshape_by_attribute(context: NodeContext) -> relax.Expr:
    """Reshape in opset 1: the shape is an attribute."""
    wanted = [_copied(context, int(s), context.shape(0), i) for i, s in enumerate(context.required_attribute("shape"))]
    if -1 in [size for size in wanted if isinstance(size, int)]:
        wanted = _inferred(context, wanted, context.arithmetic.product(context.shape(0)))
    return context.reshape(context.input(0), wanted)


@converter("Flatten")
def flatten(context: NodeContext) -> relax.Expr:
    """Flatten to two axes: the product of the sizes before `axis`, and of the rest."""
    shape, axis = context.shape(0), context.attribute("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        context.invalid(f"axis {axis} does not exist in rank {len(shape)}")
    axis = axis + len(shape) if axis < 0 else axis
    product = context.arithmetic.product
    return context.reshape(context.input(0), [product(shape[:axis]), product(shape[axis:])])


def axes_operand(context: NodeContext, index: int = 1) -> list[int] | None:
    """Return axes given as an attribute (older opsets) or as an input (newer ones); None if omitted."""
    if context.has_input(index):
        return context.integers(index)
    axes = context.attribute("axes", None)
    return None if axes is None else [int(axis) for axis in axes]


@converter("Squeeze")
def squeeze(context: NodeContext) -> relax.Expr:
    """Remove axes of size 1: the given ones, or all."""
    shape, axes = context.shape(0), axes_operand(context)
    if axes is None:
        if any(not isinstance(size, int) for size in shape):
            context.require_sizes(shape, f"which axes of shape {tuple(map(str, shape))} have size 1 must be known")
        removed = [axis for axis, size in enumerate(shape) if size == 1]
    else:
        removed = context.axes(axes, len(shape))
    for axis in removed:
        if isinstance(shape[axis], int) and shape[axis] != 1:
            context.invalid(f"axis {axis} has size {shape[axis]}, not 1")
    data = context.input(0)
    if any(not isinstance(shape[axis], int) for axis in removed):
        data = context.match_shape(data, [1 if axis in removed else size for axis, size in enumerate(shape)])
    return context.reshape(data, [size for axis, size in enumerate(shape) if axis not in removed])


@converter("Unsqueeze")
def unsqueeze(context: NodeContext) -> relax.Expr:
    """Insert axes of size 1; positions refer to the result."""
    axes = axes_operand(context) or []
    shape: list[Dim] = list(context.shape(0))
    for axis in sorted(context.axes(axes, len(shape) + len(axes))):
        shape.insert(axis, 1)
    return context.reshape(context.input(0), shape)


@converter("Transpose")
def transpose(context: NodeContext) -> relax.Expr:
    """Permute axes; reversed without `perm`."""
    rank = context.rank(0)
    order = [int(axis) for axis in context.attribute("perm", list(range(rank))[::-1])]
    if sorted(order) != list(range(rank)):
        context.invalid(f"perm {order} is not a permutation of {rank} axes")
    return context.input(0) if order == list(range(rank)) else R.permute_dims(context.input(0), order)
