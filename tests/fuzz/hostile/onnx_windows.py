"""Windows over images of unknown size, wrong numbers of channels, and classical ML models with wrong widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tests.fuzz.hostile.catalog import Array, Feeds, Onnx, floats, ints, node
from tests.fuzz.hostile.onnx_resized import Shapes, one, resized


def _windows() -> Iterator[Onnx]:
    images: Shapes = [(1, 3, 5, 5), (1, 3, 4, 8), (1, 3, 1, 1), (1, 3, 0, 8), (0, 3, 8, 8), (2, 3, 8, 3)]
    channels: Shapes = [(1, 4, 8, 8), (1, 2, 8, 8), (1, 1, 800, 800), (1, 0, 8, 8), (1, 6, 8, 8)]
    weight, image = {"w": floats(2, 3, 5, 5)}, (1, 3, 8, 8)
    yield one("Conv", "x w", image, [*images, *channels], constants=weight)
    yield one(
        "Conv",
        "x w",
        image,
        [*images, *channels],
        label="strided, padded",
        pads=[1, 1, 1, 1],
        strides=[2, 2],
        constants=weight,
    )
    yield one(
        "Conv",
        "x w",
        (1, 300, 8, 8),
        [(1, 1, 800, 800), (1, 301, 8, 8)],
        label="1x1 of 300",
        constants={"w": floats(2, 300, 1, 1)},
    )
    yield one(
        "Conv",
        "x w",
        (1, 4, 8, 8),
        [(1, 2, 8, 8), (1, 6, 8, 8), (1, 8, 8, 8)],
        label="in groups",
        group=2,
        constants={"w": floats(4, 2, 3, 3)},
    )
    yield one(
        "Conv",
        "x w",
        (1, 4, 8, 8),
        [(1, 2, 8, 8), (1, 6, 8, 8), (1, 8, 8, 8)],
        label="depthwise",
        group=4,
        constants={"w": floats(4, 1, 3, 3)},
    )
    yield one(
        "Conv", "x w", (1, 4, 9), [(1, 2, 9), (1, 4, 2), (1, 4, 0)], label="1-D", constants={"w": floats(4, 4, 3)}
    )
    fed: list[tuple[str, Feeds]] = [
        (f"w{list(shape)}", {"w": floats(*shape)})
        for shape in [(2, 4, 3, 3), (0, 3, 3, 3), (5, 3, 3, 3), (2, 2, 3, 3), (2, 0, 3, 3)]
    ]
    yield Onnx(
        "Conv of two inputs",
        [node("Conv", ["x", "w"], ["y"])],
        {"x": floats(*image), "w": floats(2, 3, 3, 3)},
        fed,
        dims={"w": ["m", "wc", 3, 3]},
    )
    yield one(
        "ConvTranspose",
        "x w",
        (1, 3, 4, 4),
        [(1, 2, 4, 4), (1, 4, 4, 4), (1, 3, 0, 4), (1, 3, 1, 1)],
        strides=[2, 2],
        constants={"w": floats(3, 2, 3, 3)},
    )
    yield one(
        "ConvTranspose",
        "x w",
        (1, 3, 4, 4),
        [(1, 3, 1, 1), (1, 3, 0, 4)],
        label="padded",
        pads=[2, 2, 2, 2],
        constants={"w": floats(3, 2, 3, 3)},
    )
    for operator in ("MaxPool", "AveragePool", "LpPool"):
        yield one(operator, "x", image, images, kernel_shape=[5, 5])
        yield one(
            operator,
            "x",
            image,
            images,
            label="padded, ceil",
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[1, 1, 1, 1],
            ceil_mode=1,
        )
    yield one(
        "MaxPool",
        "x",
        image,
        images,
        label="indices",
        kernel_shape=[3, 3],
        dilations=[2, 2],
        outputs={"y": "float32", "i": "int64"},
    )
    for operator in ("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"):
        yield one(operator, "x", image, [(1, 3, 0, 8), (1, 0, 8, 8), (0, 3, 8, 8)])
    depths: Shapes = [(1, 6, 3, 3), (1, 3, 2, 2), (1, 0, 3, 3), (1, 4, 1, 1), (1, 9, 3, 3)]
    for mode in ("DCR", "CRD"):
        yield one("DepthToSpace", "x", (1, 8, 3, 3), depths, label=mode, blocksize=2, mode=mode)
    yield one("SpaceToDepth", "x", (1, 1, 4, 4), [(1, 1, 5, 4), (1, 1, 1, 1), (1, 1, 4, 3), (1, 1, 0, 4)], blocksize=2)
    eight = {"w": np.ones((2, 3, 3, 3), np.uint8)}
    yield resized(
        "ConvInteger",
        node("ConvInteger", ["x", "w"], ["y"]),
        {"x": np.ones(image, np.uint8)},
        [*images, *channels],
        constants=eight,
        outputs={"y": "int32"},
    )
    point: Mapping[str, Array] = {"s": np.array(0.1, np.float32), "z": np.array(3, np.uint8)}
    yield resized(
        "QLinearConv",
        node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"]),
        {"x": np.ones(image, np.uint8)},
        [*images, *channels],
        constants={**eight, **point},
        outputs={"y": "uint8"},
    )
    inner: Shapes = [(3, 7), (3, 9), (0, 8), (3, 0), (3, 100)]
    yield resized(
        "MatMulInteger",
        node("MatMulInteger", ["x", "w"], ["y"]),
        {"x": np.ones((3, 8), np.uint8)},
        inner,
        constants={"w": np.ones((8, 4), np.int8)},
        outputs={"y": "int32"},
    )
    yield resized(
        "QLinearMatMul",
        node("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"]),
        {"x": np.ones((3, 8), np.uint8)},
        inner,
        constants={"w": np.ones((8, 4), np.uint8), **point},
        outputs={"y": "uint8"},
    )


def _learned() -> Iterator[Onnx]:
    ml: dict[str, Any] = {"domains": ["ai.onnx.ml"]}
    widths: Shapes = [(2, 2), (2, 4), (2, 1), (2, 0), (0, 3), (2, 100)]
    yield one("Scaler", "x", (2, 3), widths, offset=[1.0, 2.0, 3.0], scale=[1.0, 2.0, 3.0], **ml)
    yield one("LinearRegressor", "x", (2, 3), widths, coefficients=[1.0, 2.0, 3.0], intercepts=[0.5], **ml)
    yield one(
        "LinearClassifier",
        "x",
        (2, 3),
        widths,
        coefficients=[1.0, 2.0, 3.0, -1.0, 0.5, 1.0],
        intercepts=[0.5, 0.1],
        classlabels_ints=[0, 1],
        outputs={"y": "int64", "z": "float32"},
        **ml,
    )
    yield one("Imputer", "x", (2, 3), widths, imputed_value_floats=[1.0, 2.0, 3.0], replaced_value_float=0.0, **ml)
    yield one("Normalizer", "x", (2, 3), widths, norm="L2", **ml)
    tree: dict[str, Any] = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [2, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_values": [0.5, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
    }
    targets: dict[str, Any] = {
        "target_treeids": [0, 0],
        "target_nodeids": [1, 2],
        "target_ids": [0, 0],
        "target_weights": [1.0, 2.0],
    }
    yield one("TreeEnsembleRegressor", "x", (2, 3), widths, n_targets=1, **tree, **targets, **ml)
    machine: dict[str, Any] = {"kernel_type": "RBF", "kernel_params": [0.5, 0.0, 3.0], "n_supports": 2}
    yield one(
        "SVMRegressor",
        "x",
        (2, 3),
        widths,
        support_vectors=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        coefficients=[1.0, -1.0],
        rho=[0.1],
        **machine,
        **ml,
    )
    yield one("FeatureVectorizer", "x", (2, 3), widths, inputdimensions=[3], **ml)
    yield resized(
        "OneHotEncoder",
        node("OneHotEncoder", ["x"], ["y"], domain="ai.onnx.ml", cats_int64s=[1, 2, 3], zeros=1),
        {"x": ints(1, 2, 3)},
        [(0,), (5,)],
        domains=["ai.onnx.ml"],
    )
    words: dict[str, Any] = {
        "max_gram_length": 2,
        "max_skip_count": 1,
        "min_gram_length": 2,
        "mode": "TF",
        "ngram_counts": [0, 2],
        "ngram_indexes": [0, 1, 2, 3],
        "pool_int64s": [1, 2, 1, 2, 2, 3],
    }
    yield resized(
        "TfIdfVectorizer",
        node("TfIdfVectorizer", ["x"], ["y"], **words),
        {"x": np.ones((2, 5), np.int64)},
        [(2, 1), (2, 0), (0, 5), (2, 2)],
    )


def graphs() -> Iterator[Onnx]:
    """All models of this file."""
    for group in (_windows, _learned):
        yield from group()
