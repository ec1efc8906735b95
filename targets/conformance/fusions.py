"""Models of the conformance suite whose operators end in one kernel: products and convolutions with functions or
normalizations behind them, attention, and nets in which they follow one another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from targets.conformance.graph import Graph

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
    """Each function behind a product, some with a bias, and behind one of two tensors."""
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
    """Each function behind convolutions of one pixel, some behind those of nine, in depth, of a line and transposed."""
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
    """Layer and root-mean-square normalization behind products and sums, group and instance behind convolutions."""
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
    """Softmax of odd sizes, also masked and behind a product, and whole attention."""
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
    """Heads that share keys, over what came before and themselves: a single query, a prompt, a long one."""
    graph.opset = 23
    for batch, queries, heads, past, softcap in ((2, 1, 3, 9, 0.0), (1, 21, 2, 5, 2.0), (1, 1, 1, 40, 0.0)):
        given = [graph.input(batch, queries, each * 12) for each in (2 * heads, heads, heads)]
        before = [graph.input(batch, heads, past, 12) for _ in range(2)]
        options = {"q_num_heads": 2 * heads, "kv_num_heads": heads, "is_causal": 1, "softcap": softcap}
        graph.result(graph.node("Attention", [*given, "", *before], outputs=3, **options))


def encoder(batch: int | str, length: int | str) -> onnx.ModelProto:
    """A transformer block of 3 heads of 8: attention, a residual sum, layer normalization, two products with GELU."""
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
    """Rounded products and convolutions with functions behind them, and attention: a result each, and their step.

    Half of the products have their sums rounded in front of the function, as quantizers for accelerators do.
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
    """Two heads of 16 out of 11 positions of 32; scores, their sum with a mask, weights and the result are rounded."""
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
