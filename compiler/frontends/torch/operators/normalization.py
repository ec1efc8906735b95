"""Batch normalization with batch statistics (`training=True`), which the exporter treats as inference if running
statistics are given; softmax in another type, and norms over all axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import along_axis, decomposition_of


@decomposition_of("aten._native_batch_norm_legit_functional.default")
def _batch_norm(
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the values, the batch's mean and inverse deviation, and the next running mean and variance (of count -
    1)."""
    if not training:
        return NotImplemented
    axes = [axis for axis in range(values.ndim) if axis != 1]
    count = values.numel() // values.shape[1]
    average = values.mean(axes)
    deviations = values - along_axis(average, values.ndim, 1)
    squares = (deviations * deviations).mean(axes)
    inverse = torch.rsqrt(squares + eps)
    result = deviations * along_axis(inverse, values.ndim, 1)
    if weight is not None:
        result = result * along_axis(weight, values.ndim, 1)
    if bias is not None:
        result = result + along_axis(bias, values.ndim, 1)
    unbiased = squares * count / (count - 1)
    return (
        result,
        average,
        inverse,
        (1 - momentum) * mean + momentum * average,
        (1 - momentum) * variance + momentum * unbiased,
    )


def _changes_type(node: torch.fx.Node) -> bool:
    """True if a softmax converts its input to another type, in which it is computed, and this can show.

    Of halves, a result that is only converted back is left to the exporter: attention is recognized in that form.
    """
    values: Any = node.args[0]
    given, found = values.meta["val"].dtype, node.meta["val"].dtype
    if given == found:
        return False
    back = all(user.target in _CASTS and user.meta["val"].dtype == given for user in node.users)
    return not (given in _HALVES and found == torch.float32 and back)


_HALVES = (torch.float16, torch.bfloat16)
_CASTS = (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype_layout)


def _in_its_type(name: str, function: Callable[..., Tensor]) -> None:
    """Convert before a softmax; the exporter converts its result."""

    def decomposition(values: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return NotImplemented if dtype in (None, values.dtype) else function(values.to(dtype), dim)

    decomposition_of(name, condition=_changes_type)(decomposition)


_in_its_type("aten.softmax.int", torch.softmax)
_in_its_type("aten.log_softmax.int", torch.log_softmax)


def _keeps_all_axes(node: torch.fx.Node) -> bool:
    return bool(node.meta["val"].ndim) and not (node.args[2:3] and node.args[2])


@decomposition_of("aten.linalg_vector_norm.default", condition=_keeps_all_axes)
def _norm_of_all(
    values: Tensor,
    ord: float = 2,
    dim: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Name all axes, which the exporter's conversion drops otherwise."""
    if dim or not keepdim:
        return NotImplemented
    return torch.linalg.vector_norm(values, ord, list(range(values.ndim)), True, dtype=dtype)


@decomposition_of("aten.linalg_norm.default")
def _norm_of_elements(
    values: Tensor,
    ord: float | None = None,
    dim: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if dim is not None or not keepdim or not (ord is None or values.ndim == 1):
        return NotImplemented
    return torch.linalg.vector_norm(values, 2 if ord is None else ord, list(range(values.ndim)), True, dtype=dtype)
