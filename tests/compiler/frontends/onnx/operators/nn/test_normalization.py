"""LayerNormalization and related operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.compiler.frontends.onnx.operators.node_cases import (
    Generator,
    Maker,
    NodeCase,
    chance,
    check,
    check_random,
    integers,
    normal,
    over_seeds,
    pick,
)

_TYPES = ("float32", "float32", "float16", "float64")


def _dims(rank: int, *axes: int) -> dict[int, dict[int, str]]:
    return {0: {axis: f"size{axis}" for axis in (axes or range(rank))}}


def layer_normalization(random: Generator) -> NodeCase:
    shape, dtype = integers(random, int(random.integers(1, 5)), 1, 6), pick(random, *_TYPES)
    axis = int(random.integers(-len(shape), len(shape)))
    parameters = shape[axis:] if chance(random, 0.8) else shape[-1:]
    return NodeCase(
        "LayerNormalization",
        [
            normal(random, *shape, dtype=dtype) + np.asarray(pick(random, 0, 3), dtype),
            normal(random, *parameters, dtype=dtype),
            normal(random, *parameters, dtype=dtype) if chance(random) else None,
        ],
        {"axis": axis, "epsilon": pick(random, 1e-5, 1e-2)},
        outputs=pick(random, ("y0",), ("y0", "y1", "y2"), ("y0", "", "y2")),
        opset=17,
        dims=_dims(len(shape), *range(axis % len(shape))) if axis % len(shape) else {},
        constants=frozenset({1, 2}),
        # The statistics are float32 whatever the type.
        tolerance=2e-3 if dtype == "float16" else 1e-4,
    )


def rms_normalization(random: Generator) -> NodeCase:
    shape, dtype = integers(random, int(random.integers(1, 5)), 1, 6), pick(random, *_TYPES)
    axis = int(random.integers(-len(shape), len(shape)))
    return NodeCase(
        "RMSNormalization",
        [normal(random, *shape, dtype=dtype), normal(random, *shape[axis:], dtype=dtype)],
        {"axis": axis},
        opset=23,
        dims=_dims(len(shape), *range(axis % len(shape))) if axis % len(shape) else {},
        constants=frozenset({1}),
        tolerance=3e-3 if dtype == "float16" else 1e-4,
    )


def _channels(random: Generator, channels: int) -> tuple[list[int], dict[int, dict[int, str]]]:
    shape = [2, channels, *integers(random, int(random.integers(1, 4)), 1, 6)]
    return shape, _dims(len(shape), 0, *range(2, len(shape)))


def instance_normalization(random: Generator) -> NodeCase:
    channels = int(random.integers(1, 4))
    shape, dims = _channels(random, channels)
    data = normal(random, *shape) + np.float32(pick(random, 0, 50))
    inputs = [data, normal(random, channels), normal(random, channels)]
    return NodeCase("InstanceNormalization", inputs, opset=6, dims=dims, constants=frozenset({1, 2}), tolerance=1e-3)


def group_normalization(random: Generator) -> NodeCase:
    groups, opset, dtype = int(random.integers(1, 4)), pick(random, 18, 21), pick(random, "float32", "float16")
    channels = groups * int(random.integers(1, 4))
    shape, dims = _channels(random, channels)
    size = groups if opset == 18 else channels
    inputs = [normal(random, *shape, dtype=dtype), normal(random, size, dtype=dtype), normal(random, size, dtype=dtype)]
    tolerance = 6e-3 if dtype == "float16" else 1e-4
    return NodeCase("GroupNormalization", inputs, {"num_groups": groups}, opset=opset, dims=dims, tolerance=tolerance)


def batch_normalization(random: Generator) -> NodeCase:
    channels, training = int(random.integers(1, 4)), chance(random, 0.4)
    shape, dims = _channels(random, channels)
    attributes: dict[str, Any] = {"epsilon": pick(random, 1e-5, 1e-2)}
    if training:
        attributes |= {"training_mode": 1, "momentum": 0.7}
    parameters = [*(normal(random, channels) for _ in range(3)), random.random(channels, np.float32)]
    return NodeCase(
        "BatchNormalization",
        [normal(random, *shape), *parameters],
        attributes,
        outputs=("y0", "y1", "y2") if training else ("y0",),
        opset=15 if training else pick(random, 7, 9, 15),
        dims=dims,
        constants=frozenset({1, 2, 3, 4}),
        tolerance=1e-4,
    )


def local_response_normalization(random: Generator) -> NodeCase:
    shape = integers(random, 4, 1, 6)
    attributes = {"size": pick(random, 1, 3, 5), "alpha": 0.3, "beta": pick(random, 0.25, 0.5, 0.75, 0.9), "bias": 2.0}
    return NodeCase("LRN", [normal(random, *shape)], attributes, opset=13, dims=_dims(4))


def lp_normalization(random: Generator) -> NodeCase:
    shape = integers(random, int(random.integers(1, 5)), 2, 5)
    data = normal(random, *shape)
    data[0] = 0
    axis, order = int(random.integers(-len(shape), len(shape))), pick(random, 1, 2)
    norm = np.linalg.norm(data.astype(np.float64), order, axis, keepdims=True)
    expected = (data / np.where(norm == 0, 1, norm)).astype(np.float32)
    return NodeCase("LpNormalization", [data], {"axis": axis, "p": order}, dims=_dims(len(shape)), expected=[expected])


def mean_variance_normalization(random: Generator) -> NodeCase:
    attributes = pick(random, {}, {"axes": [1]}, {"axes": [2, 3]})
    data = normal(random, *integers(random, 4, 2, 4))
    return NodeCase("MeanVarianceNormalization", [data], attributes, opset=13, dims=_dims(4), tolerance=1e-3)


@over_seeds(6, layer_normalization, batch_normalization)
def test_random_normalizations(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


@over_seeds(
    3,
    rms_normalization,
    instance_normalization,
    group_normalization,
    local_response_normalization,
    lp_normalization,
    mean_variance_normalization,
)
def test_random_rarer_normalizations(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    random = np.random.default_rng(0)
    data = normal(random, 1, 4, 32, 32) + np.float32(1000)
    wide = data.astype(np.float64).reshape(1, 2, -1)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    check(
        NodeCase(
            "GroupNormalization",
            [data, ones, zeros],
            {"num_groups": 2},
            expected=[expected.reshape(data.shape).astype(np.float32)],
            tolerance=1e-3,  # of the mean, float32 keeps 1e-4
        )
    )


def test_an_even_number_of_neighbours_reaches_further_up() -> None:
    data = np.arange(1, 5, dtype=np.float32).reshape(1, 4, 1, 1)
    squares = np.array([1 + 4, 4 + 9, 9 + 16, 16], np.float32).reshape(1, 4, 1, 1)
    expected = data / (1 + 0.5 / 2 * squares)
    check(NodeCase("LRN", [data], {"size": 2, "alpha": 0.5, "beta": 1.0, "bias": 1.0}, expected=[expected], opset=13))


def test_obsolete_parameters_an_element() -> None:
    random = np.random.default_rng(1)
    data, scale, bias, mean = normal(random, 2, 3, 2), *(normal(random, 3, 2) for _ in range(3))
    variance = random.random((3, 2), np.float32)
    expected = (data - mean) / np.sqrt(variance + 1e-5) * scale + bias
    inputs = [data, scale, bias, mean, variance]
    check(NodeCase("BatchNormalization", inputs, {"spatial": 0}, opset=7, expected=[expected], tolerance=1e-4))
