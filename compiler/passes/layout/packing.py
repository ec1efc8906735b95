"""Conversions between plain and blocked layouts: of constants with numpy at compile time, of other tensors by kernels
at run time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import schedules.ir.tir  # noqa: F401
from schedules.instructions.products.operation import Operation
from schedules.instructions.rounding import narrowed, rounded_pair
from schedules.ir.expression import number
from schedules.ir.numbers import ceil_div

from tvm import te, tirx  # isort: skip
from schedules.ir.tvm_types import Expr, Index, Tensor

Array = np.ndarray
_COLUMNS = 384  # of a product that BLAS runs on one thread: on a busy machine, more threads only wait for each other


def pack_channels(values: Array, lanes: int) -> Array:
    """(n, c, *spatial) -> (n, ceil(c / lanes), *spatial, lanes), zeros behind the last channel."""
    images, channels = values.shape[:2]
    blocks = ceil_div(channels, lanes)
    padded = _padded(values, {1: blocks * lanes})
    split = padded.reshape(images, blocks, lanes, *values.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))


def pack_filter(weight: Array, in_lanes: int, lanes: int) -> Array:
    """(o, i, *kernel) -> (ceil(o / lanes), ceil(i / in_lanes), *kernel, in_lanes, lanes), filled up with zeros."""
    outer, inner = ceil_div(weight.shape[0], lanes), ceil_div(weight.shape[1], in_lanes)
    padded = _padded(weight, {0: outer * lanes, 1: inner * in_lanes})
    split = padded.reshape(outer, lanes, inner, in_lanes, *weight.shape[2:])
    rank = weight.ndim - 2
    order = [0, 2, *range(4, 4 + rank), 3, 1]
    return np.ascontiguousarray(split.transpose(order))


def pack_filter_groups(weight: Array, in_lanes: int, lanes: int, group: int) -> Array:
    """`pack_filter` with `group` channels of a filter next to each other: (..., in_lanes / group, lanes * group)."""
    packed = pack_filter(weight, in_lanes, lanes)
    split = packed.reshape(*packed.shape[:-2], in_lanes // group, group, lanes)
    return np.ascontiguousarray(split.swapaxes(-1, -2)).reshape(*packed.shape[:-2], in_lanes // group, lanes * group)


def pack_depthwise(weight: Array, lanes: int) -> Array:
    """(c, 1, *kernel) -> (ceil(c / lanes), *kernel, lanes)."""
    return np.ascontiguousarray(pack_channels(weight.swapaxes(0, 1), lanes)[0])


def pack_winograd(weight: Array, lanes: int) -> Array:
    """(o, i, kernel, kernel) -> (ceil(o / lanes), kernel^2, i, lanes)."""
    filters, channels = weight.shape[:2]
    outer = ceil_div(filters, lanes)
    padded = _padded(weight.reshape(filters, channels, -1), {0: outer * lanes})
    return np.ascontiguousarray(padded.reshape(outer, lanes, channels, -1).transpose(0, 3, 2, 1))


def transform_winograd(packed: Array, matrix: NDArray[np.float64]) -> Array:
    """`pack_winograd` of a filter, (o, 9, i, lanes), to that of the transformed one, (o, edge^2, i, lanes), computed in
    double precision. `matrix` is `winograd_transforms.weight_matrix`: (9, edge^2)."""
    outer, taps, channels, lanes = packed.shape
    filters = packed.reshape(outer, taps, -1)
    spread = np.empty((outer, matrix.shape[1], filters.shape[-1]), packed.dtype)
    for block in range(outer):
        for start in range(0, filters.shape[-1], _COLUMNS):
            part = slice(start, start + _COLUMNS)
            spread[block, :, part] = matrix.T @ filters[block, :, part].astype(np.float64)
    return spread.reshape(outer, -1, channels, lanes)


def expand_winograd(weight: Tensor, matrix: Tensor) -> Tensor:
    """`pack_winograd` of the filter itself, (o, 9, i, lanes), to that of the transformed one, in double precision.

    `matrix` is `winograd_transforms.weight_matrix`: (9, edge^2), float64.
    """
    outer, taps, channels, lanes = weight.shape
    tap = te.reduce_axis((0, taps), "tap")

    def point(block: Expr, index: Expr, channel: Expr, lane: Expr) -> Expr:
        value = weight(block, tap, channel, lane).astype("float64")
        return te.sum(value * matrix(tap, index), axis=tap)

    shape = (outer, matrix.shape[1], channels, lanes)
    spread = te.compute(shape, point, name="expand")
    return te.compute(shape, lambda *at: spread(*at).astype(weight.dtype), name="expand_rounded")


def repack_filter(weight: Tensor, kernel: Sequence[int]) -> Tensor:
    """`pack_winograd` of a filter itself, (o, taps, i, lanes), to `pack_filter` of it in blocks of as many channels:
    (o, i / lanes, *kernel, lanes, lanes)."""
    outer, _, channels, lanes = weight.shape

    def point(block: Expr, inner: Expr, *rest: Expr) -> Expr:
        tap: Index = 0
        for index, size in zip(rest[:-2], kernel, strict=True):
            tap = tap * size + index
        return weight(block, tap, inner * lanes + rest[-2], rest[-1])

    shape = (outer, channels // lanes, *kernel, lanes, lanes)
    return te.compute(shape, point, name="repack")


def merge_groups(weight: Array, groups: int, merged: int) -> Array:
    """The same grouped convolution with `merged` neighbouring groups made one, by zeros between them.

    (o, i / groups, *kernel) -> (o, i / groups * merged, *kernel).
    """
    filters, channels = weight.shape[:2]
    result = np.zeros((filters, channels * merged, *weight.shape[2:]), weight.dtype)
    each = filters // groups
    for group in range(groups):
        first = group % merged * channels
        result[group * each : (group + 1) * each, first : first + channels] = weight[group * each : (group + 1) * each]
    return result


def _padded(values: Array, sizes: dict[int, int]) -> Array:
    amounts = [(0, sizes.get(axis, size) - size) for axis, size in enumerate(values.shape)]
    return np.pad(values, amounts) if any(after for _, after in amounts) else values


def pack_tensor(data: Tensor, order: Sequence[int], lanes: int) -> Tensor:
    """A logical tensor to (batch, channel blocks, *spatial, lanes); `order` lists the logical axis of each, as in
    `Blocked`."""
    shape = list(data.shape)
    channels = shape[order[1]]
    exact = isinstance(channels, int | tirx.IntImm) and int(channels) % lanes == 0
    physical = [shape[axis] for axis in order]
    physical[1] = ceil_div(int(channels), lanes)

    def point(*at: Expr) -> Expr:
        outer = list(at[:-1])
        outer[1] = outer[1] * lanes + at[-1]
        index = [None] * len(order)
        for axis, value in zip(order, outer, strict=True):
            index[axis] = value
        if exact:
            return data(*index)
        return tirx.if_then_else(outer[1] < channels, data(*index), tirx.const(0, data.dtype))

    return te.compute((*physical, lanes), point, name="pack")


def unpack_tensor(data: Tensor, order: Sequence[int], channels: int) -> Tensor:
    """The inverse of `pack_tensor`."""
    lanes = int(data.shape[-1])
    shape: list[Index | None] = [None] * len(order)
    for index, axis in enumerate(order):
        shape[axis] = channels if index == 1 else data.shape[index]

    def point(*at: Expr) -> Expr:
        outer = [at[axis] for axis in order]
        channel = outer[1]
        outer[1] = channel // lanes
        return data(*outer, channel % lanes)

    return te.compute(shape, point, name="unpack")


def pack_filter_tensor(weight: Tensor, in_lanes: int, lanes: int) -> Tensor:
    """`pack_filter` for weights that are not known while compiling."""
    filters, channels, *kernel = [int(size) for size in weight.shape]
    shape = (ceil_div(filters, lanes), ceil_div(channels, in_lanes), *kernel, in_lanes, lanes)

    def point(outer: Expr, inner: Expr, *rest: Expr) -> Expr:
        o, i = outer * lanes + rest[-1], inner * in_lanes + rest[-2]
        inside = tirx.all(o < filters, i < channels)
        return tirx.if_then_else(inside, weight(o, i, *rest[:-2]), tirx.const(0, weight.dtype))

    return te.compute(shape, point, name="pack_filter")


def narrowed_tensor(data: Tensor, halves: Operation) -> Tensor:
    """float32 as the 16-bit floats of an operation."""
    return te.compute(data.shape, lambda *at: narrowed(data(*at), halves), name="narrow")


def widened_tensor(stored: Tensor) -> Tensor:
    """The inverse of `narrowed_tensor`."""
    return te.compute(stored.shape, lambda *at: number(stored(*at), "float32"), name="widen")


def pack_words(data: Tensor, order: Sequence[int], operation: Operation) -> Tensor:
    """A logical tensor of few channels to int32 (batch, ceil(channels / group), *spatial): a group of channels per
    word, as `DotWorkload` states. Float data becomes the operation's, int8 is made unsigned."""
    group = operation.group
    shape = list(data.shape)
    channels = int(shape[order[1]])
    physical = [shape[axis] for axis in order]
    physical[1] = ceil_div(channels, group)

    def element(at: Sequence[Expr], channel: int) -> Expr:
        index: list[Index | None] = [None] * len(order)
        for axis, value in zip(order, [at[0], channel, *at[2:]], strict=True):
            index[axis] = value
        return data(*index)

    def word(at: Sequence[Expr], start: int) -> Expr:
        values = [element(at, channel) for channel in range(start, min(start + group, channels))]
        if group == 2:
            return rounded_pair(values[0], values[1] if values[1:] else tirx.const(0.0, "float32"), operation)
        shift = tirx.const(128 if str(data.dtype) == "int8" else 0, "int32")
        joined = tirx.Cast("int32", values[0]) + shift
        for position, value in enumerate(values[1:], 1):
            joined = joined | (tirx.Cast("int32", value) + shift) << 8 * position
        return joined

    def point(*at: Expr) -> Expr:
        value = word(at, 0)
        for block in range(1, int(physical[1])):
            value = tirx.Select(at[1] == block, word(at, block * group), value)
        return value

    return te.compute(physical, point, name="words")
