"""Small models for the tests of profiling and of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def perceptron(*, batch: int | str = 4, width: int | Sequence[int] = 64, layers: int = 3) -> onnx.ModelProto:
    """Matmuls and ReLUs: x (batch, width) -> y (batch, width), all computed in float32.

    Given several widths, x has the first, y has the last, and there is a layer from each to the next.
    """
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    widths = [width] * (layers + 1) if isinstance(width, int) else list(width)
    layers = len(widths) - 1
    for layer, (rows, columns) in enumerate(pairwise(widths)):
        array = (generator.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]))
        value = "y" if layer == layers - 1 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [value]))
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, widths[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, widths[-1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scaled_sum() -> onnx.ModelProto:
    """y = a * x + b for a float x, an int64 scalar `a` and a float scalar `b`."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["a"], ["fa"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["x", "fa"], ["ax"]),
            helper.make_node("Add", ["ax", "b"], ["y"]),
        ],
        "scaled_sum",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info("a", TensorProto.INT64, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(model: onnx.ModelProto, path: Path) -> Path:
    """Save a model and return its path."""
    onnx.save(model, str(path))
    return path
