"""TfIdfVectorizer against ONNX Runtime: first tokens close together, which are looked up in a table, and far apart."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import compiler
from tests.compiler.frontends.onnx.operators.onnxruntime_check import run_reference


@pytest.mark.parametrize("pool", [list(range(3, 40)), [5, 100000000, 7, -3, 2**40]], ids=["close", "apart"])
def test_tokens(pool: list[int]) -> None:
    pairs = [token for place, first in enumerate(pool) for token in (first, pool[(3 * place + 1) % len(pool)])]
    width = 2 * len(pool)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> agraph (int64[6,50] x) => (float[6,{width}] y) {{
          y = TfIdfVectorizer<mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=2,
            ngram_counts=[0,{len(pool)}], ngram_indexes={list(range(width))}, pool_int64s={pool + pairs}>(x) }}"""
    )
    x = np.random.default_rng(0).choice(np.array([*pool, 999, -7, 0]), (6, 50))
    x[0, 0], x[0, 1], x[0, 2] = -(2**63), 2**63 - 1, 40
    (expected,) = run_reference(model, {"x": x})
    np.testing.assert_array_equal(compiler.compile(model, threads=1).run([x])["y"], expected)
