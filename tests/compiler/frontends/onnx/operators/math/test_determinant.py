"""Determinants against numpy in float64, including singular matrices and those that need row exchanges."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import compiler


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 45])
def test_determinants(size: int) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[n,{size},{size}] x) => (float[n] y) {{ y = Det(x) }}"""
    )
    x = (np.random.default_rng(size).standard_normal((6, size, size)) / size**0.5).astype(np.float32)
    x[0, 0, 0] = 0
    if size > 1:
        x[1, 1] = x[1, 0]
        x[2] = np.eye(size)[::-1]
        x[3, :, size // 2] = 0
    expected = np.linalg.det(x.astype(np.float64))
    found = compiler.compile(model, threads=1).run([x])["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
