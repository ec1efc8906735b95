"""Types narrower than 16 bits in modules: inputs, outputs, casts, files; compared with ONNX's reference evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

import compiler
from compiler.errors import InputError, UnsupportedModelError
from compiler.frontends.onnx import dtypes

INTEGERS = ["int4", "uint4", "int2", "uint2"]
FLOATS = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float4_e2m1fn", "float8_e8m0fnu"]


def node_model(node: onnx.NodeProto, source: str, target: str, size: int) -> onnx.ModelProto:
    specs = [
        onnx.helper.make_tensor_value_info(name, dtypes.NUMBERS[dtype], [size])
        for name, dtype in (("x", source), ("y", target))
    ]
    graph = onnx.helper.make_graph([node], "cast", specs[:1], specs[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 25)], ir_version=11)


def cast_model(source: str, target: str, size: int, **attributes: Any) -> onnx.ModelProto:
    node = onnx.helper.make_node("Cast", ["x"], ["y"], to=dtypes.NUMBERS[target], **attributes)
    return node_model(node, source, target, size)


def all_codes(dtype: str) -> np.ndarray:
    width = dtypes.bits(dtype)
    if dtype in INTEGERS:
        return np.arange(*(limit + end for end, limit in enumerate(dtypes.integer_limits(dtype)))).astype(
            dtypes.numpy_dtype(dtype)
        )
    return np.arange(2**width, dtype=np.uint8).view(dtypes.numpy_dtype(dtype))


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_every_value_is_read(dtype: str, tmp_path: Path) -> None:
    values = all_codes(dtype)
    module = compiler.compile(cast_model(dtype, "float32", len(values)))
    module.export(tmp_path / "m.twm")
    module = compiler.load(tmp_path / "m.twm", verify=True)
    assert module.inputs[0].dtype == dtype
    assert_same(module.run({"x": values})["y"], values.astype(np.float32))


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_rounded_as_onnx_does(dtype: str, saturate: int) -> None:
    with np.errstate(all="ignore"):
        exact = all_codes(dtype).astype(np.float32)
    exact = exact[np.isfinite(exact)]
    halves = (np.sort(exact)[1:] + np.sort(exact)[:-1]) / 2
    special = [np.nan, np.inf, -np.inf, -0.0, 463, 464, 465, 480, 240, 247, 248, 249, 61439, 61440, 61441, 1e30, -1e30]
    random = np.random.default_rng(0).standard_normal(200) * 10.0 ** np.random.default_rng(1).integers(-6, 6, 200)
    values = np.concatenate([exact, halves, np.nextafter(halves, np.inf), special, random]).astype(np.float32)
    model = cast_model("float32", dtype, len(values), saturate=saturate)
    with np.errstate(all="ignore"):
        expected: Any = ReferenceEvaluator(model).run(None, {"x": values})
    assert_same(compiler.compile(model).run({"x": values})["y"], expected[0])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_written(dtype: str) -> None:
    values = all_codes(dtype)
    module = compiler.compile(cast_model("int32", dtype, len(values)))
    assert_same(module.run({"x": values.astype(np.int32)})["y"], values)


@pytest.mark.parametrize("dtype", ["int4", "float8_e5m2"])
def test_data_that_only_moves_keeps_its_type(dtype: str) -> None:
    values = all_codes(dtype)
    node = onnx.helper.make_node("Transpose", ["x"], ["y"], perm=[0])
    module = compiler.compile(node_model(node, dtype, dtype, len(values)))
    assert_same(module.run({"x": values})["y"], values)
    assert str(module.run({"x": values}, outputs="dlpack")["y"].dtype) == dtype
    with pytest.raises(InputError, match="element type int8"):
        module.run({"x": values.astype(np.int8)})


def test_strings_that_are_known_are_computed_with() -> None:
    words = onnx.numpy_helper.from_array(np.array(["1.5", "-inf"], object), "words")
    node = onnx.helper.make_node("Cast", ["words"], ["y"], to=1)
    model = node_model(node, "float32", "float32", 2)
    model.graph.initializer.append(words)
    np.testing.assert_array_equal(compiler.compile(model).run({"x": np.zeros(2, np.float32)})["y"], [1.5, -np.inf])


def test_strings_that_are_fixed_are_no_part_of_the_file(tmp_path: Path) -> None:
    node = onnx.helper.make_node("RegexFullMatch", ["x"], ["y"], pattern="a.*")
    model = node_model(node, "string", "bool", 2)
    module = compiler.compile(model, constants={"x": np.array(["ab", "b"], object)})
    module.export(tmp_path / "m.twm")
    assert compiler.load(tmp_path / "m.twm").run({})["y"].tolist() == [True, False]
    with pytest.raises(UnsupportedModelError, match=r"'x'.*string tensors"):
        compiler.compile(model)


def test_a_cast_to_bfloat16_rounds_where_a_cast_back_follows() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> agraph (float[N] x) => (float[N] low) {
        half = Cast <to=16> (x)
        high = Cast <to=1> (half)
        low = Sub (x, high)
    }"""
    x = np.random.default_rng(0).standard_normal(40).astype(np.float32)
    x[:8] = [np.nan, np.inf, -np.inf, -0.0, 1.00390625, 1.01171875, 3.4e38, 1e-40]  # ties, overflow, a subnormal number
    found = compiler.compile(onnx.parser.parse_model(text), threads=1).run({"x": x})["low"]
    with np.errstate(invalid="ignore"):
        wanted = x - x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "body",
    [
        "s = Sigmoid(x) t = Mul(x, s) h = Cast<to: int = 16>(t) y = Add(m, h)",
        "p = Softmax(x) h = Cast<to: int = 16>(p) d = Add(h, h) y = Min(d, d)",
        "h = Cast<to: int = 16>(x) a = Abs(h) s = Add(a, h) w = Cast<to: int = 1>(a) z = Cast<to: int = 16>(w) "
        "y = Mul(s, z)",
        "h = Cast<to: int = 16>(x) l = Less(h, m) w = Where(l, h, m) d = Max(w, h) y = Mul(d, w)",
    ],
)
def test_values_of_bfloat16_that_are_used_several_times(body: str) -> None:
    inputs = "float[3,19] x, bfloat16[3,19] m"
    text = f'<ir_version: 10, opset_import: ["" : 22]> g ({inputs}) => (bfloat16[3,19] y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(2)
    values = [generator.standard_normal((3, 19)).astype(dtype) for dtype in (np.float32, ml_dtypes.bfloat16)]
    given = dict(zip("xm", values, strict=True))
    module = compiler.compile(model, threads=1)
    found = module.run({spec.name: given[spec.name] for spec in module.inputs})["y"].astype(np.float32)
    results: Any = ReferenceEvaluator(model).run(None, given)
    # Values between operators of one kernel may not be rounded: two roundings of 8 bits.
    np.testing.assert_allclose(found, results[0].astype(np.float32), rtol=2**-7, atol=2**-7)
