"""Pairs of inputs and outputs as states: found by name, and growing from run to run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tensorwright
from compiler.errors import InputError, OptionError
from compiler.frontends.onnx.frontend import named_pairs
from compiler.runtime import Module

Shape = list[str | int | None]
PAST: Shape = ["batch", 2, "past", 4]
PRESENT: Shape = ["batch", 2, "total", 4]
NEW: Shape = ["batch", 2, "new", 4]


def decoder() -> onnx.ModelProto:
    """A cache that grows with each run, a sum over it, and a counter of fixed size."""
    nodes = [
        helper.make_node("Concat", ["past_key_values.0.key", "x"], ["present.0.key"], axis=2),
        helper.make_node("ReduceSum", ["present.0.key", "axes"], ["sums"], keepdims=0),
        helper.make_node("Add", ["state", "one"], ["stateN"]),
        helper.make_node("Add", ["sums", "state"], ["y"]),
    ]
    floats = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("x", floats, NEW),
        helper.make_tensor_value_info("past_key_values.0.key", floats, PAST),
        helper.make_tensor_value_info("state", floats, [4]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", floats, ["batch", 2, 4]),
        helper.make_tensor_value_info("present.0.key", floats, PRESENT),
        helper.make_tensor_value_info("stateN", floats, [4]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [2]),
        helper.make_tensor("one", floats, [1], [1.0]),
    ]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


@pytest.fixture(scope="module")
def module() -> Module:
    return tensorwright.compile(decoder(), threads=1, progress=None)


def test_states_grow(module: Module, tmp_path: Path) -> None:
    session, rows = module.session(capacity=6), []
    for count in (3, 1, 2):
        x = np.random.default_rng(count).standard_normal((2, 2, count, 4)).astype("float32")
        rows.append(x)
        got = session.run([x])
        assert list(got) == ["y"]
        expected = np.concatenate(rows, 2)
        np.testing.assert_allclose(got["y"], expected.sum(2) + len(rows) - 1, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(session.states["past_key_values.0.key"], expected)
        assert session.length == expected.shape[2]
    with pytest.raises(InputError, match="the session is full: 6 of 6 rows"):
        session.run([rows[0][:, :, :1]])
    session.save(tmp_path / "states")
    other = module.session()
    other.load(tmp_path / "states")
    x = rows[0]
    np.testing.assert_allclose(other.run([x])["y"], expected.sum(2) + x.sum(2) + 3, rtol=1e-5, atol=1e-5)
    assert (other.length, session.length) == (9, 6)
    with pytest.raises(OptionError, match="'state' is replaced by each run"):
        session.rewind(1)


def test_the_example_is_the_first_run_of_a_session(module: Module) -> None:
    assert {each.name for each in module.manifest.reference_inputs} == {"x"}
    assert set(module.verify()) == {"y", "present.0.key", "stateN"}
    outputs = module.run([np.ones((1, 2, 1, 4), "float32"), np.ones((1, 2, 5, 4), "float32"), np.zeros(4, "float32")])
    assert outputs["present.0.key"].shape == (1, 2, 6, 4)


@pytest.mark.parametrize(
    ("state", "pairs"),
    [
        (None, {"past_key_values.0.key": "present.0.key", "state": "stateN"}),
        ({}, {}),
        ({"past_key_values.*": "present.*"}, {"past_key_values.0.key": "present.0.key"}),
        ({"state": "stateN"}, {"state": "stateN"}),
    ],
)
def test_names(state: dict[str, str] | None, pairs: dict[str, str]) -> None:
    assert named_pairs(decoder().graph, state) == pairs


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"memory": "stateN"}, "names no input by 'memory'"),
        ({"state": "next"}, "no output has that name"),
        ({"state": "stateN", "x": "stateN"}, "the next value of two inputs"),
        ({"x": "y"}, "are not a state"),
    ],
)
def test_names_that_do_not_fit(state: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        tensorwright.compile(decoder(), state=state)
