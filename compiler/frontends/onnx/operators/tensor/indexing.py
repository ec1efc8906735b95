"""Gather and related operators. Indices outside their axis are clamped, so that no kernel reads out of bounds.

Parts of tensors: Slice, Split, Concat, Trilu, DepthToSpace, SpaceToDepth, ReverseSequence.
"""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import (
    limited,
    require,
    require_coordinates,
    require_indices,
    require_multiple,
    require_shape,
    require_values,
    require_within,
)
from compiler.frontends.onnx.broadcasting import const, elementwise, select
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression, is_simple
from compiler.frontends.onnx.values import Constant, tensor_shape
from schedules.ir.tvm_types import Expr


def wrapped_index(index: Expr, size: Expr) -> Expr:
    """Return an index inside a kernel, counted from the end if negative, then clamped to the axis."""
    index = index.astype("int64")
    counted = select(index < const(0, index), index + size, index)
    return limited(counted, 0, size - 1)


def known_indices(context: NodeContext, position: int, size: Dim) -> np.ndarray | None:
    """Return known indices, made non-negative; InvalidModelError if one is outside the axis."""
    known = context.known(position)
    if known is None or not isinstance(size, int):
        return None
    if known.size and (known.min() < -size or known.max() >= size):
        context.invalid(f"an index lies outside [-{size}, {size})")
    return np.where(known < 0, known + size, known).astype(known.dtype)


@converter("Gather")
def gather(context: NodeContext) -> relax.Expr:
    """Select slices of an axis by indices of any shape."""
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
    """Clamp run-time indices to an axis of that size, as int64."""

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
    shape, positions = tensor_shape(data), tensor_shape(indices)
    target = [*shape[:axis], *positions, *shape[axis + 1 :]]
    flat = context.reshape(indices, (context.arithmetic.product(positions),))
    taken = context.emit(R.take(data, flat, axis, mode="fast"))
    return context.reshape(taken, target)


@converter("GatherElements", since=11)
def gather_elements(context: NodeContext) -> relax.Expr:
    """Select the element with the coordinate along the axis replaced by the index at the same position."""
    axis = context.axis(context.attribute("axis", 0), context.rank(0))
    if context.rank(1) != context.rank(0):
        context.invalid(f"indices of rank {context.rank(1)} into data of rank {context.rank(0)}")
    require_indices(context, 1, context.shape(0)[axis])
    require_within(context, context.shape(1), context.shape(0), axis)

    def pick(data: te.Tensor, indices: te.Tensor) -> te.Tensor:
        def element(*coordinates: Expr) -> Expr:
            index = wrapped_index(indices(*coordinates), data.shape[axis])
            return data(*coordinates[:axis], index, *coordinates[axis + 1 :])

        return te.compute(indices.shape, element, name="gather_elements")

    return context.emit_te(pick, context.input(0), context.input(1), primfunc_name_hint="gather_elements")


@converter("GatherND", since=11)
def gather_nd(context: NodeContext) -> relax.Expr:
    """Select slices at coordinates in the last axis of the indices, within the first `batch_dims` axes."""
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
        def element(*position: Expr) -> Expr:
            coordinates = [
                wrapped_index(indices(*position[:outer], tirx.const(i, "int64")), data.shape[batch + i])
                for i in range(depth)
            ]
            return data(*position[:batch], *coordinates, *position[outer:])

        return te.compute(target, element, name="gather_nd")

    return context.emit_te(
        pick, context.input(0), context.input(1), *map(expression, sizes), primfunc_name_hint="gather_nd"
    )


_BEYOND = 10**9  # exceeds any real index


@converter("Slice")
def slice_by_attributes(context: NodeContext) -> relax.Expr:
    """Slice before opset 10: starts, ends and axes are attributes."""
    starts, ends = context.required_attribute("starts"), context.required_attribute("ends")
    axes = context.axes(context.attribute("axes", list(range(len(starts)))), context.rank(0))
    return _slice(context, axes, list(starts), list(ends), [1] * len(axes))


