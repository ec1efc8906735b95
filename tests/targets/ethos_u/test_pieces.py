"""Tensors written piece by piece (concatenated, padded, repeated), and their readers: Vela loses some rescalings
between them, so a copy stands there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.targets.ethos_u.checking import check, planned
from tests.targets.ethos_u.graphs import QuantizedGraph

_CHANNELS, _LENGTH = 16, 7
_STEP = (0.05, 4)


def _joined(graph: QuantizedGraph) -> str:
    other = graph.rounded(graph.input(1, _CHANNELS, 2), *_STEP)
    return graph.node("Concat", [other, graph.rounded(graph.input(1, _CHANNELS, _LENGTH), *_STEP)], axis=2)


def _joined_with_constant(graph: QuantizedGraph) -> str:
    """As the token of a class in front of the patches of an image."""
    token = graph.rounded(graph.numbers(1, _CHANNELS, 1), *_STEP)
    return graph.node("Concat", [token, graph.rounded(graph.input(1, _CHANNELS, _LENGTH), *_STEP)], axis=2)


def _padded(graph: QuantizedGraph) -> str:
    x = graph.rounded(graph.input(1, _CHANNELS, _LENGTH), *_STEP)
    return graph.node("Pad", [x, graph.constant(np.array([0, 0, 1, 0, 0, 0]))])


def _repeated(graph: QuantizedGraph) -> str:
    x = graph.rounded(graph.input(1, _CHANNELS, _LENGTH), *_STEP)
    return graph.node("Tile", [x, graph.constant(np.array([1, 1, 2]))])


def _numbers(graph: QuantizedGraph) -> str:
    return graph.rounded(graph.numbers(1, _CHANNELS, 1), 0.03, 0)


def _reshaped(graph: QuantizedGraph, x: str) -> str:
    return graph.rounded(graph.node("Reshape", [x, graph.constant(np.array([1, _CHANNELS // 2, -1]))]), *_STEP)


_FOLLOWERS: dict[str, Callable[[QuantizedGraph, str], str]] = {
    "add": lambda graph, x: graph.node("Add", [x, _numbers(graph)]),
    "subtract": lambda graph, x: graph.node("Sub", [_numbers(graph), x]),
    "multiply": lambda graph, x: graph.node("Mul", [x, _numbers(graph)]),
    "minimum": lambda graph, x: graph.node("Min", [x, graph.constant(np.float32(0.3))]),
    "reshape and add": lambda graph, x: graph.node("Add", [_reshaped(graph, x), graph.constant(np.float32(0.3))]),
    "pad": lambda graph, x: graph.node("Pad", [x, graph.constant(np.array([0, 0, 1, 0, 0, 0]))]),
    "add another": lambda graph, x: graph.node("Add", [x, graph.rounded(graph.node("Relu", [x]), 0.04, 0)]),
    "softmax": lambda graph, x: graph.node("Softmax", [x], axis=1),
}


@pytest.mark.parametrize("made", [_joined, _joined_with_constant, _padded, _repeated], ids=lambda made: made.__name__)
@pytest.mark.parametrize("follower", _FOLLOWERS)
def test_nothing_is_lost_behind_pieces(made: Callable[[QuantizedGraph], str], follower: str) -> None:
    graph = QuantizedGraph(3)
    pieces = graph.rounded(made(graph), *_STEP)
    found, plan = planned(graph.model(graph.rounded(_FOLLOWERS[follower](graph, pieces), 0.04, 3)))
    assert not found.refused
    (segment,) = plan.parts.values()
    check(segment)
