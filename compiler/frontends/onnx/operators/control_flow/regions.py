"""RoiAlign and MaxRoiPool: pooling of data-dependent regions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.bounds import limited, limited_position, require_entries, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.precision import cast, compute_dtype, widened
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_vectors, int64, product, shared_tasks
from compiler.frontends.onnx.registry import converter
from schedules.codegen.parallel import MIN_PARALLEL_WORK
from schedules.ir.expression import expression
from schedules.ir.tvm_types import Buffer, Expr, Index, Stmt, Tensor

_STEPS_OF_A_BIN = 4  # of `schedules.codegen.parallel.work`, per channel
_MAX_SAMPLES = 2**10  # per bin and axis if the region's size determines it: a malicious region would never end


@dataclass(frozen=True)
class _Pooling:
    """Size of the output, scale of the corners, and RoiAlign's sampling."""

    height: int
    width: int
    scale: float
    ratio: int = 0
    half_pixel: bool = False
    largest: bool = False


@converter("RoiAlign", since=10)
def roi_align(context: NodeContext) -> relax.Expr:
    """Average bilinear samples of each region's bins, or take the maximum of the weighted neighbors."""
    mode = context.attribute("mode", "avg").lower()
    if mode not in ("avg", "max"):
        context.invalid(f"mode must be avg or max, not {mode!r}")
    default = "half_pixel" if context.opset >= 16 else "output_half_pixel"
    coordinates = context.attribute("coordinate_transformation_mode", default).lower()
    if coordinates not in ("half_pixel", "output_half_pixel"):
        context.invalid(f"coordinate_transformation_mode {coordinates!r} does not exist")
    if context.rank(0) != 4 or context.rank(1) != 2 or context.shape(1)[1] != 4:
        context.invalid(f"data of shape {context.shape(0)} and regions of shape {context.shape(1)}")
    pooling = _Pooling(
        height=_size(context, "output_height"),
        width=_size(context, "output_width"),
        scale=float(context.attribute("spatial_scale", 1.0)),
        ratio=int(context.attribute("sampling_ratio", 0)),
        half_pixel=coordinates == "half_pixel",
        largest=mode == "max",
    )

    require_shape(context, context.shape(2), context.shape(1)[:1], "batch_indices")
    require_values(context, 2, 0, context.shape(0)[0])
    for axis in (0, 2, 3):
        require_entries(context, context.shape(0)[axis], context.shape(1)[0])

    def compute(data: Tensor, rois: Tensor, batches: Tensor) -> Tensor:
        shape = [rois.shape[0], pooling.height, pooling.width, data.shape[3]]

        def body(ins: Sequence[Expr], outs: Sequence[Expr]) -> Stmt:
            return _align_body(pooling, ins, outs[0])

        return te.extern([shape], [data, rois, batches], body, dtype=str(data.dtype), name="roi_align")

    # Channels last: position and weights of a sample are the same for all channels.
    data = context.emit(R.permute_dims(widened(context, context.input(0)), [0, 2, 3, 1]))
    result = context.emit_te(compute, data, context.input(1), context.input(2), primfunc_name_hint="roi_align")
    return cast(context, context.emit(R.permute_dims(result, [0, 3, 1, 2])), context.dtype(0))


def _size(context: NodeContext, name: str) -> int:
    size = int(context.attribute(name, 1))
    if size < 1:
        context.invalid(f"{name} must be at least 1, not {size}")
    return size