@converter("Slice", since=10)
def slice_by_inputs(context: NodeContext) -> relax.Expr:
    """Slice with starts and ends possibly known only at run time; axes and steps must be known.

    Starts that are themselves slices from computed positions (`offsets[i : i + 1]`, rows of a bag) have no known
    length: one is assumed, and checked during the run.
    """
    length = next((size for index in (3, 1, 2) if (size := _known_length(context, index)) is not None), 1)
    starts, ends = (context.shape_values(index, signed=True, length=length) for index in (1, 2))
    given = context.integers(3) if context.has_input(3) else list(range(len(starts)))
    axes = context.axes(given, context.rank(0))
    steps = context.integers(4) if context.has_input(4) else [1] * len(axes)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        context.invalid(f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes, {len(steps)} steps")
    return _slice(context, axes, starts, ends, steps)


def _known_length(context: NodeContext, index: int) -> int | None:
    size = context.shape(index)[0] if context.has_input(index) and context.rank(index) else None
    return size if isinstance(size, int) else None


def _slice(context: NodeContext, axes: list[int], starts: list[Dim], ends: list[Dim], steps: list[Dim]) -> relax.Expr:
    shape = context.shape(0)
    bounds = {
        axis: _bounds(context, shape[axis], start, end, step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }
    sliced = {axis: each for axis, each in bounds.items() if not _is_whole(context, shape[axis], each)}
    if not sliced:
        return context.input(0)
    if all(isinstance(value, int) for triple in sliced.values() for value in triple):
        return _static_slice(context, sliced)
    return strided_slice(context, context.input(0), sliced)


def _is_whole(context: NodeContext, size: Dim, bounds: tuple[Dim, Dim, int]) -> bool:
    """True if a slice is the whole axis."""
    first, count, step = bounds
    return isinstance(first, int) and first == 0 and step == 1 and context.arithmetic.equal_is_proved(count, size)


_LARGEST_STEP = 2**40  # beyond any size


def _bounds(context: NodeContext, size: Dim, start: Dim, end: Dim, step: int) -> tuple[Dim, Dim, int]:
    """Return (first index, count, step) after ONNX's clamping."""
    arithmetic = context.arithmetic
    if step == 0:
        context.invalid("a step is 0")
    step = max(-_LARGEST_STEP, min(step, _LARGEST_STEP))
    low, high = (0, size) if step > 0 else (-1, arithmetic.subtract(size, 1))
    if step < 0 and isinstance(end, int) and end in (2**31 - 1, 2**63 - 1):
        # Exporters write the largest integers for "no end", in either direction; ONNX Runtime accepts that.
        end = -(2**63)
    first = _clamped(context, start, size, 0, high)
    last = _clamped(context, end, size, low, high)
    distance = arithmetic.subtract(last, first) if step > 0 else arithmetic.subtract(first, last)
    count = arithmetic.maximum(arithmetic.ceil_divide(distance, abs(step)), 0)
    return first, count, step


def _clamped(context: NodeContext, index: Dim, size: Dim, low: Dim, high: Dim) -> Dim:
    """Return an index, counted from the end if negative, clamped to [low, high]."""
    arithmetic = context.arithmetic
    if isinstance(index, int):
        # Exceeds any size: exporters write the largest integers for "to the end".
        if index >= 2**31 - 1:
            return high
        if index <= -(2**31) + 1:
            return low
        if index >= _BEYOND and not isinstance(size, int):
            # Also written for "to the end". A larger size is an error before a run; the memory planner would use a
            # minimum of both as the tensor's bound.
            context.importer.builder.require(index, "at least", size)
            return high
        counted = arithmetic.add(index, size) if index < 0 else index
    else:
        counted = arithmetic.select(arithmetic.less(index, 0), arithmetic.add(index, size), index)
    return arithmetic.minimum(arithmetic.maximum(counted, low), high)


def _static_slice(context: NodeContext, sliced: dict[int, tuple[Dim, Dim, int]]) -> relax.Expr:
    if any(count == 0 or step < 0 for _, count, step in sliced.values()):
        return strided_slice(context, context.input(0), sliced)
    axes = list(sliced)
    begins = [sliced[axis][0] for axis in axes]
    ends = [first + (count - 1) * step + 1 for first, count, step in sliced.values()]
    return R.strided_slice(context.input(0), axes, begins, ends, [sliced[axis][2] for axis in axes])


def strided_slice(context: NodeContext, data: relax.Expr, bounds: dict[int, tuple[Dim, Dim, int]]) -> relax.Expr:
    """Slice by (first index, count, step) of each axis, which may be expressions."""
    shape = tensor_shape(data)
    sizes = [bounds[axis][1] if axis in bounds else size for axis, size in enumerate(shape)]
    scalars = [expression(value) for axis in bounds for value in (bounds[axis][0], bounds[axis][2])]

    def cut(source: te.Tensor, *arguments: Expr) -> te.Tensor:
        target, rest = arguments[: len(sizes)], arguments[len(sizes) :]
        positions = {axis: (rest[2 * i], rest[2 * i + 1]) for i, axis in enumerate(bounds)}

        def element(*indices: Expr) -> Expr:
            moved = [
                positions[axis][0] + index * positions[axis][1] if axis in positions else index
                for axis, index in enumerate(indices)
            ]
            return source(*moved)

        return te.compute(target, element, name="slice")

    result = context.emit_te(cut, data, *map(expression, sizes), *scalars, primfunc_name_hint="slice")
    return context.with_simple_sizes(result)


@converter("Split")
def split(context: NodeContext) -> list[relax.Expr]:
    """Split along an axis into parts of given lengths, or into equal ones with a smaller last part."""
    axis = context.axis(context.attribute("axis", 0), context.rank(0))
    size, parts = context.shape(0)[axis], len(context.node.output)
    if context.has_input(1):
        lengths = context.shape_values(1)
    elif context.has_attribute("split"):
        lengths = list(context.required_attribute("split"))
    else:
        lengths = _equal_parts(context, size, parts)
    if len(lengths) != parts:
        context.invalid(f"{len(lengths)} lengths for {parts} outputs")
    known = all(isinstance(length, int) for length in (*lengths, size))
    if known and (sum(lengths) != size or min(lengths) < 0):
        context.invalid(f"a size of {size} cannot be split into {lengths}")
    if not known:
        # Also check each part: a sum of huge lengths may wrap around.
        for length in lengths:
            require(context, length, "at least", 0)
            require(context, size, "at least", length)
        require(context, context.arithmetic.total(lengths), "equal", size)
    return _parts(context, axis, lengths, known)


def _equal_parts(context: NodeContext, size: Dim, parts: int) -> list[Dim]:
    declared = context.attribute("num_outputs", parts)
    if declared != parts:
        context.invalid(f"num_outputs is {declared}, but it has {parts} outputs")
    arithmetic = context.arithmetic
    chunk = arithmetic.ceil_divide(size, parts)
    lengths = [chunk] * (parts - 1)
    return [*lengths, arithmetic.subtract(size, arithmetic.multiply(chunk, parts - 1))]


def _parts(context: NodeContext, axis: int, lengths: list[Dim], known: bool) -> list[relax.Expr]:
    data = context.input(0)
    if len(lengths) == 1:
        return [data]
    if known and min(lengths) > 0:
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths) - 1)]
        pieces = context.emit(R.split(data, ends, axis))
        return [relax.TupleGetItem(pieces, i) for i in range(len(lengths))]
    start: Dim = 0
    result = []
    for length in lengths:
        result.append(strided_slice(context, data, {axis: (start, length, 1)}))
        start = context.arithmetic.add(start, length)
    return result


