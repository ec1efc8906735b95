"""The models of the conformance suite: families of operators over types and shapes, and a small net."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from targets.conformance import fusions
from targets.conformance.graph import OPSET, Array, Graph

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
    "products with functions": (fusions.products_and_functions, _FLOATS),
    "convolutions": (_convolutions, ("float32",)),
    "convolutions with functions": (fusions.convolutions_and_functions, ("float32",)),
    "normalizations": (fusions.normalizations, _FLOATS),
    "attention": (fusions.attention, _FLOATS),
    "attention over a cache": (fusions.attention_over_a_cache, _FLOATS),
    "pooling": (_pooling, ("float32",)),
    "reductions": (_reductions, ("float32", "int32")),
    "movement": (_movement, ("float32", "int8", "uint8")),
}


def operator_model(family: str, dtype: str) -> onnx.ModelProto | None:
    """One model with every operator and shape of a family; None where the family is not checked in that type."""
    build, dtypes = FAMILIES[family]
    if dtype not in dtypes:
        return None
    graph = Graph(dtype)
    build(graph)
    return graph.model(f"{family}_{dtype}")


def small_net(batch: int | str) -> onnx.ModelProto:
    """An image classifier: two convolutions, a residual sum, a depthwise one, pooling, two products, a softmax."""
    graph = Graph("float32")
    x = graph.input(batch, 3, 16, 16)
    one = graph.node("Relu", [graph.node("Conv", [x, graph.weight(16, 3, 3, 3), graph.weight(16)], pads=[1] * 4)])
    two = graph.node("Conv", [one, graph.weight(16, 16, 3, 3)], pads=[1] * 4)
    total = graph.node("Relu", [graph.node("Add", [one, two])])
    deep = graph.node("Conv", [total, graph.weight(16, 1, 3, 3)], group=16, strides=[2, 2], pads=[1] * 4)
    pooled = graph.node("Flatten", [graph.node("GlobalAveragePool", [deep])])
    hidden = graph.node(
        "Relu", [graph.node("Add", [graph.node("MatMul", [pooled, graph.weight(16, 32)]), graph.weight(32)])]
    )
    graph.output("Softmax", [graph.node("Gemm", [hidden, graph.weight(32, 10), graph.weight(10)])], axis=-1)
    return graph.model("small_net")


def quantized_net() -> tuple[onnx.ModelProto, float]:
    """A net whose every tensor is rounded to int8, as quantizers for accelerators write it, and its result's step."""
    graph = Graph("float32")
    steps = (0.02, 0.05, 0.05, 0.05, 0.02, 0.03)
    left = iter(steps)

    def rounded(name: str) -> str:
        parameters = [graph.constant(np.array(next(left), np.float32)), graph.constant(np.array(-3, np.int8))]
        return graph.node("DequantizeLinear", [graph.node("QuantizeLinear", [name, *parameters]), *parameters])

    def weight(*shape: int) -> str:
        values = np.random.default_rng(len(shape) + shape[0]).integers(-127, 128, shape).astype(np.int8)
        scale, zero = graph.constant(np.array(0.004, np.float32)), graph.constant(np.array(0, np.int8))
        return graph.node("DequantizeLinear", [graph.constant(values), scale, zero])

    x = rounded(graph.input(1, 3, 16, 16))
    one = rounded(graph.node("Relu", [graph.node("Conv", [x, weight(16, 3, 3, 3), graph.weight(16)], pads=[1] * 4)]))
    two = rounded(graph.node("Conv", [one, weight(16, 1, 3, 3)], group=16, pads=[1] * 4))
    total = rounded(graph.node("Add", [one, two]))
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
    """A net with two states, by the usual names: a cache of which each run writes one row, and a vector."""
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
    constants = [
        onnx.numpy_helper.from_array(weight, "weight"),
        onnx.numpy_helper.from_array(np.array([0]), "axes"),
    ]
    graph = helper.make_graph(nodes, "streaming", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def random_inputs(model: onnx.ModelProto) -> dict[str, Array]:
    """Values for the inputs: normal, or small integers; sizes must be fixed."""
    generator = np.random.default_rng(1)
    arrays = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        integers = generator.integers(0 if dtype.kind == "u" else -9, 9, shape)
        arrays[value.name] = (generator.standard_normal(shape) if dtype.kind == "f" else integers).astype(dtype)
    return arrays
