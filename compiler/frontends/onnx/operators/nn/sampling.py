"""GridSample and AffineGrid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax, te, tirx

from compiler.frontends.onnx.bounds import require, require_entries
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.nn.resize_kernels import (
    Tap,
    clamped,
    cubic_taps,
    linear_taps,
    reflected,
    sampled,
    tap_tables,
)
from compiler.frontends.onnx.operators.precision import compute_dtype
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import expression
from schedules.ir.tvm_types import Expr, Tensor

_MODES = {"bilinear": "linear", "bicubic": "cubic", "linear": "linear", "cubic": "cubic", "nearest": "nearest"}
# Number of positions whose taps stay in the L2 cache across channels; with more, taps are computed row by row.
_MAX_CACHED = 16384
_PADDINGS = ("zeros", "border", "reflection")


@converter("GridSample", since=16)
def grid_sample(context: NodeContext) -> relax.Expr:
    """Sample data (N, C, D1...) at a grid (N, E1..., rank): coordinates in [-1, 1], last axis first."""
    mode, padding = context.choice("mode", "linear", _MODES), context.choice("padding_mode", "zeros", _PADDINGS)
    rank = context.rank(0) - 2
    if rank < 1 or context.rank(1) != rank + 2 or context.shape(1)[-1] != rank:
        context.invalid(f"a grid of shape {context.shape(1)} for data of rank {rank + 2}")
    require(context, context.shape(1)[0], "equal", context.shape(0)[0])
    count = context.arithmetic.product(context.shape(1)[:-1])
    for size in context.shape(0)[2:]:
        require_entries(context, size, count)
    align = bool(context.attribute("align_corners", 0))
    (batch, channels, *sizes), positions = context.shape(0), context.shape(1)[1:-1]
    kernel = _grid_sample_kernel(_MODES[mode], padding, align)
    lengths = [expression(size) for size in sizes]
    flat = context.reshape(context.input(0), [batch, channels, context.arithmetic.product(sizes)])
    grid, count = context.input(1), context.arithmetic.product(positions)
    if not isinstance(count, int) or count > _MAX_CACHED:
        return context.emit_te(kernel, flat, grid, *lengths, primfunc_name_hint="grid_sample")
    grid = context.reshape(grid, [batch, count, rank])
    result = context.emit(context.emit_te(kernel, flat, grid, *lengths, primfunc_name_hint="grid_sample"))
    return context.reshape(result, [batch, channels, *positions])


def _grid_sample_kernel(mode: str, padding: str, align: bool) -> Callable[..., Tensor]:
    """Return the GridSample kernel on data (N, C, product of the sampled axes' sizes), a grid and those sizes."""
    zeros = padding == "zeros"

    def compute(data: Tensor, grid: Tensor, *lengths: Expr) -> Tensor:
        wide, rank = compute_dtype(data.dtype), len(lengths)

        # Coordinates and taps are the same for all channels. Coordinates are stored: inlining a reflected coordinate
        # into its taps gives expressions of thousands of nodes.
        positions = (data.shape[0], *grid.shape[1:-1])

        def coordinate(axis: int, indices: Sequence[Expr]) -> Expr:
            size = lengths[axis]
            value = _denormalized(grid(*indices, rank - 1 - axis).astype(wide), size, align)
            if mode == "nearest":
                value = tirx.nearbyint(value)
            # Like in PyTorch, the cubic mode only pads element by element.
            return value if mode == "cubic" else _within(value, size, padding, align)

        def coordinates_of(axis: int) -> Tensor:
            return te.compute(positions, lambda *indices: coordinate(axis, indices), name=f"coordinate{axis}")

        coordinates = [coordinates_of(axis) for axis in range(rank)]

        def taps(axis: int, indices: Sequence[Expr]) -> list[Tap]:
            point, size = coordinates[axis](*indices), lengths[axis]
            if mode == "nearest":
                return [(_padded(point, size, padding, align), tirx.const(1, wide))]
            pairs = cubic_taps(point) if mode == "cubic" else linear_taps(point)
            return [(_padded(position, size, padding, align), weight) for position, weight in pairs]

        tables = tap_tables(positions, lengths, taps, zeros=zeros)

        def element(sample: Expr, channel: Expr, *indices: Expr) -> Expr:
            def read(offset: Expr) -> Expr:
                return data(sample, channel, offset).astype(wide)

            return sampled(tables, [sample, *indices], read, zeros=zeros).astype(data.dtype)

        return te.compute((*data.shape[:2], *grid.shape[1:-1]), element, name="grid_sample")

    return compute


def _denormalized(value: Expr, size: Expr, align: bool) -> Expr:
    dtype = str(value.ty.dtype)
    one, half, length = tirx.const(1, dtype), tirx.const(0.5, dtype), size.astype(dtype)
    return (value + one) * half * (length - one) if align else ((value + one) * length - one) * half


def _borders(size: Expr, align: bool, dtype: str) -> tuple[Expr, Expr]:
    shift = tirx.const(0.0 if align else 0.5, dtype)
    return -shift, size.astype(dtype) - tirx.const(1, dtype) + shift


def _within(value: Expr, size: Expr, padding: str, align: bool) -> Expr:
    """Map a coordinate beyond the borders back according to the padding."""
    if padding == "zeros":
        return value
    low, high = _borders(size, align, str(value.ty.dtype))
    if padding == "reflection":
        return reflected(value, low, high)
    return tirx.Select(tirx.any(value < low, value > high), clamped(value, size), value)


def _padded(position: Expr, size: Expr, padding: str, align: bool) -> Expr:
    """Map an integer coordinate back according to the padding."""
    return reflected(position, *_borders(size, align, str(position.ty.dtype))) if padding == "reflection" else position


@converter("AffineGrid", since=20)
def affine_grid(context: NodeContext) -> relax.Expr:
    """Return coordinates (N, D1..., rank) in [-1, 1] of an output's elements, transformed by theta (N, rank, rank +
    1)."""
    sizes = context.shape_values(1)
    rank = len(sizes) - 2
    if rank not in (2, 3) or tuple(context.shape(0)[1:]) != (rank, rank + 1):
        context.invalid(f"theta of shape {context.shape(0)} for a size of {len(sizes)} elements")
    require(context, context.shape(0)[0], "equal", sizes[0])
    align = bool(context.attribute("align_corners", 0))

    def compute(theta: Tensor, *spatial: Expr) -> Tensor:
        dtype = compute_dtype(theta.dtype)

        def coordinate(index: Expr, size: Expr) -> Expr:
            position, length = index.astype(dtype), size.astype(dtype)
            one, two = tirx.const(1, dtype), tirx.const(2, dtype)
            if align:
                return two * position / tirx.max(length - one, one) - one
            return (two * position + one) / length - one

        def element(sample: Expr, *coordinates: Expr) -> Expr:
            *indices, row = coordinates
            total = theta(sample, row, rank).astype(dtype)
            for column, (index, size) in enumerate(zip(reversed(indices), reversed(spatial), strict=True)):
                total = total + theta(sample, row, column).astype(dtype) * coordinate(index, size)
            return total.astype(theta.dtype)

        return te.compute((theta.shape[0], *spatial, rank), element, name="affine_grid")

    spatial = [expression(size) for size in sizes[2:]]
    return context.emit_te(compute, context.input(0), *spatial, primfunc_name_hint="affine_grid")
