"""Resizing as tensor expressions: nearest for all axes at once, weighted sums axis by axis.

Sampling a tensor between its elements, as TVM expressions shared by GridSample, DeformConv and RoiAlign.

Coordinates and weights follow ONNX's Resize. The formulas are written once and evaluated twice: with numpy, to tables,
for known sizes, and as TVM expressions inside the kernel for symbolic ones. All arithmetic is in float32.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tvm import relax, te, tirx

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import limited_position
from compiler.frontends.onnx.broadcasting import const
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.precision import cast, compute_dtype
from compiler.frontends.onnx.symbolic import Dim, expression, plain
from compiler.frontends.onnx.values import Constant
from schedules.ir.tvm_types import Expr, Index, Tensor

_MAX_UNROLLED = 4  # unrolled taps; longer sums are loops


def _constant(array: np.ndarray, dtype: str) -> relax.Constant:
    return Constant(array.astype(dtypes.numpy_dtype(dtype)), dtype).expr()


def _extrapolated(sampling: Sampling, axis: AxisResize, coordinate: np.ndarray) -> np.ndarray | None:
    """Return the mask of extrapolated outputs, or None if there are none."""
    if sampling.coordinates != "tf_crop_and_resize":
        return None
    outside = np.asarray(is_outside(NumpyOperations, axis, coordinate))
    return outside if outside.any() else None


def resize_nearest(context: NodeContext, data: relax.Expr, axes: list[AxisResize], sampling: Sampling) -> relax.Expr:
    """Copy an input element to each output element."""
    tables: list[relax.Expr] = []
    forms: list[tuple[str, int]] = []
    for axis in axes:
        if not axis.is_static:
            forms.append(_repetition(context, axis, sampling) or ("formula", 0))
            continue
        coordinate = _coordinates(axis, sampling)
        index = nearest_index(NumpyOperations, sampling, axis, coordinate).astype(np.int64)
        outside = _extrapolated(sampling, axis, coordinate)
        form = ("table", len(tables)) if outside is not None else _closed_form(index, axis)
        if form[0] == "table":
            form = ("table", len(tables))
            tables.append(_constant(np.where(outside, -1, index) if outside is not None else index, "int32"))
        forms.append(form)

    def compute(tensor: Tensor, *arguments: Expr) -> Tensor:
        lookups, sizes = arguments[: len(tables)], arguments[len(tables) :]
        bound = [_with_sizes(axis, tensor.shape[axis.axis], sizes[i]) for i, axis in enumerate(axes)]
        shape = list(tensor.shape)
        for axis in bound:
            shape[axis.axis] = axis.after

        def element(*indices: Expr) -> Expr:
            source, outside = list(indices), []
            for axis, (kind, number) in zip(bound, forms, strict=True):
                index, beyond = _nearest_source(sampling, axis, indices[axis.axis], kind, number, lookups)
                source[axis.axis] = index
                outside += beyond
            if not outside:
                return tensor(*source)
            fill = tirx.const(_fill(sampling.extrapolation, str(tensor.dtype)), tensor.dtype)
            return tirx.if_then_else(tirx.any(*outside, tirx.const(False, "bool")), fill, tensor(*source))

        return te.compute(shape, element, name="resize_nearest")

    sizes = [expression(axis.after) for axis in axes]
    return context.emit_te(compute, data, *tables, *sizes, primfunc_name_hint="resize_nearest")


def _closed_form(index: np.ndarray, axis: AxisResize) -> tuple[str, int]:
    """Return (kind, factor): the table as a quotient or a multiple of the position if possible: both vectorize."""
    positions = np.arange(len(index))
    if len(index) and axis.before and len(index) % axis.before == 0 and len(index) >= axis.before:
        factor = len(index) // axis.before
        if np.array_equal(index, positions // factor):
            return "quotient", factor
    if len(index) and axis.before % len(index) == 0:
        factor = axis.before // len(index)
        if np.array_equal(index, positions * factor):
            return "multiple", factor
    return "table", 0


_TRIED = range(1, 33)  # sizes


def _repetition(context: NodeContext, axis: AxisResize, sampling: Sampling) -> tuple[str, int] | None:
    """Return the closed form of an axis of unknown size whose elements are all repeated equally often; None otherwise.
    Proved by its size and the formula at small sizes: no position is close enough to a bound to be moved by
    rounding."""
    factor = int(axis.scale or 0)
    if factor != axis.scale or sampling.coordinates == "tf_crop_and_resize":
        return None
    if not context.arithmetic.equal_is_proved(axis.after, context.arithmetic.multiply(axis.before, factor)):
        return None
    tried = [AxisResize(axis.axis, size, size * factor, axis.scale) for size in _TRIED]
    form = ("quotient", factor)
    tables = (nearest_index(NumpyOperations, sampling, each, _coordinates(each, sampling)) for each in tried)
    same = all(_closed_form(table, each) == form for table, each in zip(tables, tried, strict=True))
    return form if same else None


def _nearest_source(
    sampling: Sampling, axis: AxisResize, position: Expr, kind: str, number: int, lookups: Expr
) -> tuple[Expr, list[Expr]]:
    """Return the index that an output position reads, and the conditions under which it is extrapolated instead."""
    if kind == "quotient":
        return (position if number == 1 else tirx.floordiv(position, tirx.const(number, "int64"))), []
    if kind == "multiple":
        return position * number, []
    if kind == "table":
        entry = lookups[number](position)
        outside = [entry < 0] if sampling.coordinates == "tf_crop_and_resize" else []
        return tirx.max(entry, 0).astype("int64") if outside else entry.astype("int64"), outside
    coordinate = source_coordinate(TvmOperations, sampling, axis, position.astype("float32"))
    index = limited_position(nearest_index(TvmOperations, sampling, axis, coordinate), axis.before)
    crop = sampling.coordinates == "tf_crop_and_resize"
    return index, [is_outside(TvmOperations, axis, coordinate)] if crop else []


def _with_sizes(axis: AxisResize, before: Expr, after: Expr) -> AxisResize:
    """Return the axis with its sizes as the kernel's own variables."""
    return AxisResize(axis.axis, before, after, axis.scale, axis.start, axis.end)