def _align_body(pooling: _Pooling, ins: Sequence[Expr], out: Expr) -> Stmt:
    """Data of shape (N, H, W, C), result of (regions, height, width, C)."""
    data, rois, batches = ins
    wide, channels = str(data.dtype), data.shape[3]
    height, width = int64(pooling.height), int64(pooling.width)
    with IRBuilder() as builder:
        steps = product(out.shape) * int64(_STEPS_OF_A_BIN)
        with (
            shared_tasks(out.shape[0] * height, steps, MIN_PARALLEL_WORK) as task,
            T.serial(0, width) as column,
            T.seq_scope(),
        ):
            roi, row = tirx.floordiv(task, height), tirx.floormod(task, height)
            rows = _bins(pooling, rois[roi, 1], rois[roi, 3], pooling.height, wide).stored()
            columns = _bins(pooling, rois[roi, 0], rois[roi, 2], pooling.width, wide).stored()
            indices = [roi, row, column]
            in_vectors(channels, wide, lambda c: T.buffer_store(out, tirx.const(0, wide), [*indices, c]))
            with T.serial(0, rows.samples) as i, T.serial(0, columns.samples) as j, T.seq_scope():
                y, x = rows.coordinate(row, i), columns.coordinate(column, j)
                sample = T.bind(limited(batches[roi], 0, data.shape[0] - 1))
                taps = _neighbours(data, y, x)
                is_first = tirx.all(i == 0, j == 0)

                def add(c: Expr) -> None:
                    terms = [weight * data[sample, at_y, at_x, c] for at_y, at_x, weight in taps]
                    total = out[(*indices, c)]
                    if pooling.largest:
                        highest = reduce(tirx.max, terms)
                        value = tirx.Select(is_first, highest, tirx.max(total, highest))
                    else:
                        value = total + reduce(operator.add, terms)
                    T.buffer_store(out, value, [*indices, c])

                def add_zero(c: Expr) -> None:
                    total, zero = out[(*indices, c)], tirx.const(0, wide)
                    T.buffer_store(out, tirx.Select(is_first, zero, tirx.max(total, zero)), [*indices, c])

                beyond = _is_beyond(data, y, x)
                with T.If(tirx.Not(beyond)), T.Then():
                    in_vectors(channels, wide, add)
                if pooling.largest:
                    with T.If(beyond), T.Then():
                        in_vectors(channels, wide, add_zero)
            if not pooling.largest:
                count = tirx.max(rows.samples * columns.samples, int64(1)).astype(wide)
                in_vectors(channels, wide, lambda c: T.buffer_store(out, out[(*indices, c)] / count, [*indices, c]))
        return builder.get()


def _stored(*values: Expr) -> list[Expr]:
    """Store floats in a buffer of the kernel being written; TVM would inline named values."""
    held = FlatBuffer(T.alloc_buffer([len(values)], str(values[0].ty.dtype), scope="local"))
    for number, value in enumerate(values):
        held[number] = value
    return [held[number] for number in range(len(values))]


@dataclass(frozen=True)
class _Bins:
    """The bins of one axis of a region."""

    start: Expr
    size: Expr
    samples: Expr

    def stored(self) -> _Bins:
        """Compute the same once in the kernel being written."""
        start, size = _stored(self.start, self.size)
        return _Bins(start, size, self.samples)

    def coordinate(self, number: Expr, sample: Expr) -> Expr:
        """Return the coordinate of a sample in a bin."""
        dtype = str(self.start.ty.dtype)
        within = (sample.astype(dtype) + tirx.const(0.5, dtype)) * self.size / self.samples.astype(dtype)
        return self.start + number.astype(dtype) * self.size + within


def _bins(pooling: _Pooling, low: Expr, high: Expr, count: int, dtype: str) -> _Bins:
    shift = tirx.const(0.5 if pooling.half_pixel else 0.0, dtype)
    scale = tirx.const(pooling.scale, dtype)
    start, end = low.astype(dtype) * scale - shift, high.astype(dtype) * scale - shift
    length = end - start if pooling.half_pixel else tirx.max(end - start, tirx.const(1, dtype))
    size = length / tirx.const(count, dtype)
    if pooling.ratio > 0:
        samples = tirx.const(pooling.ratio, "int64")
    else:
        samples = limited_position(tirx.ceil(size), tirx.const(_MAX_SAMPLES + 1, "int64"))
    return _Bins(start, size, samples)


def _is_beyond(data: Expr, y: Expr, x: Expr) -> Expr:
    """True if a position is more than one element outside."""
    conditions = []
    for value, size in ((y, data.shape[1]), (x, data.shape[2])):
        dtype = str(value.ty.dtype)
        conditions += [value < tirx.const(-1, dtype), value > size.astype(dtype)]
    return tirx.any(*conditions)


