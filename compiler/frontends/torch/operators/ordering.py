"""Smallest, largest and middle elements."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of


@decomposition_of("aten.kthvalue.default")
def _kthvalue(values: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    if values.ndim == 0:
        return values.clone(), values.new_zeros((), dtype=torch.int64)
    found, indices = values.topk(k, dim, largest=False)
    found, indices = found.narrow(dim, k - 1, 1), indices.narrow(dim, k - 1, 1)
    return (found, indices) if keepdim else (found.squeeze(dim), indices.squeeze(dim))


@decomposition_of("aten.median.dim")
def _median_of_axis(values: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _kthvalue(values, _middle(values.shape[dim] if values.ndim else 1), dim, keepdim)


@decomposition_of("aten.median.default")
def _median(values: Tensor) -> Tensor:
    flat = values.reshape(-1)
    return _kthvalue(flat, _middle(flat.shape[0]))[0]


def _middle(size: int) -> int:
    """The place of the median, the lower one of two, counted from 1."""
    return (size + 1) // 2


@decomposition_of("aten.aminmax.default")
def _aminmax(values: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    axes = list(range(values.ndim)) if dim is None else [dim]
    return values.amin(axes, keepdim), values.amax(axes, keepdim)


@decomposition_of("aten.cummax.default")
def _cummax(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return _running(values, dim, lambda own, earlier: own >= earlier)


@decomposition_of("aten.cummin.default")
def _cummin(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return _running(values, dim, lambda own, earlier: own <= earlier)


def _running(values: Tensor, dim: int, keeps: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Each element against those before it, from 1, 2, 4, ... places away: of equal ones the later, of NaN the last."""
    size = values.shape[dim] if values.ndim else 1
    if not isinstance(size, int):
        return NotImplemented
    shape = [-1 if axis == dim % values.ndim else 1 for axis in range(values.ndim)]
    indices = torch.arange(size).reshape(shape).expand(values.shape)
    step = 1
    while step < size:
        own, earlier = values.narrow(dim, step, size - step), values.narrow(dim, 0, size - step)
        kept = keeps(own, earlier) | own.isnan()
        parts = values.narrow(dim, 0, step), torch.where(kept, own, earlier)
        places = indices.narrow(dim, step, size - step), indices.narrow(dim, 0, size - step)
        indices = torch.cat([indices.narrow(dim, 0, step), torch.where(kept, *places)], dim)
        values, step = torch.cat(parts, dim), 2 * step
    return values, indices
