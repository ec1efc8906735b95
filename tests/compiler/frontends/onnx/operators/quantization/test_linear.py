"""Quantized operators of ONNX against ONNX Runtime; integers must agree exactly."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.compiler.frontends.onnx.operators.onnxruntime_check import (
    assert_equal_to_onnxruntime,
    node_model,
    random_int8,
)

Array = np.ndarray


def _check(operator: str, inputs: dict[str, Any], *, constants: tuple[str, ...] = (), **options: Any) -> None:
    model = node_model(operator, inputs, constants=constants, **options)
    assert_equal_to_onnxruntime(model, {k: v for k, v in inputs.items() if v is not None and k not in constants})


def _integers(dtype: str, *shape: int) -> Array:
    generator, limits = np.random.default_rng(sum(shape)), np.iinfo(dtype)
    if dtype == "int8":
        return random_int8(generator, *shape)
    return generator.integers(limits.min, limits.max + 1, shape).astype(dtype)


def _floats(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).uniform(-30, 30, shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("per_axis", [False, True])
def test_quantize_and_dequantize(dtype: str, per_axis: bool) -> None:
    # Multiples of half the scale: every other one is a tie, to be rounded to even.
    x = (np.arange(-300, 300, dtype=np.float32).reshape(3, 200) * 0.125).astype(np.float32)
    scale = np.array([0.25, 0.5, 0.0625] if per_axis else 0.25, np.float32)
    zero = np.array([1, 2, 3] if per_axis else 3, dtype)
    attributes: dict[str, Any] = {"axis": 0} if per_axis else {}
    opset = 21 if dtype.endswith("16") else 17
    _check("QuantizeLinear", {"x": x, "s": scale, "z": zero}, opset=opset, dynamic=not per_axis, **attributes)
    _check("DequantizeLinear", {"x": _integers(dtype, 3, 50), "s": scale, "z": zero}, opset=opset, **attributes)


def test_four_bit_and_blocked() -> None:
    x = _floats(4, 6)
    scale, zero = np.abs(_floats(4, 2)) * 0.1 + 0.1, np.array([[1, 2]] * 4)
    for dtype in (ml_dtypes.int4, ml_dtypes.uint4, np.int8):
        inputs: dict[str, Any] = {"x": x, "s": scale.astype(np.float32), "z": zero.astype(dtype)}
        model = node_model("QuantizeLinear", inputs, opset=21, axis=1, block_size=3, constants=("z",))
        back = node_model("DequantizeLinear", {"q": x}, opset=21).graph.node[0]
        back.input[:] = ["y0", "s", "z"]
        back.output[:] = ["back"]
        back.attribute.extend(model.graph.node[0].attribute)
        model.graph.node.append(back)
        model.graph.output[0].name = "back"
        assert_equal_to_onnxruntime(model, {"x": x, "s": inputs["s"]})


def test_dynamic_quantization() -> None:
    for x in (_floats(3, 4), np.abs(_floats(5)), -np.abs(_floats(6)), np.zeros(3, np.float32)):
        model = node_model("DynamicQuantizeLinear", {"x": x}, 3)
        assert_equal_to_onnxruntime(model, {"x": x}, rtol=0, atol=0)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("zeros", ["none", "scalar", "vector"])
def test_integer_matmul(constant: bool, zeros: str) -> None:
    a, b = _integers("uint8", 2, 5, 7), _integers("int8" if zeros == "none" else "uint8", 7, 3)
    zero_a = {"none": None, "scalar": np.uint8(7), "vector": np.uint8(9)}[zeros]
    zero_b = {"none": None, "scalar": np.uint8(130), "vector": np.array([3, 200, 128], np.uint8)}[zeros]
    inputs: dict[str, Any] = {"a": a, "b": b, "za": zero_a, "zb": zero_b}
    _check("MatMulInteger", inputs, constants=("b", "zb") if constant else ())


@pytest.mark.parametrize("constant", [False, True])
def test_integer_convolution(constant: bool) -> None:
    attributes: dict[str, Any] = {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2], "group": 2}
    x, w = _integers("uint8", 1, 4, 9, 8), _integers("uint8", 6, 2, 3, 3)
    zero = np.uint8(120)
    _check(
        "ConvInteger", {"x": x, "w": w, "xz": np.uint8(11), "wz": zero}, constants=("w", "wz") * constant, **attributes
    )


@pytest.mark.parametrize("rank", [1, 2])
def test_quantized_convolution(rank: int) -> None:
    inputs: dict[str, Any] = {
        "x": _integers("uint8", 2, 4, *[8] * rank),
        "xs": np.float32(0.04),
        "xz": np.uint8(100),
        "w": _integers("int8", 6, 4, *[3] * rank),
        "ws": np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], np.float32),
        "wz": np.zeros(6, np.int8),
        "ys": np.float32(0.9),
        "yz": np.uint8(90),
        "b": _integers("int16", 6).astype(np.int32),
    }
    _check("QLinearConv", inputs, constants=("xs", "xz", "w", "ws", "wz", "ys", "yz", "b"), pads=[1] * (2 * rank))


def test_quantized_matmul() -> None:
    inputs: dict[str, Any] = {
        "a": _integers("int8", 4, 9),
        "as": np.float32(0.04),
        "az": np.int8(-3),
        "b": _integers("int8", 9, 5),
        "bs": np.linspace(0.01, 0.05, 5).astype(np.float32),
        "bz": np.zeros(5, np.int8),
        "ys": np.float32(1.7),
        "yz": np.int8(4),
    }
    _check("QLinearMatMul", inputs)
    _check("QLinearMatMul", inputs, constants=tuple(k for k in inputs if k != "a"))
