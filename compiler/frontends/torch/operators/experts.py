"""Products of rows with one matrix per group, as in mixtures of experts."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of


@decomposition_of("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")
def _grouped_product(rows: Tensor, weights: Tensor, offs: Tensor | None = None, *_: object, **__: object) -> Tensor:
    """Each row by the matrix of its group; `offs` says where in the sorted rows each group ends.

    Few rows fetch their matrices. Many are multiplied by every matrix, and keep the product that is theirs.
    """
    if rows.ndim != 2 or weights.ndim != 3 or offs is None:
        return NotImplemented
    places = torch.arange(rows.shape[0], device=rows.device)
    group = (places.unsqueeze(1) >= offs).sum(1).clamp(max=weights.shape[0] - 1)
    if isinstance(rows.shape[0], int) and rows.shape[0] <= weights.shape[0]:
        return (rows.unsqueeze(1) @ weights[group]).squeeze(1)
    return (rows @ weights)[group, places]
