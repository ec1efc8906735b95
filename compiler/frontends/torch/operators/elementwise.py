"""Functions of elements."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of


@decomposition_of("aten.hypot.default")
def _hypot(first: Tensor, second: Tensor) -> Tensor:
    """Divided by the larger one, so that the squares stay in range."""
    first, second = first.abs(), second.abs()
    larger = torch.maximum(first, second)
    ratio = torch.minimum(first, second) / torch.where(larger == 0, torch.ones_like(larger), larger)
    return torch.where(torch.isinf(larger), larger, larger * (1 + ratio * ratio).sqrt())


@decomposition_of("aten.copysign.Tensor")
def _copysign(values: Tensor, signs: Tensor) -> Tensor:
    return torch.where(negative(signs), -values.abs(), values.abs())


@decomposition_of("aten.signbit.default")
def negative(values: Tensor) -> Tensor:
    """Below zero, or the zero that is."""
    return (values < 0) | (1 / values < 0) if values.is_floating_point() else values < 0


@decomposition_of("aten.rrelu.default")
def _rrelu(values: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: object) -> Tensor:
    return NotImplemented if training else torch.nn.functional.leaky_relu(values, (lower + upper) / 2)


@decomposition_of("aten._is_all_true.default")
def _is_all_true(values: Tensor) -> Tensor:
    return values.all()


@decomposition_of("aten._is_any_true.default")
def _is_any_true(values: Tensor) -> Tensor:
    return values.any()


@decomposition_of("aten.fmax.default")
def _fmax(first: Tensor, second: Tensor) -> Tensor:
    """The larger one, or the one that is not NaN."""
    return torch.where(first.isnan(), second, torch.where(second.isnan(), first, torch.maximum(first, second)))


@decomposition_of("aten.fmin.default")
def _fmin(first: Tensor, second: Tensor) -> Tensor:
    """The smaller one, or the one that is not NaN."""
    return torch.where(first.isnan(), second, torch.where(second.isnan(), first, torch.minimum(first, second)))


@decomposition_of(
    "aten.__rshift__.Scalar",
    "aten.__rshift__.Tensor",
    "aten.bitwise_right_shift.Tensor",
    "aten.bitwise_right_shift.Tensor_Scalar",
    "aten.bitwise_right_shift.Scalar_Tensor",
)
def _right_shift(values: Tensor | int, steps: Tensor | int) -> Tensor:
    """The sign is shifted in: a quotient rounded down."""
    return torch.div(_wide(values), 2 ** _wide(steps), rounding_mode="floor").to(torch.result_type(values, steps))


@decomposition_of(
    "aten.__lshift__.Scalar",
    "aten.__lshift__.Tensor",
    "aten.bitwise_left_shift.Tensor",
    "aten.bitwise_left_shift.Tensor_Scalar",
    "aten.bitwise_left_shift.Scalar_Tensor",
)
def _left_shift(values: Tensor | int, steps: Tensor | int) -> Tensor:
    return (_wide(values) * 2 ** _wide(steps)).to(torch.result_type(values, steps))


def _wide(values: Tensor | int) -> Tensor | int:
    """In 64 bits, which hold the powers of two that the shifts of narrower integers take."""
    return values.to(torch.int64) if isinstance(values, Tensor) else values
