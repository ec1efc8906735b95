"""Multi-threaded scatters of rows of odd lengths, with dynamic numbers of rows and updates."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import compiler

WIDTH = 37


@pytest.mark.parametrize("reduction", ["add", "max"])
def test_rows_are_combined_in_order(reduction: str) -> None:
    node = helper.make_node("ScatterND", ["data", "indices", "updates"], ["y"], reduction=reduction)
    inputs = [
        helper.make_tensor_value_info("data", TensorProto.FLOAT, ["rows", WIDTH]),
        helper.make_tensor_value_info("indices", TensorProto.INT64, ["count", 1]),
        helper.make_tensor_value_info("updates", TensorProto.FLOAT, ["count", WIDTH]),
    ]
    graph = helper.make_graph([node], "rows", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    module = compiler.compile(model, records=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several threads of its ScatterND lose sums of the same row (1.32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for rows, count in ((5, 9), (1, 1), (4, 0)):
        generator = np.random.default_rng(count)
        feeds = {
            "data": generator.standard_normal((rows, WIDTH), dtype=np.float32),
            "indices": generator.integers(-rows, rows, (count, 1)),
            "updates": generator.standard_normal((count, WIDTH), dtype=np.float32),
        }
        np.testing.assert_allclose(module.run(feeds)["y"], session.run(None, feeds)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("axis", "size"), [(1, (50, 300, 4)), (2, (8, 9, 300)), (0, (300, 37))])
def test_threads_share_the_rows_and_columns_of_the_other_axes(axis: int, size: tuple[int, ...]) -> None:
    node = helper.make_node("ScatterElements", ["data", "indices", "updates"], ["y"], axis=axis, reduction="add")
    shape = tuple(each + 3 for each in size)  # data outside of the updates' axes as well
    inputs = [
        helper.make_tensor_value_info("data", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("indices", TensorProto.INT64, size),
        helper.make_tensor_value_info("updates", TensorProto.FLOAT, size),
    ]
    graph = helper.make_graph([node], "sums", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    module = compiler.compile(model, "host:4", threads=3, records=False)
    (kernel,) = module.manifest.kernels
    assert kernel.tasks is not None
    assert [int(each) > 1 for each in kernel.tasks] == [True]
    generator = np.random.default_rng(axis)
    data, updates = (generator.standard_normal(each, dtype=np.float32) for each in (shape, size))
    indices = generator.integers(-5, 5, size)
    places = list(np.indices(size))
    places[axis] = indices % shape[axis]
    expected = data.copy()
    np.add.at(expected, tuple(places), updates)  # in order, so that sums are equal
    np.testing.assert_array_equal(module.run([data, indices, updates])["y"], expected)
