"""The inverse of the error function, computed in float64.

Winitzki's approximation (2008, within 0.002), and three of Halley's steps on erf(x) - y.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of

_WINITZKI = 0.147
_STEPS = 3


@decomposition_of("aten.erfinv.default", "aten.special_erfinv.default")
def _inverse(values: Tensor) -> Tensor:
    dtype = values.dtype if values.is_floating_point() else torch.get_default_dtype()
    wide = values.double()
    inside = torch.where(wide.abs() < 1, wide, 0.0)
    logarithm = torch.log1p(-inside * inside)
    term = 2 / (math.pi * _WINITZKI) + logarithm / 2
    root = torch.sign(inside) * torch.sqrt(torch.sqrt(term * term - logarithm / _WINITZKI) - term)
    for _ in range(_STEPS):
        step = (torch.erf(root) - inside) * torch.exp(root * root) * (math.sqrt(math.pi) / 2)
        root = root - step / (1 + root * step)
    beyond = torch.where(wide.abs() == 1, wide * math.inf, math.nan)
    return torch.where(wide.abs() < 1, root, beyond).to(dtype)
