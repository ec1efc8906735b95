"""compile(sizes=...): specialized code for some sizes, one copy of the weights, right results at every size."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import compiler
from compiler.driver.sizes import MAX_VARIANTS, specialized
from compiler.errors import InputError, OptionError
from compiler.frontends.source import import_model
from compiler.runtime import Module


def pooled(height: int | str = "height") -> onnx.ModelProto:
    """A convolution with a bias, ReLU, the mean over the image, and a matmul; and the shape of the input."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((24, 8, 3, 3)).astype(np.float32),
        "b": random.standard_normal(24).astype(np.float32),
        "v": random.standard_normal((24, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "v"], ["y"]),
        helper.make_node("Shape", ["x"], ["s"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8, height, "width"])],
        [
            helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("s", onnx.TensorProto.INT64, [4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def module() -> Module:
    return compiler.compile(pooled(), sizes={"x": [(1, 8, 12, 20), (3, 8, 14, 14)]}, threads=1, records=False)


@pytest.mark.parametrize("shape", [(1, 8, 12, 20), (3, 8, 14, 14), (3, 8, 7, 8), (1, 8, 20, 12), (2, 8, 5, 1)])
def test_listed_and_other_sizes_are_right(module: Module, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    session = onnxruntime.InferenceSession(pooled().SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})
    found = module.run({"x": x})
    np.testing.assert_allclose(found["y"], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["s"], expected[1])


def test_weights_are_held_once(module: Module) -> None:
    alone = compiler.compile(pooled(), threads=1, records=False)
    kernels = [{each.kernel for each in one.manifest.kernels} for one in (alone, module)]
    assert len(kernels[1]) > len(kernels[0])
    nbytes = [sum(each.nbytes for each in one.manifest.parameters) for one in (alone, module)]
    assert nbytes[1] <= nbytes[0] + 64  # a shape that is known
    assert module.manifest.memory_plan == alone.manifest.memory_plan
    with pytest.raises(InputError, match="8"):
        module.run({"x": np.zeros((1, 9, 12, 20), np.float32)})


def test_each_combination_is_a_variant() -> None:
    model = import_model(pooled())
    mod = specialized(model, {"batch": [1, 4], "height": [8, 16]}).mod
    names = {str(variable.name_hint) for variable in mod.get_global_vars()}
    assert names >= {"main", "any_size", *(f"batch_{n}_height_{h}" for n in (1, 4) for h in (8, 16))}
    static = mod["batch_4_height_16"]
    *known, width = static.params[0].ty.shape
    assert ([int(size) for size in known], str(width)) == ([4, 8, 16], "width")
    assert "if" in mod["main"].script()


def test_one_shape_may_stand_without_a_list() -> None:
    names = [
        {str(each.name_hint) for each in specialized(import_model(pooled()), {"x": given}).mod.get_global_vars()}
        for given in ((1, 8, 12, 20), [(1, 8, 12, 20)])
    ]
    assert names[0] == names[1]
    assert len(names[0]) > 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depth": [1]}, r"'depth' is neither an input nor a dynamic dimension"),
        ({"batch": 8}, r"sizes\['batch'\] is 8"),
        ({"batch": []}, r"sizes\['batch'\] is \[\]"),
        ({"batch": [1.5]}, "contains 1.5, which is not a size"),
        ({"batch": [-1]}, "contains -1, which is not a size"),
        ({"x": [(1, 8, 4)]}, r"input 'x' has the shape \[batch, 8, height, width\]"),
        ({"x": [(1, 9, 4, 4)]}, "cannot be changed here"),
        ({"x": [(1, 8, 4, 4)], "batch": [2]}, "contradict each other"),
        ({"batch": range(MAX_VARIANTS + 1)}, f"asks for {MAX_VARIANTS + 1} variants"),
        ([("batch", 8)], "takes a dict"),
    ],
)
def test_what_cannot_be_is_one_error(sizes: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        specialized(import_model(pooled()), sizes)
