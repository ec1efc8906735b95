"""Integers, complex numbers and windows: against ONNX Runtime, or numpy where it has no kernel for processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compiler.frontends.onnx.operators.onnxruntime_check import node_model
from tests.compiler.frontends.onnx.operators.test_microsoft import _check, _f, _i8, _u8
from tests.coverage.tvm_pipeline import import_and_build

_RANDOM = np.random.default_rng(0)


def _found(operator: str, inputs: dict[str, Any], *, dynamic: bool = False, **attributes: Any) -> np.ndarray:
    model = node_model(operator, inputs, domain="com.microsoft", dynamic=dynamic, **attributes)
    (found,) = import_and_build(model)({name: array for name, array in inputs.items() if array is not None}).values()
    return found


def test_product_of_16_bit_integers() -> None:
    a, b = (_RANDOM.integers(-9000, 9000, shape).astype(np.int16) for shape in ((2, 4, 6), (6, 5)))
    _check("MatMulInteger16", {"a": a, "b": b})
    large = _RANDOM.integers(0, 2**16, (3, 4)).astype(np.uint16)
    found = _found("MatMulInteger16", {"a": large, "b": large.T.copy()})
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, large.astype(np.uint32) @ large.T.astype(np.uint32))


@pytest.mark.parametrize("zeros", [False, True])
def test_elementwise_product(zeros: bool) -> None:
    a, b = _u8(3, 4), _u8(4)
    points = {"az": np.uint8(3), "bz": np.uint8(200)} if zeros else {"az": None, "bz": None}
    found = _found("MulInteger", {"a": a, "az": points["az"], "b": b, "bz": points["bz"]})
    shift = (3, 200) if zeros else (0, 0)
    np.testing.assert_array_equal(found, (a.astype(np.int32) - shift[0]) * (b.astype(np.int32) - shift[1]))


@pytest.mark.parametrize(("x", "dtype"), [(_u8(3, 400), "uint32"), (_i8(3, 400), "int32")])
def test_sum_of_8_bit_integers(x: np.ndarray, dtype: str) -> None:
    found = _found("ReduceSumInteger", {"x": x}, axes=[1], keepdims=0)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, x.sum(1, dtype=np.int64))


@pytest.mark.parametrize("operator", ["ComplexMul", "ComplexMulConj"])
def test_complex_products(operator: str) -> None:
    a, b = _f(3, 4, 2), _f(4, 2)
    left, right = (each.view(np.complex64)[..., 0] for each in (a, b))
    expected = left * (right.conj() if operator.endswith("Conj") else right)
    expected = np.stack([expected.real, expected.imag], -1)
    np.testing.assert_allclose(_found(operator, {"a": a, "b": b}), expected, rtol=1e-5, atol=1e-6)


def test_gelu_of_a_product() -> None:
    inputs = {"x": _f(2, 3, 8), "w": _f(8, 6), "b": _f(6)}
    z = (inputs["x"] @ inputs["w"] + inputs["b"]).astype(np.float64)
    expected = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    np.testing.assert_allclose(_found("GemmFastGelu", inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attributes", [{"size": 3}, {"size": 2, "step": 2, "dim": 1}, {"size": 5, "dim": 0}])
@pytest.mark.parametrize("dynamic", [False, True])
def test_windows(attributes: dict[str, Any], dynamic: bool) -> None:
    x = _f(6, 7, 5)
    if not dynamic:
        _check("UnfoldTensor", {"x": x}, **attributes)
    axis, step = attributes.get("dim", -1), attributes.get("step", 1)
    expected = np.lib.stride_tricks.sliding_window_view(x, attributes["size"], axis)
    expected = np.moveaxis(np.moveaxis(expected, axis if axis >= 0 else axis - 1, 0)[::step], 0, axis % 3)
    np.testing.assert_array_equal(_found("UnfoldTensor", {"x": x}, dynamic=dynamic, **attributes), expected)
