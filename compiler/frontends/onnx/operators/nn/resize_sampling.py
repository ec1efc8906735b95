"""Input coordinates and weights for each output element of a resized axis.

The formulas are those of ONNX's Resize. They are written once and evaluated twice: with numpy, to tables, when sizes
are known, and as TVM's expressions, inside the kernel, when they are symbolic. All arithmetic is in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from compiler.frontends.onnx.symbolic import Dim, plain
from schedules.ir.tvm_types import Expr

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
    """One axis: its sizes before and after, the scale (None: the quotient of the sizes), and the region of interest."""

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
        """The scale when it is known when compiling."""
        if self.scale is not None:
            return self.scale
        if isinstance(self.before, int) and isinstance(self.after, int):
            return float(np.float32(self.after) / np.float32(self.before))
        return None


class NumpyOperations:
    """The few functions that the formulas need, on float32 arrays."""

    floor = staticmethod(np.floor)
    ceil = staticmethod(np.ceil)
    minimum = staticmethod(np.minimum)
    maximum = staticmethod(np.maximum)
    where: Expr = staticmethod(np.where)
    absolute = staticmethod(np.abs)

    @staticmethod
    def real(value: Expr) -> Expr:
        return np.float32(value)


class EngineOperations:
    """The same on TVM's expressions."""

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


Operations = type[NumpyOperations] | type[EngineOperations]


def source_coordinate(ops: Operations, sampling: Sampling, axis: AxisResize, position: Expr) -> Expr:
    """The input coordinate of output `position` (float32)."""
    before, after = ops.real(axis.before), ops.real(axis.after)
    # TVM's simplifier fails on a quotient of quotients, hence the maximum.
    scale = ops.real(axis.scale) if axis.scale is not None else ops.maximum(after / before, ops.real(0.0))
    # The length may be a fraction when a scale prescribes it.
    length = before * scale if axis.scale is not None else after
    half, one = ops.real(0.5), ops.real(1.0)
    last = before - one
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
        # Divided last: the far corner must not land beyond the input by rounding.
        moved = start * last + position * (end - start) * last / _not_zero(ops, length - one)
        return ops.where(length == one, middle, moved)
    centered = (position + half) / scale - half
    if mode == "pytorch_half_pixel":
        return ops.where(after > one, centered, ops.real(0.0) * position)
    if mode == "half_pixel_symmetric":
        return before * half * (one - after / length) + centered
    return centered


def _not_zero(ops: Operations, value: Expr) -> Expr:
    return ops.where(value == ops.real(0.0), ops.real(1.0), value)


def is_outside(ops: Operations, axis: AxisResize, coordinate: Expr) -> Expr:
    """True where a coordinate lies outside the input (where tf_crop_and_resize extrapolates)."""
    low, high = coordinate < ops.real(0.0), coordinate > ops.real(axis.before) - ops.real(1.0)
    return low | high if ops is NumpyOperations else tirx.any(low, high)


def nearest_index(ops: Operations, sampling: Sampling, axis: AxisResize, coordinate: Expr) -> Expr:
    """The nearest element, as float32, within the input."""
    half = ops.real(0.5)
    shrinks = ops.real(axis.after) < ops.real(axis.before)
    rounding: dict[str, Callable[[], Expr]] = {
        "round_prefer_floor": lambda: ops.ceil(coordinate - half),
        "round_prefer_ceil": lambda: ops.floor(coordinate + half),
        "floor": lambda: ops.floor(coordinate),
        "ceil": lambda: ops.ceil(coordinate),
        # Before opset 11: up when shrinking, down when growing.
        "simple": lambda: ops.where(shrinks, ops.ceil(coordinate), ops.floor(coordinate)),
    }
    return _clamped(ops, axis, rounding[sampling.nearest]())


def _clamped(ops: Operations, axis: AxisResize, index: Expr) -> Expr:
    return ops.maximum(ops.minimum(index, ops.real(axis.before) - ops.real(1.0)), ops.real(0.0))


