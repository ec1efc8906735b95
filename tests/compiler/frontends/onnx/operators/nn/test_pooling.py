"""MaxPool, AveragePool, LpPool, global pooling, MaxUnpool, RoiAlign and MaxRoiPool."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import compiler
from compiler.errors import InputError
from tests.compiler.frontends.onnx.operators.node_cases import (
    Generator,
    Maker,
    NodeCase,
    chance,
    check,
    check_random,
    integers,
    node_model,
    normal,
    over_seeds,
    pick,
)


def _window(random: Generator, *, dilated: bool, ceil: bool) -> tuple[list[int], dict[str, Any]]:
    """Sizes and attributes of a pooling."""
    rank = pick(random, 1, 2, 2, 3)
    kernel = integers(random, rank, 1, 4)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": integers(random, rank, 1, 3)}
    padding = pick(random, "pads", "auto", "none")
    dilations = [1] * rank
    if padding == "pads":
        attributes["pads"] = [int(random.integers(0, k)) for k in kernel + kernel]
    elif padding == "auto":
        # ONNX Runtime crops, or fails, where a window is smaller than the stride.
        attributes["auto_pad"] = pick(random, "SAME_UPPER", "SAME_LOWER", "VALID")
        attributes["strides"] = [min(s, k) for s, k in zip(attributes["strides"], kernel, strict=True)]
    # ONNX Runtime leaves the dilation out of an automatic padding.
    if padding != "auto" and dilated and chance(random):
        dilations = attributes["dilations"] = integers(random, rank, 1, 2)
    if padding != "auto" and ceil and chance(random):
        attributes["ceil_mode"] = 1
    sizes = [max(int(random.integers(4, 10)), d * (k - 1) + 1) for k, d in zip(kernel, dilations, strict=True)]
    return sizes, attributes


def _pool(
    random: Generator, operator: str, dtype: str, opset: int, attributes: dict[str, Any], sizes: list[int]
) -> NodeCase:
    data = normal(random, pick(random, 1, 2), pick(random, 1, 3), *sizes, dtype="float32", scale=20).astype(dtype)
    dims = {0: {axis: f"size{axis}" for axis in range(data.ndim)}}
    return NodeCase(
        operator, [data], attributes, opset=opset, dims=dims, tolerance=3e-3 if dtype == "float16" else 1e-5
    )


def max_pool(random: Generator) -> NodeCase:
    sizes, attributes = _window(random, dilated=True, ceil=True)
    case = _pool(random, "MaxPool", pick(random, "float32", "float64", "int8", "uint8"), 12, attributes, sizes)
    if chance(random):
        case.outputs = ("y0", "y1")
        attributes["storage_order"] = pick(random, 0, 1)
    return case


def average_pool(random: Generator) -> NodeCase:
    sizes, attributes = _window(random, dilated=True, ceil=True)
    attributes["count_include_pad"] = pick(random, 0, 1)
    return _pool(random, "AveragePool", pick(random, "float32", "float16"), 19, attributes, sizes)


def lp_pool(random: Generator) -> NodeCase:
    sizes, attributes = _window(random, dilated=True, ceil=True)
    attributes["p"] = pick(random, 1, 2, 3)
    return _pool(random, "LpPool", "float32", 18, attributes, sizes)


def max_unpool(random: Generator) -> NodeCase:
    """The inverse of PyTorch's pooling."""
    rank = pick(random, 1, 2, 3)
    kernel = integers(random, rank, 2, 3)
    sizes = [k * int(random.integers(1, 4)) for k in kernel]
    pools = (torch.nn.functional.max_pool1d, torch.nn.functional.max_pool2d, torch.nn.functional.max_pool3d)
    data = torch.tensor(random.random((1, 2, *sizes), np.float32))
    pooled, places = pools[rank - 1](data, kernel, kernel, return_indices=True)
    flat = places.numpy() + np.arange(2).reshape(1, 2, *[1] * rank) * int(np.prod(sizes))
    expected = np.zeros((1, 2, *sizes), np.float32)
    expected.reshape(-1)[flat.reshape(-1)] = pooled.numpy().reshape(-1)
    attributes = {"kernel_shape": kernel, "strides": kernel}
    dims = {0: {2: "height"}, 1: {2: "height"}}
    return NodeCase("MaxUnpool", [pooled.numpy(), flat], attributes, opset=11, dims=dims, expected=[expected])


