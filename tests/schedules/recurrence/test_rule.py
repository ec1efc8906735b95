"""Recurrent layers on several threads: compiled for the host and compared with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
import targets
from schedules.machine import Machine
from schedules.recurrence.description import ActivationChoice, CellKind, Recurrence, parse
from schedules.recurrence.rule import SAMPLES, way_to_run
from schedules.recurrence.writers import DIRECTIONS, SERIAL, UNITS

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_FEATURES = 5


def _model(operator: str, hidden: int, directions: int, *, lengths: bool, **attributes: Any) -> onnx.ModelProto:
    """X (length, batch, 5), initial states and, where asked for, lengths are inputs."""
    random, gates = np.random.default_rng(0), _GATES[operator] * hidden
    shapes = {"w": (gates, _FEATURES), "r": (gates, hidden), "b": (2 * gates,)}
    constants = [
        numpy_helper.from_array(random.uniform(-0.1, 0.1, (directions, *shape)).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ["length", "batch", _FEATURES])]
    inputs += [value("lengths", TensorProto.INT32, ["batch"])] if lengths else []
    states = ["h", "c"] if operator == "LSTM" else ["h"]
    inputs += [value(name, TensorProto.FLOAT, [directions, "batch", hidden]) for name in states]
    names = ["x", "w", "r", "b", "lengths" if lengths else "", *states]
    outputs = ["y", *(f"last_{name}" for name in states)]
    node = helper.make_node(operator, names, outputs, hidden_size=hidden, **attributes)
    results = [value(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph([node], "recurrent", inputs, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _inputs(model: onnx.ModelProto, length: int, batch: int) -> dict[str, Any]:
    random, sizes = np.random.default_rng(batch), {"length": length, "batch": batch}
    found: dict[str, Any] = {}
    for each in model.graph.input:
        shape = [sizes.get(dim.dim_param, dim.dim_value) for dim in each.type.tensor_type.shape.dim]
        found[each.name] = random.standard_normal(shape).astype(np.float32)
    if "lengths" in found:
        found["lengths"] = random.integers(1, length + 1, batch).astype(np.int32)
    return found


_CASES: dict[str, tuple[str, int, int, bool, dict[str, Any]]] = {
    # A last block that is not full, and teams of 1 to 4 samples and more.
    "one direction": ("LSTM", 131, 1, True, {"direction": "reverse"}),
    "one direction, in two stages": ("GRU", 160, 1, False, {"linear_before_reset": 0}),
    "directions": ("LSTM", 128, 2, False, {"direction": "bidirectional"}),
    "directions with functions of their own": (
        "GRU",
        160,
        2,
        True,
        {
            "direction": "bidirectional",
            "linear_before_reset": 1,
            "clip": 2.0,
            "activations": ["Sigmoid", "Tanh", "HardSigmoid", "Softsign"],
        },
    ),
}


@pytest.mark.parametrize("cores", [2, 8])
@pytest.mark.parametrize("case", _CASES)
def test_layers_whose_work_threads_share(case: str, cores: int) -> None:
    operator, hidden, directions, lengths, attributes = _CASES[case]
    model = _model(operator, hidden, directions, lengths=lengths, **attributes)
    module = compiler.compile(model, targets.get("host", cores=cores), threads=2, records=False)
    assert module.manifest.kernels
    assert "recurrent" in {kernel.rule for kernel in module.manifest.kernels}
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for length, batch in ((3, 1), (2, 2), (5, 4), (1, 7)):
        inputs = _inputs(model, length, batch)
        for ours, expected in zip(module.run(inputs).values(), session.run(None, inputs), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-6)


def _recurrence(hidden: int, directions: int = 1, *, quantized: bool = False) -> Recurrence:
    functions = (ActivationChoice("sigmoid"), ActivationChoice("tanh"), ActivationChoice("tanh"))
    return Recurrence(
        kind=CellKind("LSTM"),
        activations=(functions,) * directions,
        backward=(False, True)[:directions],
        hidden=hidden,
        inputs=_FEATURES,
        lanes=16,
        dtype="float32",
        operands=("x", "r0"),
        quantized=quantized,
    )


@pytest.mark.parametrize(
    ("hidden", "directions", "cores", "way"),
    [
        (512, 1, 1, SERIAL),
        (32, 1, 2, SAMPLES),
        (512, 1, 2, UNITS),
        (512, 2, 2, DIRECTIONS),
        (512, 2, 8, UNITS),
        (64, 1, 32, SAMPLES),
    ],
)
def test_how_a_layer_is_run(hidden: int, directions: int, cores: int, way: str) -> None:
    machine = Machine(cores=cores)
    assert way_to_run(_recurrence(hidden, directions), 0, 0, machine) == way
    quantized = way_to_run(_recurrence(2 * hidden, directions, quantized=True), 0, 0, machine)
    assert quantized == (SERIAL if way == SAMPLES else way)  # all samples of a step have one scale


def test_a_description_survives_its_text() -> None:
    recurrence = _recurrence(40, 2)
    assert parse(recurrence.text()) == recurrence
