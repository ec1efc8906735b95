"""Pooling and means over the image in blocked layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tvm import relax

from compiler.passes.layout.values import Blocked, LayoutBuilder, Order, Value, can_block, handles
from compiler.passes.layout.windows import PoolWindow, SamePadding, same_padding
from compiler.passes.rewriting.matching import dtype_of, shape_of
from schedules.annotations import FUSABLE
from schedules.conv import compute as conv_compute
from schedules.conv.workload import PoolWorkload
from schedules.ir.expression import constant_int
from schedules.ir.reduction import reduction_of
from schedules.ir.stages import Kernel, Stage
from schedules.ir.tir import tvm
from schedules.ir.tvm_types import Call, Expr


@handles(*(f"relax.nn.{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)))
def pool(builder: LayoutBuilder, call: Call) -> Blocked | None:
    attrs = call.attrs
    rank = len(attrs.pool_size)
    order = _order(str(attrs.layout), rank)
    types = ("float32", "int8", "uint8") if ".max_" in call.op.name else ("float32",)
    if order is None or str(attrs.out_layout) not in ("", str(attrs.layout)) or not can_block(call, order, types):
        return None
    mode = "max" if ".max_" in call.op.name else "average"
    pads_before, pads_after = attrs.padding[:rank], attrs.padding[rank:]
    same = _same_padding(builder, call, order, mode)
    if same is not None:
        pads_before, pads_after = zip(*same.pads(attrs.pool_size, attrs.strides, attrs.dilation), strict=True)
    window = PoolWindow(
        kernel=tuple(map(int, attrs.pool_size)),
        strides=tuple(map(int, attrs.strides)),
        dilations=tuple(map(int, attrs.dilation)),
        before=tuple(map(int, pads_before)),
        after=tuple(map(int, pads_after)),
        same="" if same is None else same.mode,
        count_pad=mode == "average" and bool(attrs.count_include_pad),
    )
    operand = call.args[0] if same is None else same.data
    return _pooled(builder, call, operand, order, window, mode, ceil=bool(attrs.ceil_mode))


def average_kernel(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Handle a frontend kernel marked as averaging over windows."""
    window = PoolWindow.of(builder.function(call.args[0]))
    if window is None:
        return None
    order = tuple(range(len(window.kernel) + 2))
    if not can_block(call, order):
        return None
    # Rounding up is already contained in the output sizes.
    return _pooled(builder, call, call.args[1].fields[0], order, window, "average", ceil=True)


