"""Names of known sizes stay consistent in normal form, also around branches."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import compiler
from tests.compiler.frontends.onnx.operators.onnxruntime_check import run_reference

_MODEL = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1, 3, m] x) => (float[?, ?, ?] t, int64[?, ?] a, float[?, ?, ?] y, float[?, ?, ?] n)
    <int64[1] s = {3}, int64[1] e = {8}, int64[1] axis = {2}, int64[1] two = {2}, float o = {1.5}, float l = {1.9},
     int64[3] r = {1, 1, 3}, float[3] g = {1.0, 1.5, 1.25}> {
        v = Slice(x, s, e, axis, two)
        i = IsInf(v)
        w = Where(i, o, v)
        large = ReduceMax <keepdims = 0> (x)
        c = Greater(large, l)
        b = If(c) <then_branch = p () => (float[?, ?, ?] q) { q = Tanh(x) },
                   else_branch = u () => (float[?, ?, ?] k) { k = Add(x, x) }>
        t = Tile(b, r)
        a = ArgMax <axis = 2, keepdims = 0> (w)
        y, z = Split <axis = 2, num_outputs = 2> (v)
        n = InstanceNormalization(z, g, g)
    }"""


_BRANCH_AFTER_CAST = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[k, m, k] x) => (float[?, ?, ?] b, float[?, ?, ?] d)
    <int64[1] s = {-1}, int64[1] e = {1099511627776}, int64[1] axis = {1}, int64[1] two = {2},
     float[1, 1, 1] o = {-0.75}, int64[1] zero = {0}, int64[1] seven = {7}, float l = {1.25}> {
        v = Slice(x, s, e, axis, two)
        shape = Shape(v)
        filled = Expand(o, shape)
        again = Shape(filled)
        size = Gather(again, zero)
        c = Greater(size, seven)
        b = If(c) <then_branch = p () => (float[?, ?, ?] q) { n = Add(filled, l) q = Tanh(n) },
                   else_branch = u () => (float[?, ?, ?] r) { f = Sub(filled, l) r = Tanh(f) }>
        d = Div(v, l)
    }"""


@pytest.mark.parametrize(
    ("text", "shapes"),
    [(_MODEL, [(1, 3, 8), (1, 3, 17)]), (_BRANCH_AFTER_CAST, [(2, 5, 2), (9, 1, 9)])],
    ids=["result of a branch", "branch after a cast"],
)
def test_names_of_known_sizes_around_a_branch(text: str, shapes: list[tuple[int, ...]]) -> None:
    model = onnx.parser.parse_model(text)
    module = compiler.compile(model, threads=1)
    for shape in shapes:
        x = np.random.default_rng(shape[-1]).normal(size=shape).astype(np.float32)
        for ours, theirs in zip(module.run([x]).values(), run_reference(model, {"x": x}), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