def _fill(value: float, dtype: str) -> Expr:
    return float(value) if dtypes.is_float(dtype) else int(value)


def resize_weighted(context: NodeContext, data: relax.Expr, axes: list[AxisResize], sampling: Sampling) -> relax.Expr:
    """Compute weighted sums along one axis after another, in the computation type; the result has the data's type."""
    dtype = str(data.ty.dtype)
    if not dtypes.is_float(dtype) and sampling.mode == "linear" and not sampling.antialias and _are_static(axes):
        return _resize_integers(context, data, axes, sampling)
    wide = compute_dtype(dtype) if dtypes.is_float(dtype) else "float32"
    result = cast(context, data, wide)
    for axis in _cheapest_order(axes):
        result = _resize_axis(context, result, axis, sampling)
    if dtypes.is_float(dtype):
        return cast(context, result, dtype)
    # ONNX does not specify fractions: its reference rounds, ONNX Runtime truncates in linear mode.
    drops = sampling.mode == "linear" and not sampling.antialias
    rounded = relax.op.trunc(result) if drops else relax.op.round(result)
    return context.emit(relax.op.astype(relax.op.clip(rounded, *dtypes.integer_limits(dtype)), dtype))


def _are_static(axes: list[AxisResize]) -> bool:
    return all(axis.is_static for axis in axes)


def _resize_integers(context: NodeContext, data: relax.Expr, axes: list[AxisResize], sampling: Sampling) -> relax.Expr:
    """Linear interpolation of integers, truncated, summed in the same order as ONNX Runtime.

    Another order of summation may fall just below an integer and so lose one.
    """
    tables = [table for axis in axes for table in _tap_tables(axis, sampling, "float32")]
    masks = _masks(axes, sampling)

    def compute(tensor: Tensor, *arguments: Expr) -> Tensor:
        shape = list(tensor.shape)
        for axis in axes:
            shape[axis.axis] = tirx.const(axis.after, "int64")
        inner_first = sorted(range(len(axes)), key=lambda number: -axes[number].axis)

        def element(*output: Expr) -> Expr:
            total: Expr = None
            for corner in np.ndindex(*[2] * len(axes)):
                source, weight = list(output), None
                for number, tap in zip(inner_first, reversed(corner), strict=True):
                    resized = axes[number].axis
                    index, weights = arguments[2 * number], arguments[2 * number + 1]
                    factor = weights(output[resized], tap)
                    weight = factor if weight is None else weight * factor
                    source[resized] = index(output[resized], tap).astype("int64")
                term = weight * tensor(*source).astype("float32")
                total = term if total is None else total + term
            result = total.astype(tensor.dtype)
            for axis, mask in zip(masks, arguments[2 * len(axes) :], strict=True):
                fill = tirx.const(int(sampling.extrapolation), tensor.dtype)
                result = tirx.Select(mask(output[axis]), fill, result)
            return result

        return te.compute(shape, element, name="resize")

    return context.emit_te(compute, data, *tables, *masks.values(), primfunc_name_hint="resize_linear")


