"""Sizes behind chains of layers, each of whose sizes holds the one before several times."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import compiler

_DEPTH = 7
_WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "SAME": ("MaxPool", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}),
    "rounded up": ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    "rounded up, but for windows of padding": (
        "AveragePool",
        {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
}


@pytest.mark.parametrize("name", _WINDOWS)
def test_sizes_do_not_grow_from_window_to_window(name: str) -> None:
    operator, attributes = _WINDOWS[name]
    nodes = [helper.make_node(operator, [f"x{i}"], [f"x{i + 1}"], strides=[2, 2], **attributes) for i in range(_DEPTH)]
    graph = helper.make_graph(
        nodes,
        "windows",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, 2, "height", "width"])],
        [helper.make_tensor_value_info(f"x{_DEPTH}", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9).SerializeToString()
    module, reference = compiler.compile(model), onnxruntime.InferenceSession(model)
    assert all(len(str(size)) < 150 for size in module.outputs[0].shape)
    for height, width in ((117, 63), (200, 301), (1, 5)):
        data = np.random.default_rng(height).normal(size=(1, 2, height, width)).astype(np.float32)
        (expected,) = reference.run(None, {"x0": data})
        np.testing.assert_allclose(module.run({"x0": data})[f"x{_DEPTH}"], expected, rtol=1e-5, atol=1e-6)