def _pooled(
    builder: LayoutBuilder, call: Call, operand: Expr, order: Order, window: PoolWindow, mode: str, *, ceil: bool
) -> Blocked | None:
    """Pool over a window of the operand's spatial axes, in their order there; `ceil`: output sizes are rounded up."""
    data = _laid_out(builder, operand, order)
    if data is None:
        return None
    out_shape = shape_of(call) or []
    moved = [order.index(axis) - 2 for axis in data.order[2:]]

    def arranged(values: Sequence[int]) -> list[int]:
        return [values[i] for i in moved]

    kernel, strides, dilations = arranged(window.kernel), arranged(window.strides), arranged(window.dilations)
    pads_before, pads_after = arranged(window.before), arranged(window.after)
    sizes = [out_shape[axis] for axis in data.order[2:]]
    pad = []
    for i, size in enumerate(data.spatial):
        if size == 0:  # with rounding up, the last window may exceed the padding by up to a stride
            pad.append((pads_before[i], pads_after[i] + (strides[i] - 1 if ceil and not window.same else 0)))
            continue
        reach = (sizes[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
        pad.append((pads_before[i], reach - size - pads_before[i]))
    if window.count_pad and any(beyond > own for (_, beyond), own in zip(pad, pads_after, strict=True)):
        return None  # the last window exceeds the padding, whose elements are not counted
    work = _work(data, kernel, strides, dilations, pad, builder, mode, window.count_pad)
    if window.same and work.is_open:
        work = replace(work, same=window.same)
    result = builder.emit_kernel(
        lambda values, out: conv_compute.pool(values, work, out),
        data.expr,
        sizes,
        name="pool",
        pattern=FUSABLE,
    )
    return Blocked(result, tuple(out_shape), data.order)


def _same_padding(builder: LayoutBuilder, call: Call, order: Order, mode: str) -> SamePadding | None:
    """Return the padding that a kernel applied to the operand of a maximum."""
    found = same_padding(builder, call.args[0])
    if found is None or mode != "max" or list(order) != sorted(order) or any(map(int, call.attrs.padding)):
        return None
    return found if found.fill == conv_compute.lowest(dtype_of(call)) else None


@handles(*(f"relax.nn.adaptive_{kind}_pool{rank}d" for kind in ("avg", "max") for rank in (1, 2, 3)))
def adaptive_pool(builder: LayoutBuilder, call: Call) -> Blocked | None:
    attrs = call.attrs
    out_shape = shape_of(call) or []
    order = _order(str(attrs.layout), len(out_shape) - 2)
    if order is None or not can_block(call, order) or [out_shape[axis] for axis in order[2:]] != [1] * len(order[2:]):
        return None
    data = _laid_out(builder, call.args[0], order)
    if data is None:
        return None
    mode = "max" if "_max_" in call.op.name else "average"
    return Blocked(_global(builder, data, mode), tuple(out_shape), data.order)


@handles("relax.mean", "relax.max")
def reduce_image(builder: LayoutBuilder, call: Call) -> Blocked | Value | None:
    """Handle a mean or maximum over exactly the spatial dimensions."""
    data = builder.stored(call.args[0])
    if data is None or call.attrs.axis is None:
        return None
    axes = [int(axis) % len(data.shape) for axis in call.attrs.axis]
    return _over_image(builder, call, data, axes, "max" if call.op.name == "relax.max" else "average")


def maximum_kernel(builder: LayoutBuilder, call: Call) -> Blocked | Value | None:
    """Handle a frontend kernel for a maximum over exactly the spatial dimensions that propagates NaN."""
    arguments = call.args[1]
    if len(call.args) > 2 or not isinstance(arguments, relax.Tuple) or len(arguments.fields) != 1:
        return None
    data = builder.stored(arguments.fields[0])
    if data is None:
        return None
    (stage, *others) = Kernel.of(builder.function(call.args[0])).stages
    if others or not isinstance(stage, Stage):
        return None
    axes = _axes_of_maximum(stage)
    return None if axes is None else _over_image(builder, call, data, axes, "max")


def _axes_of_maximum(stage: Stage) -> list[int] | None:
    """Return the dimensions over which a stage takes the maximum; None for any other stage."""
    reduction = reduction_of(stage)
    if reduction is None or reduction.combiner.name != "maximum" or not isinstance(reduction.value, tvm.ir.TensorLoad):
        return None
    axes = [next((axis for axis in stage.axes if axis.var.same_as(point)), None) for point in reduction.value.indices]
    # Kept dimensions of size 1 may or may not be axes.
    rest = [axis for axis in stage.axes if axis not in axes]
    spatial = [axis.var for axis in axes if axis is not None and not axis.reduce]
    stored = [
        point
        for point in reduction.store.indices
        if constant_int(point) != 0 and not any(axis.var.same_as(point) for axis in rest)
    ]
    in_order = len(spatial) == len(stored) and all(a.same_as(b) for a, b in zip(spatial, stored, strict=True))
    if None in axes or not in_order or any(axis.extent != 1 or axis.reduce for axis in rest):
        return None
    return [index for index, axis in enumerate(axes) if axis is not None and axis.reduce]


def _over_image(
    builder: LayoutBuilder, call: Call, data: Blocked, axes: list[int], mode: str
) -> Blocked | Value | None:
    if sorted(axes) != sorted(data.order[2:]) or not axes:
        return None
    pooled = _global(builder, data, mode)
    shape = [1 if axis in axes else size for axis, size in enumerate(data.shape)]
    result = Blocked(pooled, tuple(shape), data.order)
    out_shape = list(shape_of(call) or [])
    if len(out_shape) == len(shape):
        return result
    plain = builder.plain_value(Value(blocked=result))
    return Value(plain=builder.emit(relax.op.reshape(plain, out_shape), "pooled"))


def _global(builder: LayoutBuilder, data: Blocked, mode: str) -> Expr:
    ones = [1] * len(data.spatial)
    pad = [(0, 0)] * len(data.spatial)
    work = _work(data, data.spatial, ones, ones, pad, builder, mode, False)
    return builder.emit_kernel(
        lambda values: conv_compute.global_pool(values, work),
        data.expr,
        name="global_pool",
        pattern=FUSABLE,
    )


def _work(
    data: Blocked,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pad: Sequence[tuple[int, int]],
    builder: LayoutBuilder,
    mode: str,
    count: bool,
) -> PoolWorkload:
    return PoolWorkload(
        batch=data.batch if isinstance(data.batch, int) else 0,
        channels=data.channels,
        block=builder.lanes,
        spatial=data.spatial,
        kernel=tuple(kernel),
        strides=tuple(strides),
        dilations=tuple(dilations),
        pad=tuple(pad),
        dtype="float32" if data.narrow else dtype_of(data.expr),
        mode=mode,
        count_pad=count,
    )


def _laid_out(builder: LayoutBuilder, expr: Expr, order: Order) -> Blocked | None:
    """Return the blocked form that an operand has, in `order` or with its spatial dimensions in another order."""
    data = builder.stored(expr)
    same_axes = data is not None and data.order[:2] == order[:2] and sorted(data.order) == sorted(order)
    return data if same_axes else builder.stored(expr, order)


def _order(layout: str, rank: int) -> Order | None:
    wanted = f"NC{'DHW'[-rank:]}"
    return tuple(layout.index(letter) for letter in wanted) if sorted(layout) == sorted(wanted) else None
