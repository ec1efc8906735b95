"""Biases of scores by relative positions against T5's of transformers and the formulas of the operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.errors import InvalidModelError
from compiler.frontends.onnx import import_onnx
from tests.compiler.frontends.onnx.operators.onnxruntime_check import node_model
from tests.compiler.frontends.onnx.operators.test_microsoft import _f
from tests.coverage.tvm_pipeline import import_and_build


@pytest.mark.parametrize("both", [0, 1])
@pytest.mark.parametrize("fixed", [False, True])
def test_bias_of_t5(both: int, fixed: bool) -> None:
    torch, t5 = pytest.importorskip("torch"), pytest.importorskip("transformers.models.t5.modeling_t5")
    table, length = _f(32, 4), np.array(70)
    inputs = {"t": table, "q": length, "k": length}
    constants = ("t", "q", "k") if fixed else ("t",)
    attributes: dict[str, Any] = {"max_distance": 50, "is_bidirectional": both}
    model = node_model("RelativePositionBias", inputs, constants=constants, domain="com.microsoft", **attributes)
    (found,) = import_and_build(model)({} if fixed else {"q": length, "k": length}).values()
    distance = torch.arange(70)[None, :] - torch.arange(70)[:, None]
    buckets = t5.T5Attention._relative_position_bucket(distance, bool(both), 32, 50).numpy()
    np.testing.assert_array_equal(found, table.reshape(4, 32)[:, buckets][None])


def test_buckets_beyond_the_largest_distance_are_an_error() -> None:
    inputs = {"t": _f(32, 4), "q": np.array(5), "k": np.array(5)}
    model = node_model("RelativePositionBias", inputs, domain="com.microsoft", max_distance=10)
    with pytest.raises(InvalidModelError, match="32 buckets for distances up to 10"):
        import_onnx(model)


def test_gated_bias() -> None:
    heads, length, size, columns = 2, 5, 4, 8
    inputs = {
        "q": _f(2, length, heads * size),
        "c": _f(heads * size),
        "p": _f(1, heads, length, length),
        "w": _f(size, columns),
        "b": _f(columns),
        "e": _f(1, heads, 1, 1),
    }
    model = node_model("GatedRelativePositionBias", inputs, domain="com.microsoft", num_heads=heads)
    (found,) = import_and_build(model)(inputs).values()
    query = (inputs["q"] + inputs["c"]).astype(np.float64).reshape(2, length, heads, size).transpose(0, 2, 1, 3)
    sums = (query @ inputs["w"] + inputs["b"]).reshape(2, heads, length, 2, columns // 2).sum(-1)
    update, reset = np.split(1 / (1 + np.exp(-sums)), 2, -1)
    expected = (update * (reset * inputs["e"] - 1) + 2) * inputs["p"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_rotary_embedding_of_gemma() -> None:
    inputs = {"e": _f(1, 3, 4), **{name: _f(1, 2, 3, 4) for name in ("q", "qr", "k", "kr")}}
    found = import_and_build(node_model("GemmaRotaryEmbedding", inputs, 2, domain="com.microsoft"))(inputs)
    sine, cosine = np.sin(inputs["e"])[:, None], np.cos(inputs["e"])[:, None]
    for name, output in (("q", "y0"), ("k", "y1")):
        expected = inputs[name] * cosine + inputs[f"{name}r"] * sine
        np.testing.assert_allclose(found[output], expected, rtol=1e-5, atol=1e-5)