def _masks(axes: list[AxisResize], sampling: Sampling) -> dict[int, relax.Expr]:
    """Return masks of extrapolated outputs, by axis; axes without any are omitted."""
    masks = {}
    for axis in axes:
        outside = _extrapolated(sampling, axis, _coordinates(axis, sampling))
        if outside is not None:
            masks[axis.axis] = _constant(outside, "bool")
    return masks


def _coordinates(axis: AxisResize, sampling: Sampling) -> np.ndarray:
    return source_coordinate(NumpyOperations, sampling, axis, np.arange(axis.after, dtype=np.float32))


def _tap_tables(axis: AxisResize, sampling: Sampling, dtype: str) -> tuple[relax.Expr, relax.Expr]:
    """Return indices and weights of the taps of each output, (size, taps)."""
    taps = weighted_taps(NumpyOperations, sampling, axis, _coordinates(axis, sampling))
    indices = np.stack([index for index, _ in taps], axis=-1).astype(np.int32)
    weights = np.stack([weight for _, weight in taps], axis=-1)
    # A tap with zero weight must not read an infinite element.
    heaviest = np.take_along_axis(indices, np.abs(weights).argmax(-1)[..., None], -1)
    return _constant(np.where(weights == 0, heaviest, indices), "int32"), _constant(weights, dtype)


def _cheapest_order(axes: list[AxisResize]) -> list[AxisResize]:
    """Order axes so that intermediate results are small: shrinking ones first, among growing ones the innermost
    first."""

    def key(axis: AxisResize) -> tuple[float, int]:
        scale = axis.static_scale
        return (scale if scale is not None else 1.0, -axis.axis)

    return sorted(axes, key=key)


def _resize_axis(context: NodeContext, data: relax.Expr, axis: AxisResize, sampling: Sampling) -> relax.Expr:
    if axis.is_static:
        return _resize_axis_by_table(context, data, axis, sampling)
    if sampling.antialias and axis.static_scale is None:
        return _resize_axis_by_dynamic_taps(context, data, axis, sampling)

    def compute(tensor: Tensor, new_size: Expr) -> Tensor:
        bound = _with_sizes(axis, tensor.shape[axis.axis], new_size)
        shape = [*tensor.shape[: axis.axis], new_size, *tensor.shape[axis.axis + 1 :]]

        def place(position: Expr) -> Expr:
            return source_coordinate(TvmOperations, sampling, bound, position.astype("float32"))

        linear = _has_two_taps(sampling)
        taps_at = _tabulated_linear_taps(bound, place) if linear else _tabulated_taps(sampling, bound, place)

        def element(*indices: Expr) -> Expr:
            coordinate, taps = taps_at(indices[axis.axis])
            total: Expr = None
            for index, weight in taps:
                source = [*indices[: axis.axis], index, *indices[axis.axis + 1 :]]
                term = tensor(*source) * weight.astype(tensor.dtype)
                total = term if total is None else total + term
            if sampling.coordinates != "tf_crop_and_resize":
                return total
            fill = tirx.const(sampling.extrapolation, tensor.dtype)
            return tirx.Select(is_outside(TvmOperations, bound, coordinate), fill, total)

        return te.compute(shape, element, name="resize")

    return context.emit_te(compute, data, expression(axis.after), primfunc_name_hint=f"resize_{sampling.mode}")


TapsAt: TypeAlias = "Callable[[Expr], tuple[Expr, list[tuple[Expr, Expr]]]]"
"""From the output position: its coordinate in the input, and (index, int64, and weight) of each tap."""


def _tabulated_linear_taps(axis: AxisResize, coordinate: Callable[[Expr], Expr]) -> TapsAt:
    """The two taps, which the kernel computes once for each position: a row of elements is then gathered in vectors."""
    places = te.compute((axis.after,), coordinate, name="places")

    def table(tap: int, part: int) -> Tensor:
        def entry(position: Expr) -> Expr:
            index, weight = _linear_taps(TvmOperations, axis, places(position))[tap]
            return weight if part else limited_position(index, axis.before)

        return te.compute((axis.after,), entry, name=f"{('index', 'weight')[part]}{tap}")

    tables = [(table(tap, 0), table(tap, 1)) for tap in range(2)]

    def taps_at(position: Expr) -> tuple[Expr, list[tuple[Expr, Expr]]]:
        return places(position), [(indices(position), weights(position)) for indices, weights in tables]

    return taps_at


