"""CropAndResize against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorwright
from compiler.errors import InputError
from tests.compiler.frontends.onnx.operators.onnxruntime_check import node_model, run_reference
from tests.compiler.frontends.onnx.operators.test_microsoft import _f
from tests.coverage.tvm_pipeline import import_and_build

_RANDOM = np.random.default_rng(0)


def _inputs(height: int, width: int) -> dict[str, Any]:
    """Boxes inside, beyond the image, and upside down."""
    boxes = _RANDOM.uniform(-0.2, 1.2, (5, 4)).astype(np.float32)
    images, size = np.array([0, 1, 1, 0, 1], np.int32), np.array([height, width], np.int32)
    return {"x": _f(2, 3, 7, 8), "r": boxes, "i": images, "s": size}


@pytest.mark.parametrize("attributes", [{}, {"mode": "nearest", "extrapolation_value": 2.0}], ids=["linear", "nearest"])
@pytest.mark.parametrize("size", [(3, 4), (1, 5), (9, 1)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_crops(attributes: dict[str, Any], size: tuple[int, int], dynamic: bool) -> None:
    inputs = _inputs(*size)
    constants = () if dynamic else ("s",)
    model = node_model(
        "CropAndResize", inputs, constants=constants, domain="com.microsoft", dynamic=dynamic, **attributes
    )
    feeds = {name: array for name, array in inputs.items() if name not in constants}
    (found,), (expected,) = import_and_build(model)(feeds).values(), run_reference(model, feeds)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_images_that_do_not_exist_are_an_error() -> None:
    inputs = _inputs(2, 2) | {"i": np.array([0, 1, 2, 0, 1], np.int32)}
    module = tensorwright.compile(node_model("CropAndResize", inputs, domain="com.microsoft"), progress=None)
    with pytest.raises(InputError, match="'i'"):
        module.run(inputs)
