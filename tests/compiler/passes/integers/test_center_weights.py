"""center-weights: int16 weights become int8 and the sums stay equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.frontends.source import import_model
from compiler.passes.context import PipelineContext
from compiler.passes.integers.sign_integers import center_weights
from compiler.passes.pipeline import run_pipeline

Array = NDArray[Any]


def _model(operator: str, shape: list[int], weight: Array, zero: Array, **attributes: Any) -> onnx.ModelProto:
    """A product of uint8 by uint8 weights less `zero`; the zero point of the data is 131."""
    constants = {"w": weight, "data_zero": np.asarray(131, np.uint8), "zero": zero}
    node = helper.make_node(operator, ["x", "w", "data_zero", "zero"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    )


@pytest.mark.parametrize(
    ("operator", "shape", "weight", "attributes"),
    [
        ("MatMulInteger", [3, 7, 19], (19, 37), {}),
        ("ConvInteger", [1, 17, 9, 7], (21, 17, 3, 3), {"pads": [1, 1, 0, 1], "strides": [2, 1]}),
        ("ConvInteger", [2, 12, 6, 5], (12, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 12}),
        ("ConvInteger", [1, 32, 5, 5], (64, 16, 1, 1), {"group": 2}),
        ("ConvInteger", [1, 5, 23], (7, 5, 3), {"dilations": [2]}),
    ],
)
@pytest.mark.parametrize("zero", [0, 1, 127, 255])
def test_sums_are_exact(
    operator: str, shape: list[int], weight: tuple[int, ...], attributes: dict[str, Any], zero: int
) -> None:
    rng = np.random.default_rng(zero)
    values = rng.integers(0, 256, weight).astype(np.uint8)
    model = _model(operator, shape, values, np.asarray(zero, np.uint8), **attributes)
    mod = run_pipeline(import_model(model).mod, PipelineContext(), until="canonicalize").mod
    assert center_weights(mod, PipelineContext()) is not mod
    assert "int16" not in center_weights(mod, PipelineContext()).script()
    data = rng.integers(0, 256, shape).astype(np.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = compiler.compile(model, threads=1).run({"x": data}).values()
    np.testing.assert_array_equal(found, session.run(None, {"x": data})[0])


def test_bytes_are_left_alone() -> None:
    values = np.full((8, 8), 200, np.uint8)
    model = _model("MatMulInteger", [4, 8], values, np.asarray(150, np.uint8))
    mod = run_pipeline(import_model(model).mod, PipelineContext(), until="canonicalize").mod
    assert center_weights(mod, PipelineContext()) is mod
