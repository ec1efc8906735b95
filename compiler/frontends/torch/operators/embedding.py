"""Sums of embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of


@decomposition_of("aten.embedding_bag.padding_idx", "aten.embedding_bag.default")
def _embedding_bag(
    table: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Sums (mode 0), means (1) or largest elements (2) of the rows of each bag; an empty bag gives zeros.

    Offsets are taken as if they were sorted, and what lies before the first is in no bag.
    """
    offsets = offsets[:-1] if include_last_offset else offsets
    places = torch.arange(indices.shape[0], device=indices.device)
    bags = (places.unsqueeze(1) >= offsets).sum(1) - 1
    counted = (
        torch.ones_like(indices) if padding_idx is None else (indices != padding_idx % table.shape[0]).to(torch.int64)
    )
    counted = counted * (bags >= 0)
    bags = bags.clamp(min=0)
    sizes = torch.zeros_like(offsets, dtype=torch.int64).index_add(0, bags, counted)
    rows, present = table[indices], (counted != 0).unsqueeze(1)
    if mode == 2:
        lowest = torch.full((offsets.shape[0], table.shape[1]), -torch.inf, dtype=table.dtype)
        targets = bags.unsqueeze(1).expand(rows.shape)
        largest = lowest.scatter_reduce(0, targets, torch.where(present, rows, -torch.inf), "amax")
        return torch.where((sizes > 0).unsqueeze(1), largest, 0.0), bags, sizes, sizes
    rows = torch.where(present, rows if weights is None else rows * weights.unsqueeze(1), 0.0)
    sums = table.new_zeros((offsets.shape[0], table.shape[1])).index_add(0, bags, rows)
    return sums / sizes.clamp(min=1).unsqueeze(1) if mode == 1 else sums, bags, sizes, sizes
