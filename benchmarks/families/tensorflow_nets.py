"""Exports of tf2onnx: Magika as shipped, and channels-last nets with the Transposes that tf2onnx writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.catalog import package_folder
from benchmarks.families.registry import floats, integers, net


@net("magika", {"bytes": integers(256, "batch", 2048, dtype="int32")}, [{"batch": 1}, {"batch": 16}])
def magika() -> Path:
    """Trained classifier of file contents by Google."""
    return package_folder("magika") / "models" / "standard_v3_3" / "model.onnx"


class _Graph:
    """Nodes and random weights of a channels-last net."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.generator = np.random.default_rng(0)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def weight(self, *shape: int) -> str:
        values = self.generator.standard_normal(shape, dtype=np.float32) * np.sqrt(2 / math.prod(shape[1:]))
        return self.constant(values.astype(np.float32))

    def constant(self, values: Any) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def convolution(self, x: str, inner: int, outer: int, *, stride: int = 1, groups: int = 1, kernel: int = 3) -> str:
        """Add Transpose, Conv with padding SAME, Transpose, and Relu6 as a Clip."""
        x = self.add("Transpose", x, perm=[0, 3, 1, 2])
        weight = self.weight(outer, inner // groups, kernel, kernel)
        options: dict[str, Any] = {"auto_pad": "SAME_UPPER", "strides": [stride] * 2, "group": groups}
        x = self.add("Conv", x, weight, self.weight(outer), kernel_shape=[kernel] * 2, **options)
        x = self.add("Transpose", x, perm=[0, 2, 3, 1])
        return self.add("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))


@net("tf-mobilenet", {"input": floats("batch", 224, 224, 3)}, [{"batch": 1}, {"batch": 4}], tolerance=1e-3)
def tf_mobilenet() -> Any:
    """MobileNetV1 (arXiv:1704.04861) of width 0.5, channels last, each convolution between two Transposes."""
    graph = _Graph()
    x, width = graph.convolution("input", 3, 16, stride=2), 16
    for outer, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (256, 1), (512, 2)):
        x = graph.convolution(x, width, width, stride=stride, groups=width)
        x = graph.convolution(x, width, outer, kernel=1)
        width = outer
    x = graph.add("ReduceMean", x, axes=[1, 2], keepdims=0)
    x = graph.add("MatMul", x, graph.weight(width, 100))
    x = graph.add("Softmax", graph.add("Add", x, graph.weight(100)), axis=-1)
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 224, 224, 3])]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", 100])]
    body = helper.make_graph(graph.nodes, "tf_mobilenet", inputs, outputs, graph.weights)
    model = helper.make_model(body, producer_name="tf2onnx", opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model
