"""Recurrent layers, loops, sequences and attention: lengths, counts and positions are values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.fuzz.hostile.catalog import Feeds, Onnx, floats, hostile_indices, hostile_sizes, ints, node, placed, scalar

_MICROSOFT = ["com.microsoft"]


def _recurrent() -> Iterator[Onnx]:
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}
    lengths = np.array([4, 3], np.int32)
    values = [-(2**31), -5, -1, 0, 1, 5, 10**6, 10**9, 2**31 - 1]
    for operator, count in gates.items():
        for direction in ("forward", "bidirectional"):
            sides = 2 if direction == "bidirectional" else 1
            yield Onnx(
                f"{operator} {direction}",
                [node(operator, ["x", "W", "R", "", "l"], ["y", "h"], hidden_size=2, direction=direction)],
                {"x": floats(4, 2, 3), "l": lengths},
                [
                    *placed(lengths, values, "l"),
                    ("l of 1", {"l": lengths[:1]}),
                    ("l of 5", {"l": np.full(5, 2, np.int32)}),
                    ("x of 3 batches", {"x": floats(4, 3, 3)}),
                    ("x of no steps", {"x": floats(0, 2, 3), "l": np.zeros(2, np.int32)}),
                    ("x of 1 step", {"x": floats(1, 2, 3)}),
                ],
                hidden=["l"],
                dims={"x": ["s", "b", 3]},
                constants={"W": floats(sides, 2 * count, 3), "R": floats(sides, 2 * count, 2)},
                outputs={"y": "float32", "h": "float32"},
            )
        states = ["h", "c"] if operator == "LSTM" else ["h"]
        yield Onnx(
            f"{operator} initial states",
            [node(operator, ["x", "W", "R", "", "", *states], ["y"], hidden_size=2)],
            {"x": floats(4, 2, 3), **{name: floats(1, 2, 2) for name in states}},
            [
                ("h of 1 batch", {"h": floats(1, 1, 2)}),
                ("h of 9 batches", {"h": floats(1, 9, 2)}),
                ("h of 2 directions", {"h": floats(2, 2, 2)}),
                ("h of 3 units", {"h": floats(1, 2, 3)}),
                ("h of 0 batches", {"h": floats(1, 0, 2)}),
                ("x of 4 features", {"x": floats(4, 2, 4)}),
                ("x of 2 features", {"x": floats(4, 2, 2)}),
                ("x of 300 batches", {"x": floats(4, 300, 3)}),
            ],
            constants={"W": floats(1, 2 * count, 3), "R": floats(1, 2 * count, 2)},
        )
    yield Onnx(
        "GRU constant lengths",
        [node("GRU", ["x", "W", "R", "", "l"], ["y"], hidden_size=2)],
        {"x": floats(8, 2, 3)},
        [
            (f"x{list(shape)}", {"x": floats(*shape)})
            for shape in [(5, 2, 3), (4, 2, 3), (1, 2, 3), (8, 3, 3), (0, 2, 3)]
        ],
        dims={"x": ["s", "b", 3]},
        constants={"W": floats(1, 6, 3), "R": floats(1, 6, 2), "l": np.array([5, 3], np.int32)},
    )
    steps = ints(3, 3)
    yield Onnx(
        "ReverseSequence",
        [node("ReverseSequence", ["x", "l"], ["y"], batch_axis=0, time_axis=1)],
        {"x": floats(2, 8), "l": steps},
        [
            *placed(steps, [0, 1, *hostile_indices(8), 10**8], "l"),
            ("l of 1", {"l": ints(3)}),
            ("l of 5", {"l": ints(3, 3, 3, 3, 3)}),
            ("x of no steps", {"x": floats(2, 0), "l": ints(0, 0)}),
            ("x of no steps, l=1", {"x": floats(2, 0), "l": ints(1, 1)}),
        ],
        hidden=["l"],
    )


def _loops() -> Iterator[Onnx]:
    def value(name: str, kind: int, shape: list[Any] | None) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    indexed = helper.make_graph(
        [
            node("Identity", ["go"], ["go_out"]),
            node("Gather", ["x", "turn"], ["row"], axis=0),
            node("Add", ["sum", "row"], ["sum_out"]),
        ],
        "indexed",
        [
            value("turn", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("sum", TensorProto.FLOAT, None),
        ],
        [value("go_out", TensorProto.BOOL, []), value("sum_out", TensorProto.FLOAT, None)],
    )
    yield Onnx(
        "Loop that indexes by its turn",
        [node("Loop", ["n", "go_in", "start"], ["y"], body=indexed)],
        {"x": floats(5, 3), "n": scalar(4)},
        [
            *placed(scalar(4), [0, 1, 5, 6, 1000, -1, -5, -(2**63)], "n"),
            ("x of 0 rows, n=0", {"x": floats(0, 3), "n": scalar(0)}),
            ("x of 0 rows, n=1", {"x": floats(0, 3), "n": scalar(1)}),
            ("x of other width", {"x": floats(5, 4)}),
        ],
        hidden=["n"],
        constants={"go_in": np.array(True), "start": np.zeros((3,), np.float32)},
    )
    sliced = helper.make_graph(
        [
            node("Identity", ["go"], ["go_out"]),
            node("Unsqueeze", ["turn", "zero"], ["first"]),
            node("Add", ["first", "two"], ["last"]),
            node("Slice", ["x", "first", "last"], ["part"]),
        ],
        "sliced",
        [value("turn", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])],
        [value("go_out", TensorProto.BOOL, []), value("part", TensorProto.FLOAT, None)],
    )
    yield Onnx(
        "Loop whose slices shrink at the end",
        [node("Loop", ["n", "go_in"], ["y"], body=sliced)],
        {"x": floats(5), "n": scalar(4)},
        placed(scalar(4), [0, 1, 5, 6, 9, -1], "n"),
        hidden=["n"],
        constants={"go_in": np.array(True), "zero": ints(0), "two": ints(2)},
    )
    pair = helper.make_graph(
        [node("Add", ["a", "b"], ["c"]), node("Add", ["s", "c"], ["s_out"])],
        "pair",
        [value(name, TensorProto.FLOAT, None) for name in "sab"],
        [value("s_out", TensorProto.FLOAT, None), value("c", TensorProto.FLOAT, None)],
    )
    yield Onnx(
        "Scan of two inputs",
        [node("Scan", ["s", "a", "b"], ["z", "y"], body=pair, num_scan_inputs=2)],
        {"s": floats(3), "a": floats(4, 3), "b": floats(4, 3)},
        [
            ("b shorter", {"b": floats(2, 3)}),
            ("b longer", {"b": floats(9, 3)}),
            ("a shorter", {"a": floats(1, 3)}),
            ("none", {"a": floats(0, 3), "b": floats(0, 3)}),
            ("b narrower", {"b": floats(4, 2)}),
            ("s wider", {"s": floats(5)}),
        ],
        outputs={"z": "float32", "y": "float32"},
    )


def _sequences() -> Iterator[Onnx]:
    three = {"a": floats(2, 3), "b": floats(2, 3), "c": floats(2, 3)}
    made = node("SequenceConstruct", ["a", "b", "c"], ["q"])
    position = placed(scalar(1), hostile_indices(3), "p")
    joined = node("ConcatFromSequence", ["r"], ["y"], axis=0)
    forms: dict[str, list[Any]] = {
        "SequenceAt": [node("SequenceAt", ["q", "p"], ["y"])],
        "SequenceErase": [node("SequenceErase", ["q", "p"], ["r"]), joined],
        "SequenceInsert": [node("SequenceInsert", ["q", "a", "p"], ["r"]), joined],
    }
    for operator, nodes in forms.items():
        yield Onnx(operator, [made, *nodes], {**three, "p": scalar(1)}, position)
    yield Onnx(
        "ConcatFromSequence",
        [made, node("ConcatFromSequence", ["q"], ["y"], axis=0)],
        three,
        [("b wider", {"b": floats(2, 4)}), ("b narrower", {"b": floats(2, 2)}), ("b empty", {"b": floats(0, 3)})],
    )
    yield Onnx(
        "ConcatFromSequence new axis",
        [made, node("ConcatFromSequence", ["q"], ["y"], axis=0, new_axis=1)],
        three,
        [("b wider", {"b": floats(2, 4)}), ("b taller", {"b": floats(3, 3)}), ("b empty", {"b": floats(0, 3)})],
    )


def _attention() -> Iterator[Onnx]:
    query, key = floats(2, 2, 4, 8), floats(2, 2, 6, 8)
    changes: list[tuple[str, Feeds]] = [
        ("v shorter", {"v": floats(2, 2, 5, 8)}),
        ("v longer", {"v": floats(2, 2, 60, 8)}),
        ("k of 1 batch", {"k": floats(1, 2, 6, 8)}),
        ("k of other size", {"k": floats(2, 2, 6, 7)}),
        ("no keys", {"k": floats(2, 2, 0, 8), "v": floats(2, 2, 0, 8)}),
        ("no queries", {"q": floats(2, 2, 0, 8)}),
        ("k of 3 heads", {"k": floats(2, 3, 6, 8)}),
    ]
    shapes: dict[str, list[int | str]] = {name: ["b" + name, 2, "s" + name, 8] for name in "qkv"}
    good = {"q": query, "k": key, "v": floats(2, 2, 6, 8)}
    yield Onnx("Attention", [node("Attention", ["q", "k", "v"], ["y"])], good, changes, dims=shapes, opset=23)
    mask: list[tuple[str, Feeds]] = [
        (f"m{list(shape)}", {"m": np.zeros(shape, np.float32)})
        for shape in [(4, 5), (3, 6), (1, 1), (4, 60), (0, 6), (4, 0)]
    ]
    yield Onnx(
        "Attention mask",
        [node("Attention", ["q", "k", "v", "m"], ["y"])],
        {**good, "m": floats(4, 6)},
        mask,
        dims=shapes,
        opset=23,
    )
    filled = ints(6, 4)
    yield Onnx(
        "Attention lengths",
        [node("Attention", ["q", "k", "v", "", "", "", "n"], ["y"])],
        {**good, "n": filled},
        [*placed(filled, [*hostile_indices(6), *hostile_sizes()], "n"), ("n of 1", {"n": ints(6)})],
        hidden=["n"],
        dims=shapes,
        opset=24,
    )
    table, places = floats(10, 4), np.array([[0, 1, 2], [3, 4, 5]])
    yield Onnx(
        "RotaryEmbedding",
        [node("RotaryEmbedding", ["x", "c", "s", "p"], ["y"])],
        {"x": floats(2, 2, 3, 8), "p": places},
        [
            *placed(places, hostile_indices(10), "p"),
            ("p of 1 batch", {"p": places[:1]}),
            ("p longer", {"p": np.zeros((2, 9), np.int64)}),
        ],
        hidden=["p"],
        dims={"x": ["b", 2, "s", 8]},
        constants={"c": table, "s": table},
        opset=23,
    )
    yield Onnx(
        "RotaryEmbedding com.microsoft",
        [node("RotaryEmbedding", ["x", "p", "c", "s"], ["y"], domain="com.microsoft")],
        {"x": floats(2, 2, 3, 8), "p": places},
        [
            *placed(places, hostile_indices(10), "p"),
            ("p of 1 batch", {"p": places[:1]}),
            ("p longer", {"p": np.zeros((2, 9), np.int64)}),
        ],
        hidden=["p"],
        dims={"x": ["b", 2, "s", 8]},
        constants={"c": table, "s": table},
        domains=_MICROSOFT,
    )
    yield Onnx(
        "RotaryEmbedding com.microsoft offset",
        [node("RotaryEmbedding", ["x", "p", "c", "s"], ["y"], domain="com.microsoft")],
        {"x": floats(2, 2, 3, 8), "p": ints(0)},
        [*placed(ints(0), [7, 8, *hostile_indices(10)], "p"), ("x longer", {"x": floats(2, 2, 11, 8)})],
        hidden=["p"],
        dims={"x": ["b", 2, "s", 8], "p": [1]},
        constants={"c": table, "s": table},
        domains=_MICROSOFT,
    )
    yield from _grouped_query()
    identifiers = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    yield Onnx(
        "EmbedLayerNormalization",
        [
            node(
                "EmbedLayerNormalization",
                ["i", "t", "w", "p", "u", "g", "b"],
                ["y", "n"],
                domain="com.microsoft",
            )
        ],
        {"i": identifiers, "t": np.zeros((2, 3), np.int32)},
        [
            *placed(identifiers, hostile_indices(10), "i"),
            *placed(np.zeros((2, 3), np.int32), hostile_indices(2), "t"),
            ("longer than positions", {"i": np.zeros((2, 9), np.int32), "t": np.zeros((2, 9), np.int32)}),
            ("t shorter", {"t": np.zeros((2, 2), np.int32)}),
        ],
        hidden=["i", "t"],
        constants={"w": floats(10, 8), "p": floats(6, 8), "u": floats(2, 8), "g": floats(8), "b": floats(8)},
        outputs={"y": "float32", "n": "int32"},
        domains=_MICROSOFT,
    )


def _grouped_query() -> Iterator[Onnx]:
    """One new token after a cache."""
    attributes: dict[str, Any] = {"num_heads": 2, "kv_num_heads": 1, "do_rotary": 1}
    names = ["q", "k", "v", "pk", "pv", "l", "t", "c", "s"]
    lengths, total = np.array([5, 5], np.int32), np.array(6, np.int32)
    values = [-(2**31), -5, -1, 0, 1, 5, 6, 7, 15, 16, 10**6, 2**31 - 1]
    cache = {"pk": floats(2, 1, 5, 16), "pv": floats(2, 1, 5, 16)}
    yield Onnx(
        "GroupQueryAttention",
        [node("GroupQueryAttention", names, ["y", "nk", "nv"], domain="com.microsoft", **attributes)],
        {"q": floats(2, 1, 32), "k": floats(2, 1, 16), "v": floats(2, 1, 16), **cache, "l": lengths, "t": total},
        [
            *placed(lengths, values, "l"),
            *placed(total, values, "t"),
            ("cache of 1 batch", {"pk": floats(1, 1, 5, 16), "pv": floats(1, 1, 5, 16)}),
            ("pv shorter", {"pv": floats(2, 1, 3, 16)}),
            ("no cache yet", {"pk": floats(2, 1, 0, 16), "pv": floats(2, 1, 0, 16)}),
            ("l of 1", {"l": lengths[:1]}),
            ("k of 1 batch", {"k": floats(1, 1, 16)}),
        ],
        hidden=["l", "t"],
        dims={
            "q": ["b", "s", 32],
            "k": ["kb", "ks", 16],
            "v": ["b", "s", 16],
            "pk": ["pb", 1, "p", 16],
            "pv": ["b", 1, "pp", 16],
        },
        constants={"c": floats(16, 8), "s": floats(16, 8)},
        outputs={"y": "float32", "nk": "float32", "nv": "float32"},
        domains=_MICROSOFT,
    )


def _arithmetic() -> Iterator[Onnx]:
    """Operations without memory accesses on which a processor may trap, or whose result is undefined."""
    for dtype in ("int32", "int64"):
        limits = np.iinfo(dtype)
        for operator in ("Div", "Mod"):
            values = [0, -1, 1, int(limits.min), int(limits.max)]
            yield Onnx(
                f"{operator} {dtype}",
                [node(operator, ["x", "c"], ["y"])],
                {"x": np.array([7, -7, limits.min, limits.max], dtype), "c": np.array([2], dtype)},
                [(f"c={value}", {"c": np.array([value], dtype)}) for value in values],
                outputs={"y": dtype},
            )
    shifts = np.array([1, 2], np.uint32)
    for direction in ("LEFT", "RIGHT"):
        yield Onnx(
            f"BitShift {direction}",
            [node("BitShift", ["x", "c"], ["y"], direction=direction)],
            {"x": np.array([5, 2**31], np.uint32), "c": shifts},
            [(f"c={value}", {"c": np.full(2, value, np.uint32)}) for value in (0, 31, 32, 33, 2**32 - 1)],
            outputs={"y": "uint32"},
        )
    yield Onnx(
        "Pow of integers",
        [node("Pow", ["x", "c"], ["y"])],
        {"x": ints(2, -3, 0), "c": ints(3, 2, 1)},
        [(f"c={value}", {"c": ints(*[value] * 3)}) for value in (0, -1, 62, 63, 64)],
        outputs={"y": "int64"},
    )


def graphs() -> Iterator[Onnx]:
    """All models of this file."""
    for group in (_recurrent, _loops, _sequences, _attention, _arithmetic):
        yield from group()