def weighted_taps(ops: Operations, sampling: Sampling, axis: AxisResize, coordinate: Expr) -> list[tuple[Expr, Expr]]:
    """(index, weight), both float32, of each element that an output element is made of.

    An antialiased axis needs a scale that is known when compiling; `dynamic_tap` serves others.
    """
    if sampling.mode == "linear" and not sampling.antialias:
        return _linear_taps(ops, axis, coordinate)
    stretch = min(axis.static_scale or 1.0, 1.0) if sampling.antialias else 1.0
    first = math.floor(-_radius(sampling) / stretch) + 1
    taps = [
        _tap(ops, sampling, axis, coordinate, ops.real(float(o)), ops.real(stretch)) for o in range(first, 2 - first)
    ]
    if sampling.exclude_outside or stretch < 1.0:
        total = taps[0][1]
        for _, weight in taps[1:]:
            total = total + weight
        taps = [(index, weight / _not_zero(ops, total)) for index, weight in taps]
    return [(_clamped(ops, axis, index), weight) for index, weight in taps]


def dynamic_taps(sampling: Sampling, axis: AxisResize) -> Expr:
    """A bound, int64, of the elements of an antialiased axis of dynamic sizes that an output element is made of."""
    shrunk = tirx.floordiv(axis.before, tirx.max(axis.after, tirx.const(1, "int64")))
    return 2 * _radius(sampling) * (shrunk + 1) + 2


def dynamic_tap(sampling: Sampling, axis: AxisResize, coordinate: Expr, number: Expr) -> tuple[Expr, Expr]:
    """(index, weight), both float32, of one of the `dynamic_taps`; the weights have yet to be divided by their sum."""
    ops = EngineOperations
    offset = number - (tirx.div(dynamic_taps(sampling, axis), 2) - 1)
    stretch = ops.minimum(ops.real(axis.after) / ops.real(axis.before), ops.real(1.0))
    return _tap(ops, sampling, axis, coordinate, ops.real(offset), stretch)


def _radius(sampling: Sampling) -> int:
    return 2 if sampling.mode == "cubic" else 1


def _tap(
    ops: Operations, sampling: Sampling, axis: AxisResize, coordinate: Expr, offset: Expr, stretch: Expr
) -> tuple[Expr, Expr]:
    """(index, weight) of the element that lies `offset` behind the coordinate rounded down."""
    base = ops.floor(coordinate)
    index = base + offset
    weight = _weight(ops, sampling, stretch * (offset - (coordinate - base)))
    if not sampling.exclude_outside:
        return index, weight
    zero, last = ops.real(0.0), ops.real(axis.before) - ops.real(1.0)
    return index, ops.where(index < zero, zero, ops.where(index > last, zero, weight))


def _linear_taps(ops: Operations, axis: AxisResize, coordinate: Expr) -> list[tuple[Expr, Expr]]:
    """The two neighbours; outside of the input both are its edge. The differences are exact."""
    coordinate = _clamped(ops, axis, coordinate)
    base = ops.floor(coordinate)
    following = base + ops.real(1.0)
    return [(base, following - coordinate), (_clamped(ops, axis, following), coordinate - base)]


def _weight(ops: Operations, sampling: Sampling, distance: Expr) -> Expr:
    """The interpolation kernel: a triangle, or Keys' cubic (IEEE TASSP 29, 1981, equation 4)."""
    x = ops.absolute(distance)
    one, zero = ops.real(1.0), ops.real(0.0)
    if sampling.mode == "linear":
        return ops.maximum(one - x, zero)
    a = sampling.cubic_a
    near = ((ops.real(a + 2) * x - ops.real(a + 3)) * x) * x + one
    far = ((ops.real(a) * x - ops.real(5 * a)) * x + ops.real(8 * a)) * x - ops.real(4 * a)
    return ops.where(x <= one, near, ops.where(x < ops.real(2.0), far, zero))
