"""Reductions over windows in two stages: which are separated, and their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest
import torch

import compiler
import schedules.ir.tir  # noqa: F401
from schedules.ir.stages import Kernel, Stage
from schedules.stages.windows import separate_windows
from tests.compiler.frontends.onnx.operators.onnxruntime_check import run_reference
from tests.schedules.harness import runnable

from tvm import te  # isort: skip

Array = np.ndarray[Any, Any]


def _stages(inputs: list[Any], compute: Any) -> list[Stage]:
    kernel = separate_windows(Kernel.of(te.create_prim_func([*inputs, compute(*inputs)])))
    return list(kernel.simple_stages)


def _taps(*sizes: int) -> list[Any]:
    return [te.reduce_axis((0, size), f"k{number}") for number, size in enumerate(sizes)]


def _window(x: Any, size: int, stride: int, dilation: int = 1) -> Any:
    a, b = _taps(size, size)
    reach = (size - 1) * dilation + 1
    shape = [(extent - reach) // stride + 1 for extent in x.shape]
    return te.compute(
        shape,
        lambda i, j: te.max(x[i * stride + a * dilation, j * stride + b * dilation], axis=[a, b]),
        name="pool",
    )


@pytest.mark.parametrize(("size", "stride", "dilation"), [(5, 1, 1), (3, 1, 1), (3, 2, 1), (7, 7, 1), (5, 1, 2)])
def test_columns_before_rows(size: int, stride: int, dilation: int) -> None:
    x = te.placeholder((60, 40), "float32", "x")
    columns, rows = _stages([x], lambda x: _window(x, size, stride, dilation))
    assert [axis.extent for axis in columns.reduction] == [axis.extent for axis in rows.reduction] == [size]
    width = int(rows.spatial[1].extent)
    assert columns.spatial[1].extent == (width - 1) * stride + (size - 1) * dilation + 1


@pytest.mark.parametrize(("size", "stride", "dilation"), [(2, 1, 1), (2, 2, 1), (5, 2, 3)])
def test_small_windows_and_other_steps_stay(size: int, stride: int, dilation: int) -> None:
    x = te.placeholder((60, 40), "float32", "x")
    assert len(_stages([x], lambda x: _window(x, size, stride, dilation))) == 1


def test_a_convolution_stays() -> None:
    x, w = te.placeholder((60, 40), "float32", "x"), te.placeholder((5, 5), "float32", "w")
    a, b = _taps(5, 5)
    stages = _stages(
        [x, w], lambda x, w: te.compute((56, 36), lambda i, j: te.sum(x[i + a, j + b] * w[a, b], axis=[a, b]))
    )
    assert len(stages) == 1


def test_a_value_that_depends_on_the_taps_stays() -> None:
    x = te.placeholder((60, 40), "float32", "x")
    a, b = _taps(5, 5)
    stages = _stages(
        [x],
        lambda x: te.compute(
            (56, 36), lambda i, j: te.sum(x[i + a, j + b] * (a + 2 * b).astype("float32"), axis=[a, b])
        ),
    )
    assert len(stages) == 1


_MODELS = {
    "maximum": "y = MaxPool<kernel_shape = [5, 5], pads = [2, 2, 2, 2]>(x)",
    "strides": "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)",
    "as far apart as wide": "y = MaxPool<kernel_shape = [4, 4], strides = [4, 4]>(x)",
    "dilations": "y = MaxPool<kernel_shape = [3, 4], dilations = [2, 3], pads = [2, 3, 2, 3]>(x)",
    "rounded up": "y = MaxPool<kernel_shape = [5, 5], strides = [3, 3], ceil_mode = 1>(x)",
    "average": "y = AveragePool<kernel_shape = [5, 3], pads = [2, 1, 2, 1], count_include_pad = 1>(x)",
    "average of the data": "y = AveragePool<kernel_shape = [5, 5], strides = [2, 1], pads = [2, 2, 2, 2]>(x)",
    "average of pairs": "y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)",
    "average that exceeds rows": "y = AveragePool<kernel_shape = [2, 6], strides = [2, 4], pads = [0, 0, 0, 5]>(x)",
    "norm that exceeds rows": "y = LpPool<kernel_shape = [3, 5], strides = [1, 3], pads = [1, 0, 1, 4], p = 1>(x)",
    "norm": "y = LpPool<kernel_shape = [3, 5], p = 2>(x)",
    "activations around": "s = Sigmoid(x) p = MaxPool<kernel_shape = [5, 5], pads = [2, 2, 2, 2]>(s) y = Mul(p, p)",
}
_SHAPES = [(1, 5, 13, 13), (2, 3, 20, 33), (1, 2, 97, 101), (3, 1, 16, 250)]


def _inputs(shape: tuple[int, ...]) -> Array:
    """Random numbers, with infinities of one sign per window, and zeros of both signs."""
    x = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    x[0, 0, 7, 3:9] = [np.inf, 1e30, 0.0, -0.0, np.inf, 1.0]
    return x


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("name", _MODELS)
def test_numbers(name: str, dynamic: bool, target: str) -> None:
    module = None
    for shape in _SHAPES:
        sizes = "a, b, c, d" if dynamic else ", ".join(map(str, shape))
        model = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 21]> g (float[{sizes}] x) => (y) {{ {_MODELS[name]} }}'
        )
        if module is None or not dynamic:
            module = compiler.compile(model, target=target, threads=1, progress=None)
        x = _inputs(shape)
        expected = run_reference(model, {"x": x})[0]
        found = module.run({"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("target", runnable())
def test_maxima_propagate_nan(target: str) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[1, 2, 20, 33] x) => (y) {{ {_MODELS["maximum"]} }}'
    )
    x = np.random.default_rng(0).standard_normal((1, 2, 20, 33)).astype(np.float32)
    x[0, 0, [0, 7, 19], [0, 13, 32]] = np.nan
    x[0, 1, 3, 4] = -np.inf
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(x), 5, 1, 2).numpy()
    found = compiler.compile(model, target=target, threads=1, progress=None).run({"x": x})["y"]
    np.testing.assert_array_equal(found, expected)
