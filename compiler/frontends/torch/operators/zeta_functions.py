"""Hurwitz's zeta function and polygamma functions, in float64.

Nine terms of the series and Euler's and Maclaurin's formula for the rest, with PyTorch's coefficients, which are those
of the Cephes Mathematical Library (copyright (c) 2018, Steven Moshier; BSD license). Negative q by reflection: with
m = ceil(-q) and f = q + m, the terms below 0 are those of zeta(x, 1 - f) less those of zeta(x, 1 - q), up to a sign.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of, float_dtype

_TERMS = 9
_DIVISORS = (
    *(12.0, -720.0, 30240.0, -1209600.0, 47900160.0, -1.8924375803183791606e9, 7.47242496e10),
    *(-2.950130727918164224e12, 1.1646782814350067249e14, -4.5979787224074726105e15),
    *(1.8152105401943546773e17, -7.1661652561756670113e18),
)
_LARGEST_EXPONENT = 1e6  # the rest is 0 long before
_LARGEST_ORDER = 170  # of which float64 holds the factorial


@decomposition_of("aten.special_zeta.default", "aten.special_zeta.other_scalar", "aten.special_zeta.self_scalar")
def _zeta(x: Tensor | float, q: Tensor | float) -> Tensor:
    dtype = torch.result_type(x, q)
    exponent, start = (
        each.double() if isinstance(each, Tensor) else torch.full((), each, dtype=torch.float64) for each in (x, q)
    )
    found = _hurwitz(exponent, start)
    return found.to(float_dtype(dtype))


def _hurwitz(x: Tensor, q: Tensor) -> Tensor:
    below = torch.ceil(-q).clamp(min=0)
    first = q + below
    whole = first == 0  # q is 0 or a negative integer
    inside = torch.where(whole, 0.5, first)
    sign = torch.where(torch.remainder(x, 2) == 1, -1.0, 1.0)
    beyond = sign * (_of_positive(x, 1 - inside) - _of_positive(x, torch.where(q < 0, 1 - q, 1.0)))
    found = _of_positive(x, inside) + torch.where(q < 0, beyond, 0.0)
    found = torch.where((q < 0) & (x != x.floor()), math.nan, found)
    found = torch.where(whole, math.inf, found)
    return torch.where(x == 1, math.inf, torch.where(x < 1, math.nan, found))


def _of_positive(x: Tensor, q: Tensor) -> Tensor:
    total = q.pow(-x)
    for term in range(1, _TERMS + 1):
        power = (q + term).pow(-x)
        total = total + power
    end, exponent = q + _TERMS, x.clamp(max=_LARGEST_EXPONENT)
    total = total + power * end / (exponent - 1) - power / 2
    factor = power * exponent / end
    for step, divisor in enumerate(_DIVISORS):
        total = total + factor / divisor
        factor = factor * ((exponent + (2 * step + 1)) / end) * ((exponent + (2 * step + 2)) / end)
    return total


@decomposition_of("aten.polygamma.default", "aten.special_polygamma.default")
def _polygamma(n: int, values: Tensor) -> Tensor:
    """(-1)^(n + 1) n! zeta(n + 1, x)."""
    if n == 0:
        return torch.digamma(values)
    if n > _LARGEST_ORDER:
        return NotImplemented
    sign = 1.0 if n % 2 else -1.0
    wide = values.double()
    found = _hurwitz(torch.full((), float(n + 1), dtype=torch.float64), wide) * (sign * float(math.factorial(n)))
    return found.to(float_dtype(values.dtype))
