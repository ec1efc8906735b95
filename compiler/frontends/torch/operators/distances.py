"""Distances between rows."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of


@decomposition_of("aten.cdist.default", "aten._cdist_forward.default")
def _cdist(first: Tensor, second: Tensor, p: float = 2.0, _: int | None = None) -> Tensor:
    return _norm(first.unsqueeze(-2) - second.unsqueeze(-3), p)


@decomposition_of("aten.pdist.default", "aten._pdist_forward.default")
def _pdist(values: Tensor, p: float = 2.0) -> Tensor:
    rows, columns = torch.triu_indices(values.shape[0], values.shape[0], 1)
    return _norm(values[rows] - values[columns], p)


def _norm(difference: Tensor, p: float) -> Tensor:
    """The p-norm along the last axis; of order 0 it counts."""
    difference = difference.abs()
    if p == 0:
        return (difference != 0).to(difference.dtype).sum(-1)
    if p == 1:
        return difference.sum(-1)
    if p == 2:
        return (difference * difference).sum(-1).sqrt()
    if p == float("inf"):
        return difference.amax(-1)
    return (difference**p).sum(-1) ** (1 / p)
