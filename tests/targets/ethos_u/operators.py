"""Graphs of each operator with random parameters and sizes, for the tests of the Ethos-U."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.targets.ethos_u.graphs import QuantizedGraph

Build = Callable[[QuantizedGraph], str]


def _size(graph: QuantizedGraph, most: int = 14) -> int:
    return int(graph.rng.integers(1, most))


def _convolution(graph: QuantizedGraph) -> str:
    channels, filters = _size(graph, 40), _size(graph, 70)
    kernel, stride = [_size(graph, 6), _size(graph, 6)], int(graph.rng.integers(1, 4))
    dilation = int(graph.rng.integers(1, 3))
    pads = [int(graph.rng.integers(0, extent)) for extent in (*kernel, *kernel)]
    reach = [(extent - 1) * dilation + 1 for extent in kernel]
    x = graph.input(1, channels, reach[0] + _size(graph), reach[1] + _size(graph))
    weight = graph.weight((filters, channels, *kernel), 0, per_channel=bool(graph.rng.integers(2)))
    y = graph.node(
        "Conv", [x, weight, graph.numbers(filters)], pads=pads, strides=[stride] * 2, dilations=[dilation] * 2
    )
    return graph.node("Relu", [y]) if graph.rng.integers(2) else y


def _tiny_filters(graph: QuantizedGraph) -> str:
    """Filters whose weights are next to nothing beside their bias, as nets have where a channel is dead."""
    channels, filters = _size(graph, 20), _size(graph, 20) + 2
    values = graph.rng.integers(-127, 128, (filters, channels, 3, 3)).astype(np.int8)
    scales = graph.rng.uniform(5e-4, 5e-3, filters).astype(np.float32)
    scales[::2] = 10.0 ** -graph.rng.uniform(9, 14, len(scales[::2]))
    zeros = graph.constant(np.zeros(filters, np.int8))
    weight = graph.node("DequantizeLinear", [graph.constant(values), graph.constant(scales), zeros], axis=0)
    return graph.node("Conv", [graph.input(1, channels, 6, 7), weight, graph.numbers(filters)])


def _depthwise(graph: QuantizedGraph) -> str:
    channels = _size(graph, 40) + 1
    kernel, stride = [_size(graph, 6), _size(graph, 6)], int(graph.rng.integers(1, 4))
    pads = [int(graph.rng.integers(0, extent)) for extent in (*kernel, *kernel)]
    x = graph.input(1, channels, kernel[0] + _size(graph), kernel[1] + _size(graph))
    weight = graph.weight((channels, 1, *kernel), 0)
    y = graph.node("Conv", [x, weight, graph.numbers(channels)], pads=pads, strides=[stride] * 2, group=channels)
    return graph.node("Clip", [y, graph.constant(np.float32(0)), graph.constant(np.float32(6))])


def _transposed(graph: QuantizedGraph) -> str:
    channels, filters, stride = _size(graph, 20), _size(graph, 20), int(graph.rng.integers(1, 3))
    kernel = [_size(graph, 5), _size(graph, 5)]
    pads = [int(graph.rng.integers(0, min(extent, 2))) for extent in (*kernel, *kernel)]
    x = graph.input(1, channels, 2 + _size(graph), 2 + _size(graph))
    weight = graph.weight((channels, filters, *kernel), 1)
    return graph.node("ConvTranspose", [x, weight, graph.numbers(filters)], pads=pads, strides=[stride] * 2)


def _fully_connected(graph: QuantizedGraph) -> str:
    rows, depth, columns = _size(graph, 4), _size(graph, 200), _size(graph, 70)
    x = graph.input(rows, depth)
    if graph.rng.integers(2):  # as torch's exporters write it
        return graph.node("Gemm", [x, graph.weight((columns, depth), 0), graph.numbers(columns)], transB=1)
    return graph.node("Gemm", [x, graph.weight((depth, columns), 1), graph.numbers(columns)])


def _product_of_sequences(graph: QuantizedGraph) -> str:
    x = graph.input(1, _size(graph), 24)
    return graph.node("MatMul", [x, graph.weight((24, _size(graph, 40)), 1)])


def _image(graph: QuantizedGraph) -> tuple[int, ...]:
    return (1, _size(graph, 24), 5 + _size(graph), 5 + _size(graph))


def _binary(operator: str) -> Build:
    def build(graph: QuantizedGraph) -> str:
        shape = _image(graph)
        other = [(1, *shape[1:]), (1, shape[1], 1, 1), shape][int(graph.rng.integers(3))]
        return graph.node(operator, [graph.input(*shape), graph.input(*other)])

    return build


def _with_constant(operator: str) -> Build:
    def build(graph: QuantizedGraph) -> str:
        shape = _image(graph)
        constant = graph.numbers(*[(shape[1], 1, 1), shape, (shape[3],)][int(graph.rng.integers(3))])
        x = graph.input(*shape)
        return graph.node(operator, [x, constant] if operator in ("Div", "Add") else [constant, x])

    return build


def _pool(operator: str, **attributes: Any) -> Build:
    def build(graph: QuantizedGraph) -> str:
        kernel = [int(graph.rng.integers(2, 5)) for _ in range(2)]
        pads = [int(graph.rng.integers(0, extent)) for extent in (*kernel, *kernel)]
        stride = int(graph.rng.integers(1, 4))
        return graph.node(
            operator, [graph.input(*_image(graph))], kernel_shape=kernel, pads=pads, strides=[stride] * 2, **attributes
        )

    return build


def _unary(operator: str, **attributes: Any) -> Build:
    return lambda graph: graph.node(operator, [graph.input(*_image(graph))], **attributes)


def _hard_swish(graph: QuantizedGraph) -> str:
    x = graph.input(*_image(graph))
    return graph.node("Mul", [x, graph.node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)])


def _concat(graph: QuantizedGraph) -> str:
    shape, axis = list(_image(graph)), int(graph.rng.integers(1, 4))
    other = [size if place != axis else _size(graph) for place, size in enumerate(shape)]
    return graph.node("Concat", [graph.input(*shape), graph.input(*other)], axis=axis)


def _pad(graph: QuantizedGraph) -> str:
    widths = graph.rng.integers(0, 4, 8)
    widths[[0, 4]] = 0
    return graph.node("Pad", [graph.input(*_image(graph)), graph.constant(widths.astype(np.int64))])


def _reshape(graph: QuantizedGraph) -> str:
    return graph.node("Reshape", [graph.input(1, 6, 4, 5), graph.constant(np.array([1, 20, 6], np.int64))])


def _transpose(graph: QuantizedGraph) -> str:
    order = [[0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2], [0, 3, 2, 1]][int(graph.rng.integers(4))]
    return graph.node("Transpose", [graph.input(*_image(graph))], perm=order)


def _slice(graph: QuantizedGraph) -> str:
    values = ([1, 0], [4, 3], [2, 3])
    return graph.node("Slice", [graph.input(1, 3, 6, 7), *(graph.constant(np.array(v, np.int64)) for v in values)])


def _mean(graph: QuantizedGraph) -> str:
    axes, keep = ([2, 3], 1) if graph.rng.integers(2) else ([-1], 0)
    return graph.node(
        "ReduceMean", [graph.input(*_image(graph)), graph.constant(np.array(axes, np.int64))], keepdims=keep
    )


def _convolution_1d(graph: QuantizedGraph) -> str:
    groups, kernel = int(graph.rng.integers(1, 3)), _size(graph, 6)
    channels, filters = _size(graph, 20) * groups, _size(graph, 20) * groups
    pads = [int(graph.rng.integers(0, kernel)) for _ in range(2)]
    x = graph.input(1, channels, kernel + _size(graph, 20))
    weight = graph.weight((filters, channels // groups, kernel), 0)
    stride = int(graph.rng.integers(1, 6))
    return graph.node("Conv", [x, weight, graph.numbers(filters)], pads=pads, strides=[stride], group=groups)


def _grouped(graph: QuantizedGraph) -> str:
    groups = _size(graph, 5) + 1
    channels, filters = groups * (_size(graph, 5) + 1), groups * _size(graph, 5)
    weight = graph.weight((filters, channels // groups, 3, 3), 0)
    x = graph.input(1, channels, 8, 9)
    return graph.node("Conv", [x, weight, graph.numbers(filters)], pads=[1] * 4, strides=[2, 2], group=groups)


def _wide_strides(graph: QuantizedGraph) -> str:
    kernel = [_size(graph, 12), _size(graph, 12)]
    strides = [int(graph.rng.integers(2, 9)), int(graph.rng.integers(4, 9))]
    pads = [int(graph.rng.integers(0, extent)) for extent in (*kernel, *kernel)]
    x = graph.input(1, 3, kernel[0] + _size(graph, 20), kernel[1] + _size(graph, 20))
    return graph.node("Conv", [x, graph.weight((5, 3, *kernel), 0), graph.numbers(5)], pads=pads, strides=strides)


def _pool_1d(operator: str) -> Build:
    def build(graph: QuantizedGraph) -> str:
        kernel = int(graph.rng.integers(2, 5))
        pads = [int(graph.rng.integers(0, kernel)) for _ in range(2)]
        x = graph.input(1, _size(graph, 20), kernel + _size(graph, 20))
        return graph.node(operator, [x], kernel_shape=[kernel], pads=pads, strides=[int(graph.rng.integers(1, 4))])

    return build


def _reduction(operator: str) -> Build:
    def build(graph: QuantizedGraph) -> str:
        shape = [int(size) for size in graph.rng.integers(2, 9, int(graph.rng.integers(3, 6)))]
        axes = np.sort(graph.rng.permutation(len(shape))[: int(graph.rng.integers(1, len(shape) - 1))])
        x = graph.input(*shape)
        y = graph.node(operator, [x, graph.constant(axes.astype(np.int64))], keepdims=int(graph.rng.integers(2)))
        return graph.rounded(y, 2.0, 3) if operator == "ReduceSum" else y

    return build


def _product_of_two(graph: QuantizedGraph) -> str:
    batch = [(), (3,), (2, 3)][int(graph.rng.integers(3))]
    rows, depth, columns = _size(graph, 12), _size(graph, 30), _size(graph, 20) + 1
    other = batch if graph.rng.integers(2) else ()
    return graph.node("MatMul", [graph.input(*batch, rows, depth), graph.input(*other, depth, columns)])


def _softmax(graph: QuantizedGraph) -> str:
    shape = [(1, 10), (1, 8, 5, 6), (3, 7, 300), (2, 3, 4)][int(graph.rng.integers(4))]
    x = graph.node("Softmax", [graph.input(*shape)], axis=int(graph.rng.integers(1, len(shape))))
    return graph.rounded(x, 1 / 256, 128 if graph.dtype == np.uint8 else -128)


def _log_softmax(graph: QuantizedGraph) -> str:
    shape = [(1, 10), (1, 8, 5, 6), (3, 7, 300), (2, 3, 4)][int(graph.rng.integers(4))]
    x = graph.node("LogSoftmax", [graph.input(*shape)], axis=int(graph.rng.integers(1, len(shape))))
    return graph.rounded(x, float(graph.rng.choice([1 / 12, 1 / 40])), 255 if graph.dtype == np.uint8 else 127)


def _layer_norm(graph: QuantizedGraph) -> str:
    size = [6, 48, 384, 7][int(graph.rng.integers(4))]
    return graph.node("LayerNormalization", [graph.input(2, 5, size), graph.numbers(size), graph.numbers(size)])


def _instance_norm(graph: QuantizedGraph) -> str:
    channels = _size(graph) + 1
    x = graph.input(1, channels, _size(graph) + 1, _size(graph) + 1)
    return graph.node("InstanceNormalization", [x, graph.numbers(channels), graph.numbers(channels)])


def _resize(mode: str, **attributes: Any) -> Build:
    def build(graph: QuantizedGraph) -> str:
        channels = _size(graph)
        x = graph.input(1, channels, _size(graph) + 1, _size(graph) + 1)
        if attributes:
            sizes = graph.constant(np.concatenate([[1, channels], graph.rng.integers(2, 20, 2)]))
            return graph.node("Resize", [x, "", "", sizes], mode=mode, **attributes)
        scales = graph.constant(np.array([1, 1, *graph.rng.integers(1, 5, 2)], np.float32))
        return graph.node("Resize", [x, "", scales], mode=mode)

    return build


def _mirrored(graph: QuantizedGraph) -> str:
    widths = graph.constant(np.array([0, 0, 1, 2, 0, 0, 3, 1]))
    return graph.node("Pad", [graph.input(1, 4, 6, 6), widths], mode=["reflect", "edge"][int(graph.rng.integers(2))])


def _repeated(graph: QuantizedGraph) -> str:
    if graph.rng.integers(2):
        return graph.node("Tile", [graph.input(1, 4, 1, 6), graph.constant(np.array([1, 2, 3, 1]))])
    return graph.node("Expand", [graph.input(4, 1, 6), graph.constant(np.array([1, 4, 3, 6]))])


def _stepped_slice(graph: QuantizedGraph) -> str:
    values = ([1, 0], [7, 8], [2, 3], [2, int(graph.rng.integers(2, 4))])
    return graph.node("Slice", [graph.input(1, 3, 7, 8), *(graph.constant(np.array(v)) for v in values)])


def _reversed(graph: QuantizedGraph) -> str:
    values = ([-1], [-100], [3], [-1])
    return graph.node("Slice", [graph.input(1, 3, 7, 8), *(graph.constant(np.array(v)) for v in values)])


def _outer_sum(graph: QuantizedGraph) -> str:
    return graph.node("Add", [graph.input(1, _size(graph), 1, 6), graph.input(1, 1, _size(graph) + 1, 6)])


def _one_of(*operators: str) -> Build:
    return lambda graph: graph.node(operators[int(graph.rng.integers(len(operators)))], [graph.input(1, 8, 6, 6)])


def _split(graph: QuantizedGraph) -> str:
    first, second = graph.split(graph.input(1, 2 * _size(graph), 5, 6), 2, axis=1)
    return graph.node("Concat", [graph.rounded(second), graph.rounded(first)], axis=1)


# What to look for in the plan, the builder, and how many seeds are tried.
OPERATORS: dict[str, tuple[str, Build, int]] = {
    "convolution": ("convolution", _convolution, 12),
    "depthwise": ("depthwise convolution", _depthwise, 8),
    "transposed": ("transposed convolution", _transposed, 8),
    "fully connected": ("fully connected", _fully_connected, 5),
    "sequences": ("fully connected", _product_of_sequences, 3),
    "add": ("addition", _binary("Add"), 5),
    "subtract": ("subtraction", _binary("Sub"), 4),
    "multiply": ("multiplication", _binary("Mul"), 4),
    "add a constant": ("addition of a constant", _with_constant("Add"), 4),
    "subtract a constant": ("subtraction of a constant", _with_constant("Sub"), 3),
    "multiply by a constant": ("multiplication of a constant", _with_constant("Mul"), 4),
    "divide by a constant": ("multiplication of a constant", _with_constant("Div"), 3),
    "max pool": ("max pooling", _pool("MaxPool"), 5),
    "average pool": ("average pooling", _pool("AveragePool"), 8),
    "average pool with padding": ("average pooling", _pool("AveragePool", count_include_pad=1), 4),
    "global average": ("mean", _unary("GlobalAveragePool"), 2),
    "mean": ("mean", _mean, 4),
    "sigmoid": ("table of sigmoid", _unary("Sigmoid"), 2),
    "tanh": ("table of tanh", _unary("Tanh"), 2),
    "leaky": ("table of leakyrelu", _unary("LeakyRelu", alpha=0.1), 2),
    "relu": ("table of", _unary("Relu"), 2),
    "hard swish": ("table of", _hard_swish, 2),
    "concat": ("concatenation", _concat, 4),
    "pad": ("pad", _pad, 4),
    "reshape": ("reshape", _reshape, 2),
    "transpose": ("transpose", _transpose, 4),
    "slice": ("slice", _slice, 2),
    "tiny filters": ("convolution", _tiny_filters, 6),
    "sequence convolution": ("", _convolution_1d, 6),
    "grouped": ("", _grouped, 4),
    "wide strides": ("convolution", _wide_strides, 5),
    "sequence max pool": ("max pooling", _pool_1d("MaxPool"), 3),
    "sequence average pool": ("average pooling", _pool_1d("AveragePool"), 3),
    "sum": ("sum", _reduction("ReduceSum"), 3),
    "means": ("mean", _reduction("ReduceMean"), 6),
    "maxima": ("max", _reduction("ReduceMax"), 4),
    "minima": ("min", _reduction("ReduceMin"), 3),
    "product of two": ("product of two", _product_of_two, 6),
    "softmax": ("softmax", _softmax, 8),
    "log softmax": ("log_softmax", _log_softmax, 8),
    "layer norm": ("layer normalization", _layer_norm, 6),
    "instance norm": ("group normalization", _instance_norm, 4),
    "nearest": ("", _resize("nearest"), 4),
    "nearest to any size": ("", _resize("nearest", coordinate_transformation_mode="asymmetric"), 4),
    "linear": ("", _resize("linear"), 4),
    "linear to any size": ("", _resize("linear", coordinate_transformation_mode="align_corners"), 4),
    "mirrored": ("pad", _mirrored, 3),
    "repeated": ("repetition", _repeated, 4),
    "prelu": ("prelu", lambda g: g.node("PRelu", [g.input(1, 8, 6, 6), g.numbers(8, 1, 1)]), 3),
    "maximum": ("maximum", _binary("Max"), 4),
    "minimum": ("minimum", _binary("Min"), 4),
    "other activations": ("table of", _one_of("Elu", "Selu", "Mish", "Softsign", "Softplus", "Gelu"), 6),
    "slice in steps": ("slice", _stepped_slice, 3),
    "reversed": ("slice", _reversed, 2),
    "both repeated": ("addition", _outer_sum, 3),
    "split": ("slice", _split, 3),
}
