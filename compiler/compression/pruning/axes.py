"""Rules for how each operator maps the axes of its operands to those of its result.

Positions of axes that must be removed together: a union-find over numbered nodes, in arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import GenericConst

from compiler.passes.rewriting.graph import Call, Expr
from compiler.passes.rewriting.matching import BINARY, UNARY, plain, rank_of, shape_of
from compiler.support.registry import registers_in

Labels = NDArray[np.int64]
Axis = Labels | None  # a node for each position; None if the axis cannot be pruned

FIXED = 0  # the node of positions that cannot be removed


class Nodes:
    """Nodes are made by `fresh` and joined by `unite`; node 0 cannot be removed."""

    def __init__(self) -> None:
        self._count = 1
        self._pairs: list[tuple[Labels, Labels]] = []
        self._roots: Labels = np.zeros(1, np.int64)

    def fresh(self, size: int) -> Labels:
        """New nodes."""
        self._count += size
        return np.arange(self._count - size, self._count, dtype=np.int64)

    def unite(self, left: Axis, right: Axis) -> Axis:
        """Join two axes of equal size position by position; return the joined axis."""
        if left is None or right is None:
            self.fix(left)
            self.fix(right)
            return None
        if left is not right:
            self._pairs.append((left, right))
        return left

    def fix(self, axis: Axis) -> None:
        """Mark these positions as not prunable."""
        if axis is not None and axis.size:
            self._pairs.append((axis, np.zeros_like(axis)))

    def roots(self) -> Labels:
        """For each node the smallest node that it is joined with."""
        roots = np.arange(self._count, dtype=np.int64)
        roots[: len(self._roots)] = self._roots
        if self._pairs:
            left = np.concatenate([pair[0].ravel() for pair in self._pairs])
            right = np.concatenate([pair[1].ravel() for pair in self._pairs])
            self._pairs = []
            roots = _joined(roots, left, right)
        self._roots = roots
        return roots


def _joined(roots: Labels, left: Labels, right: Labels) -> Labels:
    """Attach the larger root of each pair to the smaller one and shorten the paths, until nothing changes."""
    while True:
        a, b = roots[left], roots[right]
        open_pairs = a != b
        if not open_pairs.any():
            return roots
        left, right, a, b = left[open_pairs], right[open_pairs], a[open_pairs], b[open_pairs]
        np.minimum.at(roots, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = roots[roots]
            if np.array_equal(shorter, roots):
                break
            roots = shorter


Axes = list[Axis]  # of a tensor
Value = Any  # Axes, or a list of values for a tuple


@dataclass(frozen=True, eq=False)
class Producer:
    """The axis of a constant weight that indexes the results of a matmul or convolution."""

    constant: Expr
    axis: int
    labels: Axis


@dataclass
class Trace:
    """Output of the rules.

    Attributes:
        nodes: union-find of positions that are removed together.
        producers: in the order of the graph.
        batched: axes over which matmuls of two activations are independent: the heads of attention.
        transposed: variables that are a transposed constant, with that constant and the axis order.
    """

    nodes: Nodes = field(default_factory=Nodes)
    producers: list[Producer] = field(default_factory=list)
    batched: list[Axis] = field(default_factory=list)
    transposed: dict[Any, tuple[Any, Axes]] = field(default_factory=dict)


# Called with the call, the values of its operands (None for non-tensors) and the rank of its result.
Rule = Callable[[Trace, Call, Sequence[Value]], Value]
_RULES: dict[str, Rule] = {}
axis_rule = registers_in(_RULES)  # for calls of operators


def rule_for(name: str) -> Rule | None:
    """The rule of an operator; None: its operands and results cannot be pruned."""
    return _RULES.get(name)


def is_axes(value: Value) -> bool:
    """True if a value belongs to a tensor."""
    return isinstance(value, list) and not any(isinstance(each, list) for each in value)


def fix_value(trace: Trace, value: Value) -> None:
    """Mark every axis of a tensor or a tuple as not prunable."""
    if isinstance(value, list):
        for each in value:
            fix_value(trace, each)
    else:
        trace.nodes.fix(value)


# Maps axes of one shape to axes of another: groups with equal products.


def factor_groups(before: Sequence[object], after: Sequence[object]) -> list[tuple[list[int], list[int]]]:
    """(indices of `before`, indices of `after`) of the smallest groups whose sizes have the same product.

    Symbolic sizes are equal if they are written the same way. Groups that cannot be separated are one group.
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        from_axes, to_axes = [i], [j]
        i, j = i + 1, j + 1
        while (side := _smaller([before[k] for k in from_axes], [after[k] for k in to_axes])) is not None:
            if side == 0 and i < len(before):
                from_axes.append(i)
                i += 1
            elif side == 1 and j < len(after):
                to_axes.append(j)
                j += 1
            else:  # no way to balance them
                from_axes += range(i, len(before))
                to_axes += range(j, len(after))
                i, j = len(before), len(after)
                break
        groups.append((from_axes, to_axes))
    if i < len(before) or j < len(after):  # sizes of 1
        groups.append((list(range(i, len(before))), list(range(j, len(after)))))
    return groups