@converter("Concat")
def concat(context: NodeContext) -> relax.Expr:
    """Concatenate tensors along an axis."""
    rank = context.rank(0)
    axis = context.axis(context.attribute("axis", 1), rank)
    count = len(context.inputs)
    if any(context.rank(i) != rank or context.dtype(i) != context.dtype(0) for i in range(count)):
        context.invalid("its inputs differ in rank or type")
    return concatenated(context, [context.input(i) for i in range(count)], axis)


def concatenated(context: NodeContext, tensors: list[relax.Expr], axis: int) -> relax.Expr:
    """Concatenate tensors of equal rank and type; error if they differ in another size."""
    tensors = _same_other_sizes(context, tensors, axis)
    if len(tensors) == 1:
        return tensors[0]
    # Sums of minima, such as the best boxes of each level, have no unique form shared by all kernels.
    return context.with_simple_sizes(context.emit(R.concat(tensors, axis)))


def _same_other_sizes(context: NodeContext, tensors: list[relax.Expr], axis: int) -> list[relax.Expr]:
    """Check that sizes off the axis agree; sizes known only at run time are checked then."""
    shapes = [tensor_shape(tensor) for tensor in tensors]
    common = list(shapes[0])
    for shape in shapes[1:]:
        for position, size in enumerate(shape):
            if position == axis or context.arithmetic.equal_is_proved(common[position], size):
                continue
            if isinstance(common[position], int) and isinstance(size, int):
                context.invalid(f"its inputs have sizes {common[position]} and {size} at axis {position}")
            if isinstance(size, int) or (is_simple(size) and not is_simple(common[position])):
                common[position] = size
    result = []
    for tensor, shape in zip(tensors, shapes, strict=True):
        target_shape = [size if position == axis else common[position] for position, size in enumerate(shape)]
        equal = all(context.arithmetic.equal_is_proved(a, b) for a, b in zip(shape, target_shape, strict=True))
        result.append(tensor if equal else context.match_shape(tensor, target_shape))
    return result


