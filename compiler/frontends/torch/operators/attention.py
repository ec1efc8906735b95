"""Attention with leading dimensions other than batch and heads, as for image windows, and its masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from compiler.frontends.torch.decomposition import decomposition_of

_RANK = 4  # the rank that the ONNX exporter converts


def _has_other_ranks_or_a_mask_of_booleans(node: torch.fx.Node) -> bool:
    tensors = [each.meta["val"] for each in node.args[:3]]  # type: ignore[union-attr]
    mask: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    masked = mask is not None and mask.meta["val"].dtype == torch.bool
    return masked or any(each.ndim != _RANK for each in tensors)


@decomposition_of("aten.scaled_dot_product_attention.default", condition=_has_other_ranks_or_a_mask_of_booleans)
def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kw: Any
) -> Any:
    """Convert to the exporter's rank and a float mask; a query that may attend to no key gets 0, like in torch."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        lowest = torch.full((), torch.finfo(query.dtype).min, dtype=query.dtype)
        numbers = torch.where(attn_mask, torch.zeros((), dtype=query.dtype), lowest)
        result = scaled_dot_product_attention(query, key, value, numbers, *args, **kw)
        return torch.where(attn_mask.any(-1, keepdim=True), result, torch.zeros((), dtype=result.dtype))
    if query.ndim == key.ndim == value.ndim == _RANK:
        return NotImplemented
    if kw.pop("enable_gqa", False):
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    first, *others = (each.shape[:-2] for each in (query, key, value))
    leading = torch.Size(torch.broadcast_shapes(first, *others))  # type: ignore[no-untyped-call]

    def flat(tensor: Tensor) -> Tensor:
        return tensor.expand(*leading, *tensor.shape[-2:]).reshape(-1, 1, *tensor.shape[-2:])

    mask = attn_mask if attn_mask is None or attn_mask.ndim <= 2 else flat(attn_mask)
    result = scaled_dot_product_attention(flat(query), flat(key), flat(value), mask, *args, **kw)
    return result.reshape(*leading, *result.shape[-2:])
