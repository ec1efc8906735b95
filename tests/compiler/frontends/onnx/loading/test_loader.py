"""Broken and hostile models raise InvalidModelError; valid ones in every supported form load."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest

from compiler.errors import InvalidModelError, StorageError
from compiler.frontends.onnx import import_onnx
from compiler.frontends.onnx.loading.loader import load_model
from tests.compiler.frontends.onnx.support import check_model, make_model

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def product_model() -> onnx.ModelProto:
    """x[2, 4] @ w[4, 3], then Relu."""
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        onnx.helper.make_node("Relu", ["h"], ["y"], name="activation"),
    ]
    x = onnx.helper.make_tensor_value_info("x", FLOAT, [2, 4])
    return make_model(nodes, [x], ["y"], [onnx.numpy_helper.from_array(WEIGHT, "w")])


def _no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


def _no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def _future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9999


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def _missing_initializer(model: onnx.ModelProto) -> None:
    del model.graph.initializer[:]


def _short_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1]


def _negative_dim(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def _absurd_dim(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**60


def _unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 999


def _negative_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -2


def _absurd_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**60


def _name_defined_twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "h"


def _initializer_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _too_many_inputs(model: onnx.ModelProto) -> None:
    model.graph.node[1].input.extend(["x", "x"])


def _attribute_of_wrong_type(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "LeakyRelu"
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("alpha", "much"))


def _missing_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Cast"


def _undefined_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def _sizes_that_do_not_fit(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7


BREAKERS: list[Callable[[onnx.ModelProto], None]] = [
    _no_graph, _no_opset, _future_opset, _cycle, _missing_initializer, _short_initializer, _negative_dim, _absurd_dim,
    _unknown_type, _negative_input, _absurd_input, _name_defined_twice, _initializer_twice, _too_many_inputs,
    _attribute_of_wrong_type, _missing_attribute, _undefined_output, _sizes_that_do_not_fit,
]  # fmt: skip


@pytest.mark.parametrize("break_it", BREAKERS, ids=lambda f: f.__name__.strip("_"))
def test_a_broken_model_is_named_as_such(break_it: Callable[[onnx.ModelProto], None]) -> None:
    model = product_model()
    break_it(model)
    with pytest.raises(InvalidModelError):
        import_onnx(model)


def test_every_truncation_gives_a_clear_error() -> None:
    data = product_model().SerializeToString()
    for length in range(len(data)):
        with pytest.raises(InvalidModelError):
            load_model(data[:length])


def test_random_bytes_give_a_clear_error() -> None:
    random = np.random.default_rng(3)
    for length in (1, 10, 100, 1000):
        for _ in range(50):
            with pytest.raises(InvalidModelError):
                load_model(random.bytes(length))


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        load_model(tmp_path / "missing.onnx")
    with pytest.raises(StorageError):
        load_model(tmp_path)


def test_a_device_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to("/dev/zero")
    with pytest.raises(StorageError, match="is not a file"):
        load_model(tmp_path / "model.onnx")


def external_model(folder: Path, **entries: object) -> Path:
    """The product model with its weight in the file weights.bin; `entries` replace fields of the reference."""
    model = product_model()
    tensor = model.graph.initializer[0]
    (folder / "weights.bin").write_bytes(b"skip" + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": 4, "length": WEIGHT.nbytes, **entries}.items():
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_are_read_in_place(tmp_path: Path) -> None:
    weight = load_model(external_model(tmp_path)).initializers["w"]
    np.testing.assert_array_equal(weight.array, WEIGHT)
    assert not weight.array.flags.writeable


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../weights.bin"},
        {"location": "/etc/passwd"},
        {"location": "absent.bin"},
        {"location": ""},
        {"location": "a/../../weights.bin"},
        {"offset": -4},
        {"offset": "four"},
        {"offset": 8},
        {"length": 2**62},
        {"length": 8},
    ],
    ids=str,
)
def test_hostile_external_data_are_refused(tmp_path: Path, entries: dict[str, object]) -> None:
    with pytest.raises(InvalidModelError):
        import_onnx(external_model(tmp_path, **entries))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external_model(folder)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    os.symlink(tmp_path / "weights.bin", folder / "weights.bin")
    with pytest.raises(InvalidModelError, match="outside"):
        load_model(path)


def test_external_data_of_a_model_in_memory_are_refused(tmp_path: Path) -> None:
    data = external_model(tmp_path).read_bytes()
    with pytest.raises(InvalidModelError, match="in memory"):
        load_model(data)


def test_the_callers_model_is_left_as_it_was() -> None:
    model = product_model()
    before = model.SerializeToString()
    import_onnx(model)
    assert model.SerializeToString() == before


def test_an_unsorted_graph_is_sorted() -> None:
    model = product_model()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    assert [node.op_type for node in load_model(model).nodes] == ["MatMul", "Relu"]
    import_onnx(model)


def test_a_function_of_the_model_is_inlined_with_its_attributes() -> None:
    body = [
        onnx.helper.make_node("LeakyRelu", ["a"], ["b"]),
        onnx.helper.make_node("Add", ["b", "c"], ["d"]),
    ]
    reference = onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    body[0].attribute.append(reference)
    imports = [onnx.helper.make_opsetid("", 22)]
    function = onnx.helper.make_function("local", "Leaky", ["a", "c"], ["d"], body, imports, ["slope"])
    node = onnx.helper.make_node("Leaky", ["x", "x"], ["y"], domain="local", slope=0.5)
    model = make_model([node], [onnx.helper.make_tensor_value_info("x", FLOAT, [3])], ["y"])
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    model.functions.append(function)
    check_model(model, {"x": np.array([-2, 0, 3], np.float32)})


def test_a_function_that_calls_itself_is_refused() -> None:
    body = [onnx.helper.make_node("Self", ["a"], ["b"], domain="local")]
    imports = [onnx.helper.make_opsetid("", 22), onnx.helper.make_opsetid("local", 1)]
    function = onnx.helper.make_function("local", "Self", ["a"], ["b"], body, imports)
    node = onnx.helper.make_node("Self", ["x"], ["y"], domain="local")
    model = make_model([node], [onnx.helper.make_tensor_value_info("x", FLOAT, [3])], ["y"])
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    model.functions.append(function)
    with pytest.raises(InvalidModelError, match="calls itself"):
        import_onnx(model)


def test_a_sparse_initializer_becomes_dense() -> None:
    values = onnx.numpy_helper.from_array(np.array([5.0, 7.0], np.float32), "w")
    indices = onnx.numpy_helper.from_array(np.array([[0, 1], [1, 2]]), "w_indices")
    model = product_model()
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [4, 3]))
    expected = np.zeros((4, 3), np.float32)
    expected[0, 1], expected[1, 2] = 5, 7
    np.testing.assert_array_equal(load_model(model).initializers["w"].array, expected)


@pytest.mark.parametrize(("levels", "accepted"), [(6, True), (11, True), (14, False), (40, False)])
def test_functions_that_multiply_are_refused_before_they_are_imported(levels: int, accepted: bool) -> None:
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("d", 1)]

    def function(level: int) -> onnx.FunctionProto:
        called = [("Neg", "a", "b")] if level == 0 else [(f"f{level - 1}", "a", "p"), (f"f{level - 1}", "p", "b")]
        domain = "" if level == 0 else "d"
        nodes = [onnx.helper.make_node(name, [given], [made], domain=domain) for name, given, made in called]
        return onnx.helper.make_function("d", f"f{level}", ["a"], ["b"], nodes, opsets)

    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node(f"f{levels}", ["x"], ["y"], domain="d")], "g", [x], [y])
    functions = [function(level) for level in range(levels + 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    if accepted:
        assert len(load_model(model).functions) == levels + 1
    else:
        with pytest.raises(InvalidModelError, match="in place of their calls; of a model of"):
            load_model(model)
