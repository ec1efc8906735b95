"""A small net of residual convolutions, whose kernels several schedule rules serve."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_CHANNELS = (16, 32)


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._generator = np.random.default_rng(0)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def convolution(self, value: str, taken: int, given: int, kernel: int, stride: int = 1) -> str:
        weight = self._generator.standard_normal((given, taken, kernel, kernel)) / np.sqrt(taken * kernel**2)
        self.weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{len(self.weights)}"))
        pads = [kernel // 2] * 4
        value = self.add("Conv", value, self.weights[-1].name, strides=[stride, stride], pads=pads)
        return self.add("Mul", value, self.add("Sigmoid", value))


def detector(side: int) -> onnx.ModelProto:
    """Backbone of a detector: x (1, 3, side, side) -> (1, 64, side / 8, side / 8)."""
    graph = _Graph()
    value = graph.convolution("x", 3, _CHANNELS[0], 3, stride=2)
    for channels in _CHANNELS:
        inner = graph.convolution(value, channels, channels, 3)
        value = graph.add("Add", value, graph.convolution(inner, channels, channels, 1))
        value = graph.convolution(value, channels, 2 * channels, 3, stride=2)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])
    y = helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, 2 * _CHANNELS[-1], side // 8, side // 8])
    made = helper.make_graph(graph.nodes, "detector", [x], [y], graph.weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
