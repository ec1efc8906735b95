"""Operators whose operands must agree in sizes known only at run time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.fuzz.hostile.catalog import Feeds, Onnx, floats, ints, node
from tests.fuzz.hostile.onnx_resized import Shapes, one, resized

_ROWS: Shapes = [(2, 7), (2, 9), (2, 1), (2, 0), (0, 8), (3, 8), (2, 100)]


def _constant_indices() -> Iterator[Onnx]:
    matrix = (2, 8)
    yield one(
        "Gather", "x i", matrix, [(2, 6), *_ROWS, (2, 5)], label="constant 5", axis=1, constants={"i": ints(5, 0)}
    )
    yield one(
        "Gather", "x i", matrix, [(2, 6), *_ROWS, (2, 5)], label="constant -6", axis=1, constants={"i": ints(-6, 0)}
    )
    places = np.array([[5, 0], [1, 5]])
    shapes: Shapes = [(2, 5), (1, 8), (2, 1), (2, 0), (3, 8), (0, 8)]
    yield one("GatherElements", "x i", matrix, shapes, label="constant", axis=1, constants={"i": places})
    yield one("GatherND", "x i", matrix, shapes, label="constant", constants={"i": np.array([[1, 5]])})
    update = {"i": np.array([[1, 5]]), "u": floats(1)}
    yield one("ScatterND", "x i u", matrix, shapes, label="constant", constants=update)
    spread = {"i": np.array([[5, 0]]), "u": floats(1, 2)}
    yield one("ScatterElements", "x i u", matrix, shapes, label="constant", axis=1, constants=spread)
    for k in (5, 1000):
        yield resized(
            f"TopK constant {k}",
            node("TopK", ["x", "k"], ["y", "i"], axis=1),
            {"x": floats(2, 2000)},
            [(2, 8), (2, 5), (2, 4), (64, 4), (3, 1), (1, 0), (0, 8), (2, 999), (2, 1000)],
            constants={"k": ints(k)},
            outputs={"y": "float32", "i": "int64"},
        )
    yield resized(
        "TopK constant 3 of int32 on axis 0",
        node("TopK", ["x", "k"], ["y", "i"], axis=0, largest=0),
        {"x": np.arange(16, dtype=np.int32).reshape(8, 2)},
        [(2, 2), (0, 2), (3, 0), (1, 100)],
        constants={"k": ints(3)},
        outputs={"y": "int32", "i": "int64"},
    )
    lengths = {"l": ints(5, 2)}
    batches: Shapes = [(2, 5), (2, 4), (2, 1), (2, 0), (3, 8), (1, 8), (0, 8)]
    yield one("ReverseSequence", "x l", matrix, batches, label="constant", batch_axis=0, time_axis=1, constants=lengths)
    condition = {"c": np.array([0, 1, 0, 0, 1], bool)}
    yield one(
        "Compress", "x c", matrix, [(2, 5), (2, 4), (2, 1), (2, 0)], label="constant", axis=1, constants=condition
    )
    bounds = {"a": ints(3), "b": ints(5), "c": ints(1)}
    yield one("Slice", "x a b c", matrix, [(4, 8), (2, 8), (0, 8), (3, 0)], label="constant", constants=bounds)


def _constant_sizes() -> Iterator[Onnx]:
    matrix = (2, 8)
    for mode in ("constant", "reflect", "wrap", "edge"):
        pads = {"p": ints(0, 4, 0, 4)}
        shapes: Shapes = [(2, 5), (2, 4), (2, 3), (2, 2), (2, 1), (2, 0), (0, 8)]
        yield one("Pad", "x p", matrix, shapes, label=f"{mode} by 4", mode=mode, constants=pads)
    crop = {"p": ints(0, -3, 0, -3)}
    yield one("Pad", "x p", matrix, [(2, 6), (2, 5), (2, 1), (2, 0)], label="by -3", constants=crop)
    two = {"y": "float32", "z": "float32"}
    sized: Shapes = [(2, 7), (2, 9), (2, 3), (2, 0), (1, 4)]
    for parts in ((3, 5), (3, 10**6)):
        good = (2, sum(parts)) if sum(parts) < 100 else (1, sum(parts))
        yield one(
            "Split",
            "x s",
            good,
            [(2, 8), *sized],
            label=f"constant {parts}",
            axis=1,
            outputs=two,
            constants={"s": ints(*parts)},
        )
    three = {"y": "float32", "z": "float32", "w": "float32"}
    whole: Shapes = [(2, 9), (2, 8), (2, 7), (2, 4), (2, 2), (2, 1), (2, 0)]
    yield one("Split", "x", (2, 9), whole, label="num_outputs=3", axis=1, num_outputs=3, outputs=three)
    for shape, label in ((ints(4, -1), "4,-1"), (ints(4, 4), "4,4"), (ints(0, 4, -1), "0,4,-1")):
        shapes = [(3, 5), (1, 3), (2, 9), (0, 8), (2, 0), (4, 4), (100, 8), (2, 2)]
        yield one("Reshape", "x s", matrix, shapes, label=f"constant {label}", constants={"s": shape})
    yield one(
        "Expand", "x s", (3, 8), [(1, 8), (2, 8), (3, 1), (3, 7), (0, 8)], label="constant", constants={"s": ints(3, 8)}
    )
    yield one("Squeeze", "x a", (3, 1), [(3, 2), (3, 0), (3, 100)], constants={"a": ints(1)}, label="constant")


def _operands() -> Iterator[Onnx]:
    wide, tall = {"c": floats(1, 8)}, {"c": floats(8, 4)}
    yield one("Add", "x c", (3, 8), [(3, 1), (3, 7), (3, 0), (0, 8), (3, 100)], constants=wide)
    yield one(
        "Where", "b x c", (3, 8), [(3, 1), (3, 7), (3, 0)], constants={"b": np.ones((1, 8), bool), "c": floats(1)}
    )
    yield one("PRelu", "x c", (3, 8), [(3, 1), (3, 7), (3, 0), (3, 100)], constants=wide)
    yield one("Clip", "x", (3, 8), [(3, 0), (0, 0)])
    yield one("MatMul", "x c", (3, 8), [(3, 7), (3, 9), (0, 8), (3, 0), (3, 100)], constants=tall)
    yield one("Gemm", "x c b", (3, 8), [(3, 7), (3, 9), (0, 8), (3, 0)], constants={**tall, "b": floats(4)})
    yield one(
        "Gemm",
        "x c b",
        (3, 8),
        [(3, 7), (2, 8), (4, 8), (1, 8)],
        label="bias of 3 rows",
        constants={**tall, "b": floats(3, 4)},
    )
    yield one("Einsum", "x c", (2, 8), [(2, 7), (2, 1), (2, 9), (2, 0)], equation="ij,jk->ik", constants=tall)
    yield one("Concat", "x c", (3, 8), [(3, 7), (3, 9), (0, 8), (3, 0)], axis=0, constants={"c": floats(2, 8)})
    several: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
        ("MatMul", (3, 8), (8, 4)),
        ("Add", (3, 8), (3, 8)),
        ("Concat", (3, 8), (2, 8)),
        ("Max", (3, 8), (1, 8)),
    ]
    for operator, first, second in several:
        attributes: dict[str, Any] = {"axis": 0} if operator == "Concat" else {}
        feeds: list[tuple[str, Feeds]] = [
            (f"x{list(a)} c{list(b)}", {"x": floats(*a), "c": floats(*b)})
            for a, b in [((3, 7), (8, 4)), ((3, 8), (7, 8)), ((0, 8), (8, 0)), ((3, 0), (0, 4)), ((1, 1), (2000, 50))]
        ]
        yield Onnx(
            f"{operator} of two inputs",
            [node(operator, ["x", "c"], ["y"], **attributes)],
            {"x": floats(*first), "c": floats(*second)},
            feeds,
        )
    batched: list[tuple[str, Feeds]] = [
        (f"{list(a)} {list(b)}", {"x": floats(*a), "c": floats(*b)})
        for a, b in [((2, 3, 4), (3, 4, 5)), ((5, 3, 4), (2, 4, 5)), ((2, 3, 4), (2, 5, 5)), ((0, 3, 4), (2, 4, 5))]
    ]
    yield Onnx(
        "MatMul in batches", [node("MatMul", ["x", "c"], ["y"])], {"x": floats(2, 3, 4), "c": floats(2, 4, 5)}, batched
    )


def _norms() -> Iterator[Onnx]:
    scale = {"s": np.abs(floats(8)) + 1}
    yield one("LayerNormalization", "x s", (2, 8), _ROWS, axis=-1, constants=scale)
    yield one("LayerNormalization", "x s b", (2, 8), _ROWS, label="with bias", constants={**scale, "b": floats(8)})
    yield one("RMSNormalization", "x s", (2, 8), _ROWS, axis=-1, constants=scale, opset=23)
    yield one(
        "BatchNormalization",
        "x s s s s",
        (2, 8, 3),
        [(2, 7, 3), (2, 9, 3), (2, 1, 3), (2, 0, 3), (2, 8, 0)],
        constants=scale,
    )
    yield one(
        "InstanceNormalization",
        "x s s",
        (2, 8, 5),
        [(2, 7, 5), (2, 9, 5), (2, 1, 5), (2, 8, 0), (2, 0, 5)],
        constants=scale,
    )
    yield one(
        "GroupNormalization",
        "x s s",
        (1, 8, 5),
        [(1, 6, 5), (1, 9, 5), (1, 16, 5), (1, 8, 0), (1, 2, 5)],
        num_groups=2,
        constants=scale,
    )
    yield one(
        "GroupNormalization",
        "x s b",
        (1, 4, 5),
        [(1, 6, 5), (1, 5, 5), (1, 3, 5)],
        label="4 of constants",
        num_groups=2,
        constants={"s": floats(4), "b": floats(4)},
    )
    quantizer = {**scale, "z": np.zeros(8, np.int8)}
    yield one("QuantizeLinear", "x s z", (2, 8), _ROWS, axis=1, constants=quantizer, outputs={"y": "int8"})
    yield one(
        "QuantizeLinear",
        "x s",
        (2, 8),
        [(2, 4), (2, 12), (2, 9), (2, 0)],
        label="in blocks",
        axis=1,
        block_size=4,
        constants={"s": np.abs(floats(2, 2)) + 1},
        outputs={"y": "uint8"},
    )
    yield resized(
        "DequantizeLinear",
        node("DequantizeLinear", ["x", "s", "z"], ["y"], axis=1),
        {"x": np.ones((2, 8), np.int8)},
        _ROWS,
        constants=quantizer,
    )
    yield one(
        "DynamicQuantizeLinear",
        "x",
        (2, 8),
        [(2, 0), (0, 0), (1, 1)],
        outputs={"y": "uint8", "s": "float32", "z": "uint8"},
    )
    yield one("LRN", "x", (1, 4, 3, 3), [(1, 1, 3, 3), (1, 0, 3, 3), (1, 4, 0, 3)], size=5)
    for operator in (
        "Softmax",
        "LogSoftmax",
        "Hardmax",
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL2",
        "ReduceLogSumExp",
    ):
        yield one(operator, "x", (2, 8), [(2, 0), (0, 8), (0, 0)])
    for operator in ("ArgMax", "ArgMin"):
        yield one(operator, "x", (2, 8), [(2, 0), (0, 8), (0, 0)], axis=1, outputs={"y": "int64"})
    unique = {name: "float32" if name == "y" else "int64" for name in ("y", "i", "j", "k")}
    yield one("Unique", "x", (2, 8), [(2, 0), (0, 8), (1, 1)], outputs=unique)
    yield one("Unique", "x", (2, 8), [(2, 0), (0, 8), (1, 1)], label="axis 1", axis=1, outputs=unique)
    yield one("NonZero", "x", (2, 8), [(2, 0), (0, 8), (1, 1)], outputs={"y": "int64"})
    yield one("CumSum", "x a", (2, 8), [(2, 0), (0, 5)], label="of nothing", constants={"a": np.array(1)})
    yield one("Det", "x", (3, 3), [(3, 4), (4, 3), (0, 0), (1, 1)])
    yield one("EyeLike", "x", (3, 3), [(3, 0), (0, 3), (5, 2)], k=2)
    yield one("Flatten", "x", (2, 3, 4), [(2, 0, 4), (0, 3, 4)], axis=2)


def graphs() -> Iterator[Onnx]:
    """All models of this file."""
    for group in (_constant_indices, _constant_sizes, _operands, _norms):
        yield from group()
