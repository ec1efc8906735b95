"""NaN, infinities and zeros of both signs follow IEEE 754 despite simplifications."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

import compiler

HEADER = '<ir_version: 10, opset_import: ["" : 21]> graph'
X = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5, 3e38, np.nan, 1.0], np.float32)
Y = np.array([1.0, np.inf, 2.0, 0.0, 1.0, np.nan, -2.5, -3e38, np.nan, 2.0], np.float32)


def run(text: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return compiler.compile(onnx.parser.parse_model(f"{HEADER} {text}"), threads=1).run(feeds)


def test_comparisons_and_differences() -> None:
    found = run(
        """(float[n] x, float[n] y)
        => (bool[n] ne, bool[n] nl, bool[n] b, float[n] d, float[n] r, float[n] q, float[n] p, float[n] s)
        <float zero = {0.0}, float minus = {-0.0}> {
          equal = Equal(x, y)  ne = Not(equal)
          less = Less(x, y)  nl = Not(less)
          b = Cast<to = 9>(x)
          difference = Sub(x, x)  d = Tanh(difference)
          sum = Add(x, y)  rest = Sub(sum, y)  r = Neg(rest)
          q = Div(zero, x)  p = Div(minus, x)
          s = Sign(x) }""",
        x=X,
        y=Y,
    )
    with np.errstate(all="ignore"):
        wanted = [
            X != Y,
            ~(X < Y),
            X != 0,
            np.tanh(X - X),
            -((X + Y) - Y),
            0 / X,
            np.float32(-0.0) / X,
            np.sign(X),
        ]
    for (name, ours), numpy in zip(found.items(), wanted, strict=True):
        np.testing.assert_array_equal(ours, numpy, err_msg=name)
    for name, numpy in (("q", wanted[5]), ("p", wanted[6])):
        number = ~np.isnan(numpy)
        np.testing.assert_array_equal(np.signbit(found[name])[number], np.signbit(numpy)[number], err_msg=name)


def test_largest_elements() -> None:
    data = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
    data[0, 0, 2, 2], data[0, 1] = np.nan, -np.inf
    found = run(
        """(float[1,3,6,6] x)
        => (float[1,3,3,3] m, float[1,3,3,3] v, int64[1,3,3,3] i, float[1,3,1,1] g, float[1,3,6,6] h)
        { m = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x)
          v, i = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x)
          g = GlobalMaxPool(x)
          h = Hardmax<axis = 3>(x) }""",
        x=data,
    )
    windows = data.reshape(1, 3, 3, 2, 3, 2).max((3, 5))
    np.testing.assert_array_equal(found["m"], windows)
    np.testing.assert_array_equal(found["v"], windows)
    np.testing.assert_array_equal(data.reshape(-1)[found["i"]], windows)
    np.testing.assert_array_equal(found["g"], data.max((2, 3), keepdims=True))
    np.testing.assert_array_equal(found["h"].argmax(3), data.argmax(3))
    np.testing.assert_array_equal(found["h"].sum(3), 1)


def test_nan_reaches_what_a_transposed_convolution_makes_of_it_alone() -> None:
    data = np.ones((1, 16, 6), np.float32)
    data[0, 3, 2] = np.nan
    text = f"""(float[1,16,6] x) => (float[1,16,13] y)
      <float[16,16,3] w = {{{", ".join(["0.5"] * 768)}}}> {{ y = ConvTranspose<strides = [2]>(x, w) }}"""
    np.testing.assert_array_equal(np.isnan(run(text, x=data)["y"][0, 0]), [4 <= place < 7 for place in range(13)])


def test_an_inverted_comparison_of_short_rows() -> None:
    data = np.random.default_rng(0).integers(0, 2, (8, 5, 2)).astype(np.float32)
    text = "(float[8,k,2] x) => (bool[8,k,2] y) <float one = {1.0}> { e = Equal(x, one) y = Not(e) }"
    np.testing.assert_array_equal(run(text, x=data)["y"], data != 1)
