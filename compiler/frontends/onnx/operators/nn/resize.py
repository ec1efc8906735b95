"""Resize and Upsample, also of a region computed at run time (`tf_crop_and_resize`, as in TensorFlow's detectors)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from tvm import relax, tirx

from compiler.frontends.onnx.bounds import require_entries
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.nn.resize_kernels import (
    COORDINATE_MODES,
    NEAREST_MODES,
    AxisResize,
    Sampling,
    resize_nearest,
    resize_weighted,
)
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import TensorValue

_POLICIES = ("stretch", "not_larger", "not_smaller")
_OLD = {"nearest": "nearest", "linear": "linear", "bilinear": "linear"}


@converter("Upsample")
def upsample_1(context: NodeContext) -> relax.Expr:
    """Scales of the last two axes as attributes."""
    scales = [1.0, 1.0, context.required_attribute("height_scale"), context.required_attribute("width_scale")]
    return _old_resize(context, scales)


@converter("Upsample", since=7)
def upsample_7(context: NodeContext) -> relax.Expr:
    """Scales as an attribute."""
    return _old_resize(context, [float(scale) for scale in context.required_attribute("scales")])


@converter("Upsample", since=9)
@converter("Resize", since=10)
def resize_10(context: NodeContext) -> relax.Expr:
    """Scales as an input; coordinates are position / scale."""
    return _old_resize(context, [float(scale) for scale in context.constant(1).reshape(-1)])


def _old_resize(context: NodeContext, scales: list[float]) -> relax.Expr:
    sampling = Sampling(mode=_OLD[context.choice("mode", "nearest", _OLD)], coordinates="asymmetric", nearest="simple")
    axes = list(range(context.rank(0)))
    return _resized(context, _from_scales(context, axes, scales, {}), sampling)


@converter("Resize", since=11)
def resize(context: NodeContext) -> relax.Expr | TensorValue:
    """Resize axes to sizes, or by scales; exactly one of them is given."""
    rank = context.rank(0)
    axes = context.axes(context.attribute("axes", list(range(rank))), rank)
    sampling = _sampling(context)
    if _is_computed_region(context, sampling):
        return resize_computed_region(context, axes, sampling)
    regions = _regions(context, axes) if sampling.coordinates == "tf_crop_and_resize" else {}
    if _is_given(context, 2):
        scales = [float(scale) for scale in context.constant(2).reshape(-1)]
        return _resized(context, _from_scales(context, axes, scales, regions), sampling)
    if not _is_given(context, 3):
        context.invalid("neither scales nor sizes are given")
    needs_values = context.attribute("keep_aspect_ratio_policy", "stretch") != "stretch"
    sizes: list[Dim] = [*context.integers(3)] if needs_values else context.shape_values(3)
    if len(sizes) != len(axes):
        context.invalid(f"{len(sizes)} sizes for {len(axes)} axes")
    return _resized(context, _from_sizes(context, axes, sizes, regions), sampling)


def _is_computed_region(context: NodeContext, sampling: Sampling) -> bool:
    """True for a region of interest computed at run time, with supported sampling and sizes."""
    if sampling.coordinates != "tf_crop_and_resize" or context.known(1) is not None:
        return False
    return sampling.mode != "cubic" and not sampling.antialias and _is_given(context, 3) and not _is_given(context, 2)


def _is_given(context: NodeContext, index: int) -> bool:
    """True if an input is given and nonempty."""
    return context.has_input(index) and context.shape(index) != (0,)


def _sampling(context: NodeContext) -> Sampling:
    sampling = Sampling(
        mode=context.choice("mode", "nearest", ("nearest", "linear", "cubic")),
        coordinates=context.choice("coordinate_transformation_mode", "half_pixel", COORDINATE_MODES),
        nearest=context.choice("nearest_mode", "round_prefer_floor", NEAREST_MODES),
        cubic_a=float(context.attribute("cubic_coeff_a", -0.75)),
        antialias=bool(context.attribute("antialias", 0)),
        exclude_outside=bool(context.attribute("exclude_outside", 0)),
        extrapolation=float(context.attribute("extrapolation_value", 0.0)),
    )
    if sampling.antialias and sampling.mode == "nearest":
        context.invalid("antialias has no meaning with the mode nearest")
    return sampling


def _regions(context: NodeContext, axes: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Return start and end of the region of interest by axis."""
    roi = [float(value) for value in context.constant(1).reshape(-1)]
    if len(roi) != 2 * len(axes):
        context.invalid(f"roi must hold {2 * len(axes)} numbers, not {len(roi)}")
    return {axis: (roi[i], roi[i + len(axes)]) for i, axis in enumerate(axes)}


def _from_scales(
    context: NodeContext, axes: Sequence[int], scales: Sequence[float], regions: dict[int, tuple[float, float]]
) -> list[AxisResize]:
    if len(scales) != len(axes) or any(not scale > 0 or np.isinf(scale) for scale in scales):
        context.invalid(f"{len(axes)} positive scales are needed, not {list(scales)}")
    result = []
    for axis, scale in zip(axes, scales, strict=True):
        old_size = context.shape(0)[axis]
        start, end = regions.get(axis, (0.0, 1.0))
        result.append(AxisResize(axis, old_size, _scaled(context, old_size, scale), scale, start, end))
    return result


def _scaled(context: NodeContext, size: Dim, scale: float) -> Dim:
    """Return floor(size * scale), in float32 like ONNX's shape inference."""
    if isinstance(size, int):
        return int(np.floor(np.float32(size) * np.float32(scale)))
    arithmetic = context.arithmetic
    inverse = max(round(1 / scale), 1)
    # The reciprocal of an integer in float32: products with it reach integers unless it was rounded down.
    if float(np.float32(1 / inverse)) == scale and Fraction(scale) * inverse >= 1:
        return arithmetic.floor_divide(size, inverse)
    product = tirx.Cast("float32", expression(size)) * tirx.const(scale, "float32")
    return context.importer.builder.truncated_size(arithmetic.floor(product))


