"""Small nets for the tests of quantization, as ONNX models with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]


def _model(nodes: Sequence[Any], weights: dict[str, Array], inputs: dict[str, Sequence[int]], output: str) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def residual_net(seed: int = 0, channels: int = 8) -> onnx.ModelProto:
    """x (2, channels, 6, 6): convolution, ReLU, a pooled residual block, a matmul; y (2, 5)."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "w1": normal(channels, channels, 3, 3),
        "b1": normal(channels, 1).reshape(channels),
        "w2": normal(channels, channels, 3, 3),
        "b2": normal(channels, 1).reshape(channels),
        "w3": normal(5, channels).T.copy(),
        "b3": normal(5, 1).reshape(5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["s"]),
        helper.make_node("Relu", ["s"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"]),
    ]
    return _model(nodes, weights, {"x": (2, channels, 6, 6)}, "y")


def chain_net(layers: int = 3, width: int = 16, spoiled: int | None = None) -> onnx.ModelProto:
    """x (4, width): matmuls with ReLU between; y (4, width).

    `spoiled` is the number of a matmul with one weight so large that a common scale rounds all others to 0; its operand
    is always 0.
    """
    generator = np.random.default_rng(1)
    weights, nodes, value = {}, [], "x"
    for layer in range(layers):
        weight = (generator.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        if layer + 1 == spoiled:
            weight[:, 0] = 0
        if layer == spoiled:
            weight[0, 0] = 300
        weights[f"w{layer}"] = weight
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]))
        value = "y" if layer == layers - 1 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [value]))
    return _model(nodes, weights, {"x": (4, width)}, "y")


def samples(shape: Sequence[int], count: int = 3, seed: int = 3) -> list[dict[str, Array]]:
    """Standard normal inputs named x."""
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def convolution_chain(groups: int = 1) -> onnx.ModelProto:
    """x (1, 4, 6, 6): a convolution with uneven filters, a depthwise one and a 1x1 one, with ReLU between."""
    generator = np.random.default_rng(5)
    uneven = np.geomspace(0.01, 1, 8).reshape(8, 1, 1, 1)
    weights = {
        "w0": (generator.standard_normal((8, 4 // groups, 3, 3)) * uneven).astype(np.float32),
        "b0": generator.standard_normal(8).astype(np.float32) * 0.1,
        "w1": generator.standard_normal((8, 1, 3, 3)).astype(np.float32),
        "w2": generator.standard_normal((3, 8, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1], group=groups),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], group=8),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["y"]),
    ]
    return _model(nodes, weights, {"x": (1, 4, 6, 6)}, "y")


def downsampling_net() -> onnx.ModelProto:
    """x (1, 4, 8, 8): a convolution read by two others; ReLU of their sum is read by a fourth; y (1, 3, 4, 4)."""
    generator = np.random.default_rng(6)
    shapes = {"w0": (8, 4, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 8, 1, 1), "w3": (3, 8, 1, 1)}
    weights = {name: (generator.standard_normal(shape) / 6).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Conv", ["r0", "w2"], ["c2"], strides=[2, 2]),
        helper.make_node("Add", ["c1", "c2"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "w3"], ["y"]),
    ]
    return _model(nodes, weights, {"x": (1, 4, 8, 8)}, "y")


def embedding_net(rows: int = 300, width: int = 32) -> onnx.ModelProto:
    """ids int64 (2, 5): rows of a table with uneven rows, and a matmul; y (2, 5, width)."""
    generator = np.random.default_rng(7)
    uneven = np.geomspace(0.01, 1, rows).reshape(rows, 1)
    weights = {
        "table": (generator.standard_normal((rows, width)) * uneven).astype(np.float32),
        "w": (generator.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32),
    }
    nodes = [helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])]
    model = _model(nodes, weights, {}, "y")
    model.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [2, 5]))
    return model


def upsampling_net() -> onnx.ModelProto:
    """x (1, 16, 5, 5): transposed convolutions with ReLUs between, and a plain one; y (1, 16, 20, 20)."""
    generator = np.random.default_rng(8)
    shapes = {"w0": (16, 32, 4, 4), "b0": (32,), "w1": (32, 16, 2, 2), "w2": (16, 16, 3, 3)}
    weights = {name: (generator.standard_normal(shape) / 9).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w0", "b0"], ["c0"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("ConvTranspose", ["r0", "w1"], ["c1"], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["y"], pads=[1, 1, 1, 1]),
    ]
    return _model(nodes, weights, {"x": (1, 16, 5, 5)}, "y")
