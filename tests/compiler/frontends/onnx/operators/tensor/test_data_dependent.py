"""Operators with data-dependent output shapes, sorting and selection, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

import compiler
from compiler.errors import InputError
from tests.compiler.frontends.onnx.operators.onnxruntime_check import assert_equal_to_onnxruntime, node_model


def _check(operator: str, cases: list[dict[str, Any]], outputs: int = 1, **options: Any) -> None:
    model = node_model(operator, cases[0], outputs, dynamic=True, **options)
    feeds = [{k: v for k, v in case.items() if v is not None} for case in cases]
    assert_equal_to_onnxruntime(model, *feeds, rtol=0, atol=0)


def _few(*shape: int, dtype: str = "float32") -> np.ndarray:
    """Values with many ties."""
    return np.random.default_rng(sum(shape)).integers(-2, 3, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_nonzero_of_any_size(dtype: str) -> None:
    _check("NonZero", [{"x": _few(*shape).astype(dtype)} for shape in [(3, 4), (1, 7), (2, 0)]])


def test_nonzero_of_zeros_and_nan() -> None:
    zeros = np.zeros((2, 3, 2), np.float32)
    _check("NonZero", [{"x": zeros}, {"x": np.where(np.indices(zeros.shape)[1] == 1, np.float32(np.nan), -zeros)}])


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_compress(axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    cases = [
        {"x": _few(3, 5), "c": np.array([True, False, True])},
        {"x": _few(4, 2), "c": np.array([False, True])},
        {"x": _few(2, 2), "c": np.array([False])},
    ]
    _check("Compress", cases, **attributes)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("in_order", [0, 1])
def test_unique(axis: int | None, in_order: int) -> None:
    attributes: dict[str, Any] = {"sorted": in_order} | ({} if axis is None else {"axis": axis})
    _check("Unique", [{"x": _few(9, 3)}, {"x": _few(1, 2)}, {"x": _few(4, 17)}], 4, **attributes)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize(("axis", "largest"), [(-1, 1), (0, 0), (1, 1)])
def test_top_k_that_is_computed(dtype: str, axis: int, largest: int) -> None:
    cases = [{"x": _few(*shape, dtype=dtype), "k": np.array([k])} for shape, k in [((5, 6, 4), 3), ((4, 4, 33), 4)]]
    _check("TopK", cases, 2, axis=axis, largest=largest)


def test_top_k_sorts_many() -> None:
    x = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    model = node_model("TopK", {"x": x, "k": np.array([1000])}, 2, constants=("k",))
    assert_equal_to_onnxruntime(model, {"x": x}, rtol=0, atol=0)


@pytest.mark.parametrize("centered", [0, 1])
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_non_max_suppression(centered: int, threshold: float | None) -> None:
    generator = np.random.default_rng(3)

    def case(batch: int, classes: int, count: int, most: int) -> dict[str, Any]:
        return {
            "boxes": generator.uniform(0, 1, (batch, count, 4)).astype(np.float32),
            "scores": np.round(generator.uniform(0, 1, (batch, classes, count)), 1).astype(np.float32),
            "most": np.array([most]),
            "overlap": np.array([0.3], np.float32),
            "least": None if threshold is None else np.array([threshold], np.float32),
        }

    _check("NonMaxSuppression", [case(2, 3, 20, 4), case(1, 1, 1, 1), case(1, 2, 50, 0)], center_point_box=centered)


def test_counted_sizes_pass_through_every_phase() -> None:
    """The project's own pipeline fuses and checks operators that TVM's pipeline leaves alone."""
    import compiler

    x = _few(9)
    model = node_model("Unique", {"x": x}, 4)
    module = compiler.compile(model, reference_inputs={"x": x})
    expected = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
    for found, reference in zip(module.run({"x": x}).values(), expected, strict=True):
        np.testing.assert_array_equal(found, reference)


def test_slices_between_computed_positions() -> None:
    """Rows from `offsets[bag : bag + 1]` to `offsets[bag + 1 : bag + 2]`: bags of PyTorch's exporter."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
        sums (float[n, 3] rows, int64[m] offsets, int64[1] bag) => (float[3] y)
        <int64 one = {1}, int64[1] axis = {0}> {
            next = Add(bag, one)
            after = Add(next, one)
            start = Slice(offsets, bag, next)
            end = Slice(offsets, next, after)
            part = Slice(rows, start, end)
            y = ReduceSum<keepdims: int = 0>(part, axis)
        }"""
    module = compiler.compile(onnx.parser.parse_model(text), threads=1)
    rows, offsets = _few(5, 3), np.array([0, 2, 2, 5])
    for bag, expected in enumerate((rows[:2].sum(0), np.zeros(3), rows[2:].sum(0))):
        (found,) = module.run({"rows": rows, "offsets": offsets, "bag": np.array([bag])}).values()
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError):
        module.run({"rows": rows, "offsets": offsets, "bag": np.array([7])})  # the slices of the offsets are empty
