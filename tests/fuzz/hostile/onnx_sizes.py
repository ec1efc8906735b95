"""Operators whose result sizes depend on values of a tensor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.fuzz.hostile.catalog import Feeds, Onnx, floats, hostile_sizes, ints, node, placed, scalar

_MATRIX = {"x": floats(2, 8)}
_FAR = [2**62, -(2**62), 2**63 - 1, -(2**63), 10**6, -(10**6), 10**18]


def _tuples(name: str, *values: tuple[int, ...]) -> list[tuple[str, Feeds]]:
    return [(f"{name}={list(value)}", {name: ints(*value)}) for value in values]


def _reshapes() -> Iterator[Onnx]:
    shape = ints(4, 4)
    wrong = _tuples("s", (4, -1), (-1, -1), (-2, 8), (0, 8), (0, -1), (3, 5), (2**32, 2**32), (2**62, 4), (5, -1))
    yield Onnx(
        "Reshape",
        [node("Reshape", ["x", "s"], ["y"])],
        {**_MATRIX, "s": shape},
        [
            *placed(shape, hostile_sizes(), "s"),
            *wrong,
            ("x of 0 rows, s=[0, -1]", {"x": floats(0, 8), "s": ints(0, -1)}),
            ("x of 0 rows, s=[4, -1]", {"x": floats(0, 8), "s": ints(4, -1)}),
        ],
        hidden=["s"],
        dims={"s": [2]},
    )
    yield Onnx(
        "Reshape allowzero",
        [node("Reshape", ["x", "s"], ["y"], allowzero=1)],
        {**_MATRIX, "s": shape},
        wrong,
        hidden=["s"],
        dims={"s": [2]},
    )
    yield Onnx(
        "Expand",
        [node("Expand", ["x", "s"], ["y"])],
        {**_MATRIX, "s": ints(2, 8)},
        [*placed(ints(2, 8), hostile_sizes(), "s"), *_tuples("s", (1, 1), (3, 8), (2, 7), (2**32, 2**32), (0, 8))],
        hidden=["s"],
        dims={"s": [2]},
    )
    yield Onnx(
        "Tile",
        [node("Tile", ["x", "s"], ["y"])],
        {**_MATRIX, "s": ints(2, 1)},
        [*placed(ints(2, 1), hostile_sizes(), "s"), *_tuples("s", (2**32, 2**32), (2**61, 8), (0, 3))],
        hidden=["s"],
        dims={"s": [2]},
    )
    yield Onnx(
        "ConstantOfShape",
        [node("ConstantOfShape", ["s"], ["y"])],
        {"s": ints(2, 3)},
        [*placed(ints(2, 3), hostile_sizes(), "s"), *_tuples("s", (2**32, 2**32), (2**62, 8), (-1, -1))],
        hidden=["s"],
        dims={"s": [2]},
    )
    for name, step in (("Unsqueeze", 1), ("Squeeze", 0)):
        yield Onnx(
            name,
            [node(name, ["x", "a"], ["y"])],
            {"x": floats(1, 8), "a": ints(step)},
            placed(ints(step), [0, 1, 2, 3, -1, -2, -4, *_FAR], "a"),
            dims={"a": [1]},
        )
    yield Onnx(
        "CenterCropPad",
        [node("CenterCropPad", ["x", "s"], ["y"])],
        {**_MATRIX, "s": ints(3, 9)},
        placed(ints(3, 9), hostile_sizes(), "s"),
        hidden=["s"],
        dims={"s": [2]},
    )


def _ranges() -> Iterator[Onnx]:
    numbers = {"a": scalar(0), "b": scalar(5), "c": scalar(1)}
    cases = [
        (0, 5, 0),
        (5, 0, 1),
        (0, 5, -1),
        (0, 2**62, 1),
        (-(2**63), 2**63 - 1, 1),
        (0, 2**63 - 1, 2**62),
        (0, -5, -2),
    ]
    cases += [(0, 10**9, 10**8), (2**62, -(2**62), -(2**61)), (0, 5, -(2**63)), (-(2**63), 0, 2**62)]
    yield Onnx(
        "Range",
        [node("Range", ["a", "b", "c"], ["y"])],
        numbers,
        [(str(case), {name: scalar(v) for name, v in zip("abc", case, strict=True)}) for case in cases],
        hidden=["a", "b", "c"],
        outputs={"y": "int64"},
    )
    wild = [(0.0, 5.0, 0.0), (0.0, np.nan, 1.0), (0.0, np.inf, 1.0), (0.0, 5.0, np.nan), (np.nan, 5.0, 1.0)]
    wild += [(0.0, 5.0, 1e-30), (0.0, -5.0, 1.0), (-np.inf, 5.0, 1.0), (0.0, 5.0, np.inf), (0.0, 1e30, 1e29)]
    yield Onnx(
        "Range float",
        [node("Range", ["a", "b", "c"], ["y"])],
        {name: value.astype(np.float32) for name, value in numbers.items()},
        [(str(case), {name: scalar(v, "float32") for name, v in zip("abc", case, strict=True)}) for case in wild],
        hidden=["a", "b", "c"],
    )


def _slices() -> Iterator[Onnx]:
    near = [-9, -8, -1, 0, 3, 7, 8, 9]
    good = {"a": ints(1), "b": ints(6)}
    hostile = [
        *placed(good["a"], [*near, *_FAR], "a"),
        *placed(good["b"], [*near, *_FAR], "b"),
        ("backwards", {"a": ints(2**63 - 1), "b": ints(-(2**63))}),
        ("from the end", {"a": ints(-1), "b": ints(-100)}),
        ("x of 0", {"x": floats(0, 8)}),
        ("x of 0, backwards", {"x": floats(0, 8), "a": ints(-1), "b": ints(-100)}),
    ]
    for step in (1, 2, -1, -3, 2**62, -(2**62)):
        yield Onnx(
            f"Slice by {step}",
            [node("Slice", ["x", "a", "b", "c", "d"], ["y"])],
            {"x": floats(8, 8), **good},
            hostile,
            hidden=["a", "b"] if step in (1, -3) else [],
            dims={"a": [1], "b": [1]},
            constants={"c": ints(0), "d": ints(step)},
        )
    yield Onnx(
        "Slice of two axes",
        [node("Slice", ["x", "a", "b"], ["y"])],
        {"x": floats(8, 8), "a": ints(1, 2), "b": ints(6, 7)},
        [*placed(ints(1, 2), [*near, *_FAR], "a"), *placed(ints(6, 7), [*near, *_FAR], "b")],
        dims={"a": [2], "b": [2]},
    )
    splits = [
        (3, 6),
        (3, 4),
        (9, -1),
        (0, 8),
        (8, 0),
        (-1, 9),
        (10**6, 3),
        (3, 10**6),
        (2**62, 2**62),
        (4, 4),
        (2**63 - 1, 9),
    ]
    two = {"y": "float32", "z": "float32"}
    yield Onnx(
        "Split",
        [node("Split", ["x", "s"], ["y", "z"], axis=1)],
        {**_MATRIX, "s": ints(3, 5)},
        [*_tuples("s", *splits), ("x of 7", {"x": floats(2, 7)}), ("x of 0", {"x": floats(2, 0), "s": ints(0, 0)})],
        hidden=["s"],
        dims={"s": [2]},
        outputs=two,
    )
    joined = node("ConcatFromSequence", ["q"], ["y"], axis=1)
    yield Onnx(
        "SplitToSequence",
        [node("SplitToSequence", ["x", "s"], ["q"], axis=1), joined],
        {**_MATRIX, "s": ints(3, 5)},
        _tuples("s", *splits),
        hidden=["s"],
        dims={"s": [2], "x": ["n", 8]},
    )
    yield Onnx(
        "SplitToSequence scalar",
        [node("SplitToSequence", ["x", "s"], ["q"], axis=1), joined],
        {**_MATRIX, "s": scalar(3)},
        placed(scalar(3), hostile_sizes(), "s"),
        hidden=["s"],
        dims={"s": [], "x": ["n", 8]},
    )
    pads = ints(0, 1, 0, 2)
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield Onnx(
            f"Pad {mode}",
            [node("Pad", ["x", "p"], ["y"], mode=mode)],
            {**_MATRIX, "p": pads},
            [
                *placed(pads, [7, 8, 9, 17, -1, -7, -8, -9, *_FAR, 10**9], "p"),
                *_tuples("p", (0, -3, 0, -5), (0, -3, 0, -6), (1, 1, 1, 1), (2, 0, 0, 0), (0, 2**62, 0, 2**62)),
                ("x of 1", {"x": floats(2, 1)}),
                ("x of 0", {"x": floats(2, 0)}),
            ],
            hidden=["p"],
            dims={"p": [4]},
        )
    yield Onnx(
        "Pad axes",
        [node("Pad", ["x", "p", "", "a"], ["y"])],
        {**_MATRIX, "p": ints(1, 2), "a": ints(1)},
        placed(ints(1), [0, -1, -2, 2, -3, *_FAR], "a"),
        dims={"p": [2], "a": [1]},
    )


def _choices() -> Iterator[Onnx]:
    for largest in (1, 0):
        yield Onnx(
            f"TopK largest={largest}",
            [node("TopK", ["x", "k"], ["y", "i"], axis=1, largest=largest)],
            {**_MATRIX, "k": ints(3)},
            [
                *placed(ints(3), [7, 8, 9, *hostile_sizes()], "k"),
                ("x of 2", {"x": floats(2, 2)}),
                ("x of 0", {"x": floats(2, 0)}),
                ("x of 0, k=0", {"x": floats(2, 0), "k": ints(0)}),
            ],
            hidden=["k"],
            dims={"k": [1]},
            outputs={"y": "float32", "i": "int64"},
        )
    boxes, scores = floats(1, 4, 4), np.abs(floats(1, 2, 4))
    yield Onnx(
        "NonMaxSuppression",
        [node("NonMaxSuppression", ["b", "s", "m", "t", "u"], ["y"])],
        {"b": boxes, "s": scores, "m": ints(2), "t": scalar(0.5, "float32"), "u": scalar(0.0, "float32")},
        [
            *placed(ints(2), hostile_sizes(), "m"),
            *((f"b={v}", {"b": np.full_like(boxes, v)}) for v in (np.nan, np.inf, 1e30)),
            *((f"s={v}", {"s": np.full_like(scores, v)}) for v in (np.nan, np.inf, -np.inf)),
            *((f"t={v}", {"t": scalar(v, "float32")}) for v in (np.nan, -1.0, 2.0, 0.0)),
            ("s of fewer boxes", {"s": floats(1, 2, 3)}),
            ("s of more boxes", {"s": floats(1, 2, 9)}),
            ("s of 2 batches", {"s": floats(2, 2, 4)}),
            ("b of 3 numbers", {"b": floats(1, 4, 3)}),
            ("no boxes", {"b": floats(1, 0, 4), "s": floats(1, 2, 0)}),
        ],
        hidden=["m"],
        outputs={"y": "int64"},
    )
    for name in ("CumSum", "CumProd"):
        yield Onnx(
            name,
            [node(name, ["x", "a"], ["y"])],
            {**_MATRIX, "a": scalar(1)},
            placed(scalar(1), [0, -1, -2, 2, -3, *_FAR], "a"),
            opset=26 if name == "CumProd" else 21,
        )
    yield Onnx(
        "ReduceSum axes",
        [node("ReduceSum", ["x", "a"], ["y"])],
        {**_MATRIX, "a": ints(1)},
        placed(ints(1), [0, -1, -2, 2, -3, *_FAR], "a"),
        dims={"a": [1]},
    )
    yield Onnx(
        "Trilu",
        [node("Trilu", ["x", "k"], ["y"])],
        {**_MATRIX, "k": scalar(1)},
        placed(scalar(1), [-9, -2, 8, *_FAR], "k"),
        hidden=["k"],
    )
    condition = np.array([True, False, True])
    yield Onnx(
        "Compress",
        [node("Compress", ["x", "c"], ["y"], axis=1)],
        {**_MATRIX, "c": condition},
        [
            ("c longer", {"c": np.ones(9, bool)}),
            ("c of 500000", {"c": np.ones(500000, bool)}),
            ("c of 0", {"c": np.ones(0, bool)}),
            ("x of 2", {"x": floats(2, 2)}),
            ("x of 0", {"x": floats(2, 0)}),
        ],
    )


def graphs() -> Iterator[Onnx]:
    """All models of this file."""
    for group in (_reshapes, _ranges, _slices, _choices):
        yield from group()
