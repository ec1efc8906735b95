"""`torch.nn.functional.interpolate` by a scale factor, which determines coordinates, or to a size.

The exporter's conversions drop the scale factor if the size is also given, and with it the coordinates that it implies:
`floor(size * factor) / size` is a different factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

if TYPE_CHECKING:
    from onnxscript.ir import Value
    from onnxscript.values import Opset


# A tensor, or the sizes if known.
SizeArgument: TypeAlias = "Value | Sequence[int]"


def _interpolation(mode: Mapping[str, object], *, either: bool) -> Callable[..., Value]:
    """Return a conversion of aten.upsample_*.vec, which has a size or factors, or of .default, which always has the
    size."""

    def to_either(
        data: Value, size: SizeArgument, align_corners: bool, factors: Sequence[float] | None = None
    ) -> Value:
        return _resized(data, size, factors or (), mode, align_corners)

    def to_size(
        data: Value,
        size: SizeArgument,
        align_corners: bool,
        first: float | None = None,
        second: float | None = None,
        third: float | None = None,
    ) -> Value:
        factors = (first, second, third)
        _check_size(data, size, factors)
        return _resized(data, size, factors, mode, align_corners)

    return to_either if either else to_size


def _nearest(mode: Mapping[str, object], *, either: bool) -> Callable[..., Value]:
    def to_either(data: Value, size: SizeArgument, factors: Sequence[float] | None = None) -> Value:
        return _resized(data, size, factors or (), mode, False)

    def to_size(
        data: Value,
        size: SizeArgument,
        first: float | None = None,
        second: float | None = None,
        third: float | None = None,
    ) -> Value:
        factors = (first, second, third)
        _check_size(data, size, factors)
        return _resized(data, size, factors, mode, False)

    return to_either if either else to_size


def _resized(
    data: Value, size: SizeArgument, factors: Sequence[float | None], mode: Mapping[str, object], align_corners: bool
) -> Value:
    """ONNX's Resize: by the factors if there is one for each axis of the image, otherwise to the size."""
    from onnxscript import opset18 as op

    spatial = list(data.shape)[2:]
    known = [factor for factor in factors if factor is not None]
    by_factor = len(known) == len(spatial)
    targets = [_size(extent, known[axis]) if by_factor else _part(size, axis) for axis, extent in enumerate(spatial)]
    fixed = all(isinstance(each, int) for each in (*spatial, *targets))
    if mode is _NEAREST_EXACT or mode is _NEAREST:
        offset = 0.5 if mode is _NEAREST_EXACT else 0.0
        if fixed:
            indices = _nearest_indices(spatial, targets, known if by_factor else [None] * len(spatial), offset)
            if indices is not None:
                return _gathered(op, data, indices)
        elif offset or not by_factor or not all(map(_is_whole, known)):
            counts = _counted(op, data, known) if by_factor else op.Cast(size, to=_INT64)
            return _taken(op, data, counts, known if by_factor else [None] * len(spatial), offset)
    how = dict(_NEAREST if mode is _NEAREST_EXACT else mode)
    if mode is not _NEAREST and mode is not _NEAREST_EXACT:
        how["coordinate_transformation_mode"] = "align_corners" if align_corners else "half_pixel"
    if fixed:
        target = op.Constant(value_ints=targets)
    else:
        target = _counted(op, data, known) if by_factor else op.Cast(size, to=_INT64)
    if by_factor and not align_corners:
        scales = [_scale(*each) for each in zip(spatial, known, targets, strict=True)]
        result = op.Resize(data, None, op.Constant(value_floats=[1.0, 1.0, *scales]), None, **how)
        return result if not fixed and all(map(_is_exact, known)) else _cropped(op, result, target, len(spatial))
    whole = op.Concat(op.Shape(data, start=0, end=2), target, axis=0)
    return op.Resize(data, None, None, whole, **how)


def _check_size(data: Value, size: SizeArgument, factors: Sequence[float | None]) -> None:
    """Refuse a size that the factors do not give, as PyTorch's internal functions accept."""
    for axis, (extent, factor) in enumerate(zip(list(data.shape)[2:], factors, strict=False)):
        target = _part(size, axis)
        if factor is not None and isinstance(extent, int) and target not in (None, _size(extent, factor)):
            raise ValueError(f"the size {target} of axis {axis + 2} is not {extent} times its factor {factor}")


def _size(size: object, factor: float) -> int | None:
    """Return PyTorch's size, computed in float64; None if the input's is dynamic."""
    return math.floor(size * factor) if isinstance(size, int) else None


def _part(size: object, axis: int) -> int | None:
    part = size[axis] if isinstance(size, list | tuple) else None
    return part if isinstance(part, int) else None


def _counted(op: Opset, data: Value, factors: Sequence[float]) -> Value:
    """Return the sizes of an image of dynamic size, computed in float64."""
    exact = op.Constant(value=onnx.numpy_helper.from_array(np.array(factors, np.float64)))
    return op.Cast(op.Floor(op.Mul(op.Cast(op.Shape(data, start=2), to=_DOUBLE), exact)), to=_INT64)


