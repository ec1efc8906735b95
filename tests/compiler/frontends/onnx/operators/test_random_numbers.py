"""Random operators: shape, type, moments and independence. The numbers themselves differ between runtimes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.helper
import pytest

import compiler
from compiler import onnx_backend
from compiler.errors import UnsupportedModelError
from tests.compiler.frontends.onnx.operators.onnxruntime_check import node_model

SHAPE = (40, 500)
COUNT = 20000


def drawn(operator: str, inputs: dict[str, Any] | None = None, **attributes: Any) -> np.ndarray:
    given = inputs or {}
    model = node_model(operator, given, opset=22, **attributes)
    outputs = list(compiler.compile(model).run(given).values())
    assert np.array_equal(outputs[0], compiler.compile(model).run(given)["y0"])
    return outputs[0]


def test_uniform_numbers() -> None:
    values = drawn("RandomUniform", shape=SHAPE, low=-1.0, high=3.0, seed=4.0)
    assert values.shape == SHAPE
    assert values.dtype == np.float32
    assert values.min() >= -1
    assert values.max() < 3
    counts, _ = np.histogram(values, 16, (-1, 3))
    # 15 degrees of freedom: above 45 once in 10,000 times.
    assert (((counts - COUNT / 16) ** 2) / (COUNT / 16)).sum() < 45
    flat = (values - 1).reshape(-1)
    for lag in (1, 2, 500):
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 0.03


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_normal_numbers(dtype: Any) -> None:
    values = drawn("RandomNormalLike", {"x": np.zeros(SHAPE, dtype)}, mean=2.0, scale=3.0)
    assert (values.shape, values.dtype) == (SHAPE, dtype)
    scaled = (values.astype(np.float64) - 2) / 3
    moments = [abs(float((scaled**power).mean()) - expected) for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3))]
    assert all(moment < limit for moment, limit in zip(moments, (0.03, 0.04, 0.1, 0.25), strict=True))


def test_coins() -> None:
    chances = np.array([0.0, 0.2, 0.7, 1.0], np.float32)
    values = drawn("Bernoulli", {"x": np.tile(chances, (5000, 1))}, dtype=onnx.TensorProto.INT32)
    assert values.dtype == np.int32
    np.testing.assert_allclose(values.mean(0), chances, atol=0.03)
    assert values[:, 0].max() == 0
    assert values[:, 3].min() == 1


def test_classes() -> None:
    chances = np.array([[0.1, 0.6, 0.3], [0.5, 0.0, 0.5]])
    with np.errstate(divide="ignore"):
        logs = np.log(chances).astype(np.float32)
    values = drawn("Multinomial", {"x": logs}, sample_size=8000, dtype=onnx.TensorProto.INT64)
    assert values.shape == (2, 8000)
    assert values.dtype == np.int64
    found = np.stack([(values == label).mean(1) for label in range(3)], 1)
    np.testing.assert_allclose(found, chances, atol=0.03)


def test_seeds_and_nodes_choose_the_numbers() -> None:
    same = [drawn("RandomNormal", shape=[100], seed=seed) for seed in (1.0, 1.0, 2.0)]
    np.testing.assert_array_equal(same[0], same[1])
    assert abs(np.corrcoef(same[0], same[2])[0, 1]) < 0.4
    nodes = [onnx.helper.make_node("RandomUniform", [], [name], shape=[50]) for name in ("a", "b")]
    outputs = [onnx.ValueInfoProto(name=name) for name in ("a", "b")]
    graph = onnx.helper.make_graph(nodes, "two", [], outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    first, second = compiler.compile(model).run({}).values()
    assert np.abs(first - second).max() > 0.1


def test_the_interface_that_promises_onnx_numbers_refuses() -> None:
    model = node_model("Bernoulli", {"x": np.zeros(3, np.float32)}, opset=22)
    with pytest.raises(UnsupportedModelError, match=r"Bernoulli.*random"):
        onnx_backend.prepare(model)


def test_sizes_may_be_symbolic() -> None:
    model = node_model("RandomUniformLike", {"x": np.zeros((3, 4), np.float32)}, opset=22, dynamic=True)
    module = compiler.compile(model)
    small, large = (module.run({"x": np.zeros((3, columns), np.float32)})["y0"] for columns in (4, 50))
    assert (small.shape, large.shape) == ((3, 4), (3, 50))
    assert len(np.unique(large)) > 140
