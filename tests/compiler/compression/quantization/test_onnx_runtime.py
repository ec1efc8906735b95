"""Models of ONNX Runtime's quantizer with its options: computed in integers, equal to ONNX Runtime's results.

ONNX Runtime runs with its basic optimizations, which preserve the operators' semantics. The extended ones compute
softmax from a table and change residual sums by a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import compiler
from compiler.frontends.source import import_model
from compiler.passes.context import PipelineContext
from compiler.passes.integers.compute_in_integers import compute_in_integers
from compiler.passes.integers.sign_integers import center_weights
from compiler.passes.pipeline import run_pipeline
from tests.compiler.compression.quantization.onnx_runtime import NETS, dynamic, inputs, static
from tests.compiler.frontends.onnx.operators.onnxruntime_check import precise_options

from tvm import relax  # isort: skip

_SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
_STATIC: list[tuple[str, str, dict[str, Any]]] = [
    ("QDQ", "u8u8", {}),
    ("QDQ", "u8s8", {"reduce_range": True, "per_channel": True}),
    ("QDQ", "s8s8", {"WeightSymmetric": False}),
    ("QDQ", "u8s8", {"WeightSymmetric": False, "per_channel": True, "QDQKeepRemovableActivations": True}),
    ("QDQ", "s8s8", {**_SYMMETRIC, "AddQDQPairToWeight": True}),
    ("QOperator", "u8u8", {"ActivationSymmetric": True}),
    ("QOperator", "u8s8", {"WeightSymmetric": False, "per_channel": True}),
    ("QOperator", "u8s8", {"reduce_range": True}),
    ("QOperator", "s8s8", {**_SYMMETRIC, "per_channel": True}),
]
_DYNAMIC: list[tuple[str, dict[str, Any]]] = [
    ("u8", {}),
    ("s8", {"per_channel": True, "reduce_range": True}),
    ("s8", {"extra_options": {"MatMulConstBOnly": False}}),
]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("form", "types", "options"), _STATIC)
def test_static(net: str, form: str, types: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = static(NETS[net](), tmp_path, form, types, **options)
    _compare(model, mixed=(form, types) == ("QOperator", "u8s8"))
    # Products of two activations between a QDQ pair are in float32.
    total, in_float = (8, 2 if form == "QDQ" else 0) if net == "transformer" else (5, 0)
    assert _products(model) == {"float32": in_float, "int32": total - in_float, "other": 0}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("kind", "options"), _DYNAMIC)
def test_dynamic(net: str, kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = dynamic(NETS[net](), tmp_path, kind, **options)
    _compare(model, mixed=kind == "s8")
    products = _products(model)
    assert products["float32"] == (2 if net == "transformer" and "extra_options" not in options else 0)
    assert products["other"] == 0


@pytest.mark.parametrize("net", NETS)
def test_activations_of_16_bits_are_computed_in_float32(net: str, tmp_path: Path) -> None:
    """Like ONNX Runtime: sums of their products do not fit in 32 bits."""
    model = static(NETS[net](), tmp_path, "QDQ", "u16s8", per_channel=True)
    _compare(model)
    assert _products(model)["int32"] == 0


def _compare(model: onnx.ModelProto, *, mixed: bool = False) -> None:
    """Compare: exact if the output is quantized, otherwise within float32 rounding.

    If operators multiply uint8 by int8 (`mixed`), ONNX Runtime must optimize to be exact on every processor.
    """
    example = inputs(model, 99)
    options = precise_options()
    if not mixed:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": example})
    (found,) = compiler.compile(model, threads=1).run({"x": example}).values()
    assert len(np.unique(expected)) > 5
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def _products(model: onnx.ModelProto) -> dict[str, int]:
    """Count matmuls and convolutions in float32, in bytes summed in int32, or in other types."""
    mod = run_pipeline(import_model(model).mod, PipelineContext(), until="canonicalize").mod
    mod = center_weights(compute_in_integers(mod, PipelineContext()), PipelineContext())
    counts = {"float32": 0, "int32": 0, "other": 0}
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if not isinstance(call, relax.Call) or str(call.op.name) not in ("relax.matmul", "relax.nn.conv2d"):
                continue
            first, second = (str(each.ty.dtype) for each in call.args)
            if first == second == "float32":
                counts["float32"] += 1
            elif first in ("int8", "uint8") and second in ("int8", "uint8"):
                values = getattr(call.args[1], "value", None)
                counts["int32"] += values is None or not bool(np.all(values.numpy() == 1))  # but for sums of windows
            else:
                counts["other"] += 1
    return counts
