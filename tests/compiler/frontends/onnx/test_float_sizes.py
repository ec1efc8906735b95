"""Sizes that a model computes with floats: Floor and Ceil of multiples, Resize by factors."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from tvm import tirx

import compiler
from compiler.frontends.onnx.symbolic import Arithmetic, cast

HEADER = '<ir_version: 8, opset_import: ["" : 17]> graph'
ROUNDED = """(float[4,n] x) => (float[4,m] y, float t)
  <float factor = {%s}, int64 one = {1}, int64[1] zero = {0}, int64[1] four = {4}> {
     shape = Shape(x)
     size = Gather(shape, one)
     real = Cast<to: int = 1>(size)
     t = %s
     whole = Cast<to: int = 7>(t)
     sizes = Unsqueeze(whole, zero)
     target = Concat<axis: int = 0>(four, sizes)
     filled = ConstantOfShape(target)
     mean = ReduceMean<axes: ints = [1]>(x)
     sum = Add(filled, mean)
     y = Sin(sum) }"""


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def check(text: str, feeds: list[np.ndarray]) -> None:
    """Compile once, run at every size and compare with ONNX Runtime."""
    model = onnx.parser.parse_model(f"{HEADER} {text}")
    module = compiler.compile(model, threads=1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in feeds:
        for found, wanted in zip(module.run({"x": x}).values(), session.run(None, {"x": x}), strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("factor", "code"),
    [
        ("1.5", "Mul(real, factor) t = Floor(product)"),
        ("3.0", "Div(real, factor) t = Ceil(product)"),
        ("1.3", "Mul(real, factor) t = Floor(product)"),
        ("0.7", "Mul(real, factor) shifted = Sub(product, factor) t = Ceil(shifted)"),
    ],
)
def test_rounded_multiples_of_a_size(factor: str, code: str) -> None:
    body = ROUNDED.replace("t = %s", f"product = {code}") % factor
    check(body, [floats(4, 30), floats(4, 91), floats(4, 1)])


def test_two_tensors_of_one_rounded_size_are_added() -> None:
    text = """(float[1,2,n] x) => (float[1,2,m] y) <float[3] scales = {1.0, 1.0, 1.7}> {
      a = Resize(x, , scales)
      s = Sin(x)
      b = Resize<mode = "linear">(s, , scales)
      c = Add(a, b)
      y = Exp(c) }"""
    check(text, [floats(1, 2, 17), floats(1, 2, 9), floats(1, 2, 101)])


@pytest.mark.parametrize("scale", ["0.0033333334140479565", "0.6", "1.5"])
def test_resize_by_a_factor_of_a_dynamic_size(scale: str) -> None:
    text = f"""(float[1,2,n] x) => (float[1,2,m] y) <float[3] scales = {{1.0, 1.0, {scale}}}, float two = {{2.0}}> {{
      a = Resize<mode = "linear">(x, , scales)
      b = Mul(a, two)
      y = Sin(b) }}"""
    check(text, [floats(1, 2, 301), floats(1, 2, 907)])


def test_aligned_corners_with_scales_and_dynamic_height_and_width() -> None:
    text = """(float[1,2,h,w] x) => (float[1,2,p,q] y) <float[4] scales = {1.0, 1.0, 2.0, 3.0}> {
      y = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(x, , scales) }"""
    check(text, [floats(1, 2, 5, 9), floats(1, 2, 1, 7)])


def test_rational_multiples_stay_integer_arithmetic() -> None:
    arithmetic = Arithmetic()
    size = arithmetic.dimension("n")
    real = tirx.Cast("float32", size)
    half_more = arithmetic.multiply(real, 1.5)
    assert arithmetic.equal_is_proved(
        cast(arithmetic.floor(half_more), "int64").value, arithmetic.floor_divide(arithmetic.multiply(size, 3), 2)
    )
    assert arithmetic.truncated(arithmetic.ceil(arithmetic.divide(real, 16.0))) is not None
    assert arithmetic.truncated(arithmetic.multiply(real, 1.3)) is None
    # n / 10 * 10 is not always n in float32.
    assert arithmetic.fraction(arithmetic.multiply(arithmetic.divide(real, 10.0), 10.0)) is None