@converter("Trilu", since=14)
def triangle(context: NodeContext) -> relax.Expr:
    """Upper or lower triangle of each matrix, from the k-th diagonal."""
    offset = context.shape_values(1, signed=True)[0] if context.has_input(1) else 0
    upper = bool(context.attribute("upper", 1))

    def mask(source: te.Tensor, k: Expr) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            distance = indices[-1] - indices[-2]
            kept = distance >= k if upper else distance <= k
            return tirx.Select(kept, source(*indices), tirx.const(0, source.dtype))

        return te.compute(source.shape, element, name="triangle")

    return context.emit_te(mask, context.input(0), expression(offset), primfunc_name_hint="triangle")


@converter("DepthToSpace")
def depth_to_space(context: NodeContext) -> relax.Expr:
    """Turn blocks of channels into blocks of pixels; mode DCR or CRD."""
    batch, channels, height, width = context.shape(0)
    block, arithmetic = context.required_attribute("blocksize"), context.arithmetic
    depth = _divided(context, channels, block * block)
    crd = context.attribute("mode", "DCR") == "CRD"
    split_shape = [batch, depth, block, block] if crd else [batch, block, block, depth]
    data = context.reshape(context.input(0), [*split_shape, height, width])
    order = [0, 1, 4, 2, 5, 3] if crd else [0, 3, 4, 1, 5, 2]
    data = context.emit(R.permute_dims(data, order))
    return context.reshape(data, [batch, depth, arithmetic.multiply(height, block), arithmetic.multiply(width, block)])


@converter("SpaceToDepth")
def space_to_depth(context: NodeContext) -> relax.Expr:
    """Turn blocks of pixels into blocks of channels; mode DCR (the only one before opset 27) or CRD."""
    batch, channels, height, width = context.shape(0)
    block, arithmetic = context.required_attribute("blocksize"), context.arithmetic
    rows, columns = _divided(context, height, block), _divided(context, width, block)
    data = context.reshape(context.input(0), [batch, channels, rows, block, columns, block])
    crd = context.attribute("mode", "DCR") == "CRD"
    data = context.emit(R.permute_dims(data, [0, 1, 3, 5, 2, 4] if crd else [0, 3, 5, 1, 2, 4]))
    return context.reshape(data, [batch, arithmetic.multiply(channels, block * block), rows, columns])


def _divided(context: NodeContext, size: Dim, divisor: int) -> Dim:
    require_multiple(context, size, divisor)
    return context.arithmetic.floor_divide(size, divisor)


@converter("ReverseSequence")
def reverse_sequence(context: NodeContext) -> relax.Expr:
    """Reverse the first elements of each sequence, as many as its length."""
    time_axis, batch_axis = context.attribute("time_axis", 0), context.attribute("batch_axis", 1)
    if sorted((time_axis, batch_axis)) != [0, 1] or context.rank(0) < 2:
        context.invalid(f"time_axis {time_axis} and batch_axis {batch_axis} of a tensor of rank {context.rank(0)}")
    require_shape(context, context.shape(1), [context.shape(0)[batch_axis]], "sequence_lens")
    require_values(context, 1, 0, context.arithmetic.add(context.shape(0)[time_axis], 1))

    def reverse(source: te.Tensor, lengths: te.Tensor) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            time = indices[time_axis]
            length = limited(lengths(indices[batch_axis]), 0, source.shape[time_axis])
            moved = list(indices)
            moved[time_axis] = tirx.Select(time < length, length - 1 - time, time)
            return source(*moved)

        return te.compute(source.shape, element, name="reverse_sequence")

    return context.emit_te(reverse, context.input(0), context.input(1), primfunc_name_hint="reverse_sequence")
