"""Sampling a tensor between its elements, as TVM expressions: what GridSample, DeformConv and RoiAlign share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from tvm import tirx

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

Tap: TypeAlias = "tuple[Expr, Expr]"  # a whole-numbered coordinate and its weight, both floats


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
    """Whether a float coordinate is that of an element."""
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
