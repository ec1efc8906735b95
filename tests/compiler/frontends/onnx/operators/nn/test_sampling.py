"""GridSample, AffineGrid, CenterCropPad, and the losses, which ONNX defines as functions of other operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.errors import UnsupportedModelError
from tests.compiler.frontends.onnx.operators.node_cases import (
    Generator,
    Maker,
    NodeCase,
    chance,
    check_random,
    integers,
    node_model,
    normal,
    over_seeds,
    pick,
)
from tests.coverage.tvm_pipeline import import_and_build


def grid_sample(random: Generator) -> NodeCase:
    rank, mode = pick(random, 2, 2, 3), pick(random, "linear", "nearest", "cubic")
    mode = "linear" if rank == 3 and mode == "cubic" else mode  # ONNX Runtime has no volumetric cubic mode
    attributes = {
        "mode": mode,
        "padding_mode": pick(random, "zeros", "border", "reflection"),
        "align_corners": pick(random, 0, 1),
    }
    grid = random.uniform(-1.7, 1.7, (2, *integers(random, rank, 1, 4), rank)).astype(np.float32)
    dims = {0: {0: "batch", 2: "height"}, 1: {0: "batch", 1: "rows"}}
    data = normal(random, 2, 2, *integers(random, rank, 2, 5))
    return NodeCase("GridSample", [data, grid], attributes, opset=20, dims=dims, tolerance=1e-4)


def affine_grid(random: Generator) -> NodeCase:
    rank, dtype = pick(random, 2, 3), pick(random, "float32", "float64")
    sizes = np.array([2, 3, *integers(random, rank, 2, 5)])
    return NodeCase(
        "AffineGrid",
        [normal(random, 2, rank, rank + 1, dtype=dtype), sizes],
        {"align_corners": pick(random, 0, 1)},
        opset=20,
        dims={0: {0: "batch"}},
        constants=frozenset({1}),
        tolerance=1e-5,
    )


def center_crop_pad(random: Generator) -> NodeCase:
    axes = [int(axis) for axis in random.permutation(3)[: int(random.integers(1, 4))]]
    sizes = np.array(integers(random, len(axes), 1, 9))
    data = normal(random, *integers(random, 3, 2, 7))
    dims = {0: {0: "a", 1: "b", 2: "c"}}
    return NodeCase("CenterCropPad", [data, sizes], {"axes": axes}, opset=18, dims=dims, constants=frozenset({1}))


def _loss(random: Generator, operator: str) -> NodeCase:
    classes, spatial = int(random.integers(2, 6)), integers(random, int(random.integers(0, 4)), 1, 3)
    labels = random.integers(0, classes, (3, *spatial)).astype(pick(random, np.int64, np.int32))
    attributes: dict[str, Any] = {"reduction": pick(random, "none", "mean", "sum")}
    if chance(random):
        attributes["ignore_index"] = pick(random, 0, -5)
        labels.reshape(-1)[::2] = attributes["ignore_index"]
    weights = np.abs(normal(random, classes)) if chance(random) else None
    names = {axis: f"size{axis}" for axis in range(len(spatial) + 1)}
    dims = {0: {0: "size0", **{axis + 1: name for axis, name in names.items() if axis}}, 1: names}
    outputs = ("y0", "y1") if operator.startswith("Softmax") and chance(random) else ("y0",)
    inputs = [normal(random, 3, classes, *spatial), labels, weights]
    return NodeCase(operator, inputs, attributes, outputs=outputs, opset=13, dims=dims, tolerance=1e-4)


def negative_log_likelihood(random: Generator) -> NodeCase:
    return _loss(random, "NegativeLogLikelihoodLoss")


def softmax_cross_entropy(random: Generator) -> NodeCase:
    return _loss(random, "SoftmaxCrossEntropyLoss")


@over_seeds(10, grid_sample)
def test_random_grids(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


@over_seeds(4, affine_grid, center_crop_pad, negative_log_likelihood, softmax_cross_entropy)
def test_random_affine_grids_crops_and_losses(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


def test_compressed_images_are_refused() -> None:
    case = NodeCase("ImageDecoder", [np.zeros(4, np.uint8)], opset=20)
    with pytest.raises(UnsupportedModelError, match="decode them before it"):
        import_and_build(node_model(case, symbolic=False, constant=False)[0])