def _regions(random: Generator, count: int) -> np.ndarray:
    start = random.random((count, 2)) * 8 - 1
    return np.concatenate([start, start + random.random((count, 2)) * 6], 1)


def roi_align(random: Generator) -> NodeCase:
    count, dtype = int(random.integers(1, 4)), pick(random, "float32", "float64")
    attributes = {
        "output_height": int(random.integers(1, 4)),
        "output_width": int(random.integers(1, 4)),
        "sampling_ratio": pick(random, 0, 1, 2),
        "spatial_scale": pick(random, 1.0, 0.5),
        "mode": pick(random, "avg", "max"),
    }
    if chance(random):
        attributes["coordinate_transformation_mode"] = pick(random, "half_pixel", "output_half_pixel")
    data = normal(random, 2, 2, *integers(random, 2, 3, 8), dtype=dtype)
    inputs = [data, _regions(random, count).astype(dtype), random.integers(0, 2, count)]
    dims = {0: {2: "height"}, 1: {0: "regions"}, 2: {0: "regions"}}
    return NodeCase("RoiAlign", inputs, attributes, opset=16, dims=dims, tolerance=1e-4)


def max_roi_pool(random: Generator) -> NodeCase:
    count = int(random.integers(1, 4))
    rois = np.concatenate([random.integers(0, 2, (count, 1)), _regions(random, count)], 1).astype(np.float32)
    attributes = {"pooled_shape": integers(random, 2, 1, 3), "spatial_scale": pick(random, 1.0, 0.5)}
    dims = {0: {2: "height"}, 1: {0: "regions"}}
    return NodeCase(
        "MaxRoiPool", [normal(random, 2, 2, *integers(random, 2, 3, 8)), rois], attributes, opset=1, dims=dims
    )


@over_seeds(8, max_pool, average_pool)
def test_random_poolings(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


@over_seeds(4, lp_pool, max_unpool, roi_align, max_roi_pool)
def test_random_unusual_poolings(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


@pytest.mark.parametrize("operator", ["GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 3, 5), (2, 1, 2, 2, 3)])
def test_global_pooling(operator: str, shape: tuple[int, ...]) -> None:
    data = normal(np.random.default_rng(0), *shape)
    dims = {0: {axis: f"size{axis}" for axis in range(len(shape))}}
    check(NodeCase(operator, [data], dims=dims, opset=1 if operator != "GlobalLpPool" else 2), symbolic=True)


def test_a_window_of_padding_alone_has_no_element_to_count() -> None:
    data = np.full((1, 1, 2), -5, np.int8)
    check(
        NodeCase("MaxPool", [data], {"kernel_shape": [2], "pads": [1, 1]}, expected=[np.full((1, 1, 3), -5, np.int8)])
    )


def test_the_smallest_value_wins_over_padding() -> None:
    data = np.full((1, 1, 2, 2), -128, np.int8)
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    expected: list[np.ndarray] = [data, np.zeros((1, 1, 2, 2), np.int64)]
    check(NodeCase("MaxPool", [data], attributes, outputs=("y0", "y1"), opset=12, expected=expected))


def test_a_window_larger_than_the_data_is_an_error_of_the_input() -> None:
    data = np.zeros((1, 1, 8, 8), np.float32)
    case = NodeCase("AveragePool", [data], {"kernel_shape": [4, 4]}, dims={0: {2: "height", 3: "width"}})
    module = compiler.compile(node_model(case, symbolic=True, constant=False)[0])
    with pytest.raises(InputError, match=r"AveragePool node .*: height - 3 = -1 must be at least 0"):
        module.run({"x0": data[:, :, :2, :2]})
