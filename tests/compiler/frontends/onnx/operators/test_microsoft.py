"""Operators of the domain com.microsoft against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from compiler.errors import UnsupportedModelError
from compiler.frontends.onnx import import_onnx
from tests.compiler.frontends.onnx.operators.onnxruntime_check import node_model, random_int8, run_reference
from tests.coverage.tvm_pipeline import import_and_build

_RANDOM = np.random.default_rng(0)


def _f(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _u8(*shape: int) -> np.ndarray:
    return _RANDOM.integers(0, 256, shape).astype(np.uint8)


def _i8(*shape: int) -> np.ndarray:
    return random_int8(_RANDOM, *shape)


def _q(name: str, tensor: np.ndarray, scale: float, zero: int) -> dict[str, np.ndarray]:
    """A quantized tensor with its parameters."""
    return {name: tensor, f"{name}s": np.array(scale, np.float32), f"{name}z": np.array(zero, tensor.dtype)}


def _y(scale: float, zero: int = 128) -> dict[str, np.ndarray]:
    return {"ys": np.array(scale, np.float32), "yz": np.array(zero, np.uint8)}


def _check(
    operator: str, inputs: dict[str, Any], outputs: int = 1, constants: tuple[str, ...] = (), **attributes: Any
) -> None:
    """Compare floats to 2e-4 and quantized outputs, which are rounded floats, to one step."""
    model = node_model(operator, inputs, outputs, constants=constants, domain="com.microsoft")
    model.graph.node[0].attribute.extend(onnx.helper.make_attribute(k, v) for k, v in attributes.items())
    feeds = {name: array for name, array in inputs.items() if array is not None and name not in constants}
    for found, expected in zip(import_and_build(model)(feeds).values(), run_reference(model, feeds), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        if found.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
        else:
            step = 1 if found.dtype.itemsize == 1 else 0
            np.testing.assert_allclose(found.astype(np.int64), expected.astype(np.int64), rtol=0, atol=step)


_A = _q("a", _u8(3, 4), 0.03, 120)
_IMAGE = _q("x", _u8(1, 8, 8, 3), 0.03, 120)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("QLinearAdd", _A | _q("b", _u8(4), 0.05, 100) | _y(0.06), {}),
        ("QLinearMul", _A | _q("b", _u8(3, 4), 0.05, 100) | _y(0.06), {}),
        ("QLinearSigmoid", _A | _y(0.004, 0), {}),
        ("QLinearLeakyRelu", _A | _y(0.04), {"alpha": 0.1}),
        ("QLinearSoftmax", _A | _y(0.004, 0), {"axis": -1, "opset": 13}),
        ("QLinearSoftmax", _q("a", _u8(3, 4, 2), 0.03, 99) | _y(0.004, 0), {"axis": 1, "opset": 11}),
        ("QLinearAveragePool", _IMAGE | _y(0.04), {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "channels_last": 1}),
        ("QLinearGlobalAveragePool", _IMAGE | _y(0.04), {"channels_last": 1}),
        ("QLinearConcat", _y(0.04) | _q("a", _u8(2, 3), 0.1, 3) | _q("b", _u8(2, 5), 0.02, 9), {"axis": 1}),
        ("QLinearWhere", {"c": _f(3, 4) > 0} | _A | _q("b", _u8(3, 4), 0.02, 9) | _y(0.04), {}),
        (
            "QGemm",
            _A | _q("b", _i8(4, 6), 0.02, 0) | {"c": np.arange(6, dtype=np.int32) * 100} | _y(0.4),
            {"alpha": 0.5},
        ),
        ("QGemm", _q("a", _u8(5, 4), 0.1, 99) | _q("b", _i8(6, 5), 0.02, 3), {"transA": 1, "transB": 1}),
        ("QLinearConv", _IMAGE | _q("w", _i8(4, 3, 3, 2), 0.01, 0) | _y(0.2), {"channels_last": 1, "strides": [2, 1]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_quantized(operator: str, inputs: dict[str, Any], attributes: dict[str, Any]) -> None:
    _check(operator, inputs, constants=tuple(name for name in inputs if name[-1] in "sz"), **attributes)


def test_integer_products_of_floats() -> None:
    scales = {"as": np.float32(0.1), "bs": np.abs(_f(6)), "az": np.uint8(4), "bz": _i8(6), "c": _f(6)}
    _check("MatMulIntegerToFloat", {"a": _u8(3, 4, 5), "b": _i8(5, 6)} | scales)
    inputs = {"a": _f(3, 4, 5), "b": _u8(5, 6), "bs": np.array([0.1], np.float32), "bz": np.array([100], np.uint8)}
    _check("DynamicQuantizeMatMul", inputs | {"c": _f(6)}, constants=("b", "bs", "bz"))


@pytest.mark.parametrize("zeros", [False, True])
def test_packed_four_bit_weights(zeros: bool) -> None:
    inputs = {"a": _f(3, 48), "b": _u8(7, 2, 16), "s": np.abs(_f(14)) * 0.1}
    if zeros:
        inputs["z"] = _u8(7)
    _check("MatMulNBits", inputs, constants=("b", "s", "z"), K=48, N=7, bits=4, block_size=32)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("FusedMatMul", {"a": _f(2, 4, 3), "b": _f(2, 5, 4)}, {"alpha": 0.5, "transA": 1, "transB": 1}),
        (
            "FusedMatMul",
            {"a": _f(4, 2, 3), "b": _f(5, 2, 4)},
            dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB"), 1),
        ),
        ("FusedGemm", {"a": _f(3, 4), "b": _f(4, 5), "c": _f(5)}, {"activation": "LeakyRelu", "activation_alpha": 0.3}),
        (
            "FusedConv",
            {"x": _f(1, 3, 6, 6), "w": _f(4, 3, 3, 3), "b": _f(4), "z": _f(1, 4, 4, 4)},
            {"activation": "Clip", "activation_params": [-0.5, 0.5]},
        ),
        ("FusedConv", {"x": _f(1, 3, 6, 6), "w": _f(4, 3, 3, 3)}, {"activation": "HardSwish"}),
        *(
            (
                "FusedGemm",
                {"a": _f(3, 4), "b": _f(4, 5), "c": _f(5)},
                {"activation": activation, "activation_alpha": 0.3, "activation_beta": 0.7},
            )
            for activation in ("ScaledTanh", "Softplus", "Softsign")
        ),
        ("Gelu", {"x": _f(3, 8)}, {}),
        ("QuickGelu", {"x": _f(3, 8)}, {"alpha": 1.5}),
        ("FastGelu", {"x": _f(3, 8), "b": _f(8)}, {}),
        ("BiasGelu", {"x": _f(3, 8), "b": _f(8)}, {}),
        ("SkipLayerNormalization", {"x": _f(2, 3, 8), "s": _f(1, 3, 8), "g": _f(8), "b": _f(8), "c": _f(8)}, {}),
        ("SkipSimplifiedLayerNormalization", {"x": _f(2, 3, 8), "s": _f(2, 3, 8), "g": _f(8)}, {"epsilon": 1e-5}),
        ("ScaledSiLU", {"x": _f(3, 8)}, {"alpha": 1.5}),
        ("ScaledSiLU", {"x": _f(3, 8), "s": np.array(0.5, np.float32)}, {}),
        ("GatedAdd", {"x": _f(2, 3, 8), "y": _f(2, 3, 8), "g": _f(2, 3, 1)}, {}),
        ("GatedRMSNorm", {"x": _f(2, 3, 8), "s": _f(4), "g": _f(2, 3, 8)}, {}),
        ("GatedRMSNorm", {"x": _f(2, 3, 8), "s": _f(8), "g": _f(2, 3, 8)}, {"activation": "sigmoid", "epsilon": 1e-3}),
        ("Inverse", {"x": _f(3, 4, 4)}, {}),
        ("CDist", {"a": _f(3, 4), "b": _f(5, 4)}, {"metric": "euclidean"}),
        ("GridSample", {"x": _f(1, 2, 5, 6), "g": _f(1, 4, 3, 2)}, {"mode": "bicubic", "padding_mode": "border"}),
        ("Range", {"a": np.float32(0.5), "b": np.float32(3.0)}, {}),
        ("NhwcMaxPool", {"x": _u8(1, 6, 6, 3)}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fused(operator: str, inputs: dict[str, Any], attributes: dict[str, Any]) -> None:
    _check(operator, inputs, **attributes)


@pytest.mark.parametrize("group", [1, 3])
def test_convolution_with_channels_last(group: int) -> None:
    """As written by ONNX Runtime's optimizer for GPUs, whose kernel is not in the package for processors."""
    model_class = pytest.importorskip("onnxruntime.transformers.onnx_model").OnnxModel
    fusion = pytest.importorskip("onnxruntime.transformers.fusion_nhwc_conv").FusionNhwcConv
    x, filters = _f(2, 3, 7, 6), {"w": _f(6, 3 // group, 3, 3), "b": _f(6)}
    plain = node_model("Conv", {"x": x} | filters, constants=("w", "b"), group=group, pads=[1, 0, 1, 2], strides=[2, 1])
    typed = onnx.shape_inference.infer_shapes(plain)
    optimized = model_class(onnx.ModelProto.FromString(typed.SerializeToString()))
    fusion(optimized, update_weight=True).apply()
    optimized.model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert [node.op_type for node in optimized.model.graph.node].count("NhwcConv") == 1
    (found,), (expected,) = import_and_build(optimized.model)({"x": x}).values(), run_reference(plain, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_fused_convolution_with_channels_last() -> None:
    inputs = {"x": _f(1, 6, 6, 3), "w": _f(4, 3, 3, 3), "b": _f(4), "z": _f(1, 4, 4, 4)}
    model = node_model("NhwcFusedConv", inputs, domain="com.microsoft", activation="Relu")
    (found,) = import_and_build(model)(inputs).values()
    plain = inputs | {"x": inputs["x"].transpose(0, 3, 1, 2).copy(), "z": inputs["z"].transpose(0, 3, 1, 2).copy()}
    reference = node_model("FusedConv", plain, domain="com.microsoft", activation="Relu")
    (expected,) = run_reference(reference, plain)
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


def test_embeddings() -> None:
    ids, segments = np.array([[1, 2, 3], [4, 5, 6]], np.int32), np.array([[0, 0, 1], [0, 1, 1]], np.int32)
    tables = {"w": _f(11, 8), "p": _f(7, 8), "t": _f(2, 8), "g": _f(8), "b": _f(8)}
    mask = {"m": np.array([[1, 1, 0], [1, 1, 1]], np.int32)}
    _check("EmbedLayerNormalization", {"i": ids, "s": segments} | tables | mask, 2)
    _check("EmbedLayerNormalization", {"i": ids, "s": None} | tables | {"t": None}, 2)
    quantized: dict[str, Any] = {name: _u8(*table.shape) for name, table in tables.items()} | {"m": None}
    quantized |= {f"{name}s": np.float32(0.01) for name in "wptgb"} | {f"{name}z": np.uint8(99) for name in "wptgb"}
    _check("QEmbedLayerNormalization", {"i": ids, "s": segments} | quantized, 2, tuple(quantized))


_MASKS = {
    "raw": np.array([[1, 1, 0, 1], [0, 1, 1, 0]], np.int32),
    "ends": np.array([2, 4], np.int32),
    "ends and starts": np.array([3, 4, 0, 1], np.int32),
    "none": None,
}


@pytest.mark.parametrize("mask", _MASKS)
@pytest.mark.parametrize("causal", [0, 1])
def test_attention(mask: str, causal: int) -> None:
    inputs = {"x": _f(2, 4, 8), "w": _f(8, 24), "b": _f(24), "m": _MASKS[mask]}
    _check("Attention", inputs, num_heads=2, unidirectional=causal)


def test_attention_with_a_past_and_with_quantized_weights() -> None:
    inputs: dict[str, Any] = {"x": _f(2, 4, 8), "w": _f(8, 24), "b": _f(24), "m": None, "p": _f(2, 2, 2, 3, 4)}
    _check("Attention", inputs, 2, num_heads=2, unidirectional=1)
    scales = {"xs": np.float32(0.02), "ws": np.float32(0.01), "m": None, "xz": np.uint8(128), "wz": np.uint8(90)}
    _check("QAttention", {"x": _u8(2, 4, 8), "w": _u8(8, 24), "b": _f(24)} | scales, num_heads=2)


def test_multi_head_attention() -> None:
    parts = {"q": _f(2, 4, 8), "k": _f(2, 4, 8), "v": _f(2, 4, 8), "b": _f(24), "m": None}
    more = {"a": _f(1, 2, 4, 7), "pk": _f(2, 2, 3, 4), "pv": _f(2, 2, 3, 4)}
    _check("MultiHeadAttention", parts | more, 3, num_heads=2)
    _check("MultiHeadAttention", {"q": _f(2, 4, 8), "k": _f(2, 2, 6, 4), "v": _f(2, 2, 6, 4)}, num_heads=2)


@pytest.mark.parametrize(("queries", "keys"), [(4, 6), (6, 4), (1, 5)])
def test_causal_attention_to_another_number_of_keys(queries: int, keys: int) -> None:
    parts = {"q": _f(2, queries, 8), "k": _f(2, keys, 8), "v": _f(2, keys, 8)}
    _check("MultiHeadAttention", parts, num_heads=2, unidirectional=1)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "reason"),
    [
        ("QAttention", {"x": _u8(2, 4, 8), "w": _u8(8, 24)}, {"num_heads": 2, "do_rotary": 1}, "do_rotary=1"),
        (
            "MatMulNBits",
            {"a": _f(3, 32), "b": _u8(6, 1, 16), "s": _f(6)},
            {"K": 32, "N": 6, "block_size": 32, "weight_prepacked": 1},
            "weight_prepacked=1",
        ),
        ("SwiGLU", {"x": _f(3, 8)}, {"round_activation": 1}, "round_activation=1"),
        (
            "CausalConvWithState",
            {"x": _f(1, 4, 6), "w": _f(4, 1, 3)},
            {"state_channels_last": 1},
            "state_channels_last=1",
        ),
        (
            "BiasDropout",
            {"x": _f(3, 8), "b": _f(8), "r": None, "p": np.float32(0.5), "t": np.array(True)},
            {},
            "in training mode",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attributes_without_effect_here_are_refused(
    operator: str, inputs: dict[str, Any], attributes: dict[str, Any], reason: str
) -> None:
    model = node_model(operator, inputs, constants=("b", "s", "t"), domain="com.microsoft", **attributes)
    with pytest.raises(UnsupportedModelError, match=rf"{operator}.*{reason}"):
        import_onnx(model)


def test_rotary_embedding() -> None:
    tables = {"c": _f(9, 4), "s": _f(9, 4)}
    _check("RotaryEmbedding", {"x": _f(2, 3, 4, 8), "p": np.array([[0, 1, 2, 3], [4, 5, 6, 7]])} | tables)
    _check("RotaryEmbedding", {"x": _f(2, 4, 16), "p": np.array([2])} | tables, interleaved=1)


@pytest.mark.parametrize("layout", [0, 1])
def test_rotary_embedding_of_three_positions(layout: int) -> None:
    positions = _RANDOM.integers(0, 9, (3, 2, 4))
    tables = {"p": positions, "c": _f(9, 8), "s": _f(9, 8)}
    sections: dict[str, Any] = {"mrope_section": [4, 2, 2] if layout == 0 else [3, 3, 2], "mrope_layout": layout}
    _check("MRotaryEmbedding", {"x": _f(2, 3, 4, 16)} | tables, **sections)
    _check("MRotaryEmbedding", {"x": _f(2, 4, 32)} | tables, num_heads=2, **sections)


@pytest.mark.parametrize("past", [True, False])
def test_causal_convolution(past: bool) -> None:
    weights = {"w": _f(6, 1, 4), "b": _f(6), "p": _f(2, 6, 3) if past else None}
    _check("CausalConvWithState", {"x": _f(2, 6, 5)} | weights, 2, activation="silu")
    _check("CausalConvWithState", {"x": _f(2, 6, 1)} | weights, 2)


def test_a_causal_convolution_of_one_position_keeps_no_state() -> None:
    inputs = {"x": _f(2, 6, 5), "w": _f(6, 1, 1), "b": _f(6)}
    result, state = _reference_outputs("CausalConvWithState", inputs)
    assert state.shape == (2, 6, 0)
    np.testing.assert_allclose(result, inputs["x"] * inputs["w"][:, 0] + inputs["b"][:, None], rtol=1e-6)


def _reference_outputs(operator: str, inputs: dict[str, Any], **attributes: Any) -> list[np.ndarray]:
    """Both results of an operator of the default domain, which equal those of the onnx package."""
    model = node_model(operator, inputs, 2, opset=27, **attributes)
    found = list(import_and_build(model)(inputs).values())
    for ours, theirs in zip(found, ReferenceEvaluator(model).run(None, inputs), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3 if ours.dtype == np.float16 else 1e-5, atol=1e-6)
    return found


def test_gate_of_linear_attention() -> None:
    _check("LinearAttentionGate", {"a": _f(2, 3, 4), "d": _f(4), "s": _f(4), "b": _f(2, 3, 4)}, 2)


def test_swiglu_of_halves() -> None:
    """ONNX Runtime's CPU kernels do not support it."""
    x = 4 * _f(3, 8)
    gate, linear = np.minimum(x[:, :4], 1.5), np.clip(x[:, 4:], -1.5, 1.5)
    wanted = gate / (1 + np.exp(-1.7 * gate)) * (linear + 1)
    attributes: dict[str, Any] = {"limit": 1.5, "activation_alpha": 1.7, "activation_beta": 1.0}
    model = node_model("SwiGLU", {"x": x}, 1, domain="com.microsoft", **attributes)
    (found,) = import_and_build(model)({"x": x}).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention(rule: str) -> None:
    """Several query heads per key head with a past; and without a past, with a decay per element of a key."""
    decay = [-np.abs(_f(2, 5, width)) if "gated" in rule else None for width in (2, 6)]
    rate = np.abs(_f(2, 5, 2)) if "delta" in rule else None
    inputs = {"q": _f(2, 5, 12), "k": _f(2, 5, 6) / 2, "v": _f(2, 5, 8), "p": _f(2, 2, 3, 4), "g": decay[0], "b": rate}
    sizes: dict[str, Any] = {"q_num_heads": 4, "kv_num_heads": 2, "update_rule": rule}
    _check("LinearAttention", inputs, 2, **sizes)
    _check("LinearAttention", inputs | {"q": _f(2, 5, 6), "p": None, "g": decay[1]}, 2, **sizes | {"q_num_heads": 2})


@pytest.mark.parametrize("state", ["float16", "float32"])
def test_linear_attention_of_halves_is_computed_in_single_precision(state: str) -> None:
    halves = {"q": _f(2, 40, 8), "k": _f(2, 40, 8) / 2, "v": _f(2, 40, 8)}
    inputs = {name: array.astype(np.float16) for name, array in halves.items()}
    inputs["p"] = _f(2, 2, 4, 4).astype(state)
    inputs |= {"g": -np.abs(_f(2, 40, 2)).astype(np.float16), "b": np.abs(_f(2, 40, 1)).astype(np.float16) / 2}
    _reference_outputs("LinearAttention", inputs, q_num_heads=2, kv_num_heads=2)


_LSTM = ("w", "r", "b", "ws", "wz", "rs", "rz")


def _quantized_lstm(directions: int, length: int, batch: int, hidden: int) -> dict[str, Any]:
    """Scales and zero points per direction, with int8 weights."""
    return {
        "x": _f(length, batch, 5),
        "w": _i8(directions, 5, 4 * hidden),
        "r": _i8(directions, hidden, 4 * hidden),
        "b": _f(directions, 8 * hidden),
        "l": None,
        "h": _f(directions, batch, hidden),
        "c": _f(directions, batch, hidden),
        "p": None,
        "ws": np.full(directions, 0.004, np.float32),
        "wz": np.zeros(directions, np.int8),
        "rs": np.full(directions, 0.005, np.float32),
        "rz": np.zeros(directions, np.int8),
    }


@pytest.mark.parametrize(("direction", "length"), [("forward", 40), ("bidirectional", 3)])
def test_lstm_that_quantizes_as_it_runs(direction: str, length: int) -> None:
    inputs = _quantized_lstm(2 if direction == "bidirectional" else 1, length, 1, 4)
    _check("DynamicQuantizeLSTM", inputs, 3, constants=_LSTM, hidden_size=4, direction=direction)


@pytest.mark.parametrize("constants", [(*_LSTM, "p"), ()], ids=["constant", "computed"])
def test_lstm_with_unsigned_weights_of_several_scales(constants: tuple[str, ...]) -> None:
    """Also several samples, a depth that is not a multiple of four, peepholes, and other activations and clips."""
    hidden = 19
    inputs = _quantized_lstm(2, 3, 6, hidden) | {
        "w": _u8(2, 5, 4 * hidden),
        "r": _u8(2, hidden, 4 * hidden),
        "p": _f(2, 3 * hidden),
        "ws": np.linspace(0.002, 0.01, 8 * hidden, dtype=np.float32).reshape(2, -1),
        "rs": np.linspace(0.003, 0.006, 8 * hidden, dtype=np.float32).reshape(2, -1),
        "wz": np.full((2, 4 * hidden), 119, np.uint8),
        "rz": np.full((2, 4 * hidden), 131, np.uint8),
    }
    functions = ["Sigmoid", "Tanh", "Softsign", "HardSigmoid", "Tanh", "Tanh"]
    attributes = {"activations": functions, "activation_alpha": [0.2], "activation_beta": [0.5], "clip": 3.0}
    _check("DynamicQuantizeLSTM", inputs, 3, constants, hidden_size=hidden, direction="bidirectional", **attributes)
