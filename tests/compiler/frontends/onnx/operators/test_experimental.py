"""Experimental operators in old files against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compiler.frontends.onnx.operators.onnxruntime_check import assert_equal_to_onnxruntime, node_model


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Affine", {"alpha": 0.5, "beta": 2.0}),
        ("Scale", {"scale": 0.3}),
        ("ScaledTanh", {"alpha": 0.5, "beta": 2.0}),
        ("ParametricSoftplus", {"alpha": 0.5, "beta": 2.0}),
        ("ImageScaler", {"scale": 0.1, "bias": [0.5, -0.5, 1.0]}),
        ("Crop", {"border": [1, 2, 0, 1]}),
        ("Crop", {"border": [1, 2, 0, 0], "scale": [3, 2]}),
    ],
)
def test_experimental(operator: str, attributes: dict[str, Any], dynamic: bool) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)
    model = node_model(operator, {"x": x}, opset=7, dynamic=dynamic, **attributes)
    assert_equal_to_onnxruntime(model, {"x": x})