def _tabulated_taps(sampling: Sampling, axis: AxisResize, coordinate: Callable[[Expr], Expr]) -> TapsAt:
    """Taps with weights that the kernel computes once for each position, not for each element.

    Each weight's expression would hold several copies of the coordinate's, and after division by their sum, of all
    weights'.
    """
    ops = TvmOperations
    offsets, stretch = _tap_offsets(sampling, axis)
    places = te.compute((axis.after,), coordinate, name="places")

    def tap(position: Expr, number: Expr) -> tuple[Expr, Expr]:
        return _tap(ops, sampling, axis, places(position), ops.real(number + offsets[0]), ops.real(stretch))

    shape = (axis.after, len(offsets))
    weights = te.compute(shape, lambda o, k: tap(o, k)[1], name="weights")
    if _divides(sampling, stretch):
        raw = weights

        def part(position: Expr, number: Expr) -> Expr:
            total = sum((raw(position, k) for k in range(1, len(offsets))), raw(position, 0))
            return raw(position, number) / _not_zero(ops, total)

        weights = te.compute(shape, part, name="parts")

    def taps_at(position: Expr) -> tuple[Expr, list[tuple[Expr, Expr]]]:
        indices = [_clamped(ops, axis, tap(position, tirx.const(k, "int64"))[0]) for k in range(len(offsets))]
        found = [limited_position(index, axis.before) for index in indices]
        return places(position), [(index, weights(position, k)) for k, index in enumerate(found)]

    return taps_at


def _resize_axis_by_dynamic_taps(
    context: NodeContext, data: relax.Expr, axis: AxisResize, sampling: Sampling
) -> relax.Expr:
    """Antialiased resize with a size-dependent number of averaged elements: the kernel also computes the weight
    table."""

    def compute(tensor: Tensor, new_size: Expr) -> Tensor:
        bound = _with_sizes(axis, tensor.shape[axis.axis], new_size)
        count = dynamic_taps(sampling, bound)

        def coordinate(position: Expr) -> Expr:
            return source_coordinate(TvmOperations, sampling, bound, position.astype("float32"))

        def tap(position: Expr, number: Expr) -> tuple[Expr, Expr]:
            return dynamic_tap(sampling, bound, coordinate(position), number)

        weights = te.compute((new_size, count), lambda o, k: tap(o, k)[1], name="weights")
        summed = te.reduce_axis((0, count), name="tap")
        totals = te.compute((new_size,), lambda o: te.sum(weights(o, summed), axis=summed), name="totals")
        number = te.reduce_axis((0, count), name="tap")

        def term(*output: Expr) -> Expr:
            position = output[axis.axis]
            index = limited_position(tap(position, number)[0], bound.before)
            value = tensor(*output[: axis.axis], index, *output[axis.axis + 1 :])
            weight = weights(position, number)
            # An element with zero weight may be infinite.
            return tirx.Select(weight == 0, tirx.const(0, tensor.dtype), value * weight.astype(tensor.dtype))

        shape = [*tensor.shape[: axis.axis], new_size, *tensor.shape[axis.axis + 1 :]]
        sums = te.compute(shape, lambda *o: te.sum(term(*o), axis=number), name="resize")

        def element(*output: Expr) -> Expr:
            position = output[axis.axis]
            total = sums(*output) / totals(position).astype(tensor.dtype)
            if sampling.coordinates != "tf_crop_and_resize":
                return total
            fill = tirx.const(sampling.extrapolation, tensor.dtype)
            return tirx.Select(is_outside(TvmOperations, bound, coordinate(position)), fill, total)

        return te.compute(shape, element, name="averaged")

    return context.emit_te(compute, data, expression(axis.after), primfunc_name_hint=f"resize_{sampling.mode}")


