"""Batch normalization with batch statistics (`training=True`), which the exporter treats as inference if running
statistics are given."""

from __future__ import annotations

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
