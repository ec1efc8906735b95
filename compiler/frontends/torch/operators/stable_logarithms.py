"""Logarithms and exponentials near 1 and 0, and of numbers whose exponential is out of range.

The exporter writes log(1 + x) for log1p(x), which is 0 for a small x, and log(sigmoid(x)) for logsigmoid(x), which is
-inf below -88. The forms here keep the relative precision of the type.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of

_NONE, _MEAN = 0, 1  # at::Reduction


@decomposition_of("aten.log1p.default")
def log1p(values: Tensor) -> Tensor:
    """By Kahan: the rounding error of 1 + x is that of the divisor too (Goldberg, ACM Computing Surveys 23, 1991)."""
    if not values.is_floating_point():
        return NotImplemented
    above = 1 + values
    rounded = above - 1
    found = torch.where(above == math.inf, above, torch.log(above) * (values / rounded))
    return torch.where(rounded == 0, values, found)


@decomposition_of("aten.expm1.default", "aten.special_expm1.default")
def _expm1(values: Tensor) -> Tensor:
    """By Kahan (Higham, Accuracy and Stability of Numerical Algorithms, 1.14.1)."""
    if not values.is_floating_point():
        return NotImplemented
    power = torch.exp(values)
    less = power - 1
    found = torch.where((less == -1) | torch.isinf(power), less, less * (values / torch.log(power)))
    return torch.where(less == 0, values, found)


@decomposition_of("aten.log_sigmoid.default")
def _log_sigmoid(values: Tensor) -> Tensor:
    return values.clamp(max=0) - log1p(torch.exp(-values.abs()))


@decomposition_of("aten.binary_cross_entropy_with_logits.default")
def _binary_cross_entropy(
    values: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = _MEAN,
) -> Tensor:
    positive = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    losses = (1 - target) * values - positive * _log_sigmoid(values)
    losses = losses if weight is None else losses * weight
    if reduction == _NONE:
        return losses
    return losses.mean() if reduction == _MEAN else losses.sum()


@decomposition_of("aten.logaddexp.default")
def _logaddexp(first: Tensor, second: Tensor) -> Tensor:
    largest = torch.maximum(first, second)
    found = largest + log1p(torch.exp(-(first - second).abs()))
    return torch.where(torch.isinf(largest), largest, found)


@decomposition_of("aten.logaddexp2.default")
def _logaddexp2(first: Tensor, second: Tensor) -> Tensor:
    largest = torch.maximum(first, second)
    found = largest + log1p(torch.exp2(-(first - second).abs())) / math.log(2)
    return torch.where(torch.isinf(largest), largest, found)


@decomposition_of("aten.special_xlog1py.default")
def _xlog1py(factors: Tensor, values: Tensor) -> Tensor:
    return torch.where((factors == 0) & ~values.isnan(), 0.0, factors * log1p(values))
