"""The form in which `squeeze(axis)` is exported for an axis of dynamic size: If(size == 1, Squeeze, Identity)."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import compiler
from compiler.errors import InputError
from tests.compiler.frontends.onnx.operators.onnxruntime_check import assert_equal_to_onnxruntime

MODEL = """
agraph (float[n, k] x) => (float[n] y) {
    axis = Constant <value = int64[1] {1}> ()
    one = Constant <value = int64[1] {1}> ()
    shape = Shape (x)
    size = Gather (shape, axis)
    is_one = Equal (size, one)
    squeezed = If (is_one) <
        then_branch = then_graph () => (a) { a = Squeeze (x, axis) },
        else_branch = else_graph () => (b) { b = Identity (x) }
    >
    y = Relu (squeezed)
}
"""


def test_the_squeezed_form_is_taken() -> None:
    values = np.random.default_rng(0).standard_normal((5, 1)).astype(np.float32)
    assert_equal_to_onnxruntime(MODEL, {"x": values}, {"x": values[:2]})


def test_another_size_is_an_error_when_running() -> None:
    module = compiler.compile(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {MODEL}'))
    with pytest.raises(InputError, match="k = 2 must equal 1"):
        module.run({"x": np.zeros((5, 2), np.float32)})
