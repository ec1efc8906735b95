"""argmax and argmin on the accelerator: of any axis, first or last, exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tvm import relax

import compiler
from targets.ethos_u.partition import prepared
from targets.ethos_u.view import registered_name
from tests.targets.ethos_u.checking import DEFAULT, check, planned
from tests.targets.ethos_u.graphs import QuantizedGraph


def _model(shape: tuple[int, ...], operator: str, axis: int, *, last: int, keep: int, dtype: str) -> onnx.ModelProto:
    graph = QuantizedGraph(len(shape) + axis, dtype)
    x = graph.input(*shape)
    model = graph.model(graph.node(operator, [x], axis=axis, select_last_index=last, keepdims=keep))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.INT64, None))
    return model


@pytest.mark.parametrize(
    ("shape", "axis", "operator", "last", "keep", "dtype"),
    [
        ((1, 21, 7, 9), 1, "ArgMax", 0, 1, "int8"),
        ((1, 21, 7, 9), 1, "ArgMin", 1, 0, "uint8"),
        ((3, 128), 1, "ArgMax", 1, 1, "int8"),
        ((2, 1000), -1, "ArgMax", 0, 0, "uint8"),
        ((1000, 2), 0, "ArgMin", 0, 1, "int8"),
        ((2, 5, 300), 2, "ArgMax", 1, 0, "int8"),
        ((17,), 0, "ArgMax", 0, 1, "int8"),
    ],
)
def test_it_is_exact(shape: tuple[int, ...], axis: int, operator: str, last: int, keep: int, dtype: str) -> None:
    model = _model(shape, operator, axis, last=last, keep=keep, dtype=dtype)
    module = compiler.compile(model, DEFAULT, threads=1, records=False)
    report: Any = module.manifest.target.details["partition"]
    assert report["refused"] == []
    claimed = " ".join(report["claimed"])
    assert ("max" if operator == "ArgMax" else "min") in claimed
    assert "minimum" in claimed
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    rng = np.random.default_rng(0)
    for spread in (0.03, 1.0, 30.0):  # nearly all are equal, some are, many are at the ends
        inputs = {"x0": rng.normal(size=shape).astype(np.float32) * spread}
        (actual,), (wanted,) = module.run(inputs).values(), session.run(None, inputs)
        assert actual.dtype == np.int64
        np.testing.assert_array_equal(actual, wanted)


def test_the_engines_own_operators_too() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([2, 40], "float32"))
    parameters = (relax.const(0.05, "float32"), relax.const(3, "int8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            integers = builder.emit(relax.op.quantize(x, *parameters, -1, "int8"))
            numbers = builder.emit(relax.op.dequantize(integers, *parameters, -1, "float32"))
            place = builder.emit_output(relax.op.argmin(numbers, 1))
        builder.emit_func_output(place)
    mod = prepared(builder.get())
    names = {registered_name(binding.value) for block in mod["main"].body.blocks for binding in block.bindings}
    assert "relax.argmin" not in names
    assert {"relax.min", "relax.minimum", "relax.max"} <= names


def test_bits_of_a_segment() -> None:
    _, plan = planned(_model((1, 33, 4, 5), "ArgMax", 1, last=0, keep=1, dtype="int8"))
    (segment,) = plan.parts.values()
    check(segment)


def test_what_stays_on_the_processor() -> None:
    """Floats, and more places than two bytes tell apart."""
    graph = QuantizedGraph(0)
    x = graph.input(1, 20000)
    model = graph.model(graph.node("ArgMax", [x], axis=1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.INT64, None))
    found, _ = planned(model)
    assert found.steps == {}
