"""Operators with parameters along an axis of dynamic size, and axes that are empty in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import compiler
from compiler.errors import UserError

HEADER = '<ir_version: 10, opset_import: ["" : 21]> graph'


def run_both(text: str, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Compile once, run at every size and compare with ONNX Runtime."""
    model = onnx.parser.parse_model(f"{HEADER} {text}")
    module = compiler.compile(model, threads=1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for values in feeds:
        for found, wanted in zip(module.run(dict(values)).values(), session.run(None, dict(values)), strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def test_parameters_along_a_dynamic_axis() -> None:
    text = """(float[b,n] x, float[b,c] d) => (int8[b,n] q, float[b,n] y, float[b,c] z)
      <float[3] s = {0.1, 0.2, 0.3}, int8[3] o = {0, 1, -2}, float[3] v = {1.0, 2.0, 0.5}> {
      q = QuantizeLinear<axis = 1>(x, s, o)
      y = DequantizeLinear<axis = 1>(q, s, o)
      z = BatchNormalization(d, v, s, s, v) }"""
    run_both(text, [{"x": floats(4, 3), "d": floats(4, 3)}, {"x": floats(1, 3), "d": floats(1, 3)}])
    module = compiler.compile(onnx.parser.parse_model(f"{HEADER} {text}"), threads=1)
    with pytest.raises(UserError):
        module.run({"x": floats(4, 2), "d": floats(4, 3)})


def test_marks_and_running_sums_of_dynamic_axes() -> None:
    text = """(float[n,m] x) => (float[n,m] h, float[n,m] s, int64[n] a) <int64 axis = {0}> {
      h = Hardmax<axis = 1>(x)
      s = CumSum<exclusive = 1>(x, axis)
      a = ArgMax<axis = 1, keepdims = 0>(x) }"""
    run_both(text, [{"x": floats(4, 7)}, {"x": floats(1, 1)}, {"x": floats(0, 3)}])


def test_the_largest_of_an_empty_axis_is_an_error() -> None:
    model = onnx.parser.parse_model(
        f"{HEADER} (float[2,m] x) => (int64[2] a) {{ a = ArgMax<axis = 1, keepdims = 0>(x) }}"
    )
    with pytest.raises(UserError, match="at least 1"):
        compiler.compile(model, threads=1).run({"x": floats(2, 0)})


def test_running_sums_of_an_empty_tensor() -> None:
    run_both("(float[3,0] x) => (float[3,0] y) <int64 axis = {1}> { y = CumSum(x, axis) }", [{"x": floats(3, 0)}])


def test_windows_with_indices_beside_windows_larger_than_the_data() -> None:
    text = """(float[2,16,7] x, float[1,2,2] s) => (float[2,16,4] y, int64[2,16,4] i, float[1,2,1] m, float[1,2,1] a) {
      y, i = MaxPool<kernel_shape = [2], strides = [2], ceil_mode = 1>(x)
      m = MaxPool<kernel_shape = [3], strides = [2], ceil_mode = 1>(s)
      a = AveragePool<kernel_shape = [3], strides = [2], ceil_mode = 1>(s) }"""
    run_both(text, [{"x": floats(2, 16, 7), "s": floats(1, 2, 2)}])


def test_reflecting_padding_behind_a_gather_of_a_dynamic_size() -> None:
    text = """(float[6,2,k] x) => (float[a,b,c,d] y)
      <int64[2,2] i = {-6, 2, 4, -1}, int64[8] p = {0, 0, 0, 2, 1, 0, 0, 0}> {
      t = Gather<axis = 0>(x, i)
      y = Pad<mode = "reflect">(t, p) }"""
    run_both(text, [{"x": floats(6, 2, 5)}, {"x": floats(6, 2, 3)}])


def test_the_best_along_an_axis_beside_an_empty_one() -> None:
    text = """(float[3,4,0] x) => (float[2,4,0] v, int64[2,4,0] i) <int64[1] k = {2}> {
      v, i = TopK<axis = 0>(x, k) }"""
    run_both(text, [{"x": floats(3, 4, 0)}])


def test_starts_of_a_slice_that_are_sliced_themselves() -> None:
    """There are as many starts as axes (tf2onnx exports crops of batches this way)."""
    text = """(float[n,4] x, int64[n] rows, int64[1] i) => (float[k,4] y)
      <int64[1] one = {1}, int64[1] axis = {0}> {
      j = Add(i, one)
      row = Slice(rows, i, j)
      next = Add(row, one)
      y = Slice(x, row, next, axis) }"""
    rows = np.array([2, 0, 1])
    run_both(text, [{"x": floats(3, 4), "rows": rows, "i": np.array([place])} for place in (0, 2)])
