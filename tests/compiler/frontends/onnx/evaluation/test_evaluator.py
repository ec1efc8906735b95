"""Shape computations are evaluated at import, correctly for every size of the symbolic dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.helper
import onnxruntime
import pytest

from compiler.frontends.onnx import import_onnx
from tests.compiler.frontends.onnx.support import make_model
from tests.coverage.tvm_pipeline import build

Node = onnx.helper.make_node
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def constants(**arrays: object) -> list[onnx.TensorProto]:
    return [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def check_sizes(
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    shapes: Sequence[tuple[int, ...]],
    symbols: tuple[str | int, ...],
    kernels: int | None = None,
) -> None:
    """Import once with symbolic sizes, run at each shape, compare with ONNX Runtime; count the kernels of main."""
    x = onnx.helper.make_tensor_value_info("x", FLOAT, symbols)
    model = onnx.shape_inference.infer_shapes(make_model(nodes, [x], ["y"], weights, 21))
    imported = import_onnx(model)
    if kernels is not None:
        bindings = [b for block in imported.mod["main"].body.blocks for b in block.bindings]
        assert len(bindings) <= kernels + 1, imported.mod["main"].script()
    run = build(imported)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for shape in shapes:
        feeds = {"x": random.standard_normal(shape).astype(np.float32)}
        (wanted,) = session.run(None, feeds)
        found = run(feeds)["y"]
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


SIZES = [(2, 6), (1, 1), (3, 4), (5, 10)]


def test_many_elements_computed_from_a_size() -> None:
    nodes = [
        Node("Shape", ["x"], ["s"]),
        Node("Mul", ["s", "places"], ["all"]),
        Node("Cast", ["all"], ["y"], to=FLOAT),
    ]
    check_sizes(nodes, constants(places=np.arange(1100)[:, None]), SIZES, ("n", "m"))


def test_flattening_through_shape_gather_unsqueeze_concat() -> None:
    nodes = [
        Node("Shape", ["x"], ["s"]),
        Node("Gather", ["s", "zero"], ["b"]),
        Node("Unsqueeze", ["b", "axes"], ["b1"]),
        Node("Concat", ["b1", "minus"], ["target"], axis=0),
        Node("Reshape", ["x", "target"], ["y"]),
    ]
    check_sizes(nodes, constants(zero=0, axes=[0], minus=[-1]), SIZES, ("n", "m"), kernels=1)


def test_heads_are_split_by_computed_sizes() -> None:
    nodes = [
        Node("Shape", ["x"], ["batch"], start=0, end=1),
        Node("Shape", ["x"], ["width"], start=1, end=2),
        Node("Div", ["width", "two"], ["half"]),
        Node("Concat", ["batch", "two", "half"], ["target"], axis=0),
        Node("Reshape", ["x", "target"], ["h"]),
        Node("Transpose", ["h"], ["y"], perm=[1, 0, 2]),
    ]
    check_sizes(nodes, constants(two=[2]), [(2, 6), (1, 2), (3, 4)], ("n", "m"), kernels=5)


def test_floats_computed_from_sizes() -> None:
    nodes = [
        Node("Shape", ["x"], ["s"]),
        Node("Cast", ["s"], ["f"], to=FLOAT),
        Node("Mul", ["f", "scale"], ["g"]),
        Node("Floor", ["g"], ["h"]),
        Node("Cast", ["h"], ["target"], to=INT64),
        Node("ConstantOfShape", ["target"], ["z"]),
        Node("ReduceSum", ["x"], ["r"], keepdims=0),
        Node("Add", ["z", "r"], ["y"]),
    ]
    check_sizes(nodes, constants(scale=np.array([1.5, 2.5], np.float32)), SIZES, ("n", "m"))


def test_a_size_as_a_value() -> None:
    nodes = [
        Node("Size", ["x"], ["n"]),
        Node("Cast", ["n"], ["f"], to=FLOAT),
        Node("Sqrt", ["f"], ["root"]),
        Node("Div", ["x", "root"], ["y"]),
    ]
    check_sizes(nodes, [], SIZES, ("n", "m"))


def test_range_slice_and_comparison_of_sizes() -> None:
    nodes = [
        Node("Shape", ["x"], ["s"]),
        Node("Gather", ["s", "one"], ["m"]),
        Node("Range", ["zero", "m", "one"], ["positions"]),
        Node("Cast", ["positions"], ["p"], to=FLOAT),
        Node("Add", ["x", "p"], ["q"]),
        Node("Sub", ["m", "one"], ["last"]),
        Node("Unsqueeze", ["last", "axes"], ["stop"]),
        Node("Slice", ["q", "axes", "stop", "axes1"], ["y"]),
    ]
    check_sizes(nodes, constants(zero=0, one=1, axes=[0], axes1=[1]), SIZES, ("n", "m"))


def test_expand_by_where_of_a_computed_shape() -> None:
    nodes = [
        Node("Shape", ["x"], ["s"]),
        Node("ConstantOfShape", ["two"], ["ones"], value=onnx.numpy_helper.from_array(np.array([1]))),
        Node("Mul", ["ones", "minus"], ["negative"]),
        Node("Equal", ["s", "negative"], ["unknown"]),
        Node("Where", ["unknown", "ones", "s"], ["target"]),
        Node("Expand", ["scalar", "target"], ["e"]),
        Node("Mul", ["x", "e"], ["y"]),
    ]
    weights = constants(two=[2], minus=[-1], scalar=np.array(3, np.float32))
    check_sizes(nodes, weights, SIZES, ("n", "m"), kernels=2)


@pytest.mark.parametrize("operator", ["Min", "Max", "Mod", "Add", "Sub"])
def test_arithmetic_of_two_sizes(operator: str) -> None:
    nodes = [
        Node("Shape", ["x"], ["a"], end=1),
        Node("Shape", ["x"], ["b"], start=1),
        Node(operator, ["a", "b"], ["c"]),
        Node("Abs", ["c"], ["d"]),
        Node("ConstantOfShape", ["d"], ["z"]),
        Node("ReduceSum", ["x"], ["r"], keepdims=0),
        Node("Add", ["z", "r"], ["y"]),
    ]
    check_sizes(nodes, [], SIZES, ("n", "m"))


def test_a_shape_is_also_a_tensor() -> None:
    nodes = [Node("Shape", ["x"], ["s"]), Node("Mul", ["s", "s"], ["y"])]
    check_sizes(nodes, [], SIZES, ("n", "m"))
