"""Chains of functions that read their operand several times: code grows with their length, not with a power of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import compiler

COUNT = 12


def _maximum_of_padded(count: int) -> onnx.ModelProto:
    """The maximum, which keeps NaN, of `count` inputs of 3, 4, ... rows, padded to one size."""
    maximum = 3 + count - 1
    pads = {f"pads{k}": np.array([0, 0, maximum - 3 - k, 0]) for k in range(count)}
    nodes = [helper.make_node("Pad", [f"x{k}", f"pads{k}"], [f"p{k}"]) for k in range(count)]
    nodes.append(helper.make_node("Max", [f"p{k}" for k in range(count)], ["y"]))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(f"x{k}", TensorProto.FLOAT, [3 + k, 8]) for k in range(count)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in pads.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_maximum_of_many_padded_tensors_compiles_and_keeps_nan() -> None:
    proto = _maximum_of_padded(COUNT)
    random = np.random.default_rng(0)
    inputs = {f"x{k}": random.standard_normal((3 + k, 8)).astype(np.float32) for k in range(COUNT)}
    inputs["x3"][2, 1] = np.nan
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, inputs)
    found = compiler.compile(proto, threads=1).run(inputs)["y"]
    np.testing.assert_array_equal(found, expected)


def test_activations_in_a_row_behind_a_convolution() -> None:
    """x * sigmoid(x), twenty times: written out, the last would read the convolution a million times."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((8, 4, 3, 3)).astype(np.float32)
    nodes, value = [helper.make_node("Conv", ["x", "w"], ["v0"], pads=[1] * 4)], "v0"
    for place in range(20):
        nodes.append(helper.make_node("Sigmoid", [value], [f"s{place}"]))
        nodes.append(helper.make_node("Mul", [value, f"s{place}"], [f"v{place + 1}"]))
        value = f"v{place + 1}"
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 9, 9])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    x = random.standard_normal((1, 4, 9, 9)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(compiler.compile(proto, threads=1).run({"x": x})[value], expected, atol=1e-4)