def _resize_axis_by_table(context: NodeContext, data: relax.Expr, axis: AxisResize, sampling: Sampling) -> relax.Expr:
    dtype = str(data.ty.dtype)
    indices, weights = _tap_tables(axis, sampling, dtype)
    count = int(indices.ty.shape.values[1])
    tables = [indices, weights, *_masks([axis], sampling).values()]

    def compute(tensor: Tensor, index: Tensor, weight: Tensor, *masks: Expr) -> Tensor:
        shape = [*tensor.shape[: axis.axis], index.shape[0], *tensor.shape[axis.axis + 1 :]]

        def load(output: tuple[Expr, ...], tap: Index) -> Expr:
            source = index(output[axis.axis], tap).astype("int64")
            return tensor(*output[: axis.axis], source, *output[axis.axis + 1 :]) * weight(output[axis.axis], tap)

        if count <= _MAX_UNROLLED and not masks:
            return te.compute(shape, lambda *o: sum((load(o, t) for t in range(1, count)), load(o, 0)), name="resize")
        tap = te.reduce_axis((0, count), name="tap")
        total = te.compute(shape, lambda *o: te.sum(load(o, tap), axis=tap), name="resize")
        if not masks:
            return total
        fill = tirx.const(sampling.extrapolation, dtype)
        return te.compute(shape, lambda *o: tirx.Select(masks[0](o[axis.axis]), fill, total(*o)), name="extrapolated")

    return context.emit_te(compute, data, *tables, primfunc_name_hint=f"resize_{sampling.mode}")


Tap: TypeAlias = "tuple[Expr, Expr]"  # an integer coordinate and its weight, both floats
TapsOf: TypeAlias = "Callable[[int, Sequence[Expr]], list[Tap]]"  # taps of an axis at a position
TapTables: TypeAlias = "list[list[tuple[Tensor, Tensor]]]"  # offsets and weights, by axis and tap
_MAX_JOINED = 8  # combinations of taps


def linear_taps(coordinate: Expr) -> list[Tap]:
    """Return the two neighbors."""
    base = tirx.floor(coordinate)
    ratio = coordinate - base
    one = const(1.0, coordinate)
    return [(base, one - ratio), (base + one, ratio)]


def cubic_taps(coordinate: Expr, a: float = -0.75) -> list[Tap]:
    """Return the four neighbors, weighted by Keys' cubic convolution kernel (IEEE TASSP 29, 1981, equation 4)."""
    base = tirx.floor(coordinate)
    x = coordinate - base

    def number(value: float) -> Expr:
        return const(value, coordinate)

    def near(d: Expr) -> Expr:
        return (number(a + 2) * d - number(a + 3)) * d * d + number(1)

    def far(d: Expr) -> Expr:
        return ((number(a) * d - number(5 * a)) * d + number(8 * a)) * d - number(4 * a)

    one, two = number(1), number(2)
    return [(base - one, far(x + one)), (base, near(x)), (base + one, near(one - x)), (base + two, far(two - x))]


def weighted_sum(taps: Sequence[Sequence[Tap]], pixel: Callable[[list[Expr]], Expr]) -> Expr:
    """Sum element times weights over all combinations of one tap per axis."""
    total: Expr = None
    for combination in itertools.product(*taps):
        weight: Expr = None
        for _, factor in combination:
            weight = factor if weight is None else weight * factor
        term = pixel([position for position, _ in combination]) * weight
        total = term if total is None else total + term
    return total


def inside(position: Expr, size: Expr) -> Expr:
    """True if a float coordinate is within an axis."""
    return tirx.all(position >= const(0, position), position < size.astype(str(position.ty.dtype)))


def clamped(position: Expr, size: Expr) -> Expr:
    """Clamp a float coordinate to the nearest element's."""
    last = size.astype(str(position.ty.dtype)) - const(1, position)
    return tirx.max(tirx.min(position, last), const(0, position))


def reflected(position: Expr, low: Expr, high: Expr) -> Expr:
    """Reflect a float coordinate at the borders until it is between them."""
    span = tirx.max(high - low, const(1e-6, position))  # a single element has no span with aligned corners
    below = position < low
    distance = tirx.Select(below, low - position, tirx.max(position - high, const(0, position)))
    turns = tirx.floor(distance / span)
    rest = distance - turns * span
    even = turns - const(2, position) * tirx.floor(turns * const(0.5, position)) < const(0.5, position)
    from_low = tirx.Select(below, even, tirx.Not(even))
    mirrored = tirx.Select(from_low, low + rest, high - rest)
    return tirx.Select(tirx.any(below, position > high), mirrored, position)


