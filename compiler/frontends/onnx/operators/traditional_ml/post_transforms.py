"""ai.onnx.ml: transformations of scores."""

from __future__ import annotations

import math

import numpy as np

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer
from compiler.frontends.onnx.values import TensorValue

_NAMES = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def transformed(context: NodeContext, op: Composer, value: TensorValue, *, alone: bool | None = None) -> TensorValue:
    """Apply the node's `post_transform` to scores.

    SOFTMAX_ZERO and PROBIT of a score that is `alone` (the only one, or of one of two classes) are refused, since ONNX
    Runtime computes something else than ONNX defines.
    """
    transform: str | int = context.attribute("post_transform", "NONE")
    if isinstance(transform, int):
        transform = _NAMES[transform] if 0 <= transform < len(_NAMES) else str(transform)
    if transform not in _NAMES:
        context.invalid(f"the transformation {transform} is none of {', '.join(_NAMES)}")
    if transform in ("SOFTMAX_ZERO", "PROBIT"):
        if value.shape[-1] == 1 if alone is None else alone:
            context.refuse(f"the transformation {transform} of a single score is not supported")
        return _softmax_zero(op, value) if transform == "SOFTMAX_ZERO" else _probit(op, value)
    if transform == "NONE":
        return value
    return op("Softmax", value, axis=-1) if transform == "SOFTMAX" else op("Sigmoid", value)


_ZERO = 1e-7  # scores of a smaller magnitude count as zeros


def _softmax_zero(op: Composer, value: TensorValue) -> TensorValue:
    """Softmax of the scores that are not zero; the others stay (almost) zero."""
    largest = op("ReduceMax", value, np.array([-1]), keepdims=1)
    powers = op("Exp", op("Sub", value, largest))
    kept = op("Mul", value, op("Exp", op("Neg", largest)))
    terms = op("Where", op("Greater", op("Abs", value), _ZERO), powers, kept)
    return op("Div", terms, op("ReduceSum", terms, np.array([-1]), keepdims=1))


_WINITZKI = 0.147


def _probit(op: Composer, value: TensorValue) -> TensorValue:
    """sqrt(2) * erfinv(2 * value - 1), by Winitzki's approximation, as in ONNX's reference and ONNX Runtime."""
    x = op("Sub", op("Mul", value, 2.0), 1.0)
    logarithm = op("Log", op("Sub", 1.0, op("Mul", x, x)))
    half = op("Add", op("Mul", logarithm, 0.5), 2 / (math.pi * _WINITZKI))
    root = op("Sqrt", op("Sub", op("Mul", half, half), op("Div", logarithm, _WINITZKI)))
    magnitude = op("Sqrt", op("Sub", root, half))
    return op("Mul", op("Where", op("Less", x, 0.0), op("Neg", magnitude), magnitude), math.sqrt(2))
