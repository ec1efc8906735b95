"""Each operator with random parameters and sizes: found, compiled by Vela, simulated, equal to the reference model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.targets.ethos_u.checking import DEFAULT, check, planned
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
}


@pytest.mark.parametrize("name", list(OPERATORS))
def test_operator(name: str) -> None:
    operator, build, count = OPERATORS[name]
    for seed in range(count):
        graph = QuantizedGraph(seed, "uint8" if seed % 4 == 3 else "int8")
        found, plan = planned(graph.model(graph.rounded(build(graph))))
        assert not found.refused, f"seed {seed}"
        (segment,) = plan.parts.values()
        assert next(step.operator for step in segment.steps).startswith(operator), f"seed {seed}"
        check(segment)


@pytest.mark.parametrize("target", ["u55-32", "u55-64", "u55-256", "u65-256", "u65-512"])
def test_convolutions_of_other_accelerators(target: str) -> None:
    target = DEFAULT.replace("u55-128", target)
    for seed, build in enumerate((_convolution, _depthwise, _fully_connected, _binary("Add"))):
        graph = QuantizedGraph(seed + 50)
        _, plan = planned(graph.model(graph.rounded(build(graph))), target)
        check(next(iter(plan.parts.values())), target)
