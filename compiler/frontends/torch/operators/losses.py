"""Losses, and distances between rows."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import along_axis, decomposition_of
from compiler.frontends.torch.operators.special_functions import log1p, log_sigmoid

_NONE, _MEAN = 0, 1  # at::Reduction


@decomposition_of("aten.cross_entropy_loss.default")
def _cross_entropy(
    values: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy with class probabilities or label smoothing; the exporter handles plain labels."""
    if target.is_floating_point():
        return _of_probabilities(values, target, weight, reduction, label_smoothing)
    if label_smoothing == 0:
        return NotImplemented
    axis = 1 if values.ndim > 1 else 0
    logarithms = values.log_softmax(axis)
    hit = torch.ops.aten.nll_loss_nd(logarithms, target, weight, reduction, ignore_index)
    weighted = logarithms if weight is None else logarithms * along_axis(weight, values.ndim, axis)
    every = torch.where(target == ignore_index, 0.0, -weighted.sum(axis))
    if reduction == _MEAN:
        counted = target != ignore_index
        share = counted.sum() if weight is None else (weight[torch.where(counted, target, 0)] * counted).sum()
        every = every.sum() / share
    elif reduction != _NONE:
        every = every.sum()
    return (1 - label_smoothing) * hit + label_smoothing / values.shape[axis] * every


def _of_probabilities(
    values: Tensor, target: Tensor, weight: Tensor | None, reduction: int, label_smoothing: float
) -> Tensor:
    axis = 1 if values.ndim > 1 else 0
    classes = values.shape[axis]
    smoothed = target * (1 - label_smoothing) + label_smoothing / classes
    products = values.log_softmax(axis) * smoothed
    losses = -(products if weight is None else products * along_axis(weight, values.ndim, axis)).sum(axis)
    if reduction == _NONE:
        return losses
    return losses.sum() / losses.numel() if reduction == _MEAN else losses.sum()


@decomposition_of("aten.soft_margin_loss.default")
def _soft_margin(values: Tensor, target: Tensor, reduction: int = _MEAN) -> Tensor:
    """log(1 + exp(-target * values)), without the exporter's loss of small values."""
    losses = log1p(torch.exp(-target * values))
    return _reduced(losses, reduction)


@decomposition_of("aten.binary_cross_entropy_with_logits.default")
def _binary_cross_entropy(
    values: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = _MEAN,
) -> Tensor:
    positive = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    losses = (1 - target) * values - positive * log_sigmoid(values)
    losses = losses if weight is None else losses * weight
    return _reduced(losses, reduction)


def _reduced(losses: Tensor, reduction: int) -> Tensor:
    if reduction == _NONE:
        return losses
    return losses.mean() if reduction == _MEAN else losses.sum()


@decomposition_of("aten.cdist.default", "aten._cdist_forward.default")
def _cdist(first: Tensor, second: Tensor, p: float = 2.0, _: int | None = None) -> Tensor:
    return _norm(first.unsqueeze(-2) - second.unsqueeze(-3), p)


@decomposition_of("aten.pdist.default", "aten._pdist_forward.default")
def _pdist(values: Tensor, p: float = 2.0) -> Tensor:
    rows, columns = torch.triu_indices(values.shape[0], values.shape[0], 1)
    return _norm(values[rows] - values[columns], p)


def _norm(difference: Tensor, p: float) -> Tensor:
    """p-norm along the last axis; order 0 counts nonzeros."""
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