def _is_exact(factor: float) -> bool:
    """True if sizes are the same in float32 and float64, as for factors such as 1.5."""
    return float(np.float32(factor)) == factor


def _is_whole(factor: float) -> bool:
    """True if a position times the reciprocal in float32 rounds down to the same number as the position over the
    factor."""
    return _is_exact(factor) and float(np.float32(1 / factor)) >= 1 / factor


def _taken(op: Opset, data: Value, counts: Value, factors: Sequence[float | None], offset: float) -> Value:
    """Return the nearest elements of an image of dynamic size, at the positions that PyTorch computes in float32."""
    for axis, factor in enumerate(factors):
        size, count = op.Gather(op.Shape(data), axis + 2, axis=0), op.Gather(counts, axis, axis=0)
        if factor is None:
            step = op.Div(*(op.Cast(each, to=onnx.TensorProto.FLOAT) for each in (size, count)))
        else:
            step = op.Constant(value_float=float(np.float32(1 / factor)))
            if len(factors) == 2 and not offset:  # PyTorch doubles images regardless of the factor
                step = op.Where(op.Equal(count, op.Mul(size, 2)), op.Constant(value_float=0.5), step)
        centers = op.Add(op.Cast(op.Range(0, count, 1), to=onnx.TensorProto.FLOAT), op.Constant(value_float=offset))
        positions = op.Floor(op.Mul(centers, step))
        data = op.Gather(data, op.Min(op.Cast(positions, to=_INT64), op.Sub(size, 1)), axis=axis + 2)
    return data


def _scale(size: int | None, factor: float, target_size: int | None) -> float:
    """Return a float32 scale with which ONNX's size, computed in float32, is at least PyTorch's."""
    scale = np.float32(factor)
    if target_size is None and float(scale) < factor:
        scale = np.nextafter(scale, np.float32(np.inf))
    while target_size is not None and math.floor(np.float32(size) * scale) < target_size:
        scale = np.nextafter(scale, np.float32(np.inf))
    return float(scale)


def _cropped(op: Opset, data: Value, sizes: Value, rank: int) -> Value:
    """Crop the row or column by which float32 rounds a size up but float64 does not."""
    axes = op.Constant(value_ints=list(range(2, 2 + rank)))
    return op.Slice(data, op.Constant(value_ints=[0] * rank), sizes, axes)


def _nearest_indices(
    sizes: Sequence[Any], target_sizes: Sequence[Any], factors: Sequence[float | None], offset: float
) -> list[np.ndarray] | None:
    """Source indices as PyTorch computes them, in float32; None if every scale factor is an integer."""
    exact, indices = True, []
    for size, count, factor in zip(sizes, target_sizes, factors, strict=True):
        positions = np.arange(count)
        step = np.float32(size) / np.float32(count) if factor is None else np.float32(1 / factor)
        nearest = np.minimum(
            np.floor((positions + np.float32(offset)).astype(np.float32) * step).astype(np.int64), size - 1
        )
        if len(sizes) == 2 and count == 2 * size and not offset:  # PyTorch doubles images regardless of the factor
            nearest = positions // 2
        exact = exact and count % max(size, 1) == 0 and bool(np.array_equal(nearest, positions * size // max(count, 1)))
        indices.append(nearest)
    return None if exact else indices


def _gathered(op: Opset, data: Value, indices: Sequence[np.ndarray]) -> Value:
    for axis, positions in enumerate(indices, 2):
        data = op.Gather(data, op.Constant(value_ints=positions.tolist()), axis=axis)
    return data


_INT64, _DOUBLE = onnx.TensorProto.INT64, onnx.TensorProto.DOUBLE
_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
_NEAREST_EXACT = {"mode": "nearest-exact"}  # the pixel whose area contains the center of the new one
_LINEAR = {"mode": "linear"}
_CUBIC = {"mode": "cubic", "cubic_coeff_a": -0.75}
# Like Pillow: weights only inside the image, and another cubic coefficient.
_LINEAR_ANTIALIASED = {"mode": "linear", "antialias": 1, "exclude_outside": 1}
_CUBIC_ANTIALIASED = {"mode": "cubic", "antialias": 1, "cubic_coeff_a": -0.5, "exclude_outside": 1}
_MODES: dict[str, Mapping[str, object]] = {
    "upsample_linear1d": _LINEAR,
    "upsample_bilinear2d": _LINEAR,
    "upsample_trilinear3d": _LINEAR,
    "upsample_bicubic2d": _CUBIC,
    "_upsample_bilinear2d_aa": _LINEAR_ANTIALIASED,
    "_upsample_bicubic2d_aa": _CUBIC_ANTIALIASED,
}
RESAMPLING: dict[str, Callable[..., Value]] = {
    **{f"aten.{name}.default": _interpolation(mode, either=False) for name, mode in _MODES.items()},
    **{f"aten.{name}.vec": _interpolation(mode, either=True) for name, mode in _MODES.items()},
    **{
        f"aten.{name}{rank}d.{form}": _nearest(mode, either=form == "vec")
        for name, mode in (("upsample_nearest", _NEAREST), ("_upsample_nearest_exact", _NEAREST_EXACT))
        for rank in (1, 2, 3)
        for form in ("default", "vec")
    },
}
