"""Reductions on CUDA targets, by simulation: a block for each of few results, a thread for each short one."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import compiler
from targets.cuda.image import source_of


def one_operator(operator: str, x: np.ndarray, rank: int, *weights: np.ndarray, **attributes: Any) -> onnx.ModelProto:
    names = [f"w{index}" for index in range(len(weights))]
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["v"], **attributes), helper.make_node("Abs", ["v"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", element, list(x.shape))],
        [helper.make_tensor_value_info("y", element, [None] * rank)],
        [numpy_helper.from_array(value, name) for value, name in zip(weights, names, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model: onnx.ModelProto, x: np.ndarray) -> tuple[np.ndarray, str]:
    module = compiler.compile(model, "cuda-simulated", records=False)
    return module.run({"x": x})["y"], source_of(bytes(module.artifact.library)).text


@pytest.mark.parametrize(
    ("operator", "shape", "axes"),
    [
        ("ReduceMax", (53, 1003), None),  # all, a prime number of elements a row
        ("ReduceMin", (1, 4096), None),
        ("ReduceMax", (2, 3, 700), [2]),
        ("ReduceProd", (257, 3), [0]),
        ("ReduceSum", (9001,), None),
    ],
)
def test_a_long_reduction_is_shared_by_the_threads_of_a_block(
    operator: str, shape: tuple[int, ...], axes: list[int] | None
) -> None:
    x = (1 + 0.01 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    weights = [np.asarray(axes, np.int64)] if operator == "ReduceSum" and axes else []
    attributes = {"axes": axes} if axes and not weights else {}
    rank = 0 if axes is None else len(shape) - len(axes)
    found, source = run(one_operator(operator, x, rank, *weights, keepdims=0, **attributes), x)
    function = {"ReduceMax": np.max, "ReduceMin": np.min, "ReduceSum": np.sum, "ReduceProd": np.prod}[operator]
    expected = function(x.astype(np.float64), axis=None if axes is None else tuple(axes))  # type: ignore[operator]
    np.testing.assert_allclose(found, np.abs(expected), rtol=1e-5)
    widest = max(int(each) for each in re.findall(r"__launch_bounds__\((\d+)\)", source))
    assert widest >= 64


CONVOLVED = [  # data, filters, strides, padding on each side, dilations, groups
    ((2, 6, 9, 7), (6, 1, 3, 3), 1, 1, 1, 6),
    ((1, 5, 17, 5), (10, 1, 5, 3), 2, 2, 1, 5),
    ((3, 4, 6, 6), (4, 2, 3, 3), 1, 0, 2, 2),
]


@pytest.mark.parametrize(("data", "filters", "stride", "pad", "dilation", "groups"), CONVOLVED)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_each_point_of_a_grouped_convolution_is_one_threads(
    data: tuple[int, ...], filters: tuple[int, ...], stride: int, pad: int, dilation: int, groups: int, dtype: str
) -> None:
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(shape).astype(dtype) for shape in (data, filters))
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2, "group": groups}
    found, source = run(one_operator("Conv", x, 4, w, **attributes), x)
    image, kernel = (torch.from_numpy(each.astype(np.float64)) for each in (x, w))
    expected = torch.conv2d(image, kernel, stride=stride, padding=pad, dilation=dilation, groups=groups).abs().numpy()
    tolerance = {"float32": 1e-5, "float16": 2e-2}[dtype]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert "__syncthreads" not in source
    assert source.count('extern "C" __global__ void __launch_bounds__') == 2  # declared and defined: one kernel


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pooling_is_done_with_what_follows_it(operator: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 11, 8)).astype(np.float32)
    found, source = run(one_operator(operator, x, 4, kernel_shape=[3, 2], strides=[2, 1]), x)
    pool = torch.nn.functional.max_pool2d if operator == "MaxPool" else torch.nn.functional.avg_pool2d
    expected = pool(torch.from_numpy(x), (3, 2), (2, 1)).abs().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert "__syncthreads" not in source
