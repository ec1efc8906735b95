"""GroupNorm and SkipGroupNorm against PyTorch in float64: ONNX Runtime has no kernels for processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compiler.errors import UnsupportedModelError
from compiler.frontends.onnx import import_onnx
from tests.compiler.frontends.onnx.operators.onnxruntime_check import node_model
from tests.compiler.frontends.onnx.operators.test_microsoft import _f
from tests.coverage.tvm_pipeline import import_and_build


def _reference(total: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, silu: int, last: int) -> np.ndarray:
    data = torch.tensor(total, dtype=torch.float64)
    data = data.permute(0, 3, 1, 2) if last else data
    scale, shift = (torch.tensor(each, dtype=torch.float64) for each in (gamma, beta))
    result = torch.nn.functional.group_norm(data, 2, scale, shift, 1e-3)
    result = torch.nn.functional.silu(result) if silu else result
    return (result.permute(0, 2, 3, 1) if last else result).numpy()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("silu", "last"), [(0, 1), (1, 1), (1, 0)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_group_norm(dtype: str, silu: int, last: int, dynamic: bool) -> None:
    shape = (2, 3, 5, 8) if last else (2, 8, 3, 5)
    inputs = {"x": _f(*shape).astype(dtype), "g": _f(8), "b": _f(8)}
    attributes: dict[str, Any] = {"groups": 2, "activation": silu, "channels_last": last, "epsilon": 1e-3}
    model = node_model("GroupNorm", inputs, domain="com.microsoft", constants=("g", "b"), dynamic=dynamic, **attributes)
    (found,) = import_and_build(model)({"x": inputs["x"]}).values()
    tolerance = 1e-5 if dtype == "float32" else 4e-3
    expected = _reference(inputs["x"], inputs["g"], inputs["b"], silu=silu, last=last)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("skip", ["full", "ones", "flat"])
@pytest.mark.parametrize("bias", [False, True])
def test_skip_group_norm(last: int, skip: str, bias: bool) -> None:
    x = _f(2, 3, 5, 8) if last else _f(2, 8, 3, 5)
    added = _f(*x.shape) if skip == "full" else _f(2, 1, 1, 8) if last else _f(2, 8, 1, 1)
    inputs: dict[str, Any] = {"x": x, "g": _f(8), "b": _f(8), "s": added.reshape(2, 8) if skip == "flat" else added}
    total = x + added
    if bias:
        inputs["c"] = _f(8)
        total = total + (inputs["c"] if last else np.expand_dims(inputs["c"], (1, 2)))
    attributes: dict[str, Any] = {"groups": 2, "activation": 0, "channels_last": last, "epsilon": 1e-3}
    model = node_model("SkipGroupNorm", inputs, 2, domain="com.microsoft", **attributes)
    found = import_and_build(model)(inputs)
    np.testing.assert_allclose(found["y1"], total, rtol=1e-6, atol=1e-6)
    expected = _reference(total, inputs["g"], inputs["b"], silu=0, last=last)
    np.testing.assert_allclose(found["y0"], expected, rtol=1e-5, atol=1e-5)


def test_other_activations_are_refused() -> None:
    inputs = {"x": _f(2, 3, 5, 8), "g": _f(8), "b": _f(8)}
    model = node_model("GroupNorm", inputs, domain="com.microsoft", groups=2, activation=2)
    with pytest.raises(UnsupportedModelError, match="activation=2"):
        import_onnx(model)
