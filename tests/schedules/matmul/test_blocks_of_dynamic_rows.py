"""Products of a depth that is summed in blocks, for a number of rows that is known when they run."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler

DEPTH, COLUMNS = 9216, 512


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_in_a_dynamic_number_over_blocks_of_depth(threads: int) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((DEPTH, COLUMNS)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", COLUMNS])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    module = compiler.compile(model, threads=threads)
    for rows in (1, 7, 70, 300):
        x = random.standard_normal((rows, DEPTH)).astype(np.float32)
        expected = x.astype(np.float64) @ weights
        np.testing.assert_allclose(module.run({"x": x})["y"], expected, atol=2e-3)
