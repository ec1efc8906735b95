"""Mixtures of experts against numpy in float64, and against ONNX Runtime where its CPU kernels support them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
from tests.compiler.frontends.onnx.operators.onnxruntime_check import run_reference

EXPERTS, HIDDEN, INNER, TOKENS = 5, 32, 48, 6


@dataclass(frozen=True)
class Mixture:
    """A node: its activation, attributes and weight format."""

    activation: str = "relu"
    bits: int | None = None
    block: int = 0
    zeros: bool = False
    gated: bool = False
    bias: bool = True
    chosen_by_weights: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    in_onnxruntime: bool = True


CASES = [
    Mixture("relu"),
    Mixture("gelu", attributes={"normalize_routing_weights": 1}),
    Mixture("silu", bias=False, gated=True, in_onnxruntime=False),
    Mixture(
        "swiglu",
        attributes={"swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 2.0},
    ),
    Mixture("swiglu", gated=True, in_onnxruntime=False),
    Mixture("silu", bits=4),
    Mixture("swiglu", bits=4, block=16, zeros=True, attributes={"swiglu_fusion": 1, "activation_beta": 1.0}),
    Mixture("gelu", bits=4, zeros=True, bias=False),
    Mixture("identity", bits=8, block=16, in_onnxruntime=False),  # which rounds the data to 8 bits
    Mixture("relu", bits=2, block=16, chosen_by_weights=True, attributes={"normalize_routing_weights": 1}),
    Mixture("swiglu", bits=4, block=16, attributes={"swiglu_fusion": 2}, in_onnxruntime=False),
]


class Layer:
    """Weight and bias of one matmul, in floats and as the node stores them."""

    def __init__(self, random: np.random.Generator, case: Mixture, rows: int, depth: int) -> None:
        self.bias = random.standard_normal((EXPERTS, rows)).astype(np.float32) if case.bias else None
        self.scales: np.ndarray | None = None
        self.zeros: np.ndarray | None = None
        if case.bits is None:
            self.weight = self.stored = (random.standard_normal((EXPERTS, rows, depth)) / 6).astype(np.float32)
            return
        each, groups = 8 // case.bits, depth // case.block if case.block else 1
        values = random.integers(0, 2**case.bits, (EXPERTS, rows, depth))
        self.stored = _packed(values, case.bits)
        self.scales = random.uniform(0.01, 0.1, (EXPERTS, rows, groups)).astype(np.float32)
        zeros: Any = np.full((EXPERTS, rows, groups), 2 ** (case.bits - 1))
        if case.zeros:
            zeros = random.integers(0, 2**case.bits, (EXPERTS, rows, groups))
            by_row = zeros if groups > 1 else zeros.reshape(EXPERTS, rows)
            padding = [(0, 0)] * (by_row.ndim - 1) + [(0, -by_row.shape[-1] % each)]
            self.zeros = _packed(np.pad(by_row, padding), case.bits)
        size = depth // groups
        self.weight = (values - np.repeat(zeros, size, 2)) * np.repeat(self.scales.astype(np.float64), size, 2)
        self.scales = self.scales if case.block else self.scales[..., 0]


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    each = 8 // bits
    parts = values.reshape(*values.shape[:-1], -1, each) << np.arange(0, 8, bits)
    return np.asarray(parts.sum(-1).astype(np.uint8))


def _model(case: Mixture, layers: list[Layer | None], flat: bool) -> onnx.ModelProto:
    inputs: list[np.ndarray | None] = []
    for layer in layers:
        parts = [layer.stored, layer.scales, layer.bias] if layer is not None else [None, None, None]
        inputs += parts if case.bits else [parts[0], parts[2]]
    if case.bits:
        inputs += [None if layer is None else layer.zeros for layer in layers]
    names = ["x", "router", *("" if array is None else f"w{index}" for index, array in enumerate(inputs))]
    tokens = [numpy_helper.from_array(a, f"w{index}") for index, a in enumerate(inputs) if a is not None]
    rows: list[str | int] = ["rows"] if flat else ["batch", "length"]
    data: list[tuple[str, list[str | int]]] = [("x", [*rows, HIDDEN]), ("router", ["tokens", EXPERTS])]
    if case.chosen_by_weights:
        names.append("mix")
        data.append(("mix", ["tokens", EXPERTS]))
    attributes = {"activation_type": case.activation, "k": 2, **case.attributes}
    if case.bits:
        attributes |= {"expert_weight_bits": case.bits, **({"block_size": case.block} if case.block else {})}
    while not names[-1]:
        names.pop()
    node = helper.make_node("QMoE" if case.bits else "MoE", names, ["y"], domain="com.microsoft", **attributes)
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in data]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [*rows, HIDDEN])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", declared, [output], tokens)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _reference(case: Mixture, layers: list[Layer | None], feeds: dict[str, np.ndarray]) -> np.ndarray:
    rows, logits = feeds["x"].reshape(-1, HIDDEN).astype(np.float64), feeds["router"].astype(np.float64)
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    weights = feeds["mix"] if case.chosen_by_weights else exponents / exponents.sum(1, keepdims=True)
    result = np.zeros_like(rows)
    for row in range(len(rows)):
        chosen = np.argsort(-logits[row])[:2]
        shares = weights[row, chosen]
        if case.bits or case.attributes.get("normalize_routing_weights"):
            shares = shares / shares.sum()
        for expert, share in zip(chosen, shares, strict=True):
            result[row] += share * _expert(case, layers, expert, rows[row])
    return result.reshape(feeds["x"].shape)


def _expert(case: Mixture, layers: list[Layer | None], expert: int, row: np.ndarray) -> np.ndarray:
    def product(layer: Layer, data: np.ndarray) -> np.ndarray:
        found = layer.weight[expert].astype(np.float64) @ data
        return np.asarray(found if layer.bias is None else found + layer.bias[expert])

    first, last, second = layers
    assert first is not None
    assert last is not None
    gate, linear = product(first, row), None if second is None else product(second, row)
    fusion = case.attributes.get("swiglu_fusion", 0)
    if fusion:
        gate, linear = (gate[0::2], gate[1::2]) if fusion == 1 else (gate[:INNER], gate[INNER:])
    if case.activation == "swiglu":
        assert linear is not None
        limit = case.attributes.get("swiglu_limit", np.inf)
        gate, linear = np.minimum(gate, limit), np.clip(linear, -limit, limit)
        gate = gate / (1 + np.exp(-case.attributes.get("activation_alpha", 1.0) * gate))
        return product(last, gate * (linear + case.attributes.get("activation_beta", 0.0)))
    hidden = {
        "relu": lambda x: np.maximum(x, 0),
        "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "identity": lambda x: x,
    }[case.activation](gate)
    return product(last, hidden if linear is None else hidden * linear)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.activation}-{case.bits}-{case.block}")
def test_mixture(case: Mixture) -> None:
    random = np.random.default_rng(0)
    fused = 2 if case.attributes.get("swiglu_fusion") else 1
    first, last = Layer(random, case, fused * INNER, HIDDEN), Layer(random, case, HIDDEN, INNER)
    second = Layer(random, case, INNER, HIDDEN) if case.gated else None
    flat = case.bits is not None
    model = _model(case, [first, last, second], flat)
    feeds = {
        "x": random.standard_normal((TOKENS, HIDDEN) if flat else (2, 3, HIDDEN)).astype(np.float32),
        "router": random.standard_normal((TOKENS, EXPERTS)).astype(np.float32),
    }
    if case.chosen_by_weights:
        feeds["mix"] = random.uniform(0.1, 1, (TOKENS, EXPERTS)).astype(np.float32)
    wanted = _reference(case, [first, last, second], feeds)
    found = compiler.compile(model, threads=1).run(feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    if case.in_onnxruntime:
        np.testing.assert_allclose(run_reference(model, feeds)[0], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
