"""Interpolation: `torch.nn.functional.interpolate` by a scale factor, which coordinates follow, or to a size.

The exporter's conversions drop the scale factor where the size is given too, and with it the coordinates that it
stands for: `floor(size * factor) / size` is another factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def _interpolation(mode: dict[str, Any], *, either: bool) -> Callable[..., Any]:
    """A conversion of aten.upsample_*.vec, which has a size or factors, or of .default, which has the size always."""

    def to_either(data: Any, size: Any, align_corners: bool, factors: Any = None) -> Any:
        return _resized(data, size, factors or (), mode, align_corners)

    def to_size(
        data: Any, size: Any, align_corners: bool, first: Any = None, second: Any = None, third: Any = None
    ) -> Any:
        return _resized(data, size, (first, second, third), mode, align_corners)

    return to_either if either else to_size


def _nearest(*, either: bool) -> Callable[..., Any]:
    def to_either(data: Any, size: Any, factors: Any = None) -> Any:
        return _resized(data, size, factors or (), _NEAREST, False)

    def to_size(data: Any, size: Any, first: Any = None, second: Any = None, third: Any = None) -> Any:
        return _resized(data, size, (first, second, third), _NEAREST, False)

    return to_either if either else to_size


def _resized(data: Any, size: Any, factors: Sequence[float | None], mode: dict[str, Any], align_corners: bool) -> Any:
    """ONNX's Resize: by the factors where there is one for each axis of the image, else to the size."""
    from onnxscript import opset18 as op

    spatial = list(data.shape)[2:]
    known = [factor for factor in factors if factor is not None]
    by_factor = len(known) == len(spatial)
    wanted = [_size(given, known[axis]) if by_factor else _part(size, axis) for axis, given in enumerate(spatial)]
    fixed = all(isinstance(each, int) for each in (*spatial, *wanted))
    if mode is _NEAREST and fixed:
        indices = _nearest_indices(spatial, wanted, known if by_factor else [None] * len(spatial))
        if indices is not None:
            return _gathered(op, data, indices)
    how = dict(mode)
    if mode is not _NEAREST:
        how["coordinate_transformation_mode"] = "align_corners" if align_corners else "half_pixel"
    if by_factor and not (align_corners and fixed):
        scales = [_scale(*each) for each in zip(spatial, known, wanted, strict=True)]
        result = op.Resize(data, None, op.Constant(value_floats=[1.0, 1.0, *scales]), None, **how)
        return _cropped(op, result, wanted) if fixed else result
    target = op.Constant(value_ints=wanted) if fixed else op.Cast(size, to=_INT64)
    whole = op.Concat(op.Shape(data, start=0, end=2), target, axis=0)
    return op.Resize(data, None, None, whole, **how)


def _size(size: Any, factor: float) -> int | None:
    """PyTorch's size, which is computed in float64; None where that of the input is open."""
    return math.floor(size * factor) if isinstance(size, int) else None


def _part(size: Any, axis: int) -> int | None:
    part = size[axis] if isinstance(size, list | tuple) else None
    return part if isinstance(part, int) else None


def _scale(size: Any, factor: float, wanted: int | None) -> float:
    """The float32 with which ONNX's size, computed in float32, is at least PyTorch's."""
    scale = np.float32(factor)
    while wanted is not None and math.floor(np.float32(size) * scale) < wanted:
        scale = np.nextafter(scale, np.float32(np.inf))
    return float(scale)


def _cropped(op: Any, data: Any, sizes: Sequence[Any]) -> Any:
    """Without the row or column by which float32 rounds a size up where float64 does not."""
    axes = list(range(2, 2 + len(sizes)))
    ends, starts = op.Constant(value_ints=list(sizes)), op.Constant(value_ints=[0] * len(sizes))
    return op.Slice(data, starts, ends, op.Constant(value_ints=axes))


def _nearest_indices(
    sizes: Sequence[Any], wanted: Sequence[Any], factors: Sequence[float | None]
) -> list[np.ndarray] | None:
    """Where PyTorch takes each element from, in float32; None where every size is multiplied by a whole number."""
    whole, found = True, []
    for size, count, factor in zip(sizes, wanted, factors, strict=True):
        places = np.arange(count)
        step = np.float32(size) / np.float32(count) if factor is None else np.float32(1 / factor)
        own = np.minimum(np.floor(places.astype(np.float32) * step).astype(np.int64), size - 1)
        if len(sizes) == 2 and count == 2 * size:  # PyTorch's images are doubled whatever the factor says
            own = places // 2
        whole = whole and count % max(size, 1) == 0 and bool(np.array_equal(own, places * size // max(count, 1)))
        found.append(own)
    return None if whole else found


def _gathered(op: Any, data: Any, indices: Sequence[np.ndarray]) -> Any:
    for axis, places in enumerate(indices, 2):
        data = op.Gather(data, op.Constant(value_ints=places.tolist()), axis=axis)
    return data


_INT64 = 7  # onnx.TensorProto.INT64
_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
_LINEAR = {"mode": "linear"}
_CUBIC = {"mode": "cubic", "cubic_coeff_a": -0.75}
# As Pillow has it: weights of what lies inside of the image alone, and another coefficient of cubic ones.
_LINEAR_ANTIALIASED = {"mode": "linear", "antialias": 1, "exclude_outside": 1}
_CUBIC_ANTIALIASED = {"mode": "cubic", "antialias": 1, "cubic_coeff_a": -0.5, "exclude_outside": 1}
_MODES: dict[str, dict[str, Any]] = {
    "upsample_linear1d": _LINEAR,
    "upsample_bilinear2d": _LINEAR,
    "upsample_trilinear3d": _LINEAR,
    "upsample_bicubic2d": _CUBIC,
    "_upsample_bilinear2d_aa": _LINEAR_ANTIALIASED,
    "_upsample_bicubic2d_aa": _CUBIC_ANTIALIASED,
}
RESAMPLING: dict[str, Callable[..., Any]] = {
    **{f"aten.{name}.default": _interpolation(mode, either=False) for name, mode in _MODES.items()},
    **{f"aten.{name}.vec": _interpolation(mode, either=True) for name, mode in _MODES.items()},
    **{f"aten.upsample_nearest{rank}d.default": _nearest(either=False) for rank in (1, 2, 3)},
    **{f"aten.upsample_nearest{rank}d.vec": _nearest(either=True) for rank in (1, 2, 3)},
}
