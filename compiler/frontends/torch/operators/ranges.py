"""Ranges of numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of


@decomposition_of("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def _arange(*bounds: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Arange of floats, counted and computed in float64; the exporter's conversion counts in the result's dtype."""
    start, end, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    kinds = {type(each) for each in (start, end, step)}
    if not kinds <= {int, float} or float not in kinds:
        return NotImplemented
    count = max(math.ceil((end - start) / step), 0)
    values = torch.arange(count).to(torch.float64) * step + start
    return values.to(dtype or torch.get_default_dtype())