def _from_sizes(
    context: NodeContext, axes: Sequence[int], sizes: Sequence[Dim], regions: dict[int, tuple[float, float]]
) -> list[AxisResize]:
    policy = context.choice("keep_aspect_ratio_policy", "stretch", _POLICIES)
    scale = None
    if policy != "stretch":
        sizes, scale = _fitted(context, axes, sizes, larger=policy == "not_smaller")
    return [
        AxisResize(axis, context.shape(0)[axis], size, scale, *regions.get(axis, (0.0, 1.0)))
        for axis, size in zip(axes, sizes, strict=True)
    ]


def _fitted(
    context: NodeContext, axes: Sequence[int], sizes: Sequence[Dim], *, larger: bool
) -> tuple[list[Dim], float]:
    """Return sizes with the aspect ratio kept, and the common scale."""
    old_sizes = [context.shape(0)[axis] for axis in axes]
    if not all(isinstance(size, int) for size in [*old_sizes, *sizes]):
        context.refuse("keep_aspect_ratio_policy with sizes that are not known when compiling; fix them with shapes=")
    ratios = [np.float32(new_size) / np.float32(size) for new_size, size in zip(sizes, old_sizes, strict=True)]
    scale = float(max(ratios) if larger else min(ratios))
    return [int(np.floor(np.float32(scale) * np.float32(size) + np.float32(0.5))) for size in old_sizes], scale


def _resized(context: NodeContext, axes: list[AxisResize], sampling: Sampling) -> relax.Expr:
    changing = [axis for axis in axes if not _is_identity(context, axis, sampling)]
    data = context.input(0)
    for axis in changing:
        require_entries(context, axis.before, axis.after)
    if not changing:
        return data
    if sampling.mode == "nearest":
        return resize_nearest(context, data, changing, sampling)
    return resize_weighted(context, data, changing, sampling)


def _is_identity(context: NodeContext, axis: AxisResize, sampling: Sampling) -> bool:
    same: bool = context.arithmetic.equal_is_proved(axis.before, axis.after)
    whole = sampling.coordinates != "tf_crop_and_resize" or (axis.start, axis.end) == (0.0, 1.0)
    return bool(same) and whole and axis.scale in (None, 1.0)


_ROI, _SIZES = 1, 3
_ROUNDED = {
    "round_prefer_floor": ("Ceil", -0.5),
    "round_prefer_ceil": ("Floor", 0.5),
    "floor": ("Floor", 0.0),
    "ceil": ("Ceil", 0.0),
}


def resize_computed_region(context: NodeContext, axes: Sequence[int], sampling: Sampling) -> TensorValue:
    """Sample nearest or linearly, one axis after another; elements outside the input are the extrapolation value.

    The sizes are given as an input of the node.
    """
    op, rank = Composer(context), context.rank(0)
    shape, dtype = op("Shape", context.value(0)), context.dtype(0)
    region = op("Cast", context.value(_ROI), to=op.number("float32"))
    result = op("Cast", context.value(0), to=op.number("float32"))
    for position, axis in enumerate(axes):
        last = op("Sub", op("Cast", op("Gather", shape, np.int64(axis)), to=op.number("float32")), 1.0)
        ends = (op("Gather", region, np.int64(each)) for each in (position, position + len(axes)))
        coordinate = _coordinates(op, op("Gather", context.value(_SIZES), np.int64(position)), last, *ends)
        wide = int64s(-1, *[1] * (rank - 1 - axis))
        result = _sampled(op, result, coordinate, last, axis, wide, sampling)
        outside = op("Or", op("Less", coordinate, 0.0), op("Greater", coordinate, last))
        result = op("Where", op("Reshape", outside, wide), np.float32(sampling.extrapolation), result)
    return result if dtype == "float32" else op("Cast", result, to=op.number(dtype))


def _coordinates(
    op: Composer, count: TensorValue, last: TensorValue, start: TensorValue, end: TensorValue
) -> TensorValue:
    """Return (count,) positions from `start` to `end`, given as fractions of the last position; their middle for a
    single one."""
    positions = op("Cast", op("Range", np.int64(0), op("Cast", count, to=7), np.int64(1)), to=1)
    steps = op("Sub", op("Cast", count, to=1), 1.0)
    spread = op("Div", op("Mul", op("Mul", positions, op("Sub", end, start)), last), op("Max", steps, 1.0))
    middle = op("Mul", op("Mul", op("Add", start, end), last), 0.5)
    return op("Where", op("Equal", steps, 0.0), middle, op("Add", op("Mul", start, last), spread))


def _sampled(
    op: Composer,
    data: TensorValue,
    coordinate: TensorValue,
    last: TensorValue,
    axis: int,
    wide: np.ndarray,
    sampling: Sampling,
) -> TensorValue:
    def at(position: TensorValue) -> TensorValue:
        inside = op("Min", op("Max", position, 0.0), last)
        return op("Gather", data, op("Cast", inside, to=7), axis=axis)

    if sampling.mode == "nearest":
        function, shift = _ROUNDED[sampling.nearest]
        return at(op(function, op("Add", coordinate, shift)))
    low = op("Floor", coordinate)
    share = op("Reshape", op("Sub", coordinate, low), wide)
    return op("Add", op("Mul", at(low), op("Sub", 1.0, share)), op("Mul", at(op("Add", low, 1.0)), share))
