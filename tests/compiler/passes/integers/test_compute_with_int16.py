"""compute-with-int16: 16-bit activations by 8-bit weights, against exact integers and against ONNX Runtime."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import compiler
import targets
from compiler.frontends.source import import_model
from compiler.passes.context import PipelineContext
from compiler.passes.integers.compute_with_int16 import sums_fit
from compiler.passes.pipeline import run_pipeline
from schedules.instructions.dot_products.table import multiplies_bytes

Array = NDArray[Any]
# Of float32: the sum, its factor (two operations) and their product are rounded, 2**-24 each.
ROUNDING = Fraction(1, 2**21)


def limits(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


class WordsNet:
    """quantize(conv or matmul(dequantize(x), dequantize(w)) + bias) as an ONNX model, its numbers drawn by a seed."""

    def __init__(self, kind: str, data: str, result: str, seed: int, *, zero: bool, depth: int = 6) -> None:
        self.rng = np.random.default_rng(seed)
        self.kind, self.data, self.result = kind, data, result
        self.filters = int(self.rng.integers(1, 9))
        depth = depth if depth != 6 else int(self.rng.integers(1, 20))
        self.shape = (2, depth) if kind == "matmul" else (1, depth, 7, 5)
        taps = () if kind == "matmul" else (3, 3)
        self.weight = self.rng.integers(-127, 128, (self.filters, depth, *taps)).astype(np.int8)
        low, high = limits(data)
        self.zero = int(self.rng.integers(low, high + 1)) if zero else 0
        low, high = limits(result)
        self.result_zero = int(self.rng.integers(low // 2, high // 2 + 1))
        self.scale = np.float32(2.0 ** self.rng.uniform(-16, -8))
        self.scales = (2.0 ** self.rng.uniform(-12, -6, self.filters)).astype(np.float32)
        self.steps = self.rng.integers(-(2**20), 2**20, self.filters)
        # Results spread over more than their type holds: some saturate.
        spread = float(self.scale * self.scales.max()) * 32768 * 70 * np.sqrt(self.weight[0].size) * 4
        self.step = np.float32(spread / (high - low))

    def model(self) -> onnx.ModelProto:
        def constant(name: str, value: Any) -> str:
            constants.append(numpy_helper.from_array(np.asarray(value), name))
            return name

        constants: list[Any] = []
        weight = self.weight.T.copy() if self.kind == "matmul" else self.weight
        bias = self.steps.astype(np.float64) * (np.float64(self.scale) * self.scales.astype(np.float64))
        parameters = constant("s", self.scale), constant("z", np.dtype(self.data).type(self.zero))
        axis = int(self.kind == "matmul")
        of_weight = constant("ws", self.scales), constant("wz", np.zeros(self.filters, np.int8))
        last = constant("ys", self.step), constant("yz", np.dtype(self.result).type(self.result_zero))
        shape = (-1,) if axis else (-1, 1, 1)
        nodes = [
            helper.make_node("QuantizeLinear", ["x", *parameters], ["q"]),
            helper.make_node("DequantizeLinear", ["q", *parameters], ["d"]),
            helper.make_node("DequantizeLinear", [constant("w", weight), *of_weight], ["dw"], axis=axis),
            helper.make_node("MatMul", ["d", "dw"], ["p"])
            if axis
            else helper.make_node("Conv", ["d", "dw"], ["p"], pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["p", constant("b", bias.astype(np.float32).reshape(shape))], ["t"]),
            helper.make_node("QuantizeLinear", ["t", *last], ["y"]),
        ]
        output = helper.make_tensor_value_info("y", TensorProto.DataType.Value(self.result.upper()), None)
        given_ = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        graph = helper.make_graph(nodes, "words", [given_], [output], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    def integers(self) -> Array:
        """Random data including the extremes."""
        low, high = limits(self.data)
        values = self.rng.integers(low, high + 1, self.shape)
        values.reshape(-1)[:2] = low, high
        return values

    def floats(self, integers: Array) -> Array:
        """float32 that are quantized to those integers."""
        return ((integers - self.zero) * np.float64(self.scale)).astype(np.float32)

    def exact_sums(self, integers: Array) -> Array:
        centered = torch.from_numpy((integers - self.zero).astype(np.float64))  # exact: sums are below 2**53
        weight = torch.from_numpy(self.weight.astype(np.float64))
        if self.kind == "matmul":
            return (centered @ weight.T).numpy().astype(np.int64) + self.steps
        sums = torch.nn.functional.conv2d(centered, weight, padding=1).numpy().astype(np.int64)
        return np.asarray(sums + self.steps.reshape(-1, 1, 1))

    def check(self, got: Array, sums: Array) -> None:
        """Each result is the exact value rounded, except near ties that float32 may round differently."""
        low, high = limits(self.result)
        channel = 1
        for place in np.ndindex(*sums.shape):
            scale = (
                Fraction(float(self.scale)) * Fraction(float(self.scales[place[channel]])) / Fraction(float(self.step))
            )
            exact = Fraction(int(sums[place])) * scale
            exact = min(max(exact, Fraction(low - self.result_zero)), Fraction(high - self.result_zero))
            distance = abs(Fraction(int(got[place]) - self.result_zero) - exact)
            assert distance <= Fraction(1, 2) + abs(exact) * ROUNDING, place


@pytest.mark.parametrize("kind", ["matmul", "conv"])
@pytest.mark.parametrize("data", ["int16", "uint16"])
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10_000), result=st.sampled_from(["int16", "uint16", "int8", "uint8"]), zero=st.booleans())
def test_results_are_the_exact_values_rounded(kind: str, data: str, seed: int, result: str, zero: bool) -> None:
    net = WordsNet(kind, data, result, seed, zero=zero)
    module = compiler.compile(net.model(), threads=1)
    integers = net.integers()
    got = module.run({"x": net.floats(integers)})["y"]
    net.check(got, net.exact_sums(integers))


def layout_text(net: WordsNet, target: str = "cascadelake") -> str:
    """A net after the passes that precede the layout phase."""
    chosen = targets.get(target)
    context = PipelineContext(target=chosen, machine=chosen.machine)
    passes = {"instead-of:plan-layout": None, "instead-of:pack-matmul-weights": None}
    return str(run_pipeline(import_model(net.model()).mod, context, passes=passes, until="layout").mod.script())


@pytest.mark.parametrize(("kind", "operator"), [("conv", "conv2d"), ("matmul", "matmul")])
def test_two_products_of_bytes_take_the_place_of_one(kind: str, operator: str) -> None:
    text = layout_text(WordsNet(kind, "int16", "int16", 3, zero=False))
    assert len(re.findall(rf"R\.(?:nn\.)?{operator}\(.*out_dtype=\"int32\"", text)) == 2
    assert "dequantize" not in text


def test_processors_without_products_of_bytes_compute_in_float32() -> None:
    assert not multiplies_bytes(targets.get("haswell").machine)
    text = layout_text(WordsNet("conv", "int16", "int16", 3, zero=False), "haswell")
    assert 'out_dtype="int32"' not in text


def test_sums_that_may_leave_int32_stay_in_float32() -> None:
    assert sums_fit(np.full((1, 256), 127, np.int8), 0)
    assert not sums_fit(np.full((1, 257), 127, np.int8), 0)
    assert not sums_fit(np.full((1, 256), 127, np.int8), 0, symmetric=False)
    net = WordsNet("matmul", "int16", "int16", 3, zero=False, depth=300)
    net.weight[:] = 127
    assert 'out_dtype="int32"' not in layout_text(net)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_are_exact(sign: int) -> None:
    net = WordsNet("matmul", "int16", "int16", 3, zero=False, depth=256)
    net.weight[:] = 127 * sign
    net.steps[:] = sign * (2**30 - 2**16)
    net.step = np.float32(float(net.scale) * float(net.scales.max()) * 2**31 / 2**15)
    integers = np.full(net.shape, -32768)
    integers[1] = 32767
    got = compiler.compile(net.model(), threads=1).run({"x": net.floats(integers)})["y"]
    net.check(got, net.exact_sums(integers))


@pytest.mark.parametrize("data", ["int16", "uint16"])
def test_qdq_files_of_16_bits_are_within_a_step_of_onnx_runtime(data: str) -> None:
    net = WordsNet("conv", data, data, 11, zero=data == "uint16")
    x = net.floats(net.integers())
    session = onnxruntime.InferenceSession(net.model().SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0].astype(np.int64)
    got = compiler.compile(net.model(), threads=1).run({"x": x})["y"].astype(np.int64)
    assert np.abs(got - expected).max() <= 1
    assert len(np.unique(expected)) > 8
