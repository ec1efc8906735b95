"""Sequences whose length or positions depend on data, against ONNX Runtime."""

from __future__ import annotations

import numpy as np

from tests.compiler.frontends.onnx.operators.onnxruntime_check import assert_equal_to_onnxruntime

_X = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)


def test_a_loop_over_columns_adds_to_a_sequence() -> None:
    model = """g (float[n,m] x, int64 i) => (float[n,k] y, float[j] joined, int64 count, float[n] one)
      <bool go = {1}> {
      columns = SplitToSequence<axis = 1, keepdims = 0>(x)
      count = SequenceLength(columns)
      none = SequenceEmpty<dtype = 1>()
      all = Loop(count, go, none)<body = b (int64 k, bool c, seq(float[n]) before) => (bool d, seq(float[n]) after) {
        d = Identity(c)
        column = SequenceAt(columns, k)
        new = Tanh(column)
        after = SequenceInsert(before, new) }>
      y = ConcatFromSequence<axis = 1, new_axis = 1>(all)
      joined = ConcatFromSequence<axis = 0>(columns)
      one = SequenceAt(all, i) }"""
    assert_equal_to_onnxruntime(model, {"x": _X, "i": np.array(2)}, {"x": _X[:2, :1], "i": np.array(-1)})


def test_parts_of_a_given_length_of_one_drop_their_axis() -> None:
    """As PyTorch's exporter writes unbind, of dynamic and of static axes."""
    model = """g (float[n,5] x) => (float[5] row, float[n] column) <int64 one = {1}> {
      rows = SplitToSequence<axis = 0, keepdims = 0>(x, one)
      row = SequenceAt(rows, one)
      columns = SplitToSequence<axis = 1, keepdims = 0>(x, one)
      column = SequenceAt(columns, one) }"""
    assert_equal_to_onnxruntime(model, {"x": _X})


def test_parts_of_length_one_keep_their_axis() -> None:
    model = """g (float[n,m] x, int64 i) => (float[a,b] y, float[a,1] one) {
      rows = SplitToSequence<axis = 0>(x)
      y = ConcatFromSequence<axis = 1>(rows)
      one = SequenceAt(rows, i) }"""
    assert_equal_to_onnxruntime(model, {"x": _X, "i": np.array(2)}, {"x": _X[:1], "i": np.array(0)})


def test_a_computed_position_among_elements_of_one_shape() -> None:
    model = """g (float[n,5] x, int64 i) => (float[n,5] y) {
      negative = Neg(x)
      all = SequenceConstruct(x, negative)
      y = SequenceAt(all, i) }"""
    assert_equal_to_onnxruntime(model, {"x": _X, "i": np.array(0)}, {"x": _X, "i": np.array(-1)})
