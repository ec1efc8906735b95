"""Sampling a tensor between its elements, as TVM expressions: what GridSample, DeformConv and RoiAlign share."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from tvm import te, tirx

from compiler.frontends.onnx.bounds import limited_place

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Tensor

Tap: TypeAlias = "tuple[Expr, Expr]"  # a whole-numbered coordinate and its weight, both floats
TapsOf: TypeAlias = "Callable[[int, Sequence[Expr]], list[Tap]]"  # of an axis, at a place
TapTables: TypeAlias = "list[list[tuple[Tensor, Tensor]]]"  # for each axis and tap, the offsets and the weights
_MOST_JOINED = 8  # combinations of taps


def _const(value: float, like: Expr) -> Expr:
    return tirx.const(value, str(like.ty.dtype))


def linear_taps(coordinate: Expr) -> list[Tap]:
    """The two neighbours."""
    base = tirx.floor(coordinate)
    ratio = coordinate - base
    one = _const(1.0, coordinate)
    return [(base, one - ratio), (base + one, ratio)]


def cubic_taps(coordinate: Expr, a: float = -0.75) -> list[Tap]:
    """The four neighbours, weighted by Keys' cubic convolution kernel (IEEE TASSP 29, 1981, equation 4)."""
    base = tirx.floor(coordinate)
    x = coordinate - base

    def const(value: float) -> Expr:
        return _const(value, coordinate)

    def near(d: Expr) -> Expr:
        return (const(a + 2) * d - const(a + 3)) * d * d + const(1)

    def far(d: Expr) -> Expr:
        return ((const(a) * d - const(5 * a)) * d + const(8 * a)) * d - const(4 * a)

    one, two = const(1), const(2)
    return [(base - one, far(x + one)), (base, near(x)), (base + one, near(one - x)), (base + two, far(two - x))]


def weighted_sum(taps: Sequence[Sequence[Tap]], pixel: Callable[[list[Expr]], Expr]) -> Expr:
    """The sum over all combinations of one tap per axis of the element times the weights."""
    total: Expr = None
    for combination in itertools.product(*taps):
        weight: Expr = None
        for _, factor in combination:
            weight = factor if weight is None else weight * factor
        term = pixel([position for position, _ in combination]) * weight
        total = term if total is None else total + term
    return total


def inside(position: Expr, size: Expr) -> Expr:
    """True where a float coordinate is that of an element."""
    return tirx.all(position >= _const(0, position), position < size.astype(str(position.ty.dtype)))


def clamped(position: Expr, size: Expr) -> Expr:
    """A float coordinate moved to the nearest element's."""
    last = size.astype(str(position.ty.dtype)) - _const(1, position)
    return tirx.max(tirx.min(position, last), _const(0, position))


def reflected(position: Expr, low: Expr, high: Expr) -> Expr:
    """A float coordinate mirrored at the borders until it lies between them."""
    span = tirx.max(high - low, _const(1e-6, position))  # a single element has no span with its corners aligned
    below = position < low
    distance = tirx.Select(below, low - position, tirx.max(position - high, _const(0, position)))
    turns = tirx.floor(distance / span)
    rest = distance - turns * span
    even = turns - _const(2, position) * tirx.floor(turns * _const(0.5, position)) < _const(0.5, position)
    from_low = tirx.Select(below, even, tirx.Not(even))
    mirrored = tirx.Select(from_low, low + rest, high - rest)
    return tirx.Select(tirx.any(below, position > high), mirrored, position)


def tap_tables(shape: Sequence[Expr], sizes: Sequence[Expr], taps_of: TapsOf, *, zeros: bool) -> TapTables:
    """The taps at all places of `shape`, computed once for all channels: for each axis and tap, its offset and weight.

    Offsets are those of an axis in a row-major tensor of `sizes`: their sum over the axes is the element's place.
    With `zeros`, an offset outside of its axis is so negative that every sum with it is negative.

    Args:
        shape: shape of the sampled positions: a sample, then its position.
        sizes: sizes of the data's sampled axes.
        taps_of: the taps of an axis at a place.
        zeros: elements outside are zeros; otherwise coordinates are clamped to the axis.
    """
    dtype = _offset_dtype(sizes)
    total = _product(sizes)

    def offset(axis: int, tap: int, place: Sequence[Expr]) -> Expr:
        position = taps_of(axis, place)[tap][0]
        index = limited_place(position, sizes[axis], dtype) * _product(sizes[axis + 1 :]).astype(dtype)
        return tirx.Select(inside(position, sizes[axis]), index, -total.astype(dtype)) if zeros else index

    def tables(axis: int, tap: int) -> tuple[Tensor, Tensor]:
        offsets = te.compute(shape, lambda *place: offset(axis, tap, place), name=f"offset{axis}_{tap}")
        weights = te.compute(shape, lambda *place: taps_of(axis, place)[tap][1], name=f"weight{axis}_{tap}")
        return offsets, weights

    counts = [len(taps_of(axis, [tirx.const(0, "int64")] * len(shape))) for axis in range(len(sizes))]
    found = [[tables(axis, tap) for tap in range(count)] for axis, count in enumerate(counts)]
    return [_joined(shape, found)] if 1 < math.prod(counts) <= _MOST_JOINED else found


def _joined(shape: Sequence[Expr], tables: TapTables) -> list[tuple[Tensor, Tensor]]:
    """The taps of all axes as those of one: an element costs one offset and one weight."""

    def joined(pairs: Sequence[tuple[Tensor, Tensor]], number: int) -> tuple[Tensor, Tensor]:
        offsets, weights = zip(*pairs, strict=True)
        offset = te.compute(shape, lambda *place: _total(offsets, place, operator.add), name=f"offset_{number}")
        weight = te.compute(shape, lambda *place: _total(weights, place, operator.mul), name=f"weight_{number}")
        return offset, weight

    return [joined(pairs, number) for number, pairs in enumerate(itertools.product(*tables))]


def _total(tensors: Sequence[Tensor], place: Sequence[Expr], join: Callable[[Expr, Expr], Expr]) -> Expr:
    return functools.reduce(join, [tensor(*place) for tensor in tensors])


def sampled(tables: TapTables, place: Sequence[Expr], element: Callable[[Expr], Expr], *, zeros: bool) -> Expr:
    """The weighted sum of the elements that the tables name at a place; `element` reads one by its offset (int64)."""

    def pixel(offsets: list[Expr]) -> Expr:
        offset = sum(offsets[1:], start=offsets[0])
        if not zeros:
            return element(offset.astype("int64"))
        value = element(tirx.max(offset, tirx.const(0, str(offset.ty.dtype))).astype("int64"))
        return tirx.Select(offset >= tirx.const(0, str(offset.ty.dtype)), value, _const(0, value))

    own = [[(offsets(*place), weights(*place)) for offsets, weights in taps] for taps in tables]
    return weighted_sum(own, pixel)


def _product(sizes: Sequence[Expr]) -> Expr:
    return math.prod(sizes, start=tirx.const(1, "int64"))


def _offset_dtype(sizes: Sequence[Expr]) -> str:
    """int32 where the sums of the offsets of all axes fit, for vectors of twice as many."""
    if all(isinstance(size, tirx.IntImm) for size in sizes):
        return "int32" if len(sizes) * math.prod(int(size) for size in sizes) < 2**31 else "int64"
    return "int64"
