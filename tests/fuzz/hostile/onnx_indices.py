"""Operators whose addresses depend on the values of a tensor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.fuzz.hostile.catalog import Feeds, Onnx, floats, hostile_indices, hostile_sizes, ints, node, placed, scalar

_N = 8


def _sizes(name: str, *shapes: tuple[int, ...], dtype: str = "float32") -> list[tuple[str, Feeds]]:
    """Zeros in other shapes."""
    return [(f"{name}{list(shape)}", {name: np.zeros(shape, dtype)}) for shape in shapes]


def _gathers() -> Iterator[Onnx]:
    values = hostile_indices(_N)
    index = ints(0, 3, 5)
    data = {"x": floats(2, _N)}
    empty = _sizes("x", (2, 0), (0, _N), (2, 1), (2, 5))
    yield Onnx(
        "Gather",
        [node("Gather", ["x", "i"], ["y"], axis=1)],
        {**data, "i": index},
        [*placed(index, values, "i"), *empty, *_sizes("i", (0,), dtype="int64")],
        hidden=["i"],
    )
    yield Onnx(
        "Gather int32 on axis 0",
        [node("Gather", ["x", "i"], ["y"])],
        {"x": floats(_N, 4), "i": index.astype("int32").reshape(1, 3)},
        placed(index.astype("int32").reshape(1, 3), values, "i"),
        hidden=["i"],
    )
    grid = np.array([[0, 3, 5], [1, 2, 7]])
    larger = _sizes("i", (2000, 1), (3, 3), (2, 0), (0, 3), (1, 5), (1, 100000), dtype="int64")
    yield Onnx(
        "GatherElements",
        [node("GatherElements", ["x", "i"], ["y"], axis=1)],
        {**data, "i": grid},
        [*placed(grid, values, "i"), *larger, *empty],
        hidden=["i"],
    )
    pairs = np.array([[0, 3], [1, 7]])
    yield Onnx(
        "GatherND",
        [node("GatherND", ["x", "i"], ["y"])],
        {**data, "i": pairs},
        [*placed(pairs, values, "i"), *empty],
        hidden=["i"],
        dims={"i": ["k", 2]},
    )
    single = np.array([[3], [7]])
    yield Onnx(
        "GatherND batch_dims=1",
        [node("GatherND", ["x", "i"], ["y"], batch_dims=1)],
        {"x": floats(2, _N, 3), "i": single},
        [*placed(single, values, "i"), *_sizes("i", (3, 1), (1, 1), (1000, 1), (0, 1), dtype="int64")],
        hidden=["i"],
        dims={"i": ["k", 1]},
    )


def _scatters() -> Iterator[Onnx]:
    values = hostile_indices(_N)
    data = {"x": floats(2, _N)}
    grid, update = np.array([[0, 3, 5], [1, 2, 7]]), floats(2, 3)
    larger: list[tuple[str, Feeds]] = [
        (f"i, u {list(shape)}", {"i": np.zeros(shape, np.int64), "u": np.full(shape, 7, np.float32)})
        for shape in [(5000, 1), (3, 3), (0, 3), (2, 0), (1, 9)]
    ]
    other = [
        ("u smaller than i", {"u": floats(2, 2)}),
        ("u empty", {"u": floats(0, 3)}),
        ("u of another shape", {"u": floats(3, 2)}),
        ("u larger than i", {"u": floats(4, 3)}),
    ]
    empty = _sizes("x", (2, 0), (0, _N), (1, _N), (2, 5))
    for reduction in ("none", "add"):
        yield Onnx(
            f"ScatterElements {reduction}",
            [node("ScatterElements", ["x", "i", "u"], ["y"], axis=1, reduction=reduction)],
            {**data, "i": grid, "u": update},
            [*placed(grid, values, "i"), *larger, *other, *empty],
            hidden=["i"],
        )
    pairs = np.array([[0, 3], [1, 7]])
    yield Onnx(
        "ScatterND",
        [node("ScatterND", ["x", "i", "u"], ["y"])],
        {**data, "i": pairs, "u": floats(2)},
        [*placed(pairs, values, "i"), ("u of 1", {"u": floats(1)}), ("u of 5", {"u": floats(5)}), *empty],
        hidden=["i"],
        dims={"i": ["k", 2]},
    )
    rows = np.array([[0], [1]])
    yield Onnx(
        "ScatterND rows",
        [node("ScatterND", ["x", "i", "u"], ["y"], reduction="max")],
        {**data, "i": rows, "u": floats(2, _N)},
        [
            *placed(rows, hostile_indices(2), "i"),
            ("u of 1 row", {"u": floats(1, _N)}),
            ("u of short rows", {"u": floats(2, 3)}),
            ("u of long rows", {"u": floats(2, 9)}),
            *empty,
        ],
        hidden=["i"],
        dims={"i": ["k", 1]},
    )
    start = ints(0, 2)
    yield Onnx(
        "TensorScatter",
        [node("TensorScatter", ["x", "u", "w"], ["y"], axis=1)],
        {"x": floats(2, _N, 3), "u": floats(2, 3, 3), "w": start},
        [
            *placed(start, hostile_indices(5), "w"),
            ("u longer", {"u": floats(2, 9, 3)}),
            ("u of 1 batch", {"u": floats(1, 3, 3)}),
            ("u narrower", {"u": floats(2, 3, 2)}),
            ("w of 1", {"w": ints(0)}),
        ],
        hidden=["w"],
        opset=24,
    )


def _picked() -> Iterator[Onnx]:
    values = hostile_indices(5)
    yield Onnx(
        "OneHot indices",
        [node("OneHot", ["i", "d", "v"], ["y"])],
        {"i": ints(0, 4, 2)},
        placed(ints(0, 4, 2), values, "i"),
        hidden=["i"],
        constants={"d": scalar(5), "v": np.array([0, 1], np.float32)},
    )
    yield Onnx(
        "OneHot depth",
        [node("OneHot", ["i", "d", "v"], ["y"])],
        {"i": ints(0, 4, 2), "d": scalar(5)},
        placed(scalar(5), hostile_sizes(), "d"),
        hidden=["d"],
        constants={"v": np.array([0, 1], np.float32)},
    )
    yield Onnx(
        "ArrayFeatureExtractor",
        [node("ArrayFeatureExtractor", ["x", "i"], ["y"], domain="ai.onnx.ml")],
        {"x": floats(2, 5), "i": ints(0, 4)},
        [*placed(ints(0, 4), values, "i"), *_sizes("x", (2, 0), (2, 3))],
        hidden=["i"],
        domains=["ai.onnx.ml"],
    )
    target = ints(0, 4, 2)
    for operator in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
        yield Onnx(
            operator,
            [node(operator, ["x", "t"], ["y"], reduction="none", ignore_index=-100)],
            {"x": floats(3, 5), "t": target},
            [*placed(target, [-100, *values], "t"), ("t of 2", {"t": ints(0, 1)}), ("t of 9", {"t": ints(*[0] * 9)})],
            hidden=["t"],
        )
    places = np.arange(4, dtype=np.int64).reshape(1, 1, 2, 2) * 5
    shape = ints(1, 1, 4, 4)
    yield Onnx(
        "MaxUnpool",
        [node("MaxUnpool", ["x", "i"], ["y"], kernel_shape=[2, 2], strides=[2, 2])],
        {"x": floats(1, 1, 2, 2), "i": places},
        [*placed(places, hostile_indices(16), "i"), ("i of another shape", {"i": np.zeros((1, 1, 1, 1), np.int64)})],
        hidden=["i"],
    )
    yield Onnx(
        "MaxUnpool output_shape",
        [node("MaxUnpool", ["x", "i", "s"], ["y"], kernel_shape=[2, 2], strides=[2, 2])],
        {"x": floats(1, 1, 2, 2), "i": places, "s": shape},
        [*placed(shape, hostile_sizes(), "s"), ("s 1,1,1,1", {"s": ints(1, 1, 1, 1)})],
        hidden=["s"],
        dims={"s": [4]},
    )


def _samples() -> Iterator[Onnx]:
    wild = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -1.0000001, 1.0000001, 1e-45]
    grid = np.zeros((1, 2, 3, 2), np.float32)
    for mode in ("linear", "nearest", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            yield Onnx(
                f"GridSample {mode} {padding}",
                [node("GridSample", ["x", "g"], ["y"], mode=mode, padding_mode=padding)],
                {"x": floats(1, 2, 4, 5), "g": grid},
                [
                    *((f"g={value}", {"g": np.full_like(grid, value)}) for value in wild),
                    ("x of height 0", {"x": floats(1, 2, 0, 5)}),
                    ("x of 1x1", {"x": floats(1, 2, 1, 1)}),
                    ("g of 2 batches", {"g": np.zeros((2, 2, 3, 2), np.float32)}),
                ],
                dims={"g": ["gb", "gh", "gw", 2]},
            )
    rois, batch = np.array([[0, 0, 3, 3], [1, 1, 2, 2]], np.float32), ints(0, 1)
    for mode in ("avg", "max"):
        yield Onnx(
            f"RoiAlign {mode}",
            [node("RoiAlign", ["x", "r", "b"], ["y"], mode=mode, output_height=2, output_width=2)],
            {"x": floats(2, 2, 5, 5), "r": rois, "b": batch},
            [
                *placed(batch, hostile_indices(2), "b"),
                *((f"r={value}", {"r": np.full_like(rois, value)}) for value in wild[:5]),
                ("r from -1e4 to 1e4", {"r": np.array([[-1e4, -1e4, 1e4, 1e4]] * 2, np.float32)}),
                ("x of height 0", {"x": floats(2, 2, 0, 5)}),
                ("b of 1", {"b": ints(0)}),
            ],
            hidden=["b"],
            dims={"r": ["k", 4]},
        )
    regions = np.array([[0, 0, 0, 3, 3], [1, 1, 1, 2, 2]], np.float32)
    yield Onnx(
        "MaxRoiPool",
        [node("MaxRoiPool", ["x", "r"], ["y"], pooled_shape=[2, 2])],
        {"x": floats(2, 2, 5, 5), "r": regions},
        [
            *((f"r={value}", {"r": np.full_like(regions, value)}) for value in wild),
            *((f"batch={value}", {"r": np.array([[value, 0, 0, 3, 3]] * 2, np.float32)}) for value in (-1.0, 2.0, 1e6)),
            ("x of height 0", {"x": floats(2, 2, 0, 5)}),
        ],
        dims={"r": ["k", 5]},
    )
    offset = np.zeros((1, 8, 3, 3), np.float32)
    yield Onnx(
        "DeformConv",
        [node("DeformConv", ["x", "w", "o"], ["y"], kernel_shape=[2, 2])],
        {"x": floats(1, 1, 4, 4), "o": offset},
        [
            *((f"o={value}", {"o": np.full_like(offset, value)}) for value in wild),
            ("o of fewer channels", {"o": offset[:, :4]}),
            ("o smaller", {"o": offset[:, :, :2]}),
            ("x of 1x1", {"x": floats(1, 1, 1, 1)}),
        ],
        constants={"w": floats(1, 1, 2, 2)},
        dims={"x": ["b", 1, "h", "w"], "o": ["ob", "oc", "oh", "ow"]},
    )


def graphs() -> Iterator[Onnx]:
    """All models of this file."""
    for group in (_gathers, _scatters, _picked, _samples):
        yield from group()
