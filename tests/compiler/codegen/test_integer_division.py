"""Integer divisions whose divisors are 0 or -1 in some lanes, also where the divisor is used several times."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import compiler

_BODIES = {
    "quotient": "q = Div(i, t) y = Mul(q, t)",
    "remainder": "r = Mod(i, t) y = Add(r, t)",
    "remainder of the dividend's sign": "r = Mod<fmod = 1>(i, t) y = Add(r, t)",
    "chosen quotient": "z = Equal(t, zero) q = Div(i, t) y = Where(z, i, q)",
}


@pytest.mark.parametrize("name", _BODIES)
@pytest.mark.parametrize("dtype", ["int32", "int64", "int8"])
def test_divisors_of_zero_and_minus_one(name: str, dtype: str) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]> g ({dtype}[b, n] i, {dtype}[b, n] j) => (y)
        <{dtype} zero = {{0}}> {{ t = Add(i, j) {_BODIES[name]} }}"""
    )
    module = compiler.compile(model, threads=1)
    for columns in (5, 16, 23):
        i, t = (np.random.default_rng(columns).integers(-3, 4, (2, 3, columns))).astype(dtype)
        safe = np.where(t == 0, 1, t)
        quotient = np.where(t == 0, 0, np.trunc(i / safe)).astype(dtype)
        floored, truncated = np.where(t == 0, 0, np.mod(i, safe)), np.where(t == 0, 0, np.fmod(i, safe))
        expected = {
            "quotient": quotient * t,
            "remainder": floored + t,
            "remainder of the dividend's sign": truncated + t,
            "chosen quotient": np.where(t == 0, i, quotient),
        }
        np.testing.assert_array_equal(module.run([i, t - i])["y"], expected[name])
