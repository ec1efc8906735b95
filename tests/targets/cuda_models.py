"""Small models for the tests of CUDA targets."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def chain(rows: int, columns: int) -> onnx.ModelProto:
    """y = softmax(relu(x w)) for a fixed w, float32."""
    weight = np.random.default_rng(0).standard_normal((columns, 9)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Relu", ["product"], ["positive"]),
        helper.make_node("Softmax", ["positive"], ["y"], axis=-1),
    ]
    return _model(nodes, {"x": [rows, columns]}, {"y": [rows, 9]}, {"w": weight}, "float32")


def products(dtype: str) -> onnx.ModelProto:
    """A matrix product with a fixed weight."""
    weight = (np.random.default_rng(0).standard_normal((128, 128)) / 8).astype(dtype)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return _model(nodes, {"x": [128, 128]}, {"y": [128, 128]}, {"w": weight}, dtype)


def integer_products() -> onnx.ModelProto:
    """An exact product of 8-bit integers with a fixed weight, 128 by 96 by 130."""
    weight = np.random.default_rng(0).integers(-128, 128, (96, 130)).astype(np.int8)
    given = helper.make_tensor_value_info("x", onnx.TensorProto.INT8, [128, 96])
    made = helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [128, 130])
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "model", [given], [made], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def recurrent(operator: str, steps: int, samples: int, hidden: int, direction: str) -> onnx.ModelProto:
    """An LSTM, GRU or RNN of 4 features with fixed weights; y is its output at all steps."""
    random = np.random.default_rng(0)
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator] * hidden
    directions = 2 if direction == "bidirectional" else 1
    shapes = {"w": (directions, rows, 4), "r": (directions, rows, hidden), "b": (directions, 2 * rows)}
    weights = {
        name: (random.standard_normal(shape) / np.sqrt(hidden)).astype(np.float32) for name, shape in shapes.items()
    }
    node = helper.make_node(operator, ["x", *shapes], ["y"], hidden_size=hidden, direction=direction)
    return _model([node], {"x": [steps, samples, 4]}, {"y": [steps, directions, samples, hidden]}, weights, "float32")


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int]],
    outputs: dict[str, list[int]],
    constants: dict[str, np.ndarray],
    dtype: str,
) -> onnx.ModelProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given = [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()]
    made = [helper.make_tensor_value_info(name, element, shape) for name, shape in outputs.items()]
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "model", given, made, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
