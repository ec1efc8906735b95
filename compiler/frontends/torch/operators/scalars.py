"""Arithmetic of a number and a tensor whose data type the number changes, and numbers on the left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of
from compiler.frontends.torch.operators.quotients import floor_quotient


@decomposition_of("aten.rsub.Scalar", "aten.rsub.Tensor")
def _subtracted_from(values: Tensor, other: Any, alpha: Any = 1) -> Any:
    """other - alpha * values, where integers become floats."""
    dtype = torch.result_type(values, other)
    if dtype == values.dtype:
        return NotImplemented
    left = other if isinstance(other, Tensor) else torch.full((), other, dtype=dtype)
    return left.to(dtype) - values.to(dtype) * alpha


@decomposition_of("aten.floor_divide.default")
def _floor_divided(left: Any, right: Any) -> Any:
    """left // right, either of them a number, in the data type that both give."""
    dtype = torch.result_type(left, right)
    if dtype.is_floating_point:
        return floor_quotient(left, right)
    if isinstance(left, Tensor) and left.dtype == dtype:
        return NotImplemented
    divided = left.to(dtype) if isinstance(left, Tensor) else torch.full((), left, dtype=dtype)
    return torch.floor_divide(divided, right.to(dtype) if isinstance(right, Tensor) else right)
