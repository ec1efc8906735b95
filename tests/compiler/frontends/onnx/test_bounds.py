"""Sizes, indices, lengths and counts that address memory are refused before a run or clamped by the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

import compiler
from compiler.driver.manifest_entries import requirements, tensor_descriptions
from compiler.errors import InputError
from compiler.frontends.onnx.frontend import import_onnx
from compiler.runtime.inputs import InputBinder
from compiler.runtime.tensors import InputMemory

HUGE = 2**62


def model_of(graph: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> agraph {graph}')


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def ints(*values: Any) -> Any:
    return np.array(values, np.int64)


# what is wrong: graph; inputs that fit; inputs that do not; what the error says
ENTRY: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "k": (
        "(float[b, n] x, int64[1] k) => (float[p, q] v, int64[p, q] i) { v, i = TopK(x, k) }",
        {"x": ones(2, 5), "k": ints(5)},
        {"x": ones(2, 5), "k": ints(6)},
        r"'k' holds the value 6, outside of \[0, 6\)",
    ),
    "a known k": (
        "(float[b, n] x) => (float[p, q] v, int64[p, q] i) "
        "{ k = Constant<value = int64[1] {5}>() v, i = TopK<axis = 0>(x, k) }",
        {"x": ones(5, 2)},
        {"x": ones(4, 2)},
        r"b = 4 must be at least 5",
    ),
    "lengths to reverse": (
        "(float[b, n] x, int64[k] l) => (float[b, n] y) { y = ReverseSequence<batch_axis = 0, time_axis = 1>(x, l) }",
        {"x": ones(2, 5), "l": ints(0, 5)},
        {"x": ones(2, 5), "l": ints(10**8, 5)},
        r"'l' holds the value 100000000, outside of \[0, 6\)",
    ),
    "too few lengths": (
        "(float[b, n] x, int64[k] l) => (float[b, n] y) { y = ReverseSequence<batch_axis = 0, time_axis = 1>(x, l) }",
        {"x": ones(2, 5), "l": ints(0, 5)},
        {"x": ones(2, 5), "l": ints(1)},
        r"k = 1 must equal b = 2",
    ),
    "lengths of a recurrence": (
        "(float[s, b, 2] x, int32[k] l) => (float[s, d, b, h] y) { w = Constant<value = float[1, 1, 2] {1, 1}>() "
        "r = Constant<value = float[1, 1, 1] {1}>() y = RNN<hidden_size = 1>(x, w, r, , l) }",
        {"x": ones(4, 2, 2), "l": np.array([4, 0], np.int32)},
        {"x": ones(4, 2, 2), "l": np.array([10**9, -5], np.int32)},
        r"'l' holds the value -5, outside of \[0, 5\)",
    ),
    "parts": (
        "(float[b, n] x) => (float[b, p] y, float[b, q] z) "
        "{ s = Constant<value = int64[2] {3, 5}>() y, z = Split<axis = 1>(x, s) }",
        {"x": ones(1, 8)},
        {"x": ones(1, 9)},
        r"8 must equal n = 9",
    ),
    "elements": (
        "(float[b, n] x, int64[k, j] i) => (float[k, j] y) { y = GatherElements<axis = 1>(x, i) }",
        {"x": ones(2, 5), "i": ints([-5], [4])},
        {"x": ones(2, 5), "i": ints([-6], [4])},
        r"'i' holds the index -6, outside of \[-5, 5\)",
    ),
    "more rows of indices": (
        "(float[b, n] x, int64[k, j] i) => (float[k, j] y) { y = GatherElements<axis = 1>(x, i) }",
        {"x": ones(2, 5), "i": ints([0], [0])},
        {"x": ones(2, 5), "i": ints([0], [0], [0])},
        r"b = 2 must be at least k = 3",
    ),
    "an empty axis": (
        "(float[n, 2] x, float[n, 2] z) => (float[p, q] y) "
        "{ i = ArgMax<axis = 1, keepdims = 0>(z) j = Shape(x) k = Gather<axis = 0>(x, j) y = Identity(k) }",
        {"x": ones(3, 2), "z": ones(3, 2)},
        {"x": ones(0, 2), "z": ones(0, 2)},
        r"n = 0 must be at least",
    ),
    "known indices": (
        "(float[b, n] x) => (float[b, k] y) { i = Constant<value = int64[2] {5, -7}>() y = Gather<axis = 1>(x, i) }",
        {"x": ones(2, 7)},
        {"x": ones(2, 6)},
        r"n = 6 must be at least 7",
    ),
    "known coordinates": (
        "(float[b, n] x) => (float[k] y) { i = Constant<value = int64[1, 2] {1, 5}>() y = GatherND(x, i) }",
        {"x": ones(2, 6)},
        {"x": ones(1, 6)},
        r"b = 1 must be at least 2",
    ),
    "updates": (
        "(float[b, n] x, int64[k, j] i, float[p, q] u) => (float[b, n] y) { y = ScatterElements<axis = 1>(x, i, u) }",
        {"x": ones(2, 5), "i": ints([0], [1]), "u": ones(2, 1)},
        {"x": ones(2, 5), "i": ints([0], [1]), "u": ones(1, 1)},
        r"p = 1 must equal k = 2",
    ),
    "slices to write": (
        "(float[b, n] x, int64[k, 1] i, float[p, q] u) => (float[b, n] y) { y = ScatterND(x, i, u) }",
        {"x": ones(2, 5), "i": ints([1]), "u": ones(1, 5)},
        {"x": ones(2, 5), "i": ints([1]), "u": ones(1, 4)},
        r"q = 4 must equal n = 5",
    ),
    "channels": (
        "(float[b, c, h] x) => (float[b, d, p] y) { w = Constant<value = float[1, 2, 1] {1, 1}>() y = Conv(x, w) }",
        {"x": ones(1, 2, 3)},
        {"x": ones(1, 1, 3)},
        r"c = 1 must equal 2",
    ),
    "groups": (
        "(float[b, c, h] x, float[k] s) => (float[b, c, h] y) { y = GroupNormalization<num_groups = 2>(x, s, s) }",
        {"x": ones(1, 4, 3), "s": ones(4)},
        {"x": ones(1, 3, 3), "s": ones(3)},
        r"c % 2 = 1 must equal 0",
    ),
    "scales": (
        "(float[b, n] x) => (float[b, n] y) "
        "{ s = Constant<value = float[3] {1, 1, 1}>() y = LayerNormalization(x, s) }",
        {"x": ones(1, 3)},
        {"x": ones(1, 1)},
        r"n = 1 must equal 3",
    ),
    "scales of channels": (
        "(float[b, n] x) => (int8[b, n] y) { s = Constant<value = float[3] {1, 1, 1}>() "
        "z = Constant<value = int8[3] {0, 0, 0}>() y = QuantizeLinear(x, s, z) }",
        {"x": ones(1, 3)},
        {"x": ones(1, 4)},
        r"n = 4 must equal 3",
    ),
    "blocks": (
        "(float[1, c, h, w] x) => (float[1, d, p, q] y) { y = DepthToSpace<blocksize = 2>(x) }",
        {"x": ones(1, 8, 1, 1)},
        {"x": ones(1, 6, 1, 1)},
        r"c % 4 = 2 must equal 0",
    ),
    "nothing to repeat": (
        '(float[n] x) => (float[m] y) { p = Constant<value = int64[2] {2, 0}>() y = Pad<mode = "edge">(x, p) }',
        {"x": ones(1)},
        {"x": ones(0)},
        r"n = 0 must be at least 1",
    ),
    "regions": (
        "(float[n, 1, h, w] x, float[r, 4] z, int64[k] i) => (float[r, 1, 1, 1] y) { y = RoiAlign(x, z, i) }",
        {"x": ones(2, 1, 3, 3), "z": ones(1, 4), "i": ints(1)},
        {"x": ones(2, 1, 3, 3), "z": ones(1, 4), "i": ints(2)},
        r"'i' holds the value 2, outside of \[0, 2\)",
    ),
    "a negative size": (
        "(float[2] x, int64[1] r) => (float[m] y) { y = Tile(x, r) }",
        {"x": ones(2), "r": ints(2)},
        {"x": ones(2), "r": ints(-3)},
        r"'r' holds the value -3, outside of \[0, ",
    ),
    "labels that occur twice": (
        '(float[a, b] x) => (float[c] y) { y = Einsum<equation = "ii->i">(x) }',
        {"x": ones(2, 2)},
        {"x": ones(3, 2)},
        r"b = 2 must equal a = 3",
    ),
    "slices of a scan": (
        "(float[n] x, float[m] z) => (float[n] y) "
        "{ y = Scan<num_scan_inputs = 2, body = b (float a, float c) => (float d) { d = Add(a, c) }>(x, z) }",
        {"x": ones(3), "z": ones(3)},
        {"x": ones(3), "z": ones(2)},
        r"m = 2 must equal n = 3",
    ),
    "windows over nothing": (
        "(float[1, 1, h] x) => (float[1, 1, p] y) { y = MaxPool<kernel_shape = [3], pads = [2, 2]>(x) }",
        {"x": ones(1, 1, 1)},
        {"x": ones(1, 1, 0)},
        r"h = 0 must be at least 1",
    ),
    "positions": (
        "(float[b, h, n, 4] x, int64[b, n] p, float[r, 2] c) => (float[b, h, n, 4] y) "
        "{ y = com.microsoft.RotaryEmbedding(x, p, c, c) }",
        {"x": ones(1, 1, 2, 4), "p": ints([0, 4]), "c": ones(5, 2)},
        {"x": ones(1, 1, 2, 4), "p": ints([-1, 5]), "c": ones(5, 2)},
        r"'p' holds the value -1, outside of \[0, 5\)",
    ),
    "a table of positions": (
        "(int32[b, n] i, float[v, 2] w, float[r, 2] p, float[2] g) => (float[b, n, 2] y, int32[b] m) "
        "{ y, m = com.microsoft.EmbedLayerNormalization(i, , w, p, , g, g) }",
        {"i": np.zeros((1, 3), np.int32), "w": ones(4, 2), "p": ones(3, 2), "g": ones(2)},
        {"i": np.zeros((1, 4), np.int32), "w": ones(4, 2), "p": ones(3, 2), "g": ones(2)},
        r"r = 3 must be at least n = 4",
    ),
    "a divisor": (
        "(float[n, m] x) => (int64[1] y) { s = Shape<start = 1>(x) "
        "c = Constant<value = int64[1] {7}>() y = Mod(c, s) }",
        {"x": ones(3, 1)},
        {"x": ones(3, 0)},
        r"m = 0 must be at least 1",
    ),
    "boxes": (
        "(float[b, n, 4] x, float[c, d, m] s) => (int64[k, 3] y) { y = NonMaxSuppression(x, s) }",
        {"x": ones(1, 3, 4), "s": ones(1, 1, 3)},
        {"x": ones(1, 2, 4), "s": ones(1, 1, 3)},
        r"n = 2 must equal m = 3",
    ),
}


@pytest.mark.parametrize("case", ENTRY.values(), ids=ENTRY.keys())
def test_inputs_are_refused_before_a_run(case: tuple[str, dict[str, Any], dict[str, Any], str]) -> None:
    graph, good, bad, message = case
    model = import_onnx(model_of(graph))
    needed = requirements(model)
    binder = InputBinder(tensor_descriptions(model.inputs), needed["requirements"], needed["indices"])
    memory = InputMemory(len(good))
    binder.bind(good, memory)
    with pytest.raises(InputError, match=message):
        binder.bind(bad, memory)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_many_indices_are_refused_by_the_worst_of_them(dtype: str) -> None:
    model = import_onnx(model_of(f"(float[n] x, {dtype}[k] i) => (float[k] y) {{ y = Gather(x, i) }}"))
    needed = requirements(model)
    binder = InputBinder(tensor_descriptions(model.inputs), needed["requirements"], needed["indices"])
    memory, x = InputMemory(2), ones(7)
    indices = np.random.default_rng(0).integers(-7, 7, 100).astype(dtype)
    for good in (indices, abs(indices) % 7):
        binder.bind({"x": x, "i": good}, memory)
        for worst in (7, -8, np.iinfo(dtype).min, np.iinfo(dtype).max):
            bad = good.copy()
            bad[57] = worst
            with pytest.raises(InputError, match=rf"the index {worst}, outside of \[-7, 7\)"):
                binder.bind({"x": x, "i": bad}, memory)


COMPUTED = """(float[n] x, int64[k] i, int64[1] z, float[b, t] s)
    => (float[k] a, float[k] c, float[n] d, float[b, t] e) {
    j = Add(i, z)
    a = Gather(x, j)
    c = GatherElements(x, j)
    one = Constant<value = float {1.0}>()
    u = CastLike(j, one)
    d = ScatterElements<reduction = "add">(x, j, u)
    e = ReverseSequence<batch_axis = 0, time_axis = 1>(s, j)
}"""


def test_indices_that_are_computed_are_brought_inside() -> None:
    module = compiler.compile(model_of(COMPUTED))
    x, s = np.arange(4, dtype=np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    least, largest = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    for i in (ints(least, largest), ints(-5, 4), ints(10**6, -(10**6))):
        found = module.run({"x": x, "i": i, "z": ints(0), "s": s})
        inside = np.clip(np.where(i < 0, i + 4, i), 0, 3)
        np.testing.assert_array_equal(found["a"], x[inside])
        np.testing.assert_array_equal(found["c"], x[inside])
        np.testing.assert_array_equal(found["d"], x)
        lengths = np.clip(i, 0, 3)
        expected = [np.concatenate([row[:n][::-1], row[n:]]) for row, n in zip(s, lengths, strict=True)]
        np.testing.assert_array_equal(found["e"], expected)
    with pytest.raises(InputError, match=r"n = 0 must be at least"):
        module.run({"x": x[:0], "i": ints(0, 0), "z": ints(0), "s": s})


SIZES = """(float[n, m] x, int64[2] r) => (float[p, q] y, float[v, w] c) {
    y = Tile(x, r)
    c = ConstantOfShape(r)
}"""


@pytest.mark.parametrize("repeats", [(HUGE, 4), (2**40, 2**40), (2**31, 2**33), (HUGE - 1, 0)])
def test_sizes_that_overflow_are_refused(repeats: tuple[int, int], sizes_module: compiler.Module) -> None:
    with pytest.raises(InputError, match=r"larger than any memory|outside of"):
        sizes_module.run({"x": ones(3, 2), "r": ints(*repeats)})
    assert sizes_module.run({"x": ones(3, 2), "r": ints(2, 3)})["y"].shape == (6, 6)


@pytest.fixture(scope="module")
def sizes_module() -> compiler.Module:
    return compiler.compile(model_of(SIZES))


def test_coordinates_that_are_no_numbers_are_brought_inside() -> None:
    module = compiler.compile(
        model_of(
            "(float[1, 1, h, w] x, float[1, p, q, 2] g, float[r, 4] z, int64[r] i) "
            "=> (float[1, 1, p, q] y, float[r, 1, 1, 1] u) { y = GridSample(x, g) "
            "u = RoiAlign(x, z, i) }"
        )
    )
    x, regions = ones(1, 1, 3, 3), np.array([[np.nan, -np.inf, np.inf, 1e30]], np.float32)
    grid = np.array([np.nan, np.inf, -np.inf, 1e30, 0, 0], np.float32).reshape(1, 1, 3, 2)
    found = module.run({"x": x, "g": grid, "z": regions, "i": ints(0)})
    assert found["y"][0, 0, 0, 2] == 1.0
    assert found["u"].shape == (1, 1, 1, 1)
