"""Operators on tensors without elements, in modules with fixed sizes and with sizes that are 0 in a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import compiler
from tests.compiler.frontends.onnx.support import Case, differences, merged_cases

_RANDOM = np.random.default_rng(0)


def _f(*shape: int) -> Any:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _u8(*shape: int) -> np.ndarray:
    return _RANDOM.integers(0, 256, shape).astype(np.uint8)


_SCALE, _ZERO = np.array(0.1, np.float32), np.array(3, np.uint8)
_LSTM = [_f(1, 16, 3), _f(1, 16, 4), _f(1, 32)]

CASES = [
    # elementwise, and their broadcasts
    Case("Add", [_f(0, 3), _f(3)]),
    Case("Where", [np.zeros((2, 0, 1), bool), _f(1, 0, 3), _f(2, 1, 3)]),
    Case("Clip", [_f(0, 3), np.array(-1, np.float32), np.array(1, np.float32)]),
    Case("PRelu", [_f(0, 3, 2), _f(3, 1)]),
    Case("Cast", [_f(2, 0)], {"to": 7}),
    Case("BatchNormalization", [_f(0, 3, 2, 2), _f(3), _f(3), _f(3), np.abs(_f(3))]),
    Case("QuantizeLinear", [_f(0, 3), np.abs(_f(3)), _u8(3)], {"axis": 1}, constants=[1, 2]),
    Case("DequantizeLinear", [_u8(0, 3), np.abs(_f(3)), _u8(3)], {"axis": 1}, constants=[1, 2]),
    # along an axis
    Case("Softmax", [_f(0, 3)]),
    Case("LogSoftmax", [_f(3, 0)], {"axis": 0}),
    Case("LayerNormalization", [_f(0, 3), _f(3), _f(3)]),
    Case("InstanceNormalization", [_f(0, 3, 4), _f(3), _f(3)]),
    Case("InstanceNormalization", [_f(2, 3, 0), _f(3), _f(3)]),
    Case("LayerNormalization", [_f(2, 0), _f(0), _f(0)], expected=[_f(2, 0)]),
    Case("GroupNormalization", [_f(0, 4, 4), _f(4), _f(4)], {"num_groups": 2}, expected=[_f(0, 4, 4)]),
    Case("LpNormalization", [_f(0, 3)], {"axis": 1}),
    Case("CumSum", [_f(2, 0), np.array(1)], constants=[1]),
    Case("ReduceSum", [_f(0, 3), _i(1)], {"keepdims": 0}, constants=[1]),
    Case("ReduceMax", [_f(0, 3), _i(1)], {"keepdims": 1}, constants=[1]),
    Case("ReduceSum", [_f(3, 0), _i(1)], {"keepdims": 0}, constants=[1]),
    Case("ReduceProd", [_f(3, 0), _i(1)], {"keepdims": 1}, constants=[1]),
    Case("ReduceL2", [_f(0, 3), _i(0)], {"keepdims": 0}, constants=[1]),
    Case("ReduceLogSumExp", [_f(2, 0, 3), _i(1)], {"keepdims": 0}, constants=[1]),
    Case("ArgMax", [_f(0, 3)], {"axis": 1}),
    Case("TopK", [_f(0, 4), _i(2)], constants=[1], outputs=2),
    Case("Hardmax", [_f(0, 4)], {"axis": 1}),
    # products
    Case("MatMul", [_f(0, 3), _f(3, 4)]),
    Case("MatMul", [_f(2, 0, 3), _f(2, 3, 4)]),
    Case("MatMul", [_f(2, 0), _f(0, 3)]),
    Case("MatMul", [_f(0, 3, 4), _f(4)]),
    Case("Gemm", [_f(0, 3), _f(3, 4), _f(4)]),
    Case("Gemm", [_f(2, 0), _f(0, 4), _f(4)]),
    Case("Einsum", [_f(0, 2, 3), _f(4, 3)], {"equation": "bij,kj->bki"}),
    Case("MatMulInteger", [_u8(0, 3), _u8(3, 4)], constants=[1]),
    Case("QLinearMatMul", [_u8(0, 3), _SCALE, _ZERO, _u8(3, 4), _SCALE, _ZERO, _SCALE, _ZERO], constants=range(1, 8)),
    Case("Conv", [_f(0, 2, 5, 5), _f(3, 2, 3, 3), _f(3)], constants=[1, 2]),
    Case("ConvTranspose", [_f(0, 2, 5, 5), _f(2, 3, 3, 3)], constants=[1]),
    Case("ConvInteger", [_u8(0, 1, 5, 5), _u8(2, 1, 3, 3)], constants=[1]),
    Case(
        "LSTM", [_f(2, 0, 3), *_LSTM], {"hidden_size": 4}, [1, 2, 3], 3, expected=[_f(2, 1, 0, 4), *[_f(1, 0, 4)] * 2]
    ),
    Case(
        "GRU",
        [_f(2, 0, 3), _f(1, 12, 3), _f(1, 12, 4)],
        {"hidden_size": 4},
        [1, 2],
        2,
        expected=[_f(2, 1, 0, 4), _f(1, 0, 4)],
    ),
    # windows and pictures
    Case("MaxPool", [_f(0, 2, 6, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("AveragePool", [_f(0, 2, 6, 6)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    Case("GlobalAveragePool", [_f(0, 2, 6, 6)]),
    Case("Resize", [_f(0, 2, 4, 4), None, _f(4) * 0 + np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, [2]),
    Case("DepthToSpace", [_f(0, 4, 2, 2)], {"blocksize": 2}),
    Case("SpaceToDepth", [_f(0, 1, 4, 4)], {"blocksize": 2}),
    Case("GridSample", [_f(0, 2, 4, 4), _f(0, 3, 3, 2)]),
    Case("RoiAlign", [_f(1, 2, 5, 5), _f(0, 4), _i()], {"output_height": 2, "output_width": 2}),
    # moved elements
    Case("Transpose", [_f(0, 2, 3)], {"perm": [2, 0, 1]}),
    Case("Reshape", [_f(0, 6), _i(0, 2, 3)], constants=[1]),
    Case("Reshape", [_f(0, 6), _i(3, 0)], {"allowzero": 1}, constants=[1]),
    Case("Flatten", [_f(0, 2, 3)]),
    Case("Flatten", [_f(2, 0, 3)], {"axis": 2}),
    Case("Unsqueeze", [_f(0, 3), _i(0, 2)], constants=[1]),
    Case("Squeeze", [_f(0, 1, 3), _i(1)], constants=[1]),
    Case("Expand", [_f(0, 1), _i(0, 3)], constants=[1]),
    Case("Tile", [_f(0, 2), _i(2, 2)], constants=[1]),
    Case("Concat", [_f(0, 3), _f(2, 3)], {"axis": 0}),
    Case("Concat", [_f(0, 3), _f(0, 2)], {"axis": 1}),
    Case("Split", [_f(0, 4)], {"axis": 1, "num_outputs": 2}, outputs=2),
    Case("Slice", [_f(0, 5), _i(1), _i(4), _i(1)], constants=[1, 2, 3]),
    Case("Pad", [_f(0, 3), _i(0, 1, 0, 1)], constants=[1]),
    Case("Pad", [_f(0, 3), _i(1, 0, 1, 0)], constants=[1]),
    Case("Gather", [_f(3, 2), np.zeros((0, 2), np.int64)]),
    Case("Gather", [_f(3, 0), np.array([[1, 2], [0, 1]])]),
    Case("GatherElements", [_f(3, 2), np.zeros((0, 2), np.int64)]),
    Case("GatherND", [_f(3, 2), np.zeros((2, 0, 1), np.int64)]),
    Case("ScatterElements", [_f(3, 2), np.zeros((0, 2), np.int64), _f(0, 2)]),
    Case("ScatterND", [_f(3, 2), np.zeros((0, 1), np.int64), _f(0, 2)]),
    Case("OneHot", [np.zeros((0, 2), np.int64), np.array(3), _f(2)], constants=[1]),
    Case("Trilu", [_f(0, 3, 3)]),
    Case("NonZero", [_f(0, 3)]),
    Case("Compress", [_f(0, 3), np.array([True, False])], {"axis": 1}),
    Case("ReverseSequence", [_f(3, 0), _i()], {"time_axis": 0, "batch_axis": 1}),
    Case("Shape", [_f(0, 3)]),
    Case("Size", [_f(0, 3)]),
    Case("DFT", [_f(0, 4, 1), None, np.array(1)], constants=[2]),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_empty_axes(dynamic: bool) -> None:
    model, feeds, wanted = merged_cases(CASES, dynamic=dynamic)
    assert differences(compiler.compile(model, threads=1).run(feeds), wanted) == []
