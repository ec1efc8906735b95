"""specialize-sizes: kernels whose sizes became static are merged with equal ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

import compiler
from compiler.errors import PassError


def counted() -> onnx.ModelProto:
    """Rows selected by a constant mask, whose number is known after constant folding."""
    mask = np.array([1, 0, 1, 1, 0], np.int64)
    nodes = [
        make_node("NonZero", ["mask"], ["places"]),
        make_node("Transpose", ["places"], ["rows"], perm=[1, 0]),
        make_node("GatherND", ["x", "rows"], ["chosen"]),
        make_node("Softplus", ["chosen"], ["positive"]),
        make_node("Reshape", ["positive", "shape"], ["same"]),
        make_node("Add", ["same", "other"], ["o"]),
    ]
    constants = {"mask": mask, "shape": np.array([3, 4]), "other": np.ones((3, 4), np.float32)}
    graph = make_graph(
        nodes,
        "counted",
        [make_tensor_value_info("x", TensorProto.FLOAT, [5, 4])],
        [make_tensor_value_info("o", TensorProto.FLOAT, [3, 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)


def test_a_size_counted_in_a_constant() -> None:
    model, x = counted(), np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = compiler.compile(model, threads=1).run({"x": x})["o"]
    np.testing.assert_allclose(found, session.run(None, {"x": x})[0], rtol=1e-6)


def test_the_engine_does_not_merge_them_otherwise() -> None:
    with pytest.raises(PassError, match="fuse-kernels"):
        compiler.compile(counted(), threads=1, passes={"instead-of:specialize-sizes": None})
