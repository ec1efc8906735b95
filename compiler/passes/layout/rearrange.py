"""Operators that move data: free in blocked layouts where whole blocks move, or none at all."""

from __future__ import annotations

from itertools import pairwise

from tvm import relax

from compiler.passes.layout.values import Blocked, LayoutBuilder, Value, handles
from compiler.passes.rewriting.matching import plain, same_shape, shape_of
from schedules.ir.tvm_types import Call


@handles("relax.permute_dims")
def permute(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """The same data under other names of its axes."""
    data = builder.stored(call.args[0])
    shape = shape_of(call)
    if data is None or shape is None:
        return None
    given = call.attrs.axes
    rank = len(data.shape)
    axes = [int(axis) % rank for axis in given] if given is not None else list(reversed(range(rank)))
    order = tuple(axes.index(axis) for axis in data.order)
    return Blocked(data.expr, tuple(shape), order, data.narrow)


@handles("relax.concat")
def concat(builder: LayoutBuilder, call: Call) -> Blocked | None:
    operands = call.args[0]
    fields = list(operands.fields) if isinstance(operands, relax.Tuple) else None
    shape = shape_of(call)
    if fields is None or shape is None or call.attrs.axis is None:
        return None
    parts = [builder.stored(each) for each in fields]
    if any(part is not None and part.narrow for part in parts) and not all(
        part is not None and part.narrow for part in parts
    ):
        parts = [builder.blocked(each) for each in fields]
    first = next((part for part in parts if part is not None), None)
    if first is None or any(part is None or part.order != first.order for part in parts):
        return None
    axis = first.order.index(int(call.attrs.axis) % len(shape))
    blocked = [part for part in parts if part is not None]
    if axis == 1 and any(part.channels % builder.lanes for part in blocked[:-1]):
        return None
    result = builder.emit(relax.op.concat([part.expr for part in blocked], axis), "joined")
    return Blocked(result, tuple(shape), first.order, first.narrow)


@handles("relax.split")
def split(builder: LayoutBuilder, call: Call) -> Value | None:
    """Channels cut at whole blocks, or any spatial dimension."""
    data = builder.stored(call.args[0])
    if data is None:
        return None
    axis = data.order.index(int(call.attrs.axis) % len(data.shape))
    size = data.shape[data.order[axis]] if axis > 0 else 0
    if not isinstance(size, int):
        return None
    sections = call.attrs.indices_or_sections
    if isinstance(sections, int) or not hasattr(sections, "__len__"):
        count = int(sections)
        if size == 0 or size % count:
            return None
        edges = [size // count * i for i in range(1, count)]
    else:
        edges = [int(edge) for edge in sections]
    if axis == 0 or (axis == 1 and any(edge % builder.lanes for edge in edges)):
        return None
    scale = builder.lanes if axis == 1 else 1
    bounds = [0, *edges, size]
    parts = []
    for start, stop in pairwise(bounds):
        last = -(-stop // scale)
        piece = relax.op.strided_slice(data.expr, [axis], [start // scale], [last])
        shape = list(data.shape)
        shape[data.order[axis]] = stop - start
        part = Blocked(builder.emit(piece, "part"), tuple(shape), data.order, data.narrow)
        parts.append(Value(narrow=part) if data.narrow else Value(blocked=part))
    return Value(parts=parts)


@handles("relax.reshape")
def reshape(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """A reshape to the shape it has."""
    data = builder.stored(call.args[0])
    shape = shape_of(call)
    if data is None or shape is None or not same_shape(list(data.shape), shape):
        return None
    return data


@handles("relax.strided_slice")
def cut(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Spatial dimensions, and channels at whole blocks, cut without steps."""
    data = builder.stored(call.args[0])
    shape, bounds = shape_of(call), _bounds(call)
    if data is None or shape is None or bounds is None:
        return None
    axes, starts, stops = [], [], []
    for axis, (start, stop) in bounds.items():
        index = data.order.index(axis)
        scale = builder.lanes if index == 1 else 1
        if index == 0 or start % scale or (stop % scale and stop != data.shape[axis]):
            return None
        axes.append(index)
        starts.append(start // scale)
        stops.append(-(-stop // scale))
    result = builder.emit(relax.op.strided_slice(data.expr, axes, starts, stops), "part")
    return Blocked(result, tuple(shape), data.order, data.narrow)


def _bounds(call: Call) -> dict[int, tuple[int, int]] | None:
    """(start, stop) by axis of a slice without steps, inside of known sizes."""
    shape = shape_of(call.args[0])
    fields = [[plain(each) for each in getattr(argument, "fields", ())] for argument in list(call.args)[1:]]
    if shape is None or not all(isinstance(each, int) for field in fields for each in field):
        return None
    if len(fields) > 3 and any(step != 1 for step in fields[3]):
        return None
    bounds = {}
    for axis, start, stop in zip(*fields[:3], strict=True):
        size = shape[axis % len(shape)]
        if not isinstance(size, int) or not 0 <= start < min(stop, size):
            return None
        bounds[axis % len(shape)] = (start, min(stop, size))
    return bounds


@handles("relax.nn.pad")
def pad(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Zeros around spatial dimensions."""
    data = builder.stored(call.args[0])
    shape = shape_of(call)
    if data is None or shape is None or str(call.attrs.pad_mode) != "constant" or float(call.attrs.pad_value) != 0:
        return None
    given = [int(width) for width in call.attrs.pad_width]
    pairs = [given[2 * axis : 2 * axis + 2] for axis in data.order]
    if any(pairs[0]) or any(pairs[1]) or min(given) < 0:
        return None
    widths = [width for pair in [*pairs, [0, 0]] for width in pair]
    return Blocked(builder.emit(relax.op.nn.pad(data.expr, widths), "padded"), tuple(shape), data.order, data.narrow)
