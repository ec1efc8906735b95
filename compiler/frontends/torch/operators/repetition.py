"""Elements repeated a number of times that is data."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of


@decomposition_of("aten.repeat_interleave.Tensor")
def _repeated_places(repeats: Tensor, *, output_size: int | None = None) -> Tensor:
    """Source index of each repeated element, for a known total, which the exporter's conversion does not accept."""
    if output_size is None:
        return NotImplemented
    return _places(repeats, output_size)


@decomposition_of("aten.repeat_interleave.self_Tensor")
def _repeated(values: Tensor, repeats: Tensor, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    if output_size is None or repeats.ndim == 0:
        return NotImplemented
    values, axis = (values.reshape(-1), 0) if dim is None else (values, dim)
    repeats = repeats if repeats.numel() == values.shape[axis] else repeats.expand(values.shape[axis])
    return values.index_select(axis, _places(repeats, output_size))


def _places(repeats: Tensor, output_size: int) -> Tensor:
    ends = repeats.cumsum(0)
    return (torch.arange(output_size).unsqueeze(-1) >= ends).sum(-1).to(repeats.dtype)
