"""ScatterND of rows whose length no vector divides, at dynamic numbers of rows and updates."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import compiler

WIDTH = 37


@pytest.mark.parametrize("reduction", ["add", "max"])
def test_rows_are_combined_in_order(reduction: str) -> None:
    node = helper.make_node("ScatterND", ["data", "indices", "updates"], ["y"], reduction=reduction)
    inputs = [
        helper.make_tensor_value_info("data", TensorProto.FLOAT, ["rows", WIDTH]),
        helper.make_tensor_value_info("indices", TensorProto.INT64, ["count", 1]),
        helper.make_tensor_value_info("updates", TensorProto.FLOAT, ["count", WIDTH]),
    ]
    graph = helper.make_graph([node], "rows", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    module = compiler.compile(model, records=False)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows, count in ((5, 9), (1, 1), (4, 0)):
        generator = np.random.default_rng(count)
        feeds = {
            "data": generator.standard_normal((rows, WIDTH), dtype=np.float32),
            "indices": generator.integers(-rows, rows, (count, 1)),
            "updates": generator.standard_normal((count, WIDTH), dtype=np.float32),
        }
        np.testing.assert_allclose(module.run(feeds)["y"], session.run(None, feeds)[0], rtol=1e-5, atol=1e-6)
