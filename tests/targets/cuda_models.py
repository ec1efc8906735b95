"""Small models for the tests of CUDA targets."""

from __future__ import annotations

from typing import Any

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
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


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
    dtype: str | np.dtype[Any],
) -> onnx.ModelProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given = [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()]
    made = [helper.make_tensor_value_info(name, element, shape) for name, shape in outputs.items()]
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "model", given, made, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


PRODUCTS = [  # left, right; transposed right operands are written [columns, depth]
    ([17, 23], [23, 37]),
    ([2, 31], [31, 2]),
    ([3, 5, 16], [3, 16, 130]),
    ([2, 3, 19, 8], [2, 3, 8, 19]),
    ([130, 1025], [1025, 16]),
]
CONVOLUTIONS = [  # data, filters, strides, begin and end of the padding, dilations
    ([1, 3, 15, 13], [20, 3, 3, 3], [2, 1], [1, 0, 0, 1], [1, 1]),
    ([2, 17, 7, 7], [5, 17, 1, 1], [1, 1], [0, 0, 0, 0], [1, 1]),
    ([3, 4, 33], [9, 4, 5], [1], [2, 2], [2]),
    ([1, 2, 4, 5, 6], [3, 2, 2, 3, 2], [1, 1, 2], [1, 1, 0, 0, 1, 1], [1, 1, 1]),
]


