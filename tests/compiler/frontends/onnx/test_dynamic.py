"""Symbolic sizes and operands known only at run time: one import is correct for every value."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import onnxruntime
import pytest

import compiler
from compiler.errors import InputError, InputValueRequiredError
from compiler.frontends.onnx import import_onnx
from tests.compiler.frontends.onnx.support import make_model
from tests.coverage.tvm_pipeline import build

Node = onnx.helper.make_node
FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
Info = onnx.helper.make_tensor_value_info


def check_feeds(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> None:
    """Import once and compare many inputs with ONNX Runtime."""
    run = build(import_onnx(model))
    typed = onnx.shape_inference.infer_shapes(model).SerializeToString()
    session = onnxruntime.InferenceSession(typed, providers=["CPUExecutionProvider"])
    for values in feeds:
        for found, wanted in zip(run(values).values(), session.run(None, values), strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_sizes_that_turn_out_to_be_one_broadcast() -> None:
    nodes = [
        Node("Add", ["x", "y"], ["s"]),
        Node("Mul", ["s", "x"], ["t"]),
        Node("MatMul", ["t", "w"], ["u"]),
        Node("Concat", ["u", "u"], ["o"], axis=0),
    ]
    inputs = [Info("x", FLOAT, ["a", "b", 4]), Info("y", FLOAT, ["c", "d", 4]), Info("w", FLOAT, ["e", 4, 3])]
    sizes = [(2, 3, 2, 3, 2), (1, 3, 2, 1, 2), (2, 1, 1, 3, 1), (1, 1, 1, 1, 5)]
    feeds = [{"x": floats(a, b, 4), "y": floats(c, d, 4), "w": floats(e, 4, 3)} for a, b, c, d, e in sizes]
    check_feeds(make_model(nodes, inputs, ["o"]), feeds)


def test_conditions_on_sizes_are_compared() -> None:
    """Conditions as exporters write them for quotients of sizes: (n < 5) == (m < 9), and != True."""
    constants = [("five", 5), ("nine", 9), ("true", np.bool_(1))]
    nodes = [
        Node("Shape", ["x"], ["n"], start=0, end=1),
        Node("Shape", ["x"], ["m"], start=1, end=2),
        Node("Less", ["n", "five"], ["small"]),
        Node("Less", ["m", "nine"], ["narrow"]),
        Node("Equal", ["small", "narrow"], ["alike"]),
        Node("Equal", ["small", "true"], ["same"]),
        Node("Cast", ["alike"], ["a"], to=INT64),
        Node("Cast", ["same"], ["b"], to=INT64),
        Node("Concat", ["a", "b", "n"], ["o"], axis=0),
    ]
    weights = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    model = make_model(nodes, [Info("x", FLOAT, ["n", "m"])], ["o"], weights)
    check_feeds(model, [{"x": floats(n, m)} for n, m in ((4, 8), (4, 9), (5, 8), (5, 9))])


@pytest.mark.parametrize("target", [[3, 8], [-1, 4], [0, -1], [24, 1], [2, 12]], ids=str)
def test_reshape_by_a_run_time_shape(target: list[int]) -> None:
    inputs = [Info("x", FLOAT, ["n", 6]), Info("s", INT64, [2])]
    model = make_model([Node("Reshape", ["x", "s"], ["o"])], inputs, ["o"])
    check_feeds(model, [{"x": floats(4, 6), "s": np.array(target)}])


def test_a_run_time_shape_that_does_not_fit_is_an_error() -> None:
    inputs = [Info("x", FLOAT, ["n", 6]), Info("s", INT64, [2])]
    run = build(import_onnx(make_model([Node("Reshape", ["x", "s"], ["o"])], inputs, ["o"])))
    with pytest.raises(Exception, match="mismatch"):
        run({"x": floats(4, 6), "s": np.array([100, 100])})


def test_slice_pad_tile_expand_by_run_time_operands() -> None:
    nodes = [
        Node("Slice", ["x", "a", "b", "axes"], ["s"]),
        Node("Pad", ["s", "p"], ["t"]),
        Node("Tile", ["t", "r"], ["u"]),
        Node("Expand", ["u", "e"], ["o"]),
    ]
    inputs = [Info("x", FLOAT, ["n", "m"]), *(Info(n, INT64, [k]) for n, k in (("a", 2), ("b", 2), ("p", 4), ("r", 2)))]
    axes = onnx.numpy_helper.from_array(np.array([0, 1]), "axes")
    model = make_model(nodes, [*inputs, Info("e", INT64, [3])], ["o"], [axes])
    feeds = []
    for start, stop in (([0, 1], [3, 9]), ([-3, -2], [-1, 100]), ([1, 0], [-1, 2**62])):
        values = {"x": floats(4, 5), "a": start, "b": stop, "p": [1, 0, 2, 1], "r": [2, 1], "e": [2, 1, 1]}
        feeds.append({name: np.asarray(value) for name, value in values.items()})
    check_feeds(model, feeds)


def test_range_of_run_time_limits() -> None:
    inputs = [Info(name, INT64, []) for name in ("a", "b", "d")]
    model = make_model([Node("Range", ["a", "b", "d"], ["o"])], inputs, ["o"])
    limits = ((0, 5, 2), (3, -4, -3), (2, 2, 1), (5, 1, 1))
    check_feeds(model, [{name: np.array(v) for name, v in zip("abd", values, strict=True)} for values in limits])


def test_indices_outside_an_axis_read_nothing_outside_the_tensor() -> None:
    inputs = [Info("x", FLOAT, ["n", 2]), Info("i", INT64, ["k"])]
    run = build(import_onnx(make_model([Node("Gather", ["x", "i"], ["o"])], inputs, ["o"])))
    x = floats(3, 2)
    found = run({"x": x, "i": np.array([0, -1, 10**12, -(10**12)])})["o"]
    np.testing.assert_array_equal(found, x[[0, 2, 2, 0]])


def test_sizes_of_one_name_are_shared_and_fixed_together() -> None:
    nodes = [Node("Add", ["x", "y"], ["o"])]
    model = make_model(nodes, [Info("x", FLOAT, ["batch", 3]), Info("y", FLOAT, ["batch", 3])], ["o"])
    assert [spec.shape for spec in import_onnx(model).inputs] == [("batch", 3), ("batch", 3)]
    fixed = import_onnx(model, shapes={"x": (7, 3)})
    assert [spec.shape for spec in (*fixed.inputs, *fixed.outputs)] == [(7, 3)] * 3
    renamed = import_onnx(model, shapes={"x": ("n", 3), "y": ("n", 3)})
    assert renamed.outputs[0].shape == ("n", 3)


@pytest.mark.parametrize(
    "shapes", [{"z": (1, 3)}, {"x": (1,)}, {"x": (-1, 3)}, {"x": (1, 3), "y": (2, 3)}, {"x": (1.5, 3)}], ids=str
)
def test_shapes_that_do_not_fit_are_named(shapes: dict[str, tuple[int, ...]]) -> None:
    inputs = [Info("x", FLOAT, ["batch", 3]), Info("y", FLOAT, ["batch", 3])]
    with pytest.raises(InputError):
        import_onnx(make_model([Node("Add", ["x", "y"], ["o"])], inputs, ["o"]), shapes=shapes)


def test_a_value_that_must_be_known_names_the_inputs_it_comes_from() -> None:
    nodes = [
        Node("Add", ["p", "q"], ["axis"]),
        Node("Cast", ["axis"], ["c"], to=INT64),
        Node("CumSum", ["x", "c"], ["o"], name="running"),
    ]
    inputs = [Info("x", FLOAT, [2, 3]), Info("p", INT64, []), Info("q", INT64, [])]
    model = make_model(nodes, inputs, ["o"])
    with pytest.raises(InputValueRequiredError, match="running") as caught:
        import_onnx(model)
    assert caught.value.inputs == ("p", "q")
    imported = import_onnx(model, constants={"p": np.array(1), "q": np.array(0)})
    assert [spec.name for spec in imported.inputs] == ["x"]
    assert set(imported.fixed) == {"p", "q"}
    x = floats(2, 3)
    np.testing.assert_allclose(build(imported)({"x": x})["o"], np.cumsum(x, 1), rtol=1e-6)


@pytest.mark.parametrize("constants", [{"w": np.array(1)}, {"p": np.array(1.5)}, {"p": np.array([1])}], ids=str)
def test_constants_that_do_not_fit_are_named(constants: dict[str, np.ndarray]) -> None:
    inputs = [Info("x", FLOAT, [2, 3]), Info("p", INT64, [])]
    with pytest.raises(InputError):
        import_onnx(make_model([Node("CumSum", ["x", "p"], ["o"])], inputs, ["o"]), constants=constants)


def test_the_best_of_counted_entries_of_several_levels() -> None:
    """As detectors choose them: at most so many of each level's, joined; what uses the sum of minima is one kernel."""
    nodes, values, places = [], [], []
    constants = {"most": np.array([3]), "zero": np.array([0]), "limit": np.array(0.3, np.float32)}
    for level in range(6):
        x, count = f"x{level}", f"count{level}"
        nodes += [
            Node("Greater", [x, "limit"], [f"large{level}"]),
            Node("Compress", [x, f"large{level}"], [f"chosen{level}"], axis=0),
            Node("Shape", [f"chosen{level}"], [count]),
            Node("Min", [count, "most"], [f"k{level}"]),
            Node("TopK", [f"chosen{level}", f"k{level}"], [f"v{level}", f"i{level}"], axis=0),
        ]
        values.append(f"v{level}")
        places.append(f"i{level}")
    nodes += [
        Node("Concat", values, ["v"], axis=0),
        Node("Concat", places, ["i"], axis=0),
        Node("Cast", ["i"], ["f"], to=FLOAT),
        Node("ReduceMax", ["v"], ["m"], keepdims=0),
        Node("Mul", ["f", "m"], ["offset"]),
        Node("Slice", ["offset", "zero", "size", "zero"], ["part"]),
        Node("Add", ["part", "v"], ["o"]),
    ]
    nodes.insert(-2, Node("Shape", ["v"], ["size"]))
    inputs = [Info(f"x{level}", FLOAT, [7 + level]) for level in range(6)]
    model = make_model(nodes, inputs, ["o"], [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()])
    model.graph.output[0].CopyFrom(Info("o", FLOAT, [None]))
    generator = np.random.default_rng(0)
    feeds = [
        {f"x{level}": generator.standard_normal(7 + level).astype(np.float32) + shift for level in range(6)}
        for shift in (np.float32(0), np.float32(1), np.float32(-0.5))
    ]
    module = compiler.compile(model, threads=1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for each in feeds:
        np.testing.assert_allclose(module.run(each)["o"], session.run(None, each)[0], rtol=1e-5)
