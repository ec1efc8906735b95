"""Attention with keys and values in one buffer, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest

import tensorwright
from compiler.errors import InputError
from tests.compiler.frontends.onnx.operators.onnxruntime_check import node_model, run_reference
from tests.compiler.frontends.onnx.operators.test_microsoft import _check, _f
from tests.coverage.tvm_pipeline import import_and_build

_HEADS, _SIZE, _CAPACITY = 2, 8, 9
_WIDTH = _HEADS * _SIZE


def _new_rows(count: int) -> dict[str, Any]:
    return {name: _f(2, count, _WIDTH) for name in "qkv"}


def _buffers(past: int) -> dict[str, Any]:
    shape = (2, _HEADS, _CAPACITY, _SIZE)
    return {"pk": _f(*shape), "pv": _f(*shape), "pl": np.array(past, np.int32)}


def _mask(length: int) -> np.ndarray:
    return np.array([[1] * length, [1] + [0] * (length - 1)], np.int32)


@pytest.mark.parametrize(("count", "past"), [(1, 3), (1, 0), (2, 3), (4, 0), (2, 7)])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("extra", ["none", "biases", "mask"])
def test_rows_are_written_into_the_buffer(count: int, past: int, causal: int, extra: str) -> None:
    inputs = _new_rows(count) | {
        "b": _f(3 * _WIDTH) if extra == "biases" else None,
        "m": _mask(count + past) if extra == "mask" else None,
        "r": _f(1, _HEADS, count, count + past) if extra == "biases" else None,
    }
    _check("MultiHeadAttention", inputs | _buffers(past), 3, num_heads=_HEADS, unidirectional=causal)


@pytest.mark.parametrize("past", [0, 3, 8])
@pytest.mark.parametrize("extra", ["none", "biases", "mask"])
def test_one_token_and_a_buffer(past: int, extra: str) -> None:
    inputs = _new_rows(1) | {
        "m": _mask(past + 1) if extra == "mask" else None,
        "r": _f(1, _HEADS, 1, past + 1) if extra == "biases" else None,
    }
    more = {"w": None, "i": None, "b": _f(3 * _WIDTH) if extra == "biases" else None}
    inputs |= _buffers(past) | more
    _check("DecoderMaskedMultiHeadAttention", inputs, 3, num_heads=_HEADS, past_present_share_buffer=1)


@pytest.mark.parametrize("masked", [False, True])
def test_one_token_of_cross_attention(masked: bool) -> None:
    keys = {"k": _f(2, _HEADS, 5, _SIZE), "v": _f(2, _HEADS, 5, _SIZE), "m": _mask(5) if masked else None}
    _check("DecoderMaskedMultiHeadAttention", {"q": _f(2, 1, _WIDTH)} | keys, num_heads=_HEADS, scale=0.3)


@pytest.mark.parametrize("packed", [False, True])
def test_one_token_and_a_cache_that_grows(packed: bool) -> None:
    """As MultiHeadAttention computes it: ONNX Runtime's processor kernel has only shared buffers."""
    rows, past = _new_rows(1), {"pk": _f(2, _HEADS, 3, _SIZE), "pv": _f(2, _HEADS, 3, _SIZE)}
    plain = node_model(
        "MultiHeadAttention", rows | {"b": None, "m": None, "r": None} | past, 3, domain="com.microsoft", num_heads=2
    )
    given = {"q": np.concatenate([rows[name] for name in "qkv"], 2), "k": None, "v": None} if packed else rows
    operator = "DecoderMaskedMultiHeadAttention"
    model = node_model(operator, given | {"m": None, "r": None} | past, 3, domain="com.microsoft", num_heads=2)
    feeds = {name: array for name, array in (given | past).items() if array is not None}
    found, expected = import_and_build(model)(feeds), import_and_build(plain)(rows | past)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_a_past_that_does_not_fit_is_an_error() -> None:
    inputs = _new_rows(2) | {"b": None, "m": None, "r": None} | _buffers(8)
    model = node_model("MultiHeadAttention", inputs, 3, domain="com.microsoft", num_heads=_HEADS)
    feeds = {name: array for name, array in inputs.items() if array is not None}
    module = tensorwright.compile(model, progress=None)
    with pytest.raises(InputError, match="pl"):
        module.run(feeds)


def _typed(model: onnx.ModelProto, ranks: Sequence[int]) -> onnx.ModelProto:
    """The model with types of its outputs, which ONNX Runtime does not infer for scores."""
    for output, rank in zip(model.graph.output, ranks, strict=True):
        shape = [f"{output.name}{axis}" for axis in range(rank)]
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, shape))
    return model


def _check_against_reference(model: onnx.ModelProto, feeds: dict[str, Any]) -> None:
    for found, expected in zip(import_and_build(model)(feeds).values(), run_reference(model, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3 if np.abs(expected).max() > 1e3 else 1e-5)


@pytest.mark.parametrize("operator", ["MultiHeadAttention", "DecoderMaskedMultiHeadAttention"])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("dynamic", [False, True])
def test_entries_of_other_beams(operator: str, beams: int, past: int, dynamic: bool) -> None:
    indirection = np.random.default_rng(past).integers(0, beams, (2 // beams, beams, _CAPACITY)).astype(np.int32)
    more: dict[str, Any] = {"b": None, "m": None, "r": None} | _buffers(past) | {"i": indirection}
    attributes: dict[str, Any] = {"num_heads": _HEADS}
    if operator != "MultiHeadAttention":
        more = {"m": None, "r": None} | _buffers(past) | {"w": np.array(beams, np.int32), "i": indirection}
        attributes |= {"past_present_share_buffer": 1, "output_qk": 1}
    inputs = _new_rows(1) | more
    model = _typed(node_model(operator, inputs, 4, domain="com.microsoft", **attributes), (3, 4, 4, 4))
    names = {0: "batch", 2: "capacity"}
    for spec in model.graph.input:
        for axis, size in enumerate(spec.type.tensor_type.shape.dim):
            if dynamic and spec.name == "i":
                size.dim_param = ("requests", "beams", "capacity")[axis]
            elif dynamic and axis in names and (axis == 0 or spec.name in ("pk", "pv")):
                size.dim_param = names[axis]
    _check_against_reference(model, {name: array for name, array in inputs.items() if array is not None})


@pytest.mark.parametrize("operator", ["MultiHeadAttention", "DecoderMaskedMultiHeadAttention"])
def test_scores_are_an_output(operator: str) -> None:
    mask = {"m": _mask(5)}
    inputs: dict[str, Any] = {"q": _f(2, 1, _WIDTH)}
    if operator == "MultiHeadAttention":
        inputs |= {"k": _f(2, 5, _WIDTH), "v": _f(2, 5, _WIDTH), "b": None, **mask, "r": _f(1, _HEADS, 1, 5)}
    else:
        inputs |= {"k": _f(2, _HEADS, 5, _SIZE), "v": _f(2, _HEADS, 5, _SIZE), **mask}
    attributes: dict[str, Any] = {} if operator == "MultiHeadAttention" else {"output_qk": 1}
    model = node_model(operator, inputs, 4, domain="com.microsoft", num_heads=_HEADS, **attributes)
    del model.graph.output[1:3]
    model.graph.node[0].output[1:3] = ["", ""]
    _check_against_reference(_typed(model, (3, 4)), {n: array for n, array in inputs.items() if array is not None})
