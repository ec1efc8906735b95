"""Mapping between an axis of the model's input (the frame) and that of the image.

A position p of the frame that the net reads is position p + offset of the image made `resized` pixels long. The
formulas are written once, and evaluated with numpy (tests, documentation) or as TVM's expressions (kernels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx

from compiler.support.processing import Processing

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

BILINEAR, BICUBIC = 1, 2  # filter radius in pixels
_A = -0.5  # coefficient of Pillow's bicubic filter


@dataclass(frozen=True)
class Axis:
    """An axis: pixels of the image, of the resized image, of the frame, and the frame's offset in the resized image;
    `gain` is the factor that was asked for, float64, of which `resized` is a rounding."""

    image: Expr
    resized: Expr
    frame: int
    offset: Expr
    gain: Expr


def axes_of(processing: Processing, size: tuple[int, int], height: Expr, width: Expr) -> tuple[Axis, Axis]:
    """The vertical and the horizontal axis of an image of int64 sizes, for a frame of (height, width)."""
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
    """A bound, int64, of the pixels along an axis (0: vertical) that a position of the frame weighs."""
    support, axis = _support(processing), axes[which]
    least = 2 * support + 1
    if not processing.antialias:
        return _integer(least)
    if processing.resize == "stretch":
        return tirx.floordiv(2 * support * axis.image, axis.frame) + least
    if processing.resize == "crop":
        # The longer side is rounded down, so its scale is that of the shorter one made one pixel shorter, at most.
        shortest = processing.shortest or min(each.frame for each in axes)
        shorter = tirx.min(axes[0].image, axes[1].image)
        return tirx.floordiv(2 * support * shorter, max(shortest - 1, 1)) + least
    # A rounded length is at least two thirds of the unrounded one, or 1.
    vertical, horizontal = (tirx.floordiv(3 * support * each.image, each.frame) for each in axes)
    return tirx.max(vertical, horizontal) + least + 1


def _support(processing: Processing) -> int:
    return BICUBIC if processing.filter == "bicubic" else BILINEAR


def window(processing: Processing, axis: Axis, position: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """First pixel and number of pixels that a position of the frame weighs (int64), the center, and the filter's scale
    (float64), as Pillow computes them."""
    scale = _real(axis.image) / _real(axis.resized)
    filter_scale = tirx.max(scale, _real(1)) if processing.antialias else _real(1)
    support = _real(_support(processing)) * filter_scale
    center = (tirx.Cast("float64", position + axis.offset) + _real(0.5)) * scale
    first = tirx.max(tirx.Cast("int64", center - support + _real(0.5)), _integer(0))
    end = tirx.min(tirx.Cast("int64", center + support + _real(0.5)), axis.image)
    return first, end - first, center, filter_scale


def weight(processing: Processing, distance: Expr) -> Expr:
    """The filter's value, float64, at a distance from its center."""
    x = tirx.abs(distance)
    one = _real(1)
    if processing.filter != "bicubic":
        return tirx.Select(x < one, one - x, _real(0))
    a = _real(_A)
    near = ((a + _real(2)) * x - (a + _real(3))) * x * x + one
    far = (((x - _real(5)) * x + _real(8)) * x - _real(4)) * a
    return tirx.Select(x < one, near, tirx.Select(x < _real(2), far, _real(0)))


def is_inside(axis: Axis, position: Expr) -> Expr:
    """True where a position of the frame lies on the image."""
    place = position + axis.offset
    return tirx.all(place >= 0, place < axis.resized)


def _integer(value: int) -> Expr:
    return tirx.const(value, "int64")


def _real(value: Expr) -> Expr:
    return tirx.const(float(value), "float64") if isinstance(value, int | float) else tirx.Cast("float64", value)
