"""Mapping between the axes of the model's input (the frame) and of the image; resampling.

Position p of the frame that the net reads is position p + offset of the image resized to `resized` pixels. The formulas
are written once, and evaluated with numpy (tests, documentation) or as TVM expressions (kernels).
Images are resampled one axis after the other, with Pillow's integer arithmetic.

For each position of the frame, a table holds the first source pixel and the weights, rounded to `_BITS` fractional
bits. The image's rows are summed first and rounded to bytes; then the columns, whose sums are normalized and laid out
as the net reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.support.processing import Processing
from schedules.annotations import OPAQUE
from schedules.ir.tvm_types import BlockBuilder, Expr, Stmt, Tensor

BILINEAR, BICUBIC = 1, 2  # filter radius in pixels
_A = -0.5  # coefficient of Pillow's bicubic filter


@dataclass(frozen=True)
class Axis:
    """An axis: sizes in pixels of the image, the resized image and the frame, and the frame's offset in the resized
    image; `gain` is the requested scale factor, float64, which `resized` rounds."""

    image: Expr
    resized: Expr
    frame: int
    offset: Expr
    gain: Expr


def axes_of(processing: Processing, size: tuple[int, int], height: Expr, width: Expr) -> tuple[Axis, Axis]:
    """Return the vertical and horizontal axes of an image of int64 sizes, for a frame of (height, width)."""
    if processing.resize == "stretch":
        return _stretched(height, size[0]), _stretched(width, size[1])
    if processing.resize in ("letterbox", "fit"):
        gain = tirx.min(_real(size[0]) / _real(height), _real(size[1]) / _real(width))
        centered = processing.resize == "letterbox"
        return _fitted(height, size[0], gain, centered), _fitted(width, size[1], gain, centered)
    shortest = processing.shortest or min(size)
    resized = (
        tirx.Select(height <= width, _integer(shortest), tirx.floordiv(shortest * height, width)),
        tirx.Select(height <= width, tirx.floordiv(shortest * width, height), _integer(shortest)),
    )
    even = bool(processing.even_crop)
    vertical, horizontal = (
        Axis(image, each, frame, _margin(each - frame, even), _real(each) / _real(image))
        for image, each, frame in zip((height, width), resized, size, strict=True)
    )
    return vertical, horizontal


def _stretched(image: Expr, frame: int) -> Axis:
    return Axis(image, _integer(frame), frame, _integer(0), _real(frame) / _real(image))


def _fitted(image: Expr, frame: int, gain: Expr, centered: bool) -> Axis:
    """Fit an axis like ultralytics' LetterBox: sizes round half to even, and the smaller margin comes first."""
    resized = tirx.max(tirx.Cast("int64", tirx.nearbyint(_real(image) * gain)), _integer(1))
    offset = -tirx.floordiv(frame - resized, 2) if centered else _integer(0)
    return Axis(image, resized, frame, offset, gain)


def _margin(extra: Expr, even: bool) -> Expr:
    """Half of the margin outside a crop."""
    half = tirx.floordiv(extra, 2)
    return half + tirx.floormod(half, 2) * tirx.floormod(extra, 2) if even else half


def taps(processing: Processing, axes: tuple[Axis, Axis], which: int) -> Expr:
    """Return a bound, int64, on the number of source pixels along an axis (0: vertical) per position of the frame."""
    support, axis = _support(processing), axes[which]
    least = 2 * support + 1
    if not processing.antialias:
        return _integer(least)
    if processing.resize == "stretch":
        return tirx.floordiv(2 * support * axis.image, axis.frame) + least
    if processing.resize == "crop":
        # The longer side is rounded down, so its scale is at most that of the shorter side minus one pixel.
        shortest = processing.shortest or min(each.frame for each in axes)
        shorter = tirx.min(axes[0].image, axes[1].image)
        return tirx.floordiv(2 * support * shorter, max(shortest - 1, 1)) + least
    # A rounded length is at least two thirds of the unrounded one, or 1.
    vertical, horizontal = (tirx.floordiv(3 * support * each.image, each.frame) for each in axes)
    return tirx.max(vertical, horizontal) + least + 1


def _support(processing: Processing) -> int:
    return BICUBIC if processing.filter == "bicubic" else BILINEAR


