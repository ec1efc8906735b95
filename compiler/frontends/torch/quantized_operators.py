"""Operators of quantized programs that torch's exporter has no conversion for, or one that is not what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# Smallest and largest of the types that programs quantize to.
_BOUNDS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


def int_mm(first: object, second: object) -> Any:
    """Matmul of 8-bit integers with an int32 result."""
    return _opset().MatMulInteger(first, second)


def _choose(data: object, low: int, high: int, smallest: float, dtype: int) -> tuple[Any, Any]:
    """(scale, zero point) that hold the data's range and zero: float64 and int64, of shape (1,)."""
    op = _opset()
    least, most = op.Min(op.ReduceMin(data, keepdims=0), 0.0), op.Max(op.ReduceMax(data, keepdims=0), 0.0)
    scale = op.Max(op.Div(op.Sub(most, least), float(high - low)), smallest)
    zero = op.Clip(op.Sub(float(low), op.Round(op.Div(least, scale))), float(low), float(high))
    return _one(op.Cast(scale, to=_onnx_type("float64"))), _one(op.Cast(zero, to=_onnx_type("int64")))


def _choose_symmetric(data: object, low: int, high: int, smallest: float, dtype: int) -> tuple[Any, Any]:
    """Like `_choose`, with the zero point in the middle of the type."""
    op = _opset()
    most = op.ReduceMax(op.Abs(data), keepdims=0)
    scale = op.Max(op.Div(most, float(high - low) / 2), smallest)
    middle = 128 if dtype == _onnx_type("uint8") else 0
    return _one(op.Cast(scale, to=_onnx_type("float64"))), op.Constant(value_ints=[middle])


def _quantize(data: object, scale: object, zero: object, low: int, high: int, dtype: int) -> Any:
    """Limited to `low` and `high`, which are narrower than the type where the range is reduced."""
    op = _opset()
    scale, zero = _parameters(scale, zero, dtype)
    if (low, high) != _BOUNDS[_name(dtype)]:
        wide = op.Cast(zero, to=_onnx_type("float32"))
        data = op.Clip(data, op.Mul(op.Sub(float(low), wide), scale), op.Mul(op.Sub(float(high), wide), scale))
    return op.QuantizeLinear(data, scale, zero)


def _dequantize(
    data: object, scale: object, zero: object, low: int, high: int, dtype: int, out_dtype: int | None = None
) -> Any:
    """To float32, or to another type of floats that is asked for."""
    op = _opset()
    wide = op.DequantizeLinear(data, *_parameters(scale, zero, dtype))
    return wide if out_dtype in (None, -1) else op.Cast(wide, to=out_dtype)


def _parameters(scale: object, zero: object, dtype: int) -> tuple[Any, Any]:
    """Both as scalars, of numbers or of tensors of one."""
    import onnx

    op, name = _opset(), _name(dtype)
    if isinstance(scale, int | float) and isinstance(zero, int):
        value = onnx.numpy_helper.from_array(np.asarray(zero, name))
        return op.Constant(value_float=float(scale)), op.Constant(value=value)
    shape = op.Constant(value=onnx.numpy_helper.from_array(np.zeros(0, np.int64)))
    narrow = op.Cast(scale, to=_onnx_type("float32")), op.Cast(zero, to=dtype)
    return op.Reshape(narrow[0], shape), op.Reshape(narrow[1], shape)


def _one(scalar: object) -> Any:
    op = _opset()
    return op.Reshape(scalar, op.Constant(value_ints=[1]))


def _name(dtype: int) -> str:
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(dtype))


def _onnx_type(name: str) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)))


def _opset() -> Any:
    from onnxscript import opset18

    return opset18


QUANTIZED_OPERATORS: dict[str, Callable[..., Any]] = {
    "quantized_decomposed.choose_qparams.tensor": _choose,
    "quantized_decomposed.choose_qparams_symmetric.tensor": _choose_symmetric,
    "quantized_decomposed.quantize_per_tensor.default": _quantize,
    "quantized_decomposed.quantize_per_tensor.tensor": _quantize,
    "quantized_decomposed.dequantize_per_tensor.tensor": _dequantize,
}