def tap_tables(shape: Sequence[Expr], sizes: Sequence[Expr], taps_of: TapsOf, *, zeros: bool) -> TapTables:
    """Return the taps at all positions of `shape`, shared by all channels: for each axis and tap, its offset and
    weight.

    Offsets are those of an axis in a row-major tensor of `sizes`: their sum over the axes is the element's position.
    With `zeros`, an offset outside its axis is so negative that every sum with it is negative.

    Args:
        shape: shape of the sampled positions: sample, then position.
        sizes: sizes of the data's sampled axes.
        taps_of: returns the taps of an axis at a position.
        zeros: elements outside are zero; otherwise coordinates are clamped to the axis.
    """
    dtype = _offset_dtype(sizes)
    total = _product(sizes)

    def offset(axis: int, tap: int, indices: Sequence[Expr]) -> Expr:
        position = taps_of(axis, indices)[tap][0]
        index = limited_position(position, sizes[axis], dtype) * _product(sizes[axis + 1 :]).astype(dtype)
        return tirx.Select(inside(position, sizes[axis]), index, -total.astype(dtype)) if zeros else index

    def tables(axis: int, tap: int) -> tuple[Tensor, Tensor]:
        offsets = te.compute(shape, lambda *indices: offset(axis, tap, indices), name=f"offset{axis}_{tap}")
        weights = te.compute(shape, lambda *indices: taps_of(axis, indices)[tap][1], name=f"weight{axis}_{tap}")
        return offsets, weights

    counts = [len(taps_of(axis, [tirx.const(0, "int64")] * len(shape))) for axis in range(len(sizes))]
    found = [[tables(axis, tap) for tap in range(count)] for axis, count in enumerate(counts)]
    return [_joined(shape, found)] if 1 < math.prod(counts) <= _MAX_JOINED else found


def _joined(shape: Sequence[Expr], tables: TapTables) -> list[tuple[Tensor, Tensor]]:
    """Combine the taps of all axes into one: an element needs one offset and one weight."""

    def joined(pairs: Sequence[tuple[Tensor, Tensor]], number: int) -> tuple[Tensor, Tensor]:
        offsets, weights = zip(*pairs, strict=True)
        offset = te.compute(shape, lambda *indices: _total(offsets, indices, operator.add), name=f"offset_{number}")
        weight = te.compute(shape, lambda *indices: _total(weights, indices, operator.mul), name=f"weight_{number}")
        return offset, weight

    return [joined(pairs, number) for number, pairs in enumerate(itertools.product(*tables))]


def _total(tensors: Sequence[Tensor], indices: Sequence[Expr], join: Callable[[Expr, Expr], Expr]) -> Expr:
    return functools.reduce(join, [tensor(*indices) for tensor in tensors])


def sampled(tables: TapTables, indices: Sequence[Expr], element: Callable[[Expr], Expr], *, zeros: bool) -> Expr:
    """Return the weighted sum of elements from the tables at a position; `element` reads one at an int64 offset."""

    def pixel(offsets: list[Expr]) -> Expr:
        offset = sum(offsets[1:], start=offsets[0])
        if not zeros:
            return element(offset.astype("int64"))
        value = element(tirx.max(offset, tirx.const(0, str(offset.ty.dtype))).astype("int64"))
        return tirx.Select(offset >= tirx.const(0, str(offset.ty.dtype)), value, const(0, value))

    own = [[(offsets(*indices), weights(*indices)) for offsets, weights in taps] for taps in tables]
    return weighted_sum(own, pixel)


def _product(sizes: Sequence[Expr]) -> Expr:
    return math.prod(sizes, start=tirx.const(1, "int64"))


def _offset_dtype(sizes: Sequence[Expr]) -> str:
    """Return int32 if the sums of all axes' offsets fit, for vectors of twice as many."""
    if all(isinstance(size, tirx.IntImm) for size in sizes):
        return "int32" if len(sizes) * math.prod(int(size) for size in sizes) < 2**31 else "int64"
    return "int64"


COORDINATE_MODES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
    "tf_half_pixel_for_nn",
)
NEAREST_MODES = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple")