def window(processing: Processing, axis: Axis, position: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """Return the first pixel and number of pixels for a position of the frame (int64), the center, and the filter's
    scale (float64), as in Pillow."""
    scale = _real(axis.image) / _real(axis.resized)
    filter_scale = tirx.max(scale, _real(1)) if processing.antialias else _real(1)
    support = _real(_support(processing)) * filter_scale
    center = (tirx.Cast("float64", position + axis.offset) + _real(0.5)) * scale
    first = tirx.max(tirx.Cast("int64", center - support + _real(0.5)), _integer(0))
    end = tirx.min(tirx.Cast("int64", center + support + _real(0.5)), axis.image)
    return first, end - first, center, filter_scale


def weight(processing: Processing, distance: Expr) -> Expr:
    """Return the filter's value, float64, at a distance from its center."""
    x = tirx.abs(distance)
    one = _real(1)
    if processing.filter != "bicubic":
        return tirx.Select(x < one, one - x, _real(0))
    a = _real(_A)
    near = ((a + _real(2)) * x - (a + _real(3))) * x * x + one
    far = (((x - _real(5)) * x + _real(8)) * x - _real(4)) * a
    return tirx.Select(x < one, near, tirx.Select(x < _real(2), far, _real(0)))


def is_inside(axis: Axis, position: Expr) -> Expr:
    """True if a position of the frame is inside the image."""
    index = position + axis.offset
    return tirx.all(index >= 0, index < axis.resized)


def _integer(value: int) -> Expr:
    return tirx.const(value, "int64")


def _real(value: Expr) -> Expr:
    return tirx.const(float(value), "float64") if isinstance(value, int | float) else tirx.Cast("float64", value)


_BITS = 22  # Pillow's PRECISION_BITS: a sum of bytes fits 32 bits
_GRAY = (19595, 38470, 7471)  # Pillow's weights of R, G and B, of 65536


def emit_frame(builder: BlockBuilder, image: Expr, processing: Processing, size: tuple[int, int], layout: str) -> Expr:
    """Resize and normalize an image uint8 (height, width, 3) to the model's input: float32 (1, channels, height,
    width), or in the order of `layout`."""
    height, width, _ = image.ty.shape.values
    windows, weights = zip(*(_tables(builder, processing, size, height, width, each) for each in (0, 1)), strict=True)
    rows = builder.call_te(
        lambda *data: _sum_rows(processing, *data), image, windows[1], weights[1], primfunc_name_hint="resize_rows"
    )
    rows = builder.emit(rows)
    scale, offset = (relax.const(each, "float32") for each in normalization(processing))
    frame = builder.call_te(
        lambda *data: _sum_columns(processing, size, layout, *data),
        *(rows, windows[0], weights[0], scale, offset, height, width),
        primfunc_name_hint="resize_columns",
    )
    return builder.emit(frame)


def normalization(processing: Processing) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset of each channel of the network's input, float32 (channels,)."""
    channels = 1 if processing.colors == "gray" else 3
    given = (processing.mean or (0.0,), processing.std or (1.0,))
    mean, std = (np.broadcast_to(np.array(each, np.float64), channels) for each in given)
    order = slice(None, None, -1) if processing.colors == "bgr" else slice(None)
    scale = (processing.scale or 1.0) / std
    return scale[order].astype(np.float32), (-mean / std)[order].astype(np.float32)


def emit_placement(builder: BlockBuilder, image: Expr, processing: Processing, size: tuple[int, int]) -> Expr:
    """Emit the mapping from frame to image coordinates, float32 (3, 4): offsets to subtract from x, y, x, y in the
    frame, factors to multiply by, and the maximum of each in image pixels."""
    height, width, _ = image.ty.shape.values

    def placement(rows: Expr, columns: Expr) -> Tensor:
        vertical, horizontal = axes_of(processing, size, rows, columns)

        def element(row: Expr, corner: Expr) -> Expr:
            def value(axis: Axis) -> Expr:
                most = tirx.Cast("float64", axis.image)
                return tirx.Select(
                    row == 0,
                    tirx.Cast("float64", -axis.offset),
                    tirx.Select(row == 1, tirx.const(1.0, "float64") / axis.gain, most),
                )

            is_x = tirx.floormod(corner, 2) == 0
            return tirx.Cast("float32", tirx.Select(is_x, value(horizontal), value(vertical)))

        return te.compute((3, 4), element, name="placement")

    attributes = {"op_pattern": OPAQUE}
    made = builder.call_te(placement, height, width, primfunc_name_hint="placement", primfunc_attrs=attributes)
    return builder.emit(made)


def _tables(
    builder: BlockBuilder, processing: Processing, size: tuple[int, int], height: Expr, width: Expr, which: int
) -> tuple[Expr, Expr]:
    """Emit the resampling tables of an axis: the first pixel and the pixel count of each position, int32 (2, frame),
    and the weights, int32 (frame, taps)."""

    def tables(rows: Expr, columns: Expr) -> list[Tensor]:
        axes = axes_of(processing, size, rows, columns)
        axis, count = axes[which], taps(processing, axes, which)

        def body(_: list[Expr], outs: list[Expr]) -> Stmt:
            with IRBuilder() as result:
                with T.serial(0, tirx.const(axis.frame, "int64")) as at, T.seq_scope():
                    _fill_window(processing, axis, count, at, outs)
                return result.get()

        return te.extern([[2, axis.frame], [axis.frame, count]], [], body, dtype=["int32", "int32"], name="tables")

    attributes = {"op_pattern": OPAQUE}
    hint = f"resize_weights_{which}"
    result = builder.emit(builder.call_te(tables, height, width, primfunc_name_hint=hint, primfunc_attrs=attributes))
    return builder.emit(relax.TupleGetItem(result, 0)), builder.emit(relax.TupleGetItem(result, 1))


def _fill_window(processing: Processing, axis: Axis, count: Expr, at: Expr, outs: list[Expr]) -> None:
    """Store the window and the weights of a position, summed in Pillow's order."""
    windows, weights = (FlatBuffer(each) for each in outs)
    first, number, center, scale = (T.bind(each) for each in window(processing, axis, at))
    zero, one, half = (tirx.const(each, "float64") for each in (0.0, 1.0, 0.5))
    # Positions outside the image have zero weight.
    start = T.bind(tirx.min(first, axis.image - 1))
    count_inside = T.bind(tirx.max(tirx.min(number, axis.image - start), 0))
    windows[0, at], windows[1, at] = tirx.Cast("int32", start), tirx.Cast("int32", count_inside)

    def value(tap: Expr) -> Expr:
        return weight(processing, (tirx.Cast("float64", tap + first) - center + half) * (one / scale))

    total = FlatBuffer(T.alloc_buffer([1], "float64", scope="local"))
    total[0] = zero
    with T.serial(0, count_inside) as tap:
        total[0] = total[0] + value(tap)
    with T.serial(0, count) as tap:
        scaled = value(tap) / tirx.Select(total[0] == zero, one, total[0]) * tirx.const(float(1 << _BITS), "float64")
        rounded = tirx.Cast("int32", tirx.Select(scaled < 0, scaled - half, scaled + half))
        weights[at, tap] = tirx.Select(tap < count_inside, rounded, 0)


def _byte(total: Expr) -> Expr:
    """Convert a fixed-point sum, to which half a unit was added for rounding, to a byte."""
    return tirx.max(tirx.min(total >> tirx.const(_BITS, "int32"), 255), 0)


def _sum_rows(processing: Processing, image: Tensor, windows: Tensor, weights: Tensor) -> Tensor:
    """Resample horizontally to the frame's width: uint8 (channels, height, width), with the channels in the net's
    order."""
    height, columns = image.shape[0], weights.shape[0]
    channels = 1 if processing.colors == "gray" else 3

    def body(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source, window, weight = ins
        with IRBuilder() as builder:
            with T.parallel(0, height) as row, T.serial(0, columns) as at, T.seq_scope():
                # The sums of all channels of a pixel share its window.
                sums = FlatBuffer(T.alloc_buffer([channels], "int32", scope="local"))
                for channel in range(channels):
                    sums[channel] = tirx.const(1 << (_BITS - 1), "int32")
                with T.serial(0, tirx.Cast("int64", window[1, at])) as tap, T.seq_scope():
                    column = tirx.Cast("int64", window[0, at]) + tap
                    for channel in range(channels):
                        term = _value(source, row, column, channel, processing) * weight[at, tap]
                        sums[channel] = sums[channel] + term
                for channel in range(channels):
                    T.buffer_store(outs[0], tirx.Cast("uint8", _byte(sums[channel])), [channel, row, at])
            return builder.get()

    shape = [channels, height, columns]
    return te.extern([shape], [image, windows, weights], body, dtype="uint8", name="resize_rows")


def _value(image: Expr, row: Expr, column: Expr, channel: int, processing: Processing) -> Expr:
    """Return a pixel's value in a channel of the net, int32."""
    if processing.colors == "gray":
        parts = [tirx.Cast("int32", image[row, column, each]) * _GRAY[each] for each in range(3)]
        return (parts[0] + parts[1] + parts[2] + (1 << 15)) >> tirx.const(16, "int32")
    return tirx.Cast("int32", image[row, column, 2 - channel if processing.colors == "bgr" else channel])


def _sum_columns(
    processing: Processing,
    size: tuple[int, int],
    layout: str,
    rows: Tensor,
    windows: Tensor,
    weights: Tensor,
    scale: Tensor,
    offset: Tensor,
    height: Expr,
    width: Expr,
) -> Tensor:
    """Apply the vertical pass, and normalize to the model input."""
    channels, _, columns = rows.shape
    tap = te.reduce_axis((0, weights.shape[1]), name="tap")

    def term(channel: Expr, at: Expr, column: Expr) -> Expr:
        row = tirx.min(tirx.Cast("int64", windows(0, at)) + tap, height - 1)
        return tirx.Cast("int32", rows(channel, row, column)) * weights(at, tap)

    shape = (channels, size[0], columns)
    totals = te.compute(shape, lambda *at: te.sum(term(*at), axis=tap), name="column_sums")
    vertical, horizontal = axes_of(processing, size, height, width)
    half = tirx.const(1 << (_BITS - 1), "int32")
    fill = tirx.const(processing.fill or 0, "int32")

    def element(channel: Expr, row: Expr, column: Expr) -> Expr:
        value = _byte(totals(channel, row, column) + half)
        if processing.resize != "stretch":
            inside = tirx.all(is_inside(vertical, row), is_inside(horizontal, column))
            value = tirx.Select(inside, value, fill)
        return tirx.Cast("float32", value) * scale(channel) + offset(channel)

    if layout == "NHWC":
        return te.compute((1, *shape[1:], channels), lambda _, y, x, c: element(c, y, x), name="frame")
    return te.compute((1, *shape), lambda _, c, y, x: element(c, y, x), name="frame")
