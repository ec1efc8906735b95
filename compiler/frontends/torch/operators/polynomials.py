"""Polynomials and ratios of them, which approximate special functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """c0 x^n + ... + cn."""
    result = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result


def ratio(numerator: Sequence[float], divisor: Sequence[float], x: Tensor) -> Tensor:
    """Quotient of two polynomials, whose highest powers come first."""
    return polynomial(numerator, x) / polynomial(divisor, x)