def _neighbours(data: Expr, y: Expr, x: Expr) -> list[tuple[Expr, Expr, Expr]]:
    """Return the four elements around a position: row, column, weight."""
    parts = []
    for value, size in ((y, data.shape[1]), (x, data.shape[2])):
        dtype = str(value.ty.dtype)
        zero, one = tirx.const(0, dtype), tirx.const(1, dtype)
        last = size.astype(dtype) - one
        low = tirx.min(tirx.floor(tirx.max(value, zero)), last)
        ratio = tirx.max(tirx.min(value, last), zero) - low
        positions = T.bind(limited_position(low, size)), T.bind(limited_position(tirx.min(low + one, last), size))
        parts.append(list(zip(positions, _stored(one - ratio, ratio), strict=True)))
    corners = [(*row, *column) for row in parts[0] for column in parts[1]]
    weights = _stored(*(row_weight * column_weight for _, row_weight, _, column_weight in corners))
    return [(row, column, weight) for (row, _, column, _), weight in zip(corners, weights, strict=True)]


@converter("MaxRoiPool")
def max_roi_pool(context: NodeContext) -> relax.Expr:
    """Maximum of each bin of regions (sample, x1, y1, x2, y2) with rounded corners; 0 for empty bins."""
    height, width = (int(size) for size in context.required_attribute("pooled_shape"))
    pooling = _Pooling(height, width, float(context.attribute("spatial_scale", 1.0)))
    if min(height, width) < 1 or context.rank(0) != 4 or context.rank(1) != 2 or context.shape(1)[1] != 5:
        context.invalid(f"data of shape {context.shape(0)} and regions of shape {context.shape(1)}")

    require_entries(context, context.shape(0)[0], context.shape(1)[0])

    def compute(data: Tensor, rois: Tensor) -> Tensor:
        shape = [rois.shape[0], data.shape[1], pooling.height, pooling.width]

        def body(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
            return _max_body(pooling, ins, outs[0], shape)

        return te.extern([shape], [data, rois], body, dtype=str(data.dtype), name="max_roi_pool")

    return context.emit_te(compute, context.input(0), context.input(1), primfunc_name_hint="max_roi_pool")


def _max_body(pooling: _Pooling, ins: Sequence[Buffer], out: Buffer, shape: Sequence[Index]) -> Stmt:
    data, rois = ins
    dtype = str(data.dtype)
    wide = compute_dtype(dtype)
    with IRBuilder() as builder:
        steps = product([expression(size) for size in shape]) * int64(_STEPS_OF_A_BIN)
        with T.seq_scope(), shared_tasks(expression(shape[0]), steps, MIN_PARALLEL_WORK) as roi:
            rows = _rounded_bins(pooling, rois[roi, 2], rois[roi, 4], pooling.height, wide)
            columns = _rounded_bins(pooling, rois[roi, 1], rois[roi, 3], pooling.width, wide)
            with T.grid(shape[1], pooling.height, pooling.width) as (channel, row, column):
                top, bottom = _bin_ends(rows, row, data.shape[2])
                left, right = _bin_ends(columns, column, data.shape[3])
                empty = tirx.any(bottom <= top, right <= left)
                result = FlatBuffer(T.alloc_buffer([1], dtype, scope="local"))
                result[0] = tirx.Select(empty, tirx.const(0, dtype), tirx.min_value(dtype))
                with T.serial(0, bottom - top) as i, T.serial(0, right - left) as j:
                    sample = limited_position(rois[roi, 0].astype(wide), data.shape[0])
                    value = data[sample, channel, top + i, left + j]
                    result[0] = tirx.max(result[0], value)
                T.buffer_store(out, result[0], [roi, channel, row, column])
        return builder.get().body


def _rounded_bins(pooling: _Pooling, low: Expr, high: Expr, count: int, dtype: str) -> _Bins:
    scale = tirx.const(pooling.scale, dtype)
    start, end = tirx.round(low.astype(dtype) * scale), tirx.round(high.astype(dtype) * scale)
    length = tirx.max(end - start + tirx.const(1, dtype), tirx.const(1, dtype))
    return _Bins(start, length / tirx.const(count, dtype), None)


def _bin_ends(bins: _Bins, number: Expr, size: Expr) -> tuple[Expr, Expr]:
    dtype = str(bins.start.ty.dtype)
    position = number.astype(dtype)
    low = tirx.floor(position * bins.size) + bins.start
    high = tirx.ceil((position + tirx.const(1, dtype)) * bins.size) + bins.start
    return limited_position(low, size + 1), limited_position(high, size + 1)