def _smaller(left: Sequence[object], right: Sequence[object]) -> int | None:
    """0 if the left product lacks a factor, 1 if the right one does, None if they are equal."""
    symbols = [Counter(str(size) for size in sizes if not isinstance(size, int)) for sizes in (left, right)]
    if symbols[1] - symbols[0]:
        return 0
    if symbols[0] - symbols[1]:
        return 1
    numbers = [_product(left), _product(right)]
    if numbers[0] == numbers[1]:
        return None
    return 0 if numbers[0] < numbers[1] else 1


def _product(sizes: Sequence[object]) -> int:
    result = 1
    for size in sizes:
        if isinstance(size, int):
            result *= size
    return result


# Operators that keep positions: elementwise ones, and those that work within other axes.


def broadcast(trace: Trace, shapes: Sequence[Sequence[object]], values: Sequence[Axes]) -> Axes:
    """The axes of an elementwise result; broadcast axes of size 1 are not joined."""
    rank = max(len(shape) for shape in shapes)
    result: Axes = []
    for index in range(-rank, 0):
        present = [
            (shape[index], value[index]) for shape, value in zip(shapes, values, strict=True) if -index <= len(shape)
        ]
        full = [axis for size, axis in present if size != 1] or [axis for _, axis in present]
        for size, axis in present:
            if size == 1 and len(full) < len(present):
                trace.nodes.fix(axis)
        joined = full[0]
        for axis in full[1:]:
            joined = trace.nodes.unite(joined, axis)
        result.append(joined)
    return result


