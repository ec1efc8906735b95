"""Thread binding of kernels that are not a plain stage of loops, by simulation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import compiler
from schedules.gpu.parallel import has_independent_iterations
from schedules.ir.tir import tirx
from targets.cuda.image import source_of

INT64 = onnx.TensorProto.INT64


def module_of(
    nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], outputs: list[str], constants: dict[str, np.ndarray]
) -> tuple[compiler.Module, onnx.ModelProto]:
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(each.dtype), each.shape)
        for name, each in inputs.items()
    ]
    made = [onnx.ValueInfoProto(name=name) for name in outputs]
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "model", given, made, stored)
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )
    return compiler.compile(model, "cuda-simulated", records=False), model


def check(module: compiler.Module, model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> None:
    results: Any = ReferenceEvaluator(model).run(None, inputs)
    for found, expected in zip(module.run(inputs).values(), results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_a_scatter_copies_with_many_threads_and_updates_in_order(reduction: str) -> None:
    random = np.random.default_rng(0)
    inputs = {
        "data": random.standard_normal((70, 9)).astype(np.float32),
        "updates": random.standard_normal((6, 9)).astype(np.float32),
    }
    indices = np.array([[3], [69], [-70], [3], [12], [69]], np.int64)
    node = helper.make_node("ScatterND", ["data", "indices", "updates"], ["y"], reduction=reduction)
    module, model = module_of([node], inputs, ["y"], {"indices": indices})
    source = source_of(bytes(module.artifact.library)).text
    bodies = re.findall(r'"C" __global__ void (.*?)\{\n(.*?)^\}', source, re.MULTILINE | re.DOTALL)
    (copied,) = (head for head, body in bodies if "launch_bounds" in head and "for (" not in body)
    assert "__launch_bounds__(256)" in copied
    check(module, model, inputs)


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize(("axis", "shape"), [(1, (3, 700)), (0, (40, 33)), (2, (2, 3, 5))])
def test_places_of_extrema(operator: str, axis: int, shape: tuple[int, ...]) -> None:
    inputs = {"x": np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)}
    module, model = module_of([helper.make_node(operator, ["x"], ["y"], axis=axis, keepdims=0)], inputs, ["y"], {})
    check(module, model, inputs)


def test_a_part_of_no_elements_is_left_out() -> None:
    """Rotary embeddings of whole heads split off the rest of a head, which is empty."""
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)}
    nodes = [
        helper.make_node("Slice", ["x", "start", "end", "axis"], ["rest"]),
        helper.make_node("Neg", ["x"], ["turned"]),
        helper.make_node("Abs", ["rest"], ["more"]),
        helper.make_node("Concat", ["turned", "more"], ["y"], axis=2),
    ]
    bounds = {"start": np.array([8]), "end": np.array([9]), "axis": np.array([2])}
    module, model = module_of(nodes, inputs, ["y"], bounds)
    check(module, model, inputs)


def test_a_model_without_kernels_runs() -> None:
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    module, model = module_of([helper.make_node("Flatten", ["x"], ["y"], axis=0)], inputs, ["y"], {})
    check(module, model, inputs)


def test_which_loops_are_independent() -> None:
    size = 40
    x, y = (tirx.decl_buffer([size], "float32", name=name) for name in ("x", "y"))
    count = tirx.decl_buffer([1], "int32", name="count")
    i = tirx.Var("i", "int32")

    def loop(extent: Any, value: Any, place: Any) -> Any:
        return tirx.For(i, 0, extent, tirx.ForKind.SERIAL, tirx.BufferStore(y, value, [place]))

    assert has_independent_iterations(loop(size, tirx.BufferLoad(x, [i]), i))
    assert not has_independent_iterations(loop(size, tirx.BufferLoad(y, [tirx.max(i - 1, 0)]), i))
    assert not has_independent_iterations(loop(size, tirx.BufferLoad(x, [i]), tirx.floordiv(i, 2)))
    # How often it runs is known on the device only.
    assert not has_independent_iterations(loop(tirx.BufferLoad(count, [0]), tirx.BufferLoad(x, [i]), i))


def test_vector_loops_of_a_kernel_that_one_thread_runs_are_serial() -> None:
    random = np.random.default_rng(0)
    centers, sizes = random.uniform(0, 1, (1, 40, 2)), random.uniform(0, 0.3, (1, 40, 2))
    inputs = {
        "boxes": np.concatenate([centers, centers + sizes], axis=2).astype(np.float32),
        "scores": random.uniform(0, 1, (1, 2, 40)).astype(np.float32),
    }
    limits = {"most": np.array([30]), "overlap": np.array([0.3], np.float32)}
    node = helper.make_node("NonMaxSuppression", [*inputs, *limits], ["y"])
    module, model = module_of([node], inputs, ["y"], limits)
    (found,) = module.run(inputs).values()
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(found, session.run(None, inputs)[0])
