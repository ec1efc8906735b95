"""The gamma function's logarithm and its derivative, computed in float64.

Stirling's series (Abramowitz and Stegun 6.1.41, 6.3.18) at x + 8, from there back by the recurrences; below 1/2 by
reflection (6.1.17, 6.3.7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of

_STEPS = 8
# Bernoulli's numbers B2, B4, ...
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)


@decomposition_of("aten.lgamma.default", "aten.special_gammaln.default")
def _logarithm(values: Tensor) -> Tensor:
    wide, reflected, place = _reflected(values)
    product = torch.ones_like(place)
    for step in range(_STEPS):
        product = product * (place + step)
    far = place + _STEPS
    series = _series(far, [b / (2 * n * (2 * n - 1)) for n, b in enumerate(_BERNOULLI, 1)]) * far
    direct = (far - 0.5) * far.log() - far + math.log(2 * math.pi) / 2 + series
    # What is large needs no steps, which would overflow.
    large = place > 1e6
    alone = (place - 0.5) * place.log() - place + math.log(2 * math.pi) / 2
    direct = torch.where(large, alone, direct - torch.where(large, 1.0, product).log())
    sine = torch.sin(math.pi * (wide - wide.round())).abs()
    result = torch.where(reflected, math.log(math.pi) - sine.log() - direct, direct)
    return torch.where(torch.isinf(wide), torch.inf, result).to(values.dtype)


@decomposition_of("aten.digamma.default", "aten.special_psi.default", "aten.special_digamma.default")
def _derivative(values: Tensor) -> Tensor:
    wide, reflected, place = _reflected(values)
    recurrence = sum(1 / (place + step) for step in range(_STEPS))
    far = place + _STEPS
    series = _series(far, [b / (2 * n) for n, b in enumerate(_BERNOULLI, 1)])
    direct = far.log() - 0.5 / far - series - recurrence
    fraction = wide - wide.round()
    cotangent = math.pi * torch.cos(math.pi * fraction) / torch.sin(math.pi * fraction)
    result = torch.where(reflected, direct - cotangent, direct)
    # At 0 it goes to infinity on either side; at the other poles there is no limit.
    pole = torch.where(wide == 0, -1 / wide, torch.nan)
    return torch.where((fraction == 0) & reflected, pole, result).to(values.dtype)


@decomposition_of("aten.mvlgamma.default", "aten.special_multigammaln.default")
def _multivariate(values: Tensor, p: int) -> Tensor:
    """The sum over j below p of lgamma(x - j / 2), and p (p - 1) / 4 log(pi)."""
    wide = values.double()
    total = torch.full_like(wide, p * (p - 1) / 4 * math.log(math.pi))
    for step in range(p):
        total = total + _logarithm(wide - step / 2)
    return total.to(values.dtype)


def _series(values: Tensor, coefficients: Sequence[float]) -> Tensor:
    """c0 / x^2 + c1 / x^4 + ..."""
    square, result = 1 / (values * values), torch.zeros_like(values)
    for coefficient in reversed(coefficients):
        result = (result + coefficient) * square
    return result


def _reflected(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(values, whether they are below 1/2, the values or what they are reflected to: 1/2 and more), float64."""
    wide = values.double()
    reflected = wide < 0.5
    return wide, reflected, torch.where(reflected, 1 - wide, wide)
