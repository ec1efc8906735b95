"""Operators that were experimental until opset 10, found in old files converted from Core ML and Caffe2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.frontends.onnx.operators.composition import Composer, composed, int64s
from compiler.frontends.onnx.values import TensorValue


@composed("Affine")
def affine(op: Composer, x: TensorValue, *, alpha: float = 1.0, beta: float = 0.0) -> TensorValue:
    """alpha * x + beta."""
    return op("Add", op("Mul", x, alpha), beta)


@composed("Scale")
def scaled(op: Composer, x: TensorValue, *, scale: float = 1.0) -> TensorValue:
    """scale * x."""
    return op("Mul", x, scale)


@composed("ScaledTanh")
def scaled_tanh(op: Composer, x: TensorValue, *, alpha: float = 1.0, beta: float = 1.0) -> TensorValue:
    """alpha * tanh(beta * x)."""
    return op("Mul", op("Tanh", op("Mul", x, beta)), alpha)


@composed("ParametricSoftplus")
def parametric_softplus(op: Composer, x: TensorValue, *, alpha: float = 1.0, beta: float = 1.0) -> TensorValue:
    """alpha * log(exp(beta * x) + 1)."""
    return op("Mul", op("Softplus", op("Mul", x, beta)), alpha)


@composed("ImageScaler")
def image_scaler(op: Composer, x: TensorValue, *, bias: Sequence[float], scale: float = 1.0) -> TensorValue:
    """scale * x plus a bias for each channel of x (N, C, H, W)."""
    return op("Add", op("Mul", x, scale), np.array(bias, np.float32).reshape(-1, 1, 1))


@composed("Crop")
def crop(op: Composer, x: TensorValue, *, border: Sequence[int], scale: Sequence[int] | None = None) -> TensorValue:
    """x (N, C, H, W) without a border (left, top, right, bottom), or a `scale` (height, width) region from there."""
    left, top, right, bottom = border
    ends = [-cut if cut else np.iinfo(np.int64).max for cut in (bottom, right)]
    if scale is not None:
        ends = [top + scale[0], left + scale[1]]
    return op("Slice", x, int64s(top, left), int64s(*ends), int64s(2, 3))
