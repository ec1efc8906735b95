"""A model with a loop of unknown length compiles without running on random values."""

from __future__ import annotations

import numpy as np
import onnx.parser

import compiler
from compiler.frontends.onnx import import_onnx
from compiler.passes.rewriting.substitution import loops

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
# Counts up by x until 10: endless for x = 0.
LOOP = """
agraph (float x) => (float y) {
    limit = Constant <value = float {10}> ()
    start = Constant <value = float {0}> ()
    always = Constant <value = bool {1}> ()
    y = Loop ("", always, start) <body = body (int64 i, bool c, float s) => (bool more, float t) {
        t = Add (s, x)
        more = Less (t, limit)
    }>
}
"""


def test_a_loop_is_found_and_not_run() -> None:
    model = onnx.parser.parse_model(f"{HEADER} {LOOP}")
    assert loops(import_onnx(model).mod)
    said: list[str] = []
    module = compiler.compile(model, progress=said.append)
    assert any("reference_inputs" in line for line in said)
    assert not module.manifest.reference_outputs
    assert module.run({"x": np.array(3, np.float32)})["y"] == 12


def test_a_plain_model_has_none() -> None:
    model = onnx.parser.parse_model(f"{HEADER} agraph (float[2] x) => (float[2] y) {{ y = Relu (x) }}")
    assert not loops(import_onnx(model).mod)
