"""The inverse of the error function, and its complement where that is small.

The inverse is computed in float64: Winitzki's approximation (2008, within 0.002), and three of Halley's steps on
erf(x) - y. The complement is Chebyshev's approximation of Numerical Recipes (6.2), of relative error 1.2e-7.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of
from compiler.frontends.torch.operators.stable_logarithms import log1p

_WINITZKI = 0.147
_STEPS = 3


@decomposition_of("aten.erfinv.default", "aten.special_erfinv.default")
def _inverse(values: Tensor) -> Tensor:
    dtype = values.dtype if values.is_floating_point() else torch.get_default_dtype()
    wide = values.double()
    inside = torch.where(wide.abs() < 1, wide, 0.0)
    logarithm = log1p(-inside * inside)
    term = 2 / (math.pi * _WINITZKI) + logarithm / 2
    root = torch.sign(inside) * torch.sqrt(torch.sqrt(term * term - logarithm / _WINITZKI) - term)
    for _ in range(_STEPS):
        step = (torch.erf(root) - inside) * torch.exp(root * root) * (math.sqrt(math.pi) / 2)
        root = root - step / (1 + root * step)
    beyond = torch.where(wide.abs() == 1, wide * math.inf, math.nan)
    return torch.where(wide.abs() < 1, root, beyond).to(dtype)


_COMPLEMENT = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)
_SMALL = 0.5  # above it 1 - erf(x) loses precision


@decomposition_of("aten.erfc.default", "aten.special_erfc.default")
def _complement(values: Tensor) -> Tensor:
    if values.dtype != torch.float32:
        return NotImplemented
    far = _exponential_of_complement(values, -values * values)
    return torch.where(values > _SMALL, far, 1 - torch.erf(values))


@decomposition_of("aten.special_erfcx.default")
def _scaled_complement(values: Tensor) -> Tensor:
    """exp(x^2) erfc(x)."""
    if values.dtype != torch.float32:
        return NotImplemented
    near = torch.exp(values * values) * (1 - torch.erf(values))
    return torch.where(values > _SMALL, _exponential_of_complement(values, torch.zeros_like(values)), near)


@decomposition_of("aten.special_log_ndtr.default")
def _log_of_normal(values: Tensor) -> Tensor:
    """The logarithm of the normal distribution's integral from -inf to x."""
    if values.dtype != torch.float32:
        return NotImplemented
    scaled = -values / math.sqrt(2)
    left = torch.log(_scaled_complement(scaled) / 2) - scaled * scaled
    right = log1p(-_complement(-scaled) / 2)
    found = torch.where(values < -1, left, right)
    return torch.where(values == -math.inf, values, found)


def _exponential_of_complement(values: Tensor, square: Tensor) -> Tensor:
    """erfc(x) exp(x^2 + square) for x >= 0."""
    term = 2 / (2 + values.abs())
    power = torch.zeros_like(term)
    for coefficient in reversed(_COMPLEMENT):
        power = coefficient + term * power
    return term * torch.exp(square + power)
