"""Padding in blocked layouts of dynamic sizes, whose result has one expression of its sizes for writer and reader."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import compiler


def test_a_padded_convolution_of_dynamic_size_is_unpacked_with_the_sizes_it_has() -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((5, 1, 2, 3)).astype(np.float32)
    stored = {"weights": weights, "widths": np.array([0, 0, 1, 2, 0, 0, 0, 0])}
    nodes = [
        helper.make_node("Conv", ["x", "weights"], ["v"], pads=[1, 1, 0, 1], strides=[1, 2]),
        helper.make_node("Pad", ["v", "widths"], ["y"]),
    ]
    image = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, "m", "k"])
    constants = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "model", [image], [onnx.ValueInfoProto(name="y")], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    module = compiler.compile(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for size in ((6, 9), (1, 4)):
        data = random.standard_normal((1, 1, *size)).astype(np.float32)
        (expected,) = session.run(None, {"x": data})
        np.testing.assert_allclose(module.run({"x": data})["y"], expected, atol=1e-5)
