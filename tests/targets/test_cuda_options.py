"""Options of CUDA targets: graphs, and products of rounded operands; by simulation."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import compiler
import targets
from compiler.errors import OptionError
from compiler.frontends.source import import_model
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from targets.cuda.image import source_of
from targets.cuda.target import CudaTarget

_DEPTHS = (24, 40, 17, 9)


def perceptron(rows: int = 18) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """Three products, a softmax after each: the kernels in the middle touch neither the input nor the result."""
    random = np.random.default_rng(0)
    weights = [random.standard_normal(pair).astype(np.float32) for pair in pairwise(_DEPTHS)]
    nodes, value = [], "x"
    for index, _ in enumerate(weights):
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"p{index}"]))
        nodes.append(helper.make_node("Softmax", [f"p{index}"], [f"s{index}"], axis=-1))
        value = f"s{index}"
    given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [rows, _DEPTHS[0]])
    made = helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, [rows, _DEPTHS[-1]])
    stored = [numpy_helper.from_array(each, f"w{index}") for index, each in enumerate(weights)]
    graph = helper.make_graph(nodes, "perceptron", [given], [made], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), weights


def expected_of(x: np.ndarray, weights: list[np.ndarray], narrow: Any = np.float64) -> np.ndarray:
    value = x.astype(np.float64)
    for weight in weights:
        product = value.astype(narrow).astype(np.float64) @ weight.astype(narrow).astype(np.float64)
        shifted = np.exp(product - product.max(axis=-1, keepdims=True))
        value = shifted / shifted.sum(axis=-1, keepdims=True)
    return value


def simulated(**options: Any) -> CudaTarget:
    target = targets.get("cuda-simulated")
    assert isinstance(target, CudaTarget)
    return dataclasses.replace(target, **options)


def test_what_lies_between_inputs_and_results_is_recorded_as_a_graph() -> None:
    model, weights = perceptron()
    target = simulated(captures_graphs=True)
    context = PipelineContext(target=target, machine=target.machine)
    mod = run_pipeline(import_model(model).mod, context).mod
    text = mod["main"].script()
    assert text.count("vm.builtin.cuda_graph.run_or_capture") == 1
    (recorded,) = (function for variable, function in mod.functions_items() if "capture" in variable.name_hint)
    # All kernels but the first, which reads the input, and the last, which writes the result.
    assert recorded.script().count("matmul") == 2
    assert recorded.script().count("softmax") == 2
    module = compiler.compile(model, target, records=False)
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((18, _DEPTHS[0])).astype(np.float32)
        (found,) = module.run({"x": x}).values()
        np.testing.assert_allclose(found, expected_of(x, weights), rtol=1e-5, atol=1e-6)


def test_without_the_option_nothing_is_recorded() -> None:
    target = simulated()
    context = PipelineContext(target=target, machine=target.machine)
    assert "cuda_graph" not in run_pipeline(import_model(perceptron()[0]).mod, context).mod.script()


@pytest.mark.parametrize(("precision", "narrow"), [("bf16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_a_lower_precision_rounds_operands_and_uses_tensor_cores(precision: str, narrow: Any) -> None:
    model, weights = perceptron()
    module = compiler.compile(model, simulated(), precision=precision, records=False)
    assert source_of(bytes(module.artifact.library)).text.count("mma_sync(") > 0
    x = np.random.default_rng(3).standard_normal((18, _DEPTHS[0])).astype(np.float32)
    (found,) = module.run({"x": x}).values()
    rounded, exact = (np.abs(found - expected_of(x, weights, each)).max() for each in (narrow, np.float64))
    # Where a softmax lies near the middle of two numbers it may round to the other one, which is a part of the error.
    assert rounded < exact / 3
    assert exact < 2 * float(ml_dtypes.finfo(narrow).eps)


def test_a_device_without_bfloat16_says_so() -> None:
    with pytest.raises(OptionError, match="no bfloat16 dot product"):
        compiler.compile(perceptron()[0], "t4", precision="bf16")
    with pytest.raises(OptionError, match="float16 products"):
        compiler.compile(perceptron()[0], "host", precision="float16")
