"""Transformations of scores against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.errors import InvalidModelError, UnsupportedModelError
from compiler.frontends.onnx import import_onnx
from tests.compiler.frontends.onnx.operators.onnxruntime_check import assert_equal_to_onnxruntime, node_model

_X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
_X[2] = 0.0
_REGRESSION: dict[str, Any] = {"coefficients": np.linspace(-0.1, 0.1, 6).tolist(), "targets": 2}


@pytest.mark.parametrize("transform", ["SOFTMAX", "SOFTMAX_ZERO", "LOGISTIC", "PROBIT"])
def test_transforms_of_several_targets(transform: str) -> None:
    # The second target is 0 for the row of zeros; probabilities of PROBIT are between 0 and 1.
    intercepts = [0.5, 0.6] if transform == "PROBIT" else [0.5, 0.0]
    model = node_model(
        "LinearRegressor",
        {"x": _X},
        domain="ai.onnx.ml",
        intercepts=intercepts,
        post_transform=transform,
        **_REGRESSION,
    )
    assert_equal_to_onnxruntime(model, {"x": _X}, rtol=1e-4)


@pytest.mark.parametrize("transform", ["SOFTMAX", "SOFTMAX_ZERO", "LOGISTIC"])
def test_transforms_of_classes(transform: str) -> None:
    attributes: dict[str, Any] = {
        "coefficients": np.linspace(-1, 1, 9).tolist(),
        "intercepts": [0.1, 0.0, -0.2],
        "classlabels_ints": [10, 20, 30],
        "post_transform": transform,
    }
    model = node_model("LinearClassifier", {"x": _X}, 2, domain="ai.onnx.ml", **attributes)
    assert_equal_to_onnxruntime(model, {"x": _X}, rtol=1e-4)


@pytest.mark.parametrize("transform", ["SOFTMAX_ZERO", "PROBIT"])
def test_transforms_of_a_single_score_are_refused(transform: str) -> None:
    alone: dict[str, Any] = {"coefficients": [0.1, 0.2, 0.3], "post_transform": transform}
    pair = alone | {"classlabels_ints": [10, 20], "intercepts": [0.5]}
    for operator, attributes in (("LinearRegressor", alone), ("LinearClassifier", pair)):
        outputs = 2 if operator == "LinearClassifier" else 1
        model = node_model(operator, {"x": _X}, outputs, domain="ai.onnx.ml", **attributes)
        with pytest.raises(UnsupportedModelError, match=r"single score|one of two classes"):
            import_onnx(model)


def test_unknown_transform_is_an_error() -> None:
    model = node_model("LinearRegressor", {"x": _X}, domain="ai.onnx.ml", post_transform="SOFTMIN", **_REGRESSION)
    with pytest.raises(InvalidModelError, match="SOFTMIN"):
        import_onnx(model)
