"""Quotients and remainders rounded down, and angles: the exporter's forms round the quotient before they use it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of
from compiler.frontends.torch.operators.elementwise import negative


@decomposition_of("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def _remainder(values: Tensor | float, divisor: Tensor | float) -> Tensor:
    """With the sign of the divisor, exact as fmod is. Of powers of two the exporter's form is exact."""
    if not _is_float(values, divisor) or (not isinstance(divisor, Tensor) and abs(math.frexp(divisor)[0]) == 0.5):
        return NotImplemented
    values, divisor = _tensors(values, divisor)
    rest = torch.fmod(values, divisor)
    return torch.where((rest != 0) & ((rest < 0) != (divisor < 0)), rest + divisor, rest)


@decomposition_of("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _divide(values: Tensor, divisor: Tensor | float, *, rounding_mode: str | None) -> Tensor:
    if rounding_mode != "floor" or not _is_float(values, divisor):
        return NotImplemented
    return floor_quotient(values, divisor)


def floor_quotient(values: Tensor | float, divisor: Tensor | float) -> Tensor:
    """The quotient of floats rounded down as in Python: 3.0 // 0.3 is 9, where the rounded quotient is 10."""
    values, divisor = _tensors(values, divisor)
    rest = torch.fmod(values, divisor)
    quotient = (values - rest) / divisor
    quotient = torch.where((rest != 0) & ((rest < 0) != (divisor < 0)), quotient - 1, quotient)
    below = torch.floor(quotient)
    nearest = torch.where(quotient - below > 0.5, below + 1, below)
    return torch.where(divisor == 0, values / divisor, nearest)


def _is_float(*operands: Tensor | float) -> bool:
    return any(each.is_floating_point() if isinstance(each, Tensor) else isinstance(each, float) for each in operands)


def _tensors(values: Tensor | float, divisor: Tensor | float) -> tuple[Tensor, Tensor]:
    dtype = torch.result_type(values, divisor)

    def tensor(value: Tensor | float) -> Tensor:
        # `as_tensor` would make a number an input of the program.
        return value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype)

    return tensor(values), tensor(divisor)


@decomposition_of("aten.atan2.default")
def _atan2(ordinates: Tensor, abscissas: Tensor) -> Tensor:
    """In all quadrants, with signed zeros and infinities, as of C."""
    if not (ordinates.is_floating_point() and abscissas.is_floating_point()):
        return NotImplemented
    infinite = torch.isinf(ordinates) & torch.isinf(abscissas)
    ratio = torch.where(infinite, torch.sign(ordinates) * torch.sign(abscissas), ordinates / abscissas)
    half = torch.where(negative(ordinates), -math.pi, math.pi).to(ordinates.dtype)
    angle = torch.atan(ratio) + torch.where(abscissas < 0, half, 0.0)
    flat = torch.where(ordinates == 0, torch.where(negative(abscissas), half, ordinates), half / 2)
    return torch.where((abscissas == 0) & ~ordinates.isnan(), flat, angle)
