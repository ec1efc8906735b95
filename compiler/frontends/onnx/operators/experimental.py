"""Operators that were experimental until opset 10: old files that were converted from Core ML and Caffe2 have them."""

from __future__ import annotations

import numpy as np

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import TensorValue


@converter("Affine")
def affine(context: NodeContext) -> TensorValue:
    """alpha * x + beta."""
    op = Composer(context)
    scaled = op("Mul", context.value(0), float(context.attribute("alpha", 1.0)))
    return op("Add", scaled, float(context.attribute("beta", 0.0)))


@converter("Scale")
def scale(context: NodeContext) -> TensorValue:
    """scale * x."""
    return Composer(context)("Mul", context.value(0), float(context.attribute("scale", 1.0)))


@converter("ScaledTanh")
def scaled_tanh(context: NodeContext) -> TensorValue:
    """alpha * tanh(beta * x)."""
    op = Composer(context)
    bent = op("Tanh", op("Mul", context.value(0), float(context.attribute("beta", 1.0))))
    return op("Mul", bent, float(context.attribute("alpha", 1.0)))


@converter("ParametricSoftplus")
def parametric_softplus(context: NodeContext) -> TensorValue:
    """alpha * log(exp(beta * x) + 1)."""
    op = Composer(context)
    bent = op("Softplus", op("Mul", context.value(0), float(context.attribute("beta", 1.0))))
    return op("Mul", bent, float(context.attribute("alpha", 1.0)))


@converter("ImageScaler")
def image_scaler(context: NodeContext) -> TensorValue:
    """scale * x plus a bias for each channel of x (N, C, H, W)."""
    op = Composer(context)
    bias = np.array(context.required_attribute("bias"), np.float32).reshape(-1, 1, 1)
    return op("Add", op("Mul", context.value(0), float(context.attribute("scale", 1.0))), bias)


@converter("Crop")
def crop(context: NodeContext) -> TensorValue:
    """x (N, C, H, W) without a border (left, top, right, bottom), or its `scale` (height, width) from there on."""
    op = Composer(context)
    left, top, right, bottom = (int(size) for size in context.required_attribute("border"))
    ends = [-cut if cut else np.iinfo(np.int64).max for cut in (bottom, right)]
    if context.has_attribute("scale"):
        height, width = (int(size) for size in context.required_attribute("scale"))
        ends = [top + height, left + width]
    return op("Slice", context.value(0), int64s(top, left), int64s(*ends), int64s(2, 3))
