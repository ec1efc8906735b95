"""The models of the conformance suite: families of operators over types and shapes, and a small net.

Operators that end in one kernel: matmuls and convolutions followed by functions or normalizations, attention, and nets
made of these. Every operator's result may be an output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FUNCTIONS = ("Relu", "Gelu", "Sigmoid", "Tanh", "Erf", "Silu", "HardSwish", "LeakyRelu", "Clip", "Softplus", "Exp")
_PRODUCTS = ((1, 16, 8), (5, 33, 17), (12, 64, 32), (3, 20, 5))  # rows, depth, columns


def _apply(graph: Graph, function: str, x: str) -> str:
    """A function of one tensor; "Silu" is x * sigmoid(x), and "Clip" as of ReLU6."""
    if function == "Silu":
        return graph.node("Mul", [x, graph.node("Sigmoid", [x])])
    if function == "Clip":
        return graph.node("Clip", [x, *(graph.constant(np.array(bound, graph.dtype)) for bound in (0, 6))])
    return graph.node(function, [x])


def products_and_functions(graph: Graph) -> None:
    """Each function after a matmul, some with a bias, and after a matmul of two variable tensors."""
    for rows, depth, columns in _PRODUCTS:
        x = graph.input(rows, depth)
        for position, function in enumerate(FUNCTIONS):
            product = graph.node("MatMul", [x, graph.weight(depth, columns)])
            if position % 2:
                product = graph.node("Add", [product, graph.weight(columns)])
            graph.result(_apply(graph, function, product))
    for function in ("Relu", "Gelu", "Silu"):
        graph.result(_apply(graph, function, graph.node("Gemm", [x, graph.weight(7, 20), graph.weight(7)], transB=1)))
    left, right = graph.input(2, 3, 5, 9), graph.input(2, 3, 9, 7)
    for function in ("Tanh", "Sigmoid"):
        graph.result(_apply(graph, function, graph.node("MatMul", [left, right])))


def convolutions_and_functions(graph: Graph) -> None:
    """Each function after pointwise convolutions, some after 3x3, depthwise, one-dimensional and transposed ones."""
    x, line = graph.input(1, 16, 7, 9), graph.input(1, 6, 21)
    for position, function in enumerate(FUNCTIONS):
        graph.result(_apply(graph, function, graph.node("Conv", [x, graph.weight(12, 16, 1, 1)])))
        if position % 2:
            parameters = [graph.weight(5, 16, 3, 3), graph.weight(5)]
            result = graph.node("Conv", [x, *parameters], pads=[1] * 4, strides=[2, 2])
        else:
            result = graph.node("Conv", [x, graph.weight(16, 1, 3, 3)], group=16, pads=[1] * 4)
        graph.result(_apply(graph, function, result))
    for function in ("Relu", "Silu", "Tanh"):
        parameters = [graph.weight(10, 6, 3), graph.weight(10)]
        graph.result(_apply(graph, function, graph.node("Conv", [line, *parameters], pads=[1, 1])))
        wider = graph.node("ConvTranspose", [x, graph.weight(16, 3, 2, 2), graph.weight(3)], strides=[2, 2])
        graph.result(_apply(graph, function, wider))


def normalizations(graph: Graph) -> None:
    """Layer and RMS normalization after matmuls and sums, group and instance normalization after convolutions."""
    for rows, depth, columns in _PRODUCTS:
        product = graph.node("MatMul", [graph.input(rows, depth), graph.weight(depth, columns)])
        total = graph.node("Add", [product, graph.input(rows, columns)])
        graph.output("LayerNormalization", [product, graph.weight(columns), graph.weight(columns)])
        graph.output("LayerNormalization", [total, graph.weight(columns)])
        axes = graph.constant(np.array([-1], np.int64))
        mean = graph.node("ReduceMean", [graph.node("Mul", [total, total]), axes])
        epsilon = graph.constant(np.array(1e-5, graph.dtype))
        root = graph.node("Sqrt", [graph.node("Add", [mean, epsilon])])
        graph.output("Mul", [graph.node("Div", [total, root]), graph.weight(columns)])
    convolved = graph.node("Conv", [graph.input(2, 6, 7, 5), graph.weight(12, 6, 3, 3)], pads=[1] * 4)
    graph.output("InstanceNormalization", [convolved, graph.weight(12), graph.weight(12)])
    grouped = graph.node("GroupNormalization", [convolved, graph.weight(12), graph.weight(12)], num_groups=3)
    graph.result(_apply(graph, "Silu", grouped))


def attention(graph: Graph) -> None:
    """Softmax of odd sizes, also masked and after a matmul, and whole attention."""
    for size in (1, 5, 17, 50):
        graph.output("Softmax", [graph.input(3, size)], axis=-1)
        graph.output("LogSoftmax", [graph.node("MatMul", [graph.input(3, 9), graph.weight(9, size)])], axis=-1)
    graph.output("Softmax", [graph.input(2, 7, 3, 5)], axis=1)
    for heads, queries, keys, depth in ((2, 1, 7, 5), (3, 13, 13, 16), (1, 9, 21, 10)):
        shapes = ((queries, depth), (depth, keys), (keys, depth))
        left, right, values = (graph.input(1, heads, *shape) for shape in shapes)
        scores = graph.node("Mul", [graph.node("MatMul", [left, right]), graph.constant(np.array(0.3, graph.dtype))])
        masked = graph.node("Add", [scores, graph.input(1, 1, queries, keys)])
        graph.output("MatMul", [graph.node("Softmax", [masked], axis=-1), values])


def attention_over_a_cache(graph: Graph) -> None:
    """Heads that share keys, attending to earlier tokens and themselves: a single query, a prompt, a long one."""
    graph.opset = 23
    for batch, queries, heads, past, softcap in ((2, 1, 3, 9, 0.0), (1, 21, 2, 5, 2.0), (1, 1, 1, 40, 0.0)):
        inputs = [graph.input(batch, queries, each * 12) for each in (2 * heads, heads, heads)]
        past_states = [graph.input(batch, heads, past, 12) for _ in range(2)]
        options = {"q_num_heads": 2 * heads, "kv_num_heads": heads, "is_causal": 1, "softcap": softcap}
        graph.result(graph.node("Attention", [*inputs, "", *past_states], outputs=3, **options))


def encoder(batch: int | str, length: int | str) -> onnx.ModelProto:
    """A transformer block of 3 heads of 8: attention, a residual sum, layer normalization, two matmuls with GELU."""
    graph = Graph("float32")
    x = graph.input(batch, length, 24)

    def dense(name: str, columns: int, depth: int) -> str:
        return graph.node("Add", [graph.node("MatMul", [name, graph.weight(depth, columns)]), graph.weight(columns)])

    def heads(name: str, order: list[int]) -> str:
        split = graph.node("Reshape", [name, graph.constant(np.array([0, 0, 3, 8], np.int64))])
        return graph.node("Transpose", [split], perm=order)

    queries, values = (heads(dense(x, 24, 24), [0, 2, 1, 3]) for _ in range(2))
    scores = graph.node("MatMul", [queries, heads(dense(x, 24, 24), [0, 2, 3, 1])])
    scaled = graph.node("Div", [scores, graph.constant(np.array(8**0.5, np.float32))])
    mixed = graph.node("MatMul", [graph.node("Softmax", [scaled], axis=-1), values])
    joined = graph.node("Transpose", [mixed], perm=[0, 2, 1, 3])
    flat = graph.node("Reshape", [joined, graph.constant(np.array([0, 0, 24], np.int64))])
    total = graph.node("Add", [x, dense(flat, 24, 24)])
    normal = graph.node("LayerNormalization", [total, graph.weight(24), graph.weight(24)])
    hidden = dense(graph.node("Gelu", [dense(normal, 51, 24)]), 24, 51)
    graph.output("LayerNormalization", [graph.node("Add", [normal, hidden]), graph.weight(24), graph.weight(24)])
    return graph.model("encoder")


def quantized_functions() -> tuple[onnx.ModelProto, float]:
    """Quantized matmuls and convolutions followed by functions, and attention: a result each, and their step.

    Half of the matmuls round their sums before the function, like quantizers for accelerators.
    """
    graph, step = Graph("float32"), 0.03
    generator = np.random.default_rng(2)

    def rounded(name: str, scale: float, zero: int = -3) -> str:
        parameters = [graph.constant(np.array(scale, np.float32)), graph.constant(np.array(zero, np.int8))]
        return graph.node("DequantizeLinear", [graph.node("QuantizeLinear", [name, *parameters]), *parameters])

    def weight(*shape: int) -> str:
        values = graph.constant(generator.integers(-127, 128, shape).astype(np.int8))
        scale, zero = graph.constant(np.array(0.004, np.float32)), graph.constant(np.array(0, np.int8))
        return graph.node("DequantizeLinear", [values, scale, zero])

    rows, image = rounded(graph.input(5, 33), 0.02), rounded(graph.input(1, 16, 7, 9), 0.02)
    for position, function in enumerate(("Relu", "Gelu", "Sigmoid", "Tanh", "Silu", "HardSwish")):
        sums = (
            graph.node("MatMul", [rows, weight(33, 17)]),
            graph.node("Conv", [image, weight(12, 16, 1, 1), graph.weight(12)]),
            graph.node("Conv", [image, weight(5, 16, 3, 3)], pads=[1] * 4),
            graph.node("Conv", [image, weight(16, 1, 3, 3)], group=16, pads=[1] * 4),
        )
        for kind, each in enumerate(sums):
            result = rounded(each, 0.05) if (position + kind) % 2 and function != "Relu" else each
            graph.result(rounded(_apply(graph, function, result), step))
    graph.result(_quantized_attention(graph, rounded, step))
    return graph.model("quantized_functions"), step


def _quantized_attention(graph: Graph, rounded: Callable[..., str], step: float) -> str:
    """Two heads of 16 over 11 positions of 32; scores, masked scores, weights and the result are quantized."""
    shape = graph.constant(np.array([1, 11, 2, 16], np.int64))

    def heads(order: list[int]) -> str:
        split = graph.node("Reshape", [rounded(graph.input(1, 11, 32), 0.02), shape])
        return graph.node("Transpose", [split], perm=order)

    scores = rounded(graph.node("MatMul", [heads([0, 2, 1, 3]), heads([0, 2, 3, 1])]), 0.1)
    scaled = graph.node("Mul", [scores, graph.constant(np.array(0.25, np.float32))])
    masked = rounded(graph.node("Add", [scaled, rounded(graph.input(1, 1, 1, 11), 0.02)]), 0.04)
    weights = rounded(graph.node("Softmax", [masked], axis=-1), 1 / 255, -128)
    mixed = rounded(graph.node("MatMul", [weights, heads([0, 2, 1, 3])]), step)
    return graph.node("Transpose", [mixed], perm=[0, 2, 1, 3])


Array = np.ndarray
OPSET = 21


class Graph:
    """Collects nodes; each operator's result is an output of the model, named after it."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.opset = OPSET
        self.nodes: list[NodeProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.constants: list[TensorProto] = []
        self._random = np.random.default_rng(0)

    @property
    def type(self) -> int:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

    def input(self, *shape: int | str) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, self.type, list(shape)))
        return name

    def constant(self, value: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int) -> str:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return self.constant((self._random.standard_normal(shape) * scale).astype(self.dtype))

    def node(self, operator: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        """The first output's name."""
        name = f"v{len(self.nodes)}_{operator}"
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return name

    def output(self, operator: str, inputs: list[str], **attributes: Any) -> None:
        self.result(self.node(operator, inputs, **attributes))

    def result(self, name: str) -> None:
        """Make a node's value an output."""
        self.outputs.append(helper.make_empty_tensor_value_info(name))

    def model(self, name: str) -> onnx.ModelProto:
        """The model, with its outputs' types and shapes inferred."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        known = {value.name: value for value in onnx.shape_inference.infer_shapes(proto).graph.output}
        for position, output in enumerate(self.outputs):
            proto.graph.output[position].CopyFrom(known[output.name])
        return proto


DTYPES = ("float32", "float16", "int32", "int8", "uint8")
_FLOATS = ("float32", "float16")


def _elementwise(graph: Graph) -> None:
    for shape in ((7,), (3, 17), (2, 3, 5, 4)):
        x, y = graph.input(*shape), graph.input(shape[-1])
        for operator in ("Add", "Sub", "Mul", "Max"):
            graph.output(operator, [x, y])
    graph.output("Relu", [x])


def _functions(graph: Graph) -> None:
    x = graph.input(3, 37)
    for operator in ("Sigmoid", "Tanh", "Exp", "Sqrt", "Erf"):
        argument = graph.node("Abs", [x]) if operator == "Sqrt" else x
        graph.output(operator, [argument])
    graph.output("Softmax", [x], axis=-1)
    graph.output("Div", [x, graph.node("Exp", [x])])


def _products(graph: Graph) -> None:
    for rows, depth, columns in ((1, 16, 8), (5, 33, 17), (12, 64, 32)):
        x = graph.input(rows, depth)
        graph.output("MatMul", [x, graph.weight(depth, columns)])
    graph.output("MatMul", [graph.input(2, 4, 9), graph.input(2, 9, 6)])
    graph.output("Gemm", [x, graph.weight(48, 64), graph.weight(48)], transB=1)


def _convolutions(graph: Graph) -> None:
    x = graph.input(1, 16, 10, 9)
    graph.output("Conv", [x, graph.weight(8, 16, 1, 1)])
    graph.output("Conv", [x, graph.weight(24, 16, 3, 3), graph.weight(24)], pads=[1, 1, 1, 1])
    graph.output("Conv", [x, graph.weight(16, 1, 3, 3)], group=16, strides=[2, 2], pads=[0, 1, 1, 0])
    graph.output("Conv", [graph.input(2, 3, 12, 12), graph.weight(5, 3, 5, 5)], dilations=[2, 2])
    graph.output("ConvTranspose", [x, graph.weight(16, 4, 2, 2)], strides=[2, 2])


def _pooling(graph: Graph) -> None:
    x = graph.input(1, 6, 9, 8)
    graph.output("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    graph.output("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
    graph.output("GlobalAveragePool", [x])


def _reductions(graph: Graph) -> None:
    x = graph.input(4, 5, 19)
    for operator in ("ReduceSum", "ReduceMax", *(("ReduceMean",) if graph.dtype in _FLOATS else ())):
        for axes in ([0], [1, 2]):
            graph.output(operator, [x, graph.constant(np.array(axes, np.int64))], keepdims=0)


def _movement(graph: Graph) -> None:
    x = graph.input(2, 6, 5)
    graph.output("Transpose", [x], perm=[2, 0, 1])
    graph.output("Reshape", [x, graph.constant(np.array([4, 15], np.int64))])
    graph.output("Concat", [x, graph.input(2, 3, 5)], axis=1)
    graph.output("Gather", [x, graph.constant(np.array([5, 0, 3], np.int64))], axis=1)
    bounds = [graph.constant(np.array(values, np.int64)) for values in ([1, 1], [6, 5], [1, 2], [2, 2])]
    graph.output("Slice", [x, *bounds])
    graph.output("Pad", [x, graph.constant(np.array([0, 1, 2, 0, 0, 1], np.int64))])


# Each family with the types it is checked in.
FAMILIES: dict[str, tuple[Callable[[Graph], None], tuple[str, ...]]] = {
    "elementwise": (_elementwise, ("float32", "float16", "int32")),
    "functions": (_functions, _FLOATS),
    "products": (_products, _FLOATS),
    "products with functions": (products_and_functions, _FLOATS),
    "convolutions": (_convolutions, ("float32",)),
    "convolutions with functions": (convolutions_and_functions, ("float32",)),
    "normalizations": (normalizations, _FLOATS),
    "attention": (attention, _FLOATS),
    "attention over a cache": (attention_over_a_cache, _FLOATS),
    "pooling": (_pooling, ("float32",)),
    "reductions": (_reductions, ("float32", "int32")),
    "movement": (_movement, ("float32", "int8", "uint8")),
}


def operator_model(family: str, dtype: str) -> onnx.ModelProto | None:
    """One model with every operator and shape of a family; None if the family is not checked in that type."""
    build, dtypes = FAMILIES[family]
    if dtype not in dtypes:
        return None
    graph = Graph(dtype)
    build(graph)
    return graph.model(f"{family}_{dtype}")


def small_net(batch: int | str) -> onnx.ModelProto:
    """An image classifier: two convolutions, a residual sum, a depthwise one, pooling, two matmuls, a softmax."""
    graph = Graph("float32")
    x = graph.input(batch, 3, 16, 16)
    first = graph.node("Relu", [graph.node("Conv", [x, graph.weight(16, 3, 3, 3), graph.weight(16)], pads=[1] * 4)])
    second = graph.node("Conv", [first, graph.weight(16, 16, 3, 3)], pads=[1] * 4)
    total = graph.node("Relu", [graph.node("Add", [first, second])])
    deep = graph.node("Conv", [total, graph.weight(16, 1, 3, 3)], group=16, strides=[2, 2], pads=[1] * 4)
    pooled = graph.node("Flatten", [graph.node("GlobalAveragePool", [deep])])
    hidden = graph.node(
        "Relu", [graph.node("Add", [graph.node("MatMul", [pooled, graph.weight(16, 32)]), graph.weight(32)])]
    )
    graph.output("Softmax", [graph.node("Gemm", [hidden, graph.weight(32, 10), graph.weight(10)])], axis=-1)
    return graph.model("small_net")


def quantized_net() -> tuple[onnx.ModelProto, float]:
    """A net with every tensor quantized to int8, as quantizers for accelerators write it, and its result's step."""
    graph = Graph("float32")
    steps = (0.02, 0.05, 0.05, 0.05, 0.02, 0.03)
    remaining = iter(steps)

    def rounded(name: str) -> str:
        parameters = [graph.constant(np.array(next(remaining), np.float32)), graph.constant(np.array(-3, np.int8))]
        return graph.node("DequantizeLinear", [graph.node("QuantizeLinear", [name, *parameters]), *parameters])

    def weight(*shape: int) -> str:
        values = np.random.default_rng(len(shape) + shape[0]).integers(-127, 128, shape).astype(np.int8)
        scale, zero = graph.constant(np.array(0.004, np.float32)), graph.constant(np.array(0, np.int8))
        return graph.node("DequantizeLinear", [graph.constant(values), scale, zero])

    x = rounded(graph.input(1, 3, 16, 16))
    first = rounded(graph.node("Relu", [graph.node("Conv", [x, weight(16, 3, 3, 3), graph.weight(16)], pads=[1] * 4)]))
    second = rounded(graph.node("Conv", [first, weight(16, 1, 3, 3)], group=16, pads=[1] * 4))
    total = rounded(graph.node("Add", [first, second]))
    pooled = rounded(graph.node("GlobalAveragePool", [total]))
    result = rounded(graph.node("Conv", [pooled, weight(10, 16, 1, 1)]))
    graph.result(result)
    return graph.model("quantized_net"), steps[-1]


def unknown_operator() -> onnx.ModelProto:
    """A valid model with an unknown operator."""
    nodes = [helper.make_node("Mystery", ["x"], ["y"], domain="conformance.example")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "unknown", values[:1], values[1:])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("conformance.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def streaming_net() -> onnx.ModelProto:
    """A net with two states, with conventional names: a cache of which each run writes one row, and a vector."""
    floats, random = TensorProto.FLOAT, np.random.default_rng(3)
    nodes = [
        helper.make_node("ScatterND", ["cache", "at", "x"], ["new_cache"]),
        helper.make_node("MatMul", ["h", "weight"], ["carried"]),
        helper.make_node("Add", ["carried", "x"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["hn"]),
        helper.make_node("ReduceSum", ["new_cache", "axes"], ["total"], keepdims=1),
        helper.make_node("Add", ["total", "hn"], ["y"]),
    ]
    sizes = {"x": [1, 12], "cache": [6, 12], "h": [1, 12]}
    inputs = [helper.make_tensor_value_info(name, floats, shape) for name, shape in sizes.items()]
    inputs.append(helper.make_tensor_value_info("at", TensorProto.INT64, [1, 1]))
    outputs = [
        helper.make_tensor_value_info(name, floats, shape)
        for name, shape in (("y", [1, 12]), ("new_cache", [6, 12]), ("hn", [1, 12]))
    ]
    weight = random.standard_normal((12, 12)).astype("float32") / 4
    constants = [onnx.numpy_helper.from_array(weight, "weight"), onnx.numpy_helper.from_array(np.array([0]), "axes")]
    graph = helper.make_graph(nodes, "streaming", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def random_inputs(model: onnx.ModelProto) -> dict[str, Array]:
    """Values for the inputs: normally distributed, or small integers; sizes must be fixed."""
    generator = np.random.default_rng(1)
    arrays = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        integers = generator.integers(0 if dtype.kind == "u" else -9, 9, shape)
        arrays[value.name] = (generator.standard_normal(shape) if dtype.kind == "f" else integers).astype(dtype)
    return arrays