def many_products(dtype: np.dtype[Any]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """All `PRODUCTS` of inputs, a product with the transpose of an input, and all `CONVOLUTIONS`, with odd sizes."""
    random = np.random.default_rng(0)
    nodes = []
    shapes: dict[str, list[int]] = {}
    outputs: dict[str, list[int]] = {}
    constants: dict[str, np.ndarray] = {}
    for index, (left, right) in enumerate(PRODUCTS):
        shapes |= {f"a{index}": left, f"b{index}": right}
        nodes.append(helper.make_node("MatMul", [f"a{index}", f"b{index}"], [f"y{index}"]))
        outputs[f"y{index}"] = [*left[:-1], right[-1]]
    shapes |= {"q": [2, 33, 24], "k": [2, 18, 24]}
    nodes.append(helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]))
    nodes.append(helper.make_node("MatMul", ["q", "kt"], ["scores"]))
    outputs["scores"] = [2, 33, 18]
    for index, (data, filters, strides, pads, dilations) in enumerate(CONVOLUTIONS):
        shapes[f"x{index}"] = data
        constants[f"w{index}"] = (random.standard_normal(filters) / np.sqrt(np.prod(filters[1:]))).astype(dtype)
        attributes: Any = {"strides": strides, "pads": pads, "dilations": dilations}
        nodes.append(helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"c{index}"], **attributes))
        outputs[f"c{index}"] = [data[0], filters[0], *[None] * (len(data) - 2)]  # type: ignore[list-item]
    inputs = {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    return _model(nodes, shapes, outputs, constants, dtype), inputs


VECTORS = [  # left, right, whether the right operand is stored transposed
    ([1, 700], [700, 37], False),
    ([1, 300], [300, 41], True),
    ([41, 129], [129, 1], False),
    ([1, 33], [33, 1], False),
    ([3, 1, 65], [3, 65, 18], True),
    ([2, 5, 1, 34], [2, 5, 34, 260], False),
]
GATES = [([2, 48, 1, 1], [20, 48, 1, 1]), ([1, 1152, 1, 1], [48, 1152, 1, 1]), ([1, 70, 5, 7], [1, 70, 1, 1])]


def vector_products(dtype: np.dtype[Any]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A matrix by a vector, every which way: products of two inputs with the sigmoid of each, and convolutions of one
    point, or by one filter, with a bias and a sigmoid."""
    random = np.random.default_rng(0)
    nodes = []
    shapes: dict[str, list[int]] = {}
    outputs: dict[str, list[int]] = {}
    constants: dict[str, np.ndarray] = {}
    for index, (left, right, transposed) in enumerate(VECTORS):
        rank = len(right)
        shapes |= {f"a{index}": left, f"b{index}": [*right[:-2], *right[:-3:-1]] if transposed else right}
        operand = f"b{index}"
        if transposed:
            operand = f"t{index}"
            nodes.append(
                helper.make_node("Transpose", [f"b{index}"], [operand], perm=[*range(rank - 2), rank - 1, rank - 2])
            )
        nodes.append(helper.make_node("MatMul", [f"a{index}", operand], [f"p{index}"]))
        nodes.append(helper.make_node("Sigmoid", [f"p{index}"], [f"y{index}"]))
        outputs[f"y{index}"] = [*left[:-1], right[-1]]
    for index, (data, filters) in enumerate(GATES):
        shapes[f"x{index}"] = data
        weight, bias = random.standard_normal(filters) / np.sqrt(filters[1]), random.standard_normal(filters[0])
        constants |= {f"w{index}": weight.astype(dtype), f"v{index}": bias.astype(dtype)}
        nodes.append(helper.make_node("Conv", [f"x{index}", f"w{index}", f"v{index}"], [f"c{index}"]))
        nodes.append(helper.make_node("Sigmoid", [f"c{index}"], [f"g{index}"]))
        outputs[f"g{index}"] = [data[0], filters[0], *data[2:]]
    inputs = {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    for index, (left, _, _) in enumerate(VECTORS):
        inputs[f"a{index}"] = (inputs[f"a{index}"] / np.sqrt(left[-1])).astype(dtype)
    return _model(nodes, shapes, outputs, constants, dtype), inputs


def quantized_image_net(dtype: str) -> onnx.ModelProto:
    """Quantize, convolutions (strided, depthwise, padded), a residual sum, pooling and a classifier, all in 8 bits.

    Every tensor between them is `dtype` with a zero point that is not zero; weights are int8, scaled per channel.
    """
    graph = _Quantized(dtype)
    x = graph.rounded("x", 0.02, 121)
    first = graph.rounded(graph.convolution(x, [20, 3, 3, 3], 0.02, strides=[2, 2]), 0.05, 0, "Relu")
    deep = graph.rounded(graph.convolution(first, [20, 1, 3, 3], 0.05, group=20), 0.06, 130)
    second = graph.rounded(graph.convolution(deep, [20, 20, 3, 3], 0.06), 0.06, 119)
    joined = graph.rounded(graph.node("Add", [second, first]), 0.05, 7, "Relu")
    pooled = graph.node("MaxPool", [joined], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    scores = graph.node("MatMul", [graph.node("Flatten", [pooled]), graph.weight([320, 10], 1)])
    last = graph.rounded(scores, 0.9, 121)
    return _model(graph.nodes, {"x": [2, 3, 15, 15]}, {last: [2, 10]}, graph.constants, "float32")


class _Quantized:
    """A graph of float operators whose operands are dequantized."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def rounded(self, value: str, scale: float, zero: int, activation: str = "") -> str:
        """Quantized and dequantized; `zero` is that of uint8."""
        value = self.node(activation, [value]) if activation else value
        zero -= 0 if self.dtype == np.uint8 else 128
        parameters = [self.constant(np.array(scale, np.float32)), self.constant(np.array(zero, self.dtype))]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [value, *parameters]), *parameters])

    def weight(self, shape: list[int], axis: int) -> str:
        values = self.random.integers(-127, 128, shape).astype(np.int8)
        scale = self.random.uniform(0.002, 0.01, shape[axis]).astype(np.float32)
        zero = np.zeros(shape[axis], np.int8)
        inputs = [self.constant(each) for each in (values, scale, zero)]
        return self.node("DequantizeLinear", inputs, axis=axis)

    def convolution(self, data: str, filters: list[int], step: float, **attributes: Any) -> str:
        """With a bias that is a whole number of steps."""
        weight = self.weight(filters, 0)
        scale = self.constants[self.nodes[-1].input[1]]
        whole = self.random.integers(-2000, 2000, filters[0]).astype(np.int32)
        bias = [self.constant(each) for each in (whole, (np.float32(step) * scale).astype(np.float32))]
        return self.node(
            "Conv", [data, weight, self.node("DequantizeLinear", bias, axis=0)], pads=[1] * 4, **attributes
        )
