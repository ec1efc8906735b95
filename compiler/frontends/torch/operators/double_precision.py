"""Operators on float64 with a number that their ONNX operator holds as an attribute, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import Decomposition, along_axis, decomposition_of
from compiler.frontends.torch.operators.special_functions import expm1, log1p

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _of_float64(*operators: str) -> Callable[[Decomposition], Decomposition]:
    """Register a decomposition for float64 only."""

    def register(function: Decomposition) -> Decomposition:
        @wraps(function)
        def of_float64(values: Tensor, *arguments: Any, **named: Any) -> Any:
            return function(values, *arguments, **named) if values.dtype == torch.float64 else NotImplemented

        return decomposition_of(*operators, dtypes=(torch.float64,))(of_float64)

    return register


@_of_float64("aten.log2.default")
def _log2(values: Tensor) -> Tensor:
    return values.log() / math.log(2)


@_of_float64("aten.log10.default")
def _log10(values: Tensor) -> Tensor:
    return values.log() / math.log(10)


@_of_float64("aten.sinc.default", "aten.special_sinc.default")
def _sinc(values: Tensor) -> Tensor:
    angle = values * math.pi
    return torch.where(values == 0, 1.0, angle.sin() / angle)


@_of_float64("aten.addcmul.default")
def _addcmul(values: Tensor, first: Tensor, second: Tensor, *, value: float = 1) -> Tensor:
    return values + first * second * value


@_of_float64("aten.addcdiv.default")
def _addcdiv(values: Tensor, first: Tensor, second: Tensor, *, value: float = 1) -> Tensor:
    return values + first / second * value


@_of_float64("aten.addmm.default", "aten.addmv.default")
def _addmm(values: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = first @ second * alpha
    return product if beta == 0 else values * beta + product


@_of_float64("aten.addbmm.default")
def _addbmm(values: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = (first @ second).sum(0) * alpha
    return product if beta == 0 else values * beta + product


@_of_float64("aten.leaky_relu.default")
def _leaky_relu(values: Tensor, negative_slope: float = 0.01) -> Tensor:
    return torch.where(values > 0, values, values * negative_slope)


@_of_float64("aten.elu.default")
def _elu(values: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    below = expm1(values.clamp(max=0) * input_scale)
    return torch.where(values > 0, values * scale, below * (alpha * scale))


@_of_float64("aten.celu.default")
def _celu(values: Tensor, alpha: float = 1) -> Tensor:
    return _elu(values, alpha, 1, 1 / alpha)


@_of_float64("aten.selu.default")
def _selu(values: Tensor) -> Tensor:
    return _elu(values, _SELU_ALPHA, _SELU_SCALE)


@_of_float64("aten.hardsigmoid.default")
def _hardsigmoid(values: Tensor) -> Tensor:
    return (values + 3).clamp(0, 6) / 6


@_of_float64("aten.hardtanh.default")
def _hardtanh(values: Tensor, min_val: float = -1, max_val: float = 1) -> Tensor:
    return values.clamp(min_val, max_val)


@_of_float64("aten.softplus.default")
def _softplus(values: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    scaled = values * beta
    return torch.where(scaled > threshold, values, log1p(scaled.clamp(max=threshold).exp()) / beta)


@_of_float64("aten.linalg_vector_norm.default")
def _vector_norm(
    values: Tensor,
    ord: float = 2,
    dim: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if ord in (0, 1, 2, math.inf, -math.inf) or dtype not in (None, torch.float64):
        return NotImplemented
    return (values.abs() ** ord).sum(dim, keepdim) ** (1 / ord)


@_of_float64("aten.layer_norm.default")
def _layer_norm(
    values: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    _: bool = True,
) -> Tensor:
    normalized = _normalized(values, [*range(-len(normalized_shape), 0)], eps)
    return _scaled(normalized, weight, bias)


@_of_float64("aten.group_norm.default")
def _group_norm(
    values: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    _: bool = True,
) -> Tensor:
    normalized = _normalized(values.reshape(values.shape[0], num_groups, -1), [-1], eps).reshape(values.shape)
    return _scaled(normalized, *_of_channels(values, weight, bias))


@_of_float64("aten.instance_norm.default")
def _instance_norm(
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    _: bool,
) -> Tensor:
    if not use_input_stats:
        return NotImplemented
    normalized = _normalized(values, [*range(2, values.ndim)], eps)
    return _scaled(normalized, *_of_channels(values, weight, bias))


@_of_float64("aten._native_batch_norm_legit_no_training.default")
def _batch_norm(
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The other results, statistics of the batch, are those of training."""
    mean, deviation = (along_axis(each, values.ndim, 1) for each in (mean, (variance + eps).sqrt()))
    normalized = (values - mean) / deviation
    return _scaled(normalized, *_of_channels(values, weight, bias)), values.new_empty(0), values.new_empty(0)


def _normalized(values: Tensor, axes: list[int], eps: float) -> Tensor:
    centered = values - values.mean(axes, keepdim=True)
    return centered / ((centered * centered).mean(axes, keepdim=True) + eps).sqrt()


def _of_channels(values: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    return [None if each is None else along_axis(each, values.ndim, 1) for each in parameters]


def _scaled(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = values if weight is None else values * weight
    return scaled if bias is None else scaled + bias
