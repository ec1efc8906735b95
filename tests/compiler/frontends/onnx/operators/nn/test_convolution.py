"""Conv, ConvTranspose, DeformConv, Col2Im."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from compiler.errors import InvalidModelError
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
from tests.coverage.tvm_pipeline import import_and_build


def _spatial_dims(rank: int) -> dict[int, str]:
    return {0: "batch", **{axis + 2: f"size{axis}" for axis in range(rank)}}


def conv(random: Generator) -> NodeCase:
    rank, group = pick(random, 1, 2, 2, 3), pick(random, 1, 1, 2, 3)
    kernel, dilations = integers(random, rank, 1, 4), integers(random, rank, 1, 2)
    attributes: dict[str, Any] = {"group": group, "dilations": dilations, "strides": integers(random, rank, 1, 3)}
    padding = pick(random, "pads", "auto", "none")
    if padding == "pads":
        attributes["pads"] = integers(random, 2 * rank, 0, 3)
    elif padding == "auto":
        # ONNX Runtime has no automatic padding of dilated kernels, nor a sane one of kernels smaller than the stride.
        attributes["auto_pad"] = pick(random, "SAME_UPPER", "SAME_LOWER", "VALID")
        attributes["dilations"] = dilations = [1] * rank
        attributes["strides"] = [min(s, k) for s, k in zip(attributes["strides"], kernel, strict=True)]
    if chance(random):
        attributes["kernel_shape"] = kernel
    sizes = [max(int(random.integers(5, 11)), d * (k - 1) + 1) for k, d in zip(kernel, dilations, strict=True)]
    dtype, channels, filters = pick(random, "float32", "float32", "float64", "float16"), pick(random, 1, 2, 3), 2
    return NodeCase(
        "Conv",
        [
            normal(random, pick(random, 1, 2), channels * group, *sizes, dtype=dtype),
            normal(random, filters * group, channels, *kernel, dtype=dtype),
            normal(random, filters * group, dtype=dtype) if chance(random) else None,
        ],
        attributes,
        opset=pick(random, 1, 11, 22),
        dims={0: _spatial_dims(rank)},
        constants=frozenset({1, 2}),
    )


def conv_transpose(random: Generator) -> NodeCase:
    rank, group = pick(random, 1, 2, 2, 3), pick(random, 1, 1, 2)
    # ONNX Runtime departs from the specification's output size where a kernel is smaller than the stride.
    kernel, dilations = integers(random, rank, 3, 4), integers(random, rank, 1, 2)
    strides, sizes = integers(random, rank, 1, 3), integers(random, rank, 2, 6)
    padding = pick(random, "pads", "auto", "shape", "none")
    extra = [0] * rank
    if padding in ("pads", "none"):
        extra = [int(random.integers(0, max(s, d))) for s, d in zip(strides, dilations, strict=True)]
    attributes: dict[str, Any] = {"group": group, "dilations": dilations, "strides": strides, "output_padding": extra}
    if padding == "pads":
        attributes["pads"] = integers(random, 2 * rank, 0, 1)
    elif padding == "auto":
        attributes["auto_pad"] = pick(random, "SAME_UPPER", "SAME_LOWER", "VALID")
    elif padding == "shape":
        full = [
            (n - 1) * s + (k - 1) * d + 1 + e
            for n, s, k, d, e in zip(sizes, strides, kernel, dilations, extra, strict=True)
        ]
        attributes["output_shape"] = [max(1, size - int(random.integers(0, 4))) for size in full]
    channels, filters = pick(random, 1, 2), pick(random, 1, 3)
    return NodeCase(
        "ConvTranspose",
        [
            normal(random, 2, channels * group, *sizes),
            normal(random, channels * group, filters, *kernel),
            normal(random, filters * group) if chance(random) else None,
        ],
        attributes,
        opset=pick(random, 1, 11, 22),
        dims={0: _spatial_dims(rank)},
        constants=frozenset({1, 2}),
    )


def deform_conv(random: Generator) -> NodeCase:
    group, offset_group = pick(random, 1, 2), pick(random, 1, 2)
    kernel, strides, dilations = (integers(random, 2, 1, 3), integers(random, 2, 1, 2), integers(random, 2, 1, 2))
    pads, sizes = integers(random, 4, 0, 1), integers(random, 2, 5, 7)
    output = [
        (sizes[i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(2)
    ]
    taps = offset_group * math.prod(kernel)
    return NodeCase(
        "DeformConv",
        [
            normal(random, 2, 4, *sizes),
            normal(random, 2 * group, 4 // group, *kernel),
            normal(random, 2, taps * 2, *output),
            normal(random, 2 * group) if chance(random) else None,
            normal(random, 2, taps, *output) if chance(random) else None,
        ],
        {
            "group": group,
            "offset_group": offset_group,
            "strides": strides,
            "dilations": dilations,
            "pads": pads,
        },
        opset=pick(random, 19, 22),
        dims={0: {0: "batch", 2: "height"}, 2: {0: "batch", 2: "rows"}, 4: {0: "batch", 2: "rows"}},
        constants=frozenset({1, 3}),
        tolerance=1e-4,  # coordinates are normalized and back in the reference
    )


def col2im(random: Generator) -> NodeCase:
    """Compared with `torch.nn.functional.fold`."""
    block, strides, dilations = integers(random, 2, 1, 3), integers(random, 2, 1, 2), integers(random, 2, 1, 2)
    pad = integers(random, 2, 0, 1)
    image = [max(int(random.integers(3, 7)), d * (k - 1) + 1) for k, d in zip(block, dilations, strict=True)]
    blocks = math.prod((image[i] + 2 * pad[i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(2))
    data = normal(random, 2, 3 * math.prod(block), blocks)
    folded = torch.nn.functional.fold(
        torch.tensor(data), *(tuple(values) for values in (image, block, dilations, pad, strides))
    )
    return NodeCase(
        "Col2Im",
        [data, np.array(image), np.array(block)],
        {"strides": strides, "dilations": dilations, "pads": [*pad, *pad]},
        opset=18,
        dims={0: {0: "batch", 2: "blocks"}},
        constants=frozenset({1}),
        fixed=frozenset({2}),
        expected=[folded.numpy()],
    )


@over_seeds(8, conv, conv_transpose)
def test_random_convolutions(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


@over_seeds(4, deform_conv, col2im)
def test_random_unusual_convolutions(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


def test_transposed_kernel_smaller_than_its_stride_reaches_the_prescribed_size() -> None:
    data = np.arange(1, 4, dtype=np.float32).reshape(1, 1, 3)
    expected = np.array([[[1, 0, 0, 2, 0, 0, 3, 0, 0]]], np.float32)
    check(
        NodeCase(
            "ConvTranspose",
            [data, np.ones((1, 1, 1), np.float32)],
            {"strides": [3], "auto_pad": "SAME_UPPER"},
            # Two zeros are missing after the data: one goes before it, one after it.
            expected=[np.roll(expected, 1)],
        )
    )


def test_one_compilation_serves_every_size() -> None:
    random = np.random.default_rng(0)
    weights = normal(random, 4, 3, 3, 3)
    case = NodeCase(
        "Conv",
        [normal(random, 1, 3, 7, 9), weights],
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        dims={0: _spatial_dims(2)},
    )
    model, _ = node_model(case, symbolic=True, constant=False)
    run = import_and_build(model)
    for shape in ((1, 3, 7, 9), (2, 3, 8, 8), (3, 3, 5, 12)):
        data = normal(random, *shape)
        height, width = (-(-size // 2) for size in shape[2:])
        total = [max((out - 1) * 2 + 3 - size, 0) for out, size in zip((height, width), shape[2:], strict=True)]
        pads = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
        padded = torch.nn.functional.pad(torch.tensor(data), pads)
        expected = torch.nn.functional.conv2d(padded, torch.tensor(weights), stride=2).numpy()
        (found,) = run({"x0": data, "x1": weights}).values()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"group": 2}, "the data have 3 channels"),
        ({"strides": [0, 1]}, "strides must hold 2 integers"),
        ({"kernel_shape": [2, 2]}, "kernel_shape is"),
        ({"auto_pad": "SAME"}, "auto_pad must be one of"),
    ],
)
def test_broken_convolutions_are_named(attributes: dict[str, Any], message: str) -> None:
    data, weights = np.zeros((1, 3, 5, 5), np.float32), np.zeros((4, 3, 3, 3), np.float32)
    model, _ = node_model(NodeCase("Conv", [data, weights], attributes), symbolic=False, constant=False)
    with pytest.raises(InvalidModelError, match=message):
        import_and_build(model)
