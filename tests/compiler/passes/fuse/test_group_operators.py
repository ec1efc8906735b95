"""Operators that become one kernel."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import targets
from benchmarks.compile_time import CASES
from compiler.frontends.source import import_model
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.fuse.fuse_kernels import MAX_OPERATORS
from compiler.passes.pipeline import run_pipeline


def _limited(operator: str, *weight: int) -> onnx.ModelProto:
    """clip(operator(x, w) + b, 0, 6) of one sample, as ReLU6 is exported."""
    rank = len(weight)
    sizes = (1, weight[1], *[5] * (rank - 2)) if operator == "Conv" else (1, 6, weight[0])
    bias = (weight[0], *[1] * (rank - 2)) if operator == "Conv" else (weight[1],)
    values = {"w": np.ones(weight), "b": np.ones(bias), "low": np.zeros(()), "high": np.full((), 6.0)}
    nodes = [(operator, ["x", "w"], "y"), ("Add", ["y", "b"], "z")]
    graph = helper.make_graph(
        [helper.make_node(name, inputs, [output]) for name, inputs, output in nodes]
        + [helper.make_node("Clip", ["z", "low", "high"], ["result"])],
        "limited",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _kernels(model: onnx.ModelProto, target: str) -> list[str]:
    described = targets.get(target)
    imported = import_model(model)
    context = PipelineContext(described, described.machine, PassOptions(checks=imported.checks))
    fused = run_pipeline(imported.mod, context, until="fuse").mod
    return [var.name_hint for var in fused.functions if var.name_hint != "main"]


@pytest.mark.parametrize("target", ["host", "h100"])
@pytest.mark.parametrize("model", [_limited("MatMul", 8, 4), _limited("Conv", 4, 3, 1, 1)], ids=["product", "conv"])
def test_a_limit_of_one_sample_joins_the_kernel_before_it(model: onnx.ModelProto, target: str) -> None:
    kernels = _kernels(model, target)
    arithmetic = [name for name in kernels if name not in ("pack", "unpack")]
    assert len(arithmetic) == 1, kernels


def test_a_chain_becomes_kernels_of_bounded_length() -> None:
    assert len(_kernels(CASES["chain"](2 * MAX_OPERATORS + 1), "host")) == 3
