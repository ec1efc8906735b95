"""Tensors with a part overwritten along one axis, as caches are: one operator that a session can do in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.frontends.onnx.registry import TORCH_DOMAIN
from compiler.frontends.torch.decomposition import decomposition_of


@decomposition_of("aten.index_copy.default")
def _index_copy(data: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    if data.ndim == 0 or index.ndim != 1 or source.ndim != data.ndim:
        return NotImplemented
    return _written(data, index, source, dim)


@decomposition_of("aten.index_put.default")
def _index_put(data: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """Index_put along one axis with integer indices; the exporter handles the rest."""
    used = [axis for axis, index in enumerate(indices) if index is not None]
    index = indices[used[0]] if len(used) == 1 else None
    if accumulate or index is None or index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
        return NotImplemented
    axis, size = used[0], data.shape[used[0]]
    shape = [*data.shape[:axis], index.shape[0], *data.shape[axis + 1 :]]
    places = torch.where(index < 0, index + size, index)
    return _written(data, places, values.expand(shape), axis)


@decomposition_of("aten.slice_scatter.default")
def _slice_scatter(
    data: Tensor, source: Tensor, dim: int = 0, start: object = None, end: object = None, step: int = 1
) -> Tensor:
    """The part from `start` on; its end is that of what is written."""
    if step != 1 or data.ndim == 0:
        return NotImplemented
    first = 0 if start is None else start
    if isinstance(first, int) and first < 0:
        first = first + data.shape[dim]
    if not isinstance(first, int | torch.SymInt) or (isinstance(first, int) and not isinstance(data.shape[dim], int)):
        return NotImplemented
    places: Any = torch.arange(source.shape[dim], device=data.device) + first
    return _written(data, places, source, dim)


@decomposition_of("aten.select_scatter.default")
def _select_scatter(data: Tensor, source: Tensor, dim: int, index: object) -> Tensor:
    if not isinstance(index, int) or not isinstance(data.shape[dim], int):
        return NotImplemented
    return _written(
        data,
        torch.full((1,), index % data.shape[dim], dtype=torch.int64, device=data.device),
        source.unsqueeze(dim),
        dim,
    )


def _written(data: Tensor, places: Tensor, rows: Tensor, dim: int) -> Tensor:
    if not hasattr(torch.onnx, "ops"):  # before torch 2.8
        return NotImplemented
    operands = (data, places.to(torch.int64), rows.to(data.dtype))
    attributes: dict[str, Any] = {"axis": dim % data.ndim}
    return torch.onnx.ops.symbolic(
        f"{TORCH_DOMAIN}::WritePlaces", operands, attributes, dtype=data.dtype, shape=data.shape, version=1
    )
