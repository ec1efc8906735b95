"""One error names everything that cannot be compiled; the coverage report lists it before compilation."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import pytest

from compiler import onnx_backend
from compiler.errors import UnsupportedModelError
from compiler.frontends.onnx import coverage_report, import_onnx
from compiler.frontends.onnx.registry import converter, find_converter, registered_operators
from tests.compiler.frontends.onnx.support import make_model

Node = onnx.helper.make_node
FLOAT = onnx.TensorProto.FLOAT
X = onnx.helper.make_tensor_value_info("x", FLOAT, [2, 3])


def mixed_model() -> onnx.ModelProto:
    """Two unknown operators, one that depends on the other's result, and sound nodes."""
    nodes = [
        Node("Mystery", ["x"], ["a"], name="first", domain="acme"),
        Node("Relu", ["a"], ["b"]),
        Node("Enigma", ["x"], ["c"], name="second", domain="acme"),
        Node("Add", ["b", "c"], ["d"]),
        Node("HardSwish", ["x"], ["e"]),
        Node("Add", ["d", "e"], ["y"]),
    ]
    model = make_model(nodes, [X], ["y"])
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    return model


def test_all_refused_nodes_are_in_one_error() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        import_onnx(mixed_model())
    assert [(r.operator, r.node) for r in caught.value.refusals] == [("Mystery", "first"), ("Enigma", "second")]
    assert all("acme" in r.reason for r in caught.value.refusals)


def test_the_report_counts_operators_by_support() -> None:
    report = coverage_report(mixed_model())
    assert not report.complete
    assert {item.operator for item in report.of("refused")} == {"Mystery", "Enigma"}
    assert sum(item.count for item in report.operators) == 6
    assert "2 refused" in str(report)
    assert "acme.Mystery" in str(report)


def test_an_operator_without_converter_is_expanded_by_its_definition() -> None:
    node = Node("CenterCropPad", ["x", "size"], ["y"])
    model = make_model([node], [X], ["y"], [onnx.numpy_helper.from_array(np.array([1, 5]), "size")])
    assert [item.operator for item in coverage_report(model).of("rewritten")] == ["CenterCropPad"]
    assert import_onnx(model).outputs[0].shape == (1, 5)


def test_unused_nodes_are_not_converted() -> None:
    nodes = [Node("Mystery", ["x"], ["a"], domain="acme"), Node("Relu", ["x"], ["y"])]
    model = make_model(nodes, [X], ["y"])
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    import_onnx(model)


def test_the_converter_of_the_right_version_is_found() -> None:
    assert find_converter("Slice", 9) is not find_converter("Slice", 10)
    assert find_converter("Slice", 10) is find_converter("Slice", 22)
    assert find_converter("Slice", 10, "ai.onnx") is find_converter("Slice", 10)
    assert find_converter("Gelu", 19) is None
    assert ("", "Gelu", 20) in registered_operators()


def test_an_operator_is_registered_once_a_version() -> None:
    with pytest.raises(ValueError, match="twice"):
        converter("Slice", since=10)(lambda context: context.input(0))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([onnx.helper.make_tensor_value_info("x", onnx.TensorProto.STRING, [2])], ["x"]),
        ([onnx.helper.make_tensor_sequence_value_info("x", FLOAT, None)], ["x"]),
    ],
    ids=["string", "sequence"],
)
def test_inputs_that_are_no_tensors_are_refused(inputs: list[onnx.ValueInfoProto], outputs: list[str]) -> None:
    model = make_model([Node("Identity", ["x"], ["y"])], inputs, ["y"])
    with pytest.raises(UnsupportedModelError, match="'x'"):
        import_onnx(model)


def test_the_backend_compiles_when_values_are_given() -> None:
    inputs = [X, onnx.helper.make_tensor_value_info("axis", onnx.TensorProto.INT64, [])]
    model = make_model([Node("CumSum", ["x", "axis"], ["y"])], inputs, ["y"])
    prepared = onnx_backend.prepare(model)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for axis in (0, 1, 0):
        np.testing.assert_array_equal(prepared.run([x, np.array(axis)])[0], np.cumsum(x, axis))


def test_the_backend_runs_nodes_and_knows_its_devices() -> None:
    x = np.array([-1, 2], np.float32)
    np.testing.assert_array_equal(onnx_backend.run_node(Node("Relu", ["x"], ["y"]), [x])[0], [0, 2])
    assert onnx_backend.supports_device("CPU")
    assert not onnx_backend.supports_device("CUDA")
    assert not onnx_backend.is_compatible(mixed_model())


def test_empty_tensors_pass_through_the_backend() -> None:
    info = onnx.helper.make_tensor_value_info("x", FLOAT, [2, 0, 4])
    model = make_model([Node("ReduceSum", ["x"], ["y"], keepdims=0)], [info], ["y"])
    model.graph.node[0].input.append("axes")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "axes"))
    assert onnx_backend.run_model(model, [np.zeros((2, 0, 4), np.float32)])[0].shape == (2, 0)


def test_a_refused_node_of_constants_is_evaluated() -> None:
    encoder = Node("OneHotEncoder", ["c"], ["a"], domain="ai.onnx.ml", cats_int64s=[1, 2], zeros=0)
    model = make_model(
        [encoder, Node("Add", ["x", "a"], ["y"])], [onnx.helper.make_tensor_value_info("x", FLOAT, [2, 2])], ["y"]
    )
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1]), "c"))
    found = onnx_backend.run_model(model, [np.zeros((2, 2), np.float32)])[0]
    np.testing.assert_array_equal(found, [[0, 1], [1, 0]])
