"""Random draws."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of


@decomposition_of("aten.multinomial.default")
def _multinomial(weights: Tensor, num_samples: int, replacement: bool = False, *, generator: object = None) -> Tensor:
    """Draws without replacement: the largest of log(weight) plus Gumbel noise. The exporter draws with replacement."""
    if replacement or num_samples == 1:
        return NotImplemented
    noise = -torch.log(-torch.log(torch.rand_like(weights).clamp(min=torch.finfo(weights.dtype).tiny)))
    return (weights.log() + noise).topk(num_samples, -1)[1]