@axis_rule(*UNARY)
def unary(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    return values[0]


@axis_rule(*BINARY, "relax.where")
def binary(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    shapes = [shape_of(argument) or [None] * (rank_of(argument) or 0) for argument in call.args]
    return broadcast(trace, shapes, list(values))


def keep_but(trace: Trace, axes: Axes, fixed: Sequence[int]) -> Axes:
    """The axes, with those at the indices `fixed` marked as not prunable."""
    result = list(axes)
    for index in {each % len(axes) for each in fixed}:
        trace.nodes.fix(result[index])
        result[index] = None
    return result


@axis_rule("relax.nn.softmax", "relax.nn.log_softmax")
def softmax(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    return keep_but(trace, values[0], [int(call.attrs.axis)])


@axis_rule("relax.nn.layer_norm", "relax.nn.rms_norm", "relax.nn.instance_norm")
def layer_norm(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    for value in values[1:]:
        keep_but(trace, value, range(len(value)))
    return keep_but(trace, values[0], [int(each) for each in call.attrs.axes])


@axis_rule("relax.nn.batch_norm")
def batch_norm(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    axis = int(call.attrs.axis) % len(values[0])
    channels = values[0][axis]
    for value in values[1:]:
        channels = trace.nodes.unite(channels, value[0])
    return [values[0], [channels], [channels]]


@axis_rule(*(f"relax.{name}" for name in ("mean", "sum", "max", "min", "prod", "std", "variance")))
def reduction(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    rank = len(values[0])
    axes = range(rank) if call.attrs.axis is None else [int(each) % rank for each in call.attrs.axis]
    kept = keep_but(trace, values[0], list(axes))
    return kept if bool(call.attrs.keepdims) else [axis for index, axis in enumerate(kept) if index not in axes]


@axis_rule(
    *(f"relax.nn.{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for rank in (1, 2, 3)),
    "relax.image.resize2d",
)
def window(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    layout = str(call.attrs.layout)
    if not layout.startswith("NC"):
        return keep_but(trace, values[0], range(len(values[0])))
    return keep_but(trace, values[0], range(2, len(values[0])))


# Convolutions and matmuls.


@axis_rule("relax.matmul")
def matmul(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    """(..., m, k) by (..., k, n); the reduction axis of two activations cannot be pruned: not linear."""
    left, right = list(values[0]), list(values[1])
    shapes = [list(shape_of(argument) or []) for argument in call.args[:2]]
    if min(len(left), len(right)) < 2 or [len(left), len(right)] != [len(shape) for shape in shapes]:
        fix_value(trace, [left, right])
        return [None] * int(call.ty.ndim)
    sources = [_constant(trace, argument, value) for argument, value in zip(call.args, (left, right), strict=True)]
    constants = [source is not None for source in sources]
    summed = trace.nodes.unite(left[-1], right[-2])
    if not any(constants):
        trace.nodes.fix(summed)
    for source, labels in ((sources[1], right[-1]), (sources[0], left[-2])):
        if source is not None:
            axis = next((index for index, each in enumerate(source[1]) if each is labels), 0)
            trace.producers.append(Producer(source[0], axis, labels))
            break
    batch = (
        broadcast(trace, [shape[:-2] for shape in shapes], [left[:-2], right[:-2]]) if max(map(len, shapes)) > 2 else []
    )
    if not any(constants):
        trace.batched += [axis for axis in batch if axis is not None]
    return [*batch, left[-2], right[-1]]


def _constant(trace: Trace, argument: Expr, value: Axes) -> tuple[Expr, Axes] | None:
    """The constant that an operand is, possibly transposed, with the constant's axes."""
    return (argument, value) if isinstance(argument, GenericConst) else trace.transposed.get(argument)


@axis_rule(*(f"relax.nn.conv{rank}d" for rank in (1, 2, 3)))
def convolution(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    """For grouped convolutions, a group is removed together with all its inputs and outputs."""
    data, weight = values[0], values[1]
    layouts = str(call.attrs.data_layout), str(call.attrs.kernel_layout)
    if not (layouts[0].startswith("NC") and layouts[1].startswith("OI")):
        fix_value(trace, [data, weight])
        return [None] * int(call.ty.ndim)
    for axis in (*data[2:], *weight[2:]):
        trace.nodes.fix(axis)
    groups = int(call.attrs.groups)
    if groups == 1:
        trace.nodes.unite(data[1], weight[1])
    else:
        trace.nodes.fix(weight[1])
        _tie_groups(trace, data[1], weight[0], groups)
    if isinstance(call.args[1], GenericConst):
        trace.producers.append(Producer(call.args[1], 0, weight[0]))
    spatial: Axes = [None] * (int(call.ty.ndim) - 2)
    return [data[0], weight[0], *spatial]


def _tie_groups(trace: Trace, read: Axis, given: Axis, groups: int) -> None:
    if read is None or given is None:
        trace.nodes.unite(read, given)
        return
    first = given.reshape(groups, -1)[:, 0]
    trace.nodes.unite(given, np.repeat(first, len(given) // groups))
    trace.nodes.unite(read, np.repeat(first, len(read) // groups))


@axis_rule(*(f"relax.nn.conv{rank}d_transpose" for rank in (1, 2, 3)))
def transposed_convolution(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    data, weight = values[0], values[1]
    spatial: Axes = [None] * (int(call.ty.ndim) - 2)
    layouts = str(call.attrs.data_layout), str(call.attrs.kernel_layout)
    if int(call.attrs.groups) > 1 or not (layouts[0].startswith("NC") and layouts[1].startswith("IO")):
        fix_value(trace, [data, weight])
        return [None, None, *spatial]
    for axis in (*data[2:], *weight[2:]):
        trace.nodes.fix(axis)
    trace.nodes.unite(data[1], weight[0])
    if isinstance(call.args[1], GenericConst):
        trace.producers.append(Producer(call.args[1], 1, weight[1]))
    return [data[0], weight[1], *spatial]


# Operators that move elements: reshapes, permutations, slices, concatenations.

_LARGEST = 1 << 24  # largest group of axes examined element by element


@axis_rule("relax.permute_dims")
def permute(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    axes = values[0]
    order = range(len(axes))[::-1] if call.attrs.axes is None else [int(each) % len(axes) for each in call.attrs.axes]
    return [axes[index] for index in order]


@axis_rule("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
def reshape(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    """Split and join axes in groups with equal products."""
    from_shape, to_shape = shape_of(call.args[0]), shape_of(call)
    if from_shape is None or to_shape is None:
        fix_value(trace, values[0])
        return [None] * int(call.ty.ndim)
    result: Axes = [None] * len(to_shape)
    for from_axes, to_axes in factor_groups(from_shape, to_shape):
        axes = [values[0][index] for index in from_axes]
        moved = _regroup(
            trace, [from_shape[index] for index in from_axes], axes, [to_shape[index] for index in to_axes]
        )
        for index, axis in zip(to_axes, moved, strict=True):
            result[index] = axis
    return result


def _regroup(trace: Trace, from_shape: list[object], axes: Axes, to_shape: list[object]) -> Axes:
    """The axes after reshaping `from_shape` to `to_shape`; at most one of them can be pruned."""
    if len(from_shape) == len(to_shape) == 1:
        return axes
    fixed: Axes = [None] * len(to_shape)
    live = [index for index, axis in enumerate(axes) if axis is not None and from_shape[index] != 1]
    sizes = [size for size in (*from_shape, *to_shape) if isinstance(size, int)]
    known = len(sizes) == len(from_shape) + len(to_shape)
    if len(live) != 1 or not known or int(np.prod([size for size in from_shape if isinstance(size, int)])) > _LARGEST:
        fix_value(trace, axes)
        return fixed
    sizes_before, sizes_after = sizes[: len(from_shape)], sizes[len(from_shape) :]
    kept_axis = live[0]
    labels = axes[kept_axis]
    assert labels is not None
    shape = [1] * len(from_shape)
    shape[kept_axis] = -1
    elements = np.broadcast_to(labels.reshape(shape), sizes_before).reshape(sizes_after)
    chosen = _function_of(trace, elements)
    if chosen is None:  # as when splitting heads: the axis before the last
        wide = [index for index, size in enumerate(sizes_after) if size != 1]
        chosen = wide[-2]
    rows = np.moveaxis(elements, chosen, 0).reshape(sizes_after[chosen], -1)
    first = np.ascontiguousarray(rows[:, 0])
    trace.nodes.unite(np.ascontiguousarray(rows), np.broadcast_to(first[:, None], rows.shape))
    fixed[chosen] = first
    return fixed


def _function_of(trace: Trace, elements: Labels) -> int | None:
    """The only axis that decides which positions are removed together."""
    roots = trace.nodes.roots()[elements]
    axes = []
    for index, size in enumerate(elements.shape):
        rows = np.moveaxis(roots, index, 0).reshape(size, -1)
        if size > 1 and bool((rows == rows[:, :1]).all()):
            axes.append(index)
    return max(axes, key=lambda index: elements.shape[index]) if axes else None


@axis_rule("relax.broadcast_to")
def broadcast_to(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    from_shape, to_shape = shape_of(call.args[0]), shape_of(call)
    if from_shape is None or to_shape is None:
        fix_value(trace, values[0])
        return [None] * int(call.ty.ndim)
    result: Axes = [None] * len(to_shape)
    for index in range(-len(from_shape), 0):
        if from_shape[index] == to_shape[index]:
            result[index] = values[0][index]
        else:
            trace.nodes.fix(values[0][index])
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
    """(axis, begin, end) of a slice with step 1 and known bounds."""
    if not all(isinstance(each, relax.Tuple) for each in call.args[1:]):
        return None
    numbers = [[_number(field) for field in each.fields] for each in call.args[1:]]
    if any(number is None for row in numbers for number in row):
        return None
    shape = shape_of(call.args[0])
    axes, begins, ends = (list(map(int, row)) for row in numbers[:3])  # type: ignore[arg-type]
    if shape is None or (len(numbers) > 3 and any(step != 1 for step in numbers[3])):
        return None
    bounds = []
    for axis, begin, end in zip(axes, begins, ends, strict=True):
        size = shape[axis]
        if not isinstance(size, int):
            return None
        begin, end = (min(max(each + size if each < 0 else each, 0), size) for each in (begin, end))
        bounds.append((axis % len(shape), begin, end))
    return bounds


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
    for each in call.ty.fields:
        part = list(values[0])
        size = (shape_of_type(each) or [None] * (axis + 1))[axis]
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
