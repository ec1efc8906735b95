"""Normalizations over channels as tensor expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import te, tirx

from compiler.frontends.onnx.operators.precision import compute_dtype

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, IterVar, Tensor


def group_normalization_kernel(groups: int | None, epsilon: float, *, per_group: bool) -> Callable[..., Tensor]:
    """Statistics of each group of channels of each sample; None makes every channel a group of its own.

    The variance is the mean of squared differences from the mean: TVM's own operator subtracts the square of the
    mean from the mean of squares, which loses all digits when the mean is large. Scale and bias come in the type to
    compute in, one per channel, or one per group.
    """

    def compute(data: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        wide = compute_dtype(data.dtype)
        samples, channels, *spatial = data.shape
        count = channels if groups is None else tirx.const(groups, "int64")
        depth = tirx.floordiv(channels, count)
        extents = [depth, *spatial]
        elements: Expr = tirx.const(1, wide)
        for extent in extents:
            elements = elements * extent.astype(wide)

        def load(sample: Expr, group: Expr, inner: list[IterVar]) -> Expr:
            return data(sample, group * depth + inner[0], *inner[1:]).astype(wide)

        def reduction() -> list[Expr]:
            return [te.reduce_axis((0, extent), name=f"r{axis}") for axis, extent in enumerate(extents)]

        inner = reduction()
        total = te.compute((samples, count), lambda n, g: te.sum(load(n, g, inner), axis=inner), name="sum")
        mean = te.compute((samples, count), lambda n, g: total(n, g) / elements, name="mean")
        outer = reduction()

        def squared(sample: Expr, group: Expr) -> Expr:
            difference = load(sample, group, outer) - mean(sample, group)
            return te.sum(difference * difference, axis=outer)

        squares = te.compute((samples, count), squared, name="squares")
        inverse = te.compute(
            (samples, count),
            lambda n, g: tirx.const(1, wide) / tirx.sqrt(squares(n, g) / elements + tirx.const(epsilon, wide)),
            name="inverse",
        )

        def element(sample: Expr, channel: Expr, *rest: Expr) -> Expr:
            group = tirx.floordiv(channel, depth)
            index = group if per_group else channel
            value = (data(sample, channel, *rest).astype(wide) - mean(sample, group)) * inverse(sample, group)
            return (value * scale(index) + bias(index)).astype(data.dtype)

        return te.compute(data.shape, element, name="group_norm")

    return compute


def local_response_kernel(size: int, alpha: float, beta: float, bias: float) -> Callable[..., Tensor]:
    """x / (bias + alpha / size * s) ** beta, s the sum of squares over channels c - (size-1)/2 .. c + size/2."""
    below = (size - 1) // 2

    def compute(data: Tensor) -> Tensor:
        wide = compute_dtype(data.dtype)
        tap = te.reduce_axis((0, size), name="tap")

        def squares(sample: Expr, channel: Expr, *rest: Expr) -> Expr:
            neighbour = channel + tap - below
            inside = tirx.all(neighbour >= 0, neighbour < data.shape[1])
            value = tirx.if_then_else(inside, data(sample, neighbour, *rest), tirx.const(0, data.dtype)).astype(wide)
            return te.sum(value * value, axis=tap)

        total = te.compute(data.shape, squares, name="squares")

        def element(*indices: Expr) -> Expr:
            base = tirx.const(bias, wide) + tirx.const(alpha / size, wide) * total(*indices)
            return (data(*indices).astype(wide) / _power(base, beta)).astype(data.dtype)

        return te.compute(data.shape, element, name="lrn")

    return compute


def _power(base: Expr, exponent: float) -> Expr:
    """base ** exponent; by square roots, which vectors have, where the exponent is a quarter, a half, ... up to 1."""
    quarters = exponent * 4
    if quarters not in (1, 2, 3, 4):
        return tirx.pow(base, tirx.const(exponent, base.ty.dtype))
    if quarters == 4:
        return base
    half = tirx.sqrt(base)
    if quarters == 2:
        return half
    return tirx.sqrt(half) if quarters == 1 else half * tirx.sqrt(half)
