"""Operators that move elements: reshapes, permutations, slices, joins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from compiler.compression.pruning.axes.elementwise import keep_but
from compiler.compression.pruning.axes.factors import factor_groups
from compiler.compression.pruning.axes.registry import Axes, Trace, Value, axis_rule, fix_value
from compiler.compression.pruning.nodes import Labels
from compiler.passes.rewriting.graph import Call
from compiler.passes.rewriting.matching import plain, shape_of

_LARGEST = 1 << 24  # elements of a group of axes that are looked at one by one


@axis_rule("relax.permute_dims")
def permute(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    axes = values[0]
    order = range(len(axes))[::-1] if call.attrs.axes is None else [int(each) % len(axes) for each in call.attrs.axes]
    return [axes[index] for index in order]


@axis_rule("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
def reshape(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    """Axes are split and joined in groups of equal products."""
    before, after = shape_of(call.args[0]), shape_of(call)
    if before is None or after is None:
        fix_value(trace, values[0])
        return [None] * int(call.ty.ndim)
    result: Axes = [None] * len(after)
    for given, made in factor_groups(before, after):
        axes = [values[0][index] for index in given]
        moved = _regroup(trace, [before[index] for index in given], axes, [after[index] for index in made])
        for index, axis in zip(made, moved, strict=True):
            result[index] = axis
    return result


def _regroup(trace: Trace, before: list[object], axes: Axes, after: list[object]) -> Axes:
    """The axes of sizes `after` that those of sizes `before` become; one of them at most may lose positions."""
    if len(before) == len(after) == 1:
        return axes
    fixed: Axes = [None] * len(after)
    live = [index for index, axis in enumerate(axes) if axis is not None and before[index] != 1]
    sizes = [size for size in (*before, *after) if isinstance(size, int)]
    known = len(sizes) == len(before) + len(after)
    if len(live) != 1 or not known or int(np.prod([size for size in before if isinstance(size, int)])) > _LARGEST:
        fix_value(trace, axes)
        return fixed
    sizes_before, sizes_after = sizes[: len(before)], sizes[len(before) :]
    place = live[0]
    labels = axes[place]
    assert labels is not None
    shape = [1] * len(before)
    shape[place] = -1
    elements = np.broadcast_to(labels.reshape(shape), sizes_before).reshape(sizes_after)
    chosen = _function_of(trace, elements)
    if chosen is None:  # as heads are split off: by the axis before the last
        wide = [index for index, size in enumerate(sizes_after) if size != 1]
        chosen = wide[-2]
    rows = np.moveaxis(elements, chosen, 0).reshape(sizes_after[chosen], -1)
    first = np.ascontiguousarray(rows[:, 0])
    trace.nodes.unite(np.ascontiguousarray(rows), np.broadcast_to(first[:, None], rows.shape))
    fixed[chosen] = first
    return fixed


def _function_of(trace: Trace, elements: Labels) -> int | None:
    """The axis on which alone it depends which positions go together."""
    roots = trace.nodes.roots()[elements]
    found = []
    for index, size in enumerate(elements.shape):
        rows = np.moveaxis(roots, index, 0).reshape(size, -1)
        if size > 1 and bool((rows == rows[:, :1]).all()):
            found.append(index)
    return max(found, key=lambda index: elements.shape[index]) if found else None


@axis_rule("relax.broadcast_to")
def broadcast_to(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    before, after = shape_of(call.args[0]), shape_of(call)
    if before is None or after is None:
        fix_value(trace, values[0])
        return [None] * int(call.ty.ndim)
    result: Axes = [None] * len(after)
    for place in range(-len(before), 0):
        if before[place] == after[place]:
            result[place] = values[0][place]
        else:
            trace.nodes.fix(values[0][place])
    return result


@axis_rule("relax.concat")
def concat(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    parts = list(values[0])
    axis = (0 if call.attrs.axis is None else int(call.attrs.axis)) % len(parts[0])
    result = list(parts[0])
    for part in parts[1:]:
        for index in range(len(result)):
            if index != axis:
                result[index] = trace.nodes.unite(result[index], part[index])
    joined = [part[axis] for part in parts]
    sizes = [(shape_of(field) or [None] * (axis + 1))[axis] for field in call.args[0].fields]
    if not all(isinstance(size, int) for size in sizes):
        fix_value(trace, joined)
        result[axis] = None
    else:
        labels = [np.zeros(size, np.int64) if each is None else each for size, each in zip(sizes, joined, strict=True)]
        result[axis] = None if all(each is None for each in joined) else np.concatenate(labels)
    return result


def slice_bounds(call: Call) -> list[tuple[int, int, int]] | None:
    """(axis, begin, end) of a slice of steps of 1 with known bounds."""
    if not all(isinstance(each, relax.Tuple) for each in call.args[1:]):
        return None
    numbers = [[_number(field) for field in each.fields] for each in call.args[1:]]
    if any(number is None for row in numbers for number in row):
        return None
    shape = shape_of(call.args[0])
    axes, begins, ends = (list(map(int, row)) for row in numbers[:3])  # type: ignore[arg-type]
    if shape is None or (len(numbers) > 3 and any(step != 1 for step in numbers[3])):
        return None
    found = []
    for axis, begin, end in zip(axes, begins, ends, strict=True):
        size = shape[axis]
        if not isinstance(size, int):
            return None
        begin, end = (min(max(each + size if each < 0 else each, 0), size) for each in (begin, end))
        found.append((axis % len(shape), begin, end))
    return found


def _number(field: object) -> int | None:
    value = getattr(field, "value", None)
    if isinstance(value, int):
        return value
    inner = getattr(value, "value", None)
    return inner if isinstance(inner, int) else None


@axis_rule("relax.strided_slice")
def strided_slice(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    bounds = slice_bounds(call)
    if bounds is None:
        fix_value(trace, values[0])
        return [None] * int(call.ty.ndim)
    result = list(values[0])
    for axis, begin, end in bounds:
        labels = result[axis]
        result[axis] = None if labels is None else labels[begin:end]
    return result


@axis_rule("relax.split")
def split(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    axis = int(call.attrs.axis) % len(values[0])
    labels = values[0][axis]
    parts: list[Axes] = []
    begin = 0
    for field in call.ty.fields:
        part = list(values[0])
        size = (shape_of_type(field) or [None] * (axis + 1))[axis]
        if labels is not None and isinstance(size, int):
            part[axis], begin = labels[begin : begin + size], begin + size
        else:
            trace.nodes.fix(labels)
            part[axis] = labels = None
        parts.append(part)
    return parts


def shape_of_type(ty: object) -> list[object] | None:
    """The dimensions of a tensor type."""
    shape = getattr(ty, "shape", None)
    return None if shape is None else [plain(each) for each in shape.values]


@axis_rule("relax.take")
def take(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    data = values[0]
    fix_value(trace, values[1])
    if call.attrs.axis is None:
        fix_value(trace, data)
        return [None] * int(call.ty.ndim)
    axis = int(call.attrs.axis) % len(data)
    kept = keep_but(trace, data, [axis])
    return [*kept[:axis], *([None] * (int(call.ty.ndim) - len(data) + 1)), *kept[axis + 1 :]]


@axis_rule("relax.nn.pad")
def pad(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    widths = [int(each) for each in call.attrs.pad_width]
    padded = [index for index in range(len(values[0])) if any(widths[2 * index : 2 * index + 2])]
    return keep_but(trace, values[0], padded)