@dataclass(frozen=True)
class Sampling:
    """Sampling options of Resize, common to all axes."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    extrapolation: float = 0.0


@dataclass(frozen=True)
class AxisResize:
    """One axis: sizes before and after, the scale (None: the quotient of the sizes), and the region of interest."""

    axis: int
    before: Dim
    after: Dim
    scale: float | None = None
    start: float = 0.0
    end: float = 1.0

    @property
    def is_static(self) -> bool:
        return isinstance(self.before, int) and isinstance(self.after, int)

    @property
    def static_scale(self) -> float | None:
        """The scale if known at compile time."""
        if self.scale is not None:
            return self.scale
        if isinstance(self.before, int) and isinstance(self.after, int):
            return float(np.float32(self.after) / np.float32(self.before))
        return None


class NumpyOperations:
    """The functions that the formulas need, on float32 arrays."""

    floor = staticmethod(np.floor)
    ceil = staticmethod(np.ceil)
    minimum = staticmethod(np.minimum)
    maximum = staticmethod(np.maximum)
    where: Expr = staticmethod(np.where)
    absolute = staticmethod(np.abs)

    @staticmethod
    def real(value: Expr) -> Expr:
        return np.float32(value)


class TvmOperations:
    """The functions that the formulas need, on TVM expressions."""

    floor = staticmethod(tirx.floor)
    ceil = staticmethod(tirx.ceil)
    minimum = staticmethod(tirx.min)
    maximum = staticmethod(tirx.max)
    where = staticmethod(tirx.Select)
    absolute = staticmethod(tirx.abs)

    @staticmethod
    def real(value: Expr) -> Expr:
        value = plain(value)
        return tirx.const(float(value), "float32") if isinstance(value, (int, float)) else value.astype("float32")


Operations = type[NumpyOperations] | type[TvmOperations]


def source_coordinate(ops: Operations, sampling: Sampling, axis: AxisResize, position: Expr) -> Expr:
    """Return the input coordinate of output `position` (float32)."""
    old_size, new_size = ops.real(axis.before), ops.real(axis.after)
    # TVM's simplifier fails on a quotient of quotients, hence the maximum.
    scale = ops.real(axis.scale) if axis.scale is not None else ops.maximum(new_size / old_size, ops.real(0.0))
    # With a given scale, the length may be fractional.
    length = old_size * scale if axis.scale is not None else new_size
    half, one = ops.real(0.5), ops.real(1.0)
    last = old_size - one
    mode = sampling.coordinates
    if mode == "asymmetric":
        return position / scale
    if mode == "tf_half_pixel_for_nn":
        return (position + half) / scale
    if mode == "align_corners":
        return ops.where(length == one, ops.real(0.0) * position, position * last / _not_zero(ops, length - one))
    if mode == "tf_crop_and_resize":
        start, end = ops.real(axis.start), ops.real(axis.end)
        middle = half * (start + end) * last + ops.real(0.0) * position
        # Divided last: rounding must not move the far corner outside the input.
        moved = start * last + position * (end - start) * last / _not_zero(ops, length - one)
        return ops.where(length == one, middle, moved)
    centered = (position + half) / scale - half
    if mode == "pytorch_half_pixel":
        return ops.where(new_size > one, centered, ops.real(0.0) * position)
    if mode == "half_pixel_symmetric":
        return old_size * half * (one - new_size / length) + centered
    return centered


def _not_zero(ops: Operations, value: Expr) -> Expr:
    return ops.where(value == ops.real(0.0), ops.real(1.0), value)


def is_outside(ops: Operations, axis: AxisResize, coordinate: Expr) -> Expr:
    """True if a coordinate is outside the input (where tf_crop_and_resize extrapolates)."""
    low, high = coordinate < ops.real(0.0), coordinate > ops.real(axis.before) - ops.real(1.0)
    return low | high if ops is NumpyOperations else tirx.any(low, high)


def nearest_index(ops: Operations, sampling: Sampling, axis: AxisResize, coordinate: Expr) -> Expr:
    """Return the nearest element, as float32, within the input."""
    half = ops.real(0.5)
    shrinks = ops.real(axis.after) < ops.real(axis.before)
    rounding: dict[str, Callable[[], Expr]] = {
        "round_prefer_floor": lambda: ops.ceil(coordinate - half),
        "round_prefer_ceil": lambda: ops.floor(coordinate + half),
        "floor": lambda: ops.floor(coordinate),
        "ceil": lambda: ops.ceil(coordinate),
        # Before opset 11: up if shrinking, down if growing.
        "simple": lambda: ops.where(shrinks, ops.ceil(coordinate), ops.floor(coordinate)),
    }
    return _clamped(ops, axis, rounding[sampling.nearest]())


def _clamped(ops: Operations, axis: AxisResize, index: Expr) -> Expr:
    return ops.maximum(ops.minimum(index, ops.real(axis.before) - ops.real(1.0)), ops.real(0.0))


def _has_two_taps(sampling: Sampling) -> bool:
    return sampling.mode == "linear" and not sampling.antialias


def _tap_offsets(sampling: Sampling, axis: AxisResize) -> tuple[range, float]:
    """Offsets of the taps from the coordinate rounded down, and the factor of their distances.

    An antialiased axis needs a scale known at compile time; `dynamic_tap` handles others.
    """
    stretch = min(axis.static_scale or 1.0, 1.0) if sampling.antialias else 1.0
    first = math.floor(-_radius(sampling) / stretch) + 1
    return range(first, 2 - first), stretch


def _divides(sampling: Sampling, stretch: float) -> bool:
    """True if weights are divided by their sum."""
    return sampling.exclude_outside or stretch < 1.0


def weighted_taps(ops: Operations, sampling: Sampling, axis: AxisResize, coordinate: Expr) -> list[tuple[Expr, Expr]]:
    """Return (index, weight), both float32, of each element that contributes to an output element."""
    if _has_two_taps(sampling):
        return _linear_taps(ops, axis, coordinate)
    offsets, stretch = _tap_offsets(sampling, axis)
    taps = [_tap(ops, sampling, axis, coordinate, ops.real(float(o)), ops.real(stretch)) for o in offsets]
    if _divides(sampling, stretch):
        total = taps[0][1]
        for _, weight in taps[1:]:
            total = total + weight
        taps = [(index, weight / _not_zero(ops, total)) for index, weight in taps]
    return [(_clamped(ops, axis, index), weight) for index, weight in taps]


def dynamic_taps(sampling: Sampling, axis: AxisResize) -> Expr:
    """Return a bound, int64, on the elements of a dynamically sized antialiased axis that contribute to an output
    element."""
    shrunk = tirx.floordiv(axis.before, tirx.max(axis.after, tirx.const(1, "int64")))
    return 2 * _radius(sampling) * (shrunk + 1) + 2


def dynamic_tap(sampling: Sampling, axis: AxisResize, coordinate: Expr, number: Expr) -> tuple[Expr, Expr]:
    """Return (index, weight), both float32, of one of the `dynamic_taps`; weights are not yet divided by their sum."""
    ops = TvmOperations
    offset = number - (tirx.div(dynamic_taps(sampling, axis), 2) - 1)
    stretch = ops.minimum(ops.real(axis.after) / ops.real(axis.before), ops.real(1.0))
    return _tap(ops, sampling, axis, coordinate, ops.real(offset), stretch)


def _radius(sampling: Sampling) -> int:
    return 2 if sampling.mode == "cubic" else 1


def _tap(
    ops: Operations, sampling: Sampling, axis: AxisResize, coordinate: Expr, offset: Expr, stretch: Expr
) -> tuple[Expr, Expr]:
    """Return (index, weight) of the element at `offset` from the coordinate rounded down."""
    base = ops.floor(coordinate)
    index = base + offset
    weight = _weight(ops, sampling, stretch * (offset - (coordinate - base)))
    if not sampling.exclude_outside:
        return index, weight
    zero, last = ops.real(0.0), ops.real(axis.before) - ops.real(1.0)
    return index, ops.where(index < zero, zero, ops.where(index > last, zero, weight))


def _linear_taps(ops: Operations, axis: AxisResize, coordinate: Expr) -> list[tuple[Expr, Expr]]:
    """Return the two neighbors; outside the input both are its edge. The differences are exact."""
    coordinate = _clamped(ops, axis, coordinate)
    base = ops.floor(coordinate)
    following = base + ops.real(1.0)
    return [(base, following - coordinate), (_clamped(ops, axis, following), coordinate - base)]


def _weight(ops: Operations, sampling: Sampling, distance: Expr) -> Expr:
    """Interpolation kernel: a triangle, or Keys' cubic (IEEE TASSP 29, 1981, equation 4)."""
    x = ops.absolute(distance)
    one, zero = ops.real(1.0), ops.real(0.0)
    if sampling.mode == "linear":
        return ops.maximum(one - x, zero)
    a = sampling.cubic_a
    near = ((ops.real(a + 2) * x - ops.real(a + 3)) * x) * x + one
    far = ((ops.real(a) * x - ops.real(5 * a)) * x + ops.real(8 * a)) * x - ops.real(4 * a)
    return ops.where(x <= one, near, ops.where(x < ops.real(2.0), far, zero))
