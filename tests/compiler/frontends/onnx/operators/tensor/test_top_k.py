"""TopK: small and large k, rows in any order, ties, NaN, and a computed k."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import compiler
import targets
from compiler.runtime.module import Module


@pytest.fixture(scope="module", params=[1, 0], ids=["largest", "smallest"])
def top_k(request: pytest.FixtureRequest) -> tuple[Module, bool]:
    node = helper.make_node("TopK", ["x", "k"], ["values", "positions"], largest=request.param)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "n"]),
        helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info("values", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("positions", TensorProto.INT64, None),
    ]
    graph = helper.make_graph([node], "top_k", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return compiler.compile(model, records=False), bool(request.param)


@pytest.mark.parametrize("k", [0, 1, 5, 64, 65, 300, 1000])
@pytest.mark.parametrize("order", ["random", "ties", "ascending", "descending", "nan"])
def test_top_k(top_k: tuple[Module, bool], k: int, order: str) -> None:
    module, largest = top_k
    rng = np.random.default_rng(k)
    x = rng.standard_normal((3, 1000)).astype("float32")
    if order == "ties":
        x = np.round(x)
    elif order == "nan":
        x[rng.random(x.shape) < 0.2] = np.nan
    elif order != "random":
        x = np.sort(x, axis=1)[:, :: 1 if order == "ascending" else -1].copy()
    given = x[:, ::-1] if largest else x  # of equal ones the last in ascending order is the first in descending order
    positions = np.argsort(given, axis=1, kind="stable")
    positions = (999 - positions[:, ::-1] if largest else positions)[:, :k]
    outputs = module.run({"x": x, "k": np.array([k])})
    np.testing.assert_array_equal(outputs["positions"], positions)
    np.testing.assert_array_equal(outputs["values"], np.take_along_axis(x, positions, axis=1))


def _fixed(shape: tuple[int, ...], k: int, *, largest: bool) -> Module:
    node = helper.make_node("TopK", ["x", "k"], ["values", "positions"], largest=int(largest))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [
        helper.make_tensor_value_info("values", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("positions", TensorProto.INT64, None),
    ]
    count = helper.make_tensor("k", TensorProto.INT64, [1], [k])
    graph = helper.make_graph([node], "top_k", inputs, outputs, [count])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return compiler.compile(model, targets.get("host", cores=8), threads=2, records=False)


@pytest.mark.parametrize(
    ("shape", "k"),
    [((2, 30_007), 40), ((1, 20_011), 20_011), ((3, 4097), 3000), ((40, 5000), 7)],
    ids=["few rows", "a long row in order", "rows in order", "rows"],
)
@pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])
def test_tasks_that_threads_share(shape: tuple[int, ...], k: int, largest: bool) -> None:
    x = np.random.default_rng(k).standard_normal(shape).astype("float32").round(2)  # ties in all parts
    x[:, ::997] = np.nan
    given = x[:, ::-1] if largest else x
    positions = np.argsort(given, axis=1, kind="stable")
    positions = (shape[1] - 1 - positions[:, ::-1] if largest else positions)[:, :k]
    outputs = _fixed(shape, k, largest=largest).run({"x": x})
    np.testing.assert_array_equal(outputs["positions"], positions)
    np.testing.assert_array_equal(outputs["values"], np.take_along_axis(x, positions, axis=1))


_EXTREMES = {
    "float32": np.array([-np.inf, -1.0, -0.0, 0.0, 2.0, np.inf, np.nan], "float32"),
    "int32": np.array([-(1 << 31), -1, 0, 1, (1 << 31) - 1], "int32"),
}


@pytest.mark.parametrize("k", [1, 8, 16, 17])
@pytest.mark.parametrize("dtype", _EXTREMES)
@pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])
def test_rows_of_extreme_values(k: int, dtype: str, largest: bool) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("TopK", ["x", "k"], ["values", "positions"], largest=int(largest))
    results = [helper.make_tensor_value_info("positions", TensorProto.INT64, None)]
    given = [helper.make_tensor_value_info("x", kind, ["rows", "n"])]
    count = helper.make_tensor("k", TensorProto.INT64, [1], [k])
    graph = helper.make_graph([node], "top_k", given, results, [count])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = compiler.compile(model, records=False)
    random = np.random.default_rng(k)
    for length in (k, 18, 31, 33, 64, 100, 700):
        rows = [random.choice(random.choice(_EXTREMES[dtype], 2), length) for _ in range(20)]
        x = np.array([*rows, *random.choice(_EXTREMES[dtype], (20, length))])
        missing = np.isnan(x)
        ranks = np.where(missing, 0, x).astype("float64") * (-1 if largest else 1)
        order = [np.lexsort((row, first)) for row, first in zip(ranks, missing != largest, strict=True)]
        np.testing.assert_array_equal(module.run({"x": x})["positions"], np.array(order)[:, :k])


def test_rows_of_unknown_length_are_shared(top_k: tuple[Module, bool]) -> None:
    module, largest = top_k
    x = np.random.default_rng(0).standard_normal((9, 3001)).astype("float32")
    positions = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :900]
    np.testing.assert_array_equal(module.run({"x": x, "k": np.array([900])})["positions"], positions)


@pytest.mark.parametrize("width", [(), (3,)], ids=["elements", "rows"])
def test_items_of_an_unknown_number_are_merged_in_parts(width: tuple[int, ...]) -> None:
    node = helper.make_node("Unique", ["x"], ["distinct", "first"], axis=0)
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", *width])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ("distinct", "first")]
    graph = helper.make_graph([node], "unique", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = compiler.compile(model, targets.get("host", cores=8), threads=2, records=False)
    for count in (1, 4096, 4097, 30_011):
        x = np.random.default_rng(count).integers(0, 30 if width else 3000, (count, *width))
        wanted = np.unique(x, axis=0, return_index=True)
        for ours, theirs in zip(module.run({"x": x}).values(), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("dtype", "count", "k"), [("float32", 33, 5), ("float16", 16, 16), ("int32", 128, 40)])
@pytest.mark.parametrize("largest", [True, False])
def test_short_rows_are_ordered_by_counting(dtype: str, count: int, k: int, largest: bool) -> None:
    _check_hostile(_of_rows(dtype, count, k, largest=largest), dtype, count, k, largest=largest)


@pytest.mark.parametrize(
    ("dtype", "k"), [("float32", 1), ("float32", 100), ("float16", 256), ("int32", 8), ("uint8", 9)]
)
@pytest.mark.parametrize("largest", [True, False])
def test_first_items_of_long_rows(dtype: str, k: int, largest: bool) -> None:
    module = _of_rows(dtype, "n", k, largest=largest)
    for count in (k, k + 1, k + 31, k + 32, k + 67, 1500):
        _check_hostile(module, dtype, count, k, largest=largest)


@pytest.mark.parametrize("k", [9, 60], ids=["scanned", "sorted"])
def test_rows_where_there_are_no_vectors(k: int) -> None:
    module = _of_rows("float32", 150, k, largest=True, target="cuda-simulated")
    _check_hostile(module, "float32", 150, k, largest=True)


def _of_rows(dtype: str, count: int | str, k: int, *, largest: bool, target: str = "host") -> Module:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("TopK", ["x", "k"], ["values", "positions"], largest=int(largest))
    inputs = [helper.make_tensor_value_info("x", kind, ["rows", count])]
    outputs = [
        helper.make_tensor_value_info("values", kind, None),
        helper.make_tensor_value_info("positions", TensorProto.INT64, None),
    ]
    graph = helper.make_graph([node], "top_k", inputs, outputs, [helper.make_tensor("k", TensorProto.INT64, [1], [k])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return compiler.compile(model, target, threads=1, records=False)


def _check_hostile(module: Module, dtype: str, count: int, k: int, *, largest: bool) -> None:
    """Compare rows of ties and extremes, NaN and both zeros with numpy's stable sort."""
    rng = np.random.default_rng(count)
    if np.dtype(dtype).kind in "iu":
        x = rng.integers(0, 7, (20, count)).astype(dtype)
        x[:, ::7], x[:, ::9] = np.iinfo(dtype).min, np.iinfo(dtype).max
        x[4] = np.iinfo(dtype).min
    else:
        x = rng.integers(-3, 4, (20, count)).astype(dtype)
        x[:5, ::5], x[5:10, 1::4], x[7:, ::6], x[9:, 2::6] = -0.0, np.nan, np.inf, -np.inf
        x[3] = -np.nan
        x[11:] = rng.standard_normal((9, count))
        x[11] = np.sort(x[11])
        x[12] = np.sort(x[12])[::-1]
    given = x[:, ::-1] if largest else x
    positions = np.argsort(given, axis=1, kind="stable")
    positions = (count - 1 - positions[:, ::-1] if largest else positions)[:, :k]
    found = module.run([x])
    np.testing.assert_array_equal(found["positions"], positions)
    np.testing.assert_array_equal(found["values"], np.take_along_axis(x, positions, axis=1))
