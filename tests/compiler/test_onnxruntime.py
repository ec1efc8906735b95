"""`tensorwright.onnxruntime` behaves like `onnxruntime` for the same calls."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import InputError, OptionError
from tensorwright import onnxruntime as ours

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
K = np.array([2], np.int64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = x w, top k of it, with names of sizes and metadata."""
    w = numpy_helper.from_array(np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    k = helper.make_tensor_value_info("scale", TensorProto.INT64, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])
    z = helper.make_tensor_value_info("z", TensorProto.INT64, ["batch", 5])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Cast", ["y"], ["i"], to=TensorProto.INT64),
        helper.make_node("Mul", ["i", "scale"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "net", [x, k], [y, z], [w], doc_string="a graph")
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="tests")
    proto.model_version = 3
    helper.set_model_props(proto, {"names": "{0: 'cat'}"})
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def sessions(model: Path) -> tuple[Any, ours.InferenceSession]:
    return onnxruntime.InferenceSession(str(model), providers=[ours.CPU]), ours.InferenceSession(str(model))


def test_names_shapes_and_metadata(sessions: tuple[Any, ours.InferenceSession]) -> None:
    theirs, own = sessions
    for listed in ("get_inputs", "get_outputs"):
        expected = [(each.name, each.shape, each.type) for each in getattr(theirs, listed)()]
        assert [(each.name, each.shape, each.type) for each in getattr(own, listed)()] == expected
    for name in ("custom_metadata_map", "producer_name", "graph_name", "graph_description", "domain", "version"):
        assert getattr(own.get_modelmeta(), name) == getattr(theirs.get_modelmeta(), name)
    assert own.get_providers() == theirs.get_providers()


@pytest.mark.parametrize("names", [None, ["z"], ["z", "y"]])
def test_run(sessions: tuple[Any, ours.InferenceSession], names: list[str] | None) -> None:
    feed = {"x": X, "scale": K}
    expected, found = (each.run(names, feed) for each in sessions)
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_lists_take_the_type_of_the_input(sessions: tuple[Any, ours.InferenceSession]) -> None:
    expected, found = (each.run(["y"], {"x": [[1, 2, 3, 4]], "scale": [3]}) for each in sessions)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)


def test_binding(sessions: tuple[Any, ours.InferenceSession]) -> None:
    results = []
    for session in sessions:
        binding = session.io_binding()
        out = np.zeros((3, 5), np.float32)
        binding.bind_cpu_input("x", X)
        binding.bind_input("scale", "cpu", 0, np.int64, K.shape, K.ctypes.data)
        binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
        binding.bind_output("z")
        session.run_with_iobinding(binding)
        results.append([out, *binding.copy_outputs_to_cpu()])
    for mine, other in zip(*reversed(results), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_values_and_asynchronous_runs(sessions: tuple[Any, ours.InferenceSession]) -> None:
    own = sessions[1]
    value = ours.OrtValue.ortvalue_from_numpy(X)
    theirs = onnxruntime.OrtValue.ortvalue_from_numpy(X)
    assert (value.shape(), value.data_type()) == (theirs.shape(), theirs.data_type())
    (found,) = own.run_with_ort_values(["y"], {"x": value, "scale": ours.OrtValue(K)})
    done, answers = threading.Event(), []

    def answered(results: Any, user_data: object, error: str) -> None:
        answers.append((results, user_data, error))
        done.set()

    own.run_async(["y"], {"x": X, "scale": K}, answered, "mine")
    assert done.wait(60)
    np.testing.assert_array_equal(answers[0][0][0], found.numpy())
    assert answers[0][1:] == ("mine", "")


def test_options(model: Path) -> None:
    options = ours.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ours.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_free_dimension_override_by_name("batch", 3)
    session = ours.InferenceSession(model.read_bytes(), options, providers=["CUDAExecutionProvider", ours.CPU])
    assert session.module.threads == 1
    assert session.get_inputs()[0].shape == [3, 4]
    options.enable_profiling = True
    with pytest.raises(OptionError, match="enable_profiling"):
        ours.InferenceSession(str(model), options)
    with pytest.raises(OptionError, match="CUDAExecutionProvider"):
        ours.InferenceSession(str(model), providers=["CUDAExecutionProvider"])
    with pytest.raises(InputError, match="no output is named 'w'"):
        session.run(["w"], {"x": X, "scale": K})


def test_packages_that_import_onnxruntime_get_it_after_install() -> None:
    code = (
        "import tensorwright.onnxruntime as o; o.install();"
        "import onnxruntime as ort; from onnxruntime import InferenceSession, SessionOptions;"
        "from onnxruntime.capi import _pybind_state as C;"
        "from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, NoSuchFile;"
        "import onnxruntime.capi._pybind_state;"
        "print(ort is o, InferenceSession is o.InferenceSession, C.get_available_providers(), InvalidArgument.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True ['CPUExecutionProvider'] InputError\n"
