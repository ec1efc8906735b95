"""The cost of a look-up counts the rows that it reads, not the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

import compiler
from compiler.inspection.model_inspection import inspect_model


def test_a_look_up_costs_its_rows(tmp_path: Path) -> None:
    graph = "(int64[8] ids, float[8,64] x) => (float[8,64] y) { h = Gather(w, ids) y = Add(h, x) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> agraph {graph}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((5000, 64), np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx")
    kernels = inspect_model(tmp_path / "m.onnx").kernels
    (kernel,) = (each for each in kernels if "take" in each.operators)
    # Eight rows of the table, the result, and the ids.
    assert kernel.nbytes == 2 * 8 * 64 * 4 + 8 * 8
    profile = compiler.profile(compiler.compile(tmp_path / "m.onnx", progress=None), runs=3)
    (timed,) = (each for each in profile.kernels if "take" in each.operators)
    assert timed.nbytes == kernel.nbytes
