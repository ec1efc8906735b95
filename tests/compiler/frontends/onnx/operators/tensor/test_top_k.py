"""TopK: few and many of a row, in any order of the row, with ties, NaN and k that is computed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import compiler
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
