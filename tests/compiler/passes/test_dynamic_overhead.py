"""Call overhead of a small net with dynamic sizes: shapes are made once, and reshapes that add ones are fused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.profiling.profile import profile


@pytest.fixture(scope="module")
def tables() -> onnx.ModelProto:
    """Four embeddings, stacked, of columns of one input; an If adds what one of them gave, where a flag says so."""
    generator = np.random.default_rng(0)
    weights = [numpy_helper.from_array(np.array([1], np.int64), "axis")]
    nodes, parts = [], []
    for index in range(4):
        weights.append(numpy_helper.from_array(generator.standard_normal((9, 8)).astype(np.float32), f"table{index}"))
        weights.append(numpy_helper.from_array(np.array(index, np.int64), f"column{index}"))
        nodes += [
            helper.make_node("Gather", ["ids", f"column{index}"], [f"ids{index}"], axis=1),
            helper.make_node("Gather", [f"table{index}", f"ids{index}"], [f"row{index}"]),
            helper.make_node("Unsqueeze", [f"row{index}", "axis"], [f"part{index}"]),
        ]
        parts.append(f"part{index}")
    nodes.append(helper.make_node("Concat", parts, ["stacked"], axis=1))
    nodes.append(helper.make_node("If", ["flag"], ["y"], then_branch=_branch("Neg"), else_branch=_branch("Exp")))
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", 4]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4, 8]) for name in ("stacked", "y")]
    graph = helper.make_graph(nodes, "tables", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _branch(operator: str) -> onnx.GraphProto:
    """The mean over the last axis, an operator, and back to the shape."""
    nodes = [
        helper.make_node("ReduceMean", ["stacked"], ["mean"], keepdims=1),
        helper.make_node(operator, ["mean"], ["inner"]),
        helper.make_node("Mul", ["stacked", "inner"], ["result"]),
        helper.make_node("CumSum", ["result", "axis"], ["sums"]),
    ]
    return helper.make_graph(nodes, operator, [], [helper.make_tensor_value_info("sums", TensorProto.FLOAT, None)])


@pytest.fixture(scope="module")
def module(tables: onnx.ModelProto) -> Any:
    return compiler.compile(tables, records=False)


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("flag", [False, True])
def test_equals_onnxruntime(tables: onnx.ModelProto, module: Any, rows: int, flag: bool) -> None:
    ids = np.random.default_rng(rows).integers(-9, 9, (rows, 4))
    feeds = {"ids": ids, "flag": np.array(flag)}
    session = onnxruntime.InferenceSession(tables.SerializeToString(), providers=["CPUExecutionProvider"])
    for mine, other in zip(module.run(feeds).values(), session.run(None, feeds), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_each_shape_is_made_once_and_reshapes_are_fused(module: Any) -> None:
    measured = profile(module, {"ids": np.zeros((3, 4), np.int64), "flag": np.array(True)}, runs=1)
    calls = {kernel.name: kernel.calls for kernel in measured.kernels}
    # ids of a table; a row of a table; the stack, also its bytes; means.
    assert calls["vm.builtin.make_shape"] <= 12
    assert "vm.builtin.reshape" not in calls
    assert not any(name.startswith("strided_slice") for name in calls)
    assert sum(count for name, count in calls.items() if name.startswith("take")) == 4
