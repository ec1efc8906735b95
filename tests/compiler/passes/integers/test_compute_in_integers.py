"""compute-in-integers: results equal ONNX Runtime's bit for bit, without floats between integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import compiler
import targets
from compiler.codegen.kernel_lowering import PIPELINE
from compiler.frontends.source import import_model
from compiler.passes.context import PipelineContext
from compiler.passes.integers.compute_in_integers import compute_in_integers
from compiler.passes.pipeline import run_pipeline
from compiler.passes.registry import get_pass

import tvm  # isort: skip
from tvm import relax  # isort: skip
from tests.compiler.frontends.onnx.operators.onnxruntime_check import precise_session
from tests.unoptimized import loaded

Array = NDArray[Any]


class QuantizedGraph:
    """An ONNX graph in QDQ format, written step by step; every activation is followed by a quantization."""

    def __init__(self, shape: Sequence[int], kind: str, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.kind = np.dtype(kind)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.shape = tuple(shape)
        self.parameters: dict[str, tuple[np.float32, Array]] = {}

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def quantize(self, value: str, span: float = 6.0, low: float | None = None) -> str:
        """Quantized and dequantized again; `low` 0 puts the zero point at the end of the range, as behind a ReLU."""
        limits = np.iinfo(self.kind)
        scale = np.float32(span * self.rng.uniform(0.7, 1.3) / 255)
        zero = limits.min if low == 0 else int(self.rng.integers(limits.min + 90, limits.max - 90))
        names = self.constant(scale), self.constant(self.kind.type(zero))
        result = self.node("DequantizeLinear", self.node("QuantizeLinear", value, *names), *names)
        self.parameters[result] = scale, np.asarray(zero)
        return result

    def weight(self, *shape: int, axis: int = 0) -> tuple[str, Array]:
        """A dequantized int8 weight with one scale an entry of `axis`, and the scales."""
        values = self.rng.integers(-127, 128, shape).astype(np.int8)
        scales = self.rng.uniform(0.5, 1.5, shape[axis]).astype(np.float32) / np.float32(
            127 * np.sqrt(np.prod(shape) / shape[axis])
        )
        zeros = self.constant(np.zeros(shape[axis], np.int8))
        return self.node("DequantizeLinear", self.constant(values), self.constant(scales), zeros, axis=axis), scales

    def bias(self, data: str, scales: Array) -> str:
        steps = self.parameters[data][0] * scales
        values = self.rng.integers(-3000, 3000, scales.size).astype(np.int32)
        names = self.constant(steps), self.constant(np.zeros(scales.size, np.int32))
        return self.node("DequantizeLinear", self.constant(values), *names, axis=0)

    def conv(
        self, data: str, filters: int, channels: int, kernel: int, *, biased: bool = True, **attributes: Any
    ) -> str:
        groups = attributes.get("group", 1)
        weight, scales = self.weight(filters, channels // groups, kernel, kernel)
        attributes.setdefault("pads", [kernel // 2] * 4)
        rest = [self.bias(data, scales)] if biased else []
        return self.node("Conv", data, weight, *rest, **attributes)

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "quantized",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return onnx.shape_inference.infer_shapes(made)


def compiled(model: onnx.ModelProto) -> tuple[Any, Any]:
    """(the module as the layout phase sees it, a function of the input)."""
    target = targets.get("host", cores=2)
    context = PipelineContext(target=target, machine=target.machine)
    imported = import_model(model)
    planned = run_pipeline(imported.mod, context, until="canonicalize").mod
    planned = compute_in_integers(planned, context)
    context = PipelineContext(target=target, machine=target.machine)
    result = run_pipeline(imported.mod, context)
    executable = relax.build(result.mod, target=target.tvm_target(), relax_pipeline=None, tir_pipeline=PIPELINE)
    machine = relax.VirtualMachine(loaded(executable), tvm.cpu())
    weights = [tvm.runtime.tensor(np.ascontiguousarray(value)) for value in result.parameters.values()]
    return planned, lambda x: machine["main"](tvm.runtime.tensor(x), *weights)[0].numpy()


def operators(mod: Any) -> list[tuple[str, str]]:
    """(operator, element type of its result) of every call of `main`."""
    found = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call):
                found.append((str(value.op.name).removeprefix("relax."), str(binding.var.ty.dtype)))
    return found


def check(graph: QuantizedGraph, output: str, differing: float = 0.0) -> list[tuple[str, str]]:
    """Compile and compare: all but a share `differing` of the results are equal, and those are off by one step."""
    model = graph.model(output)
    planned, run = compiled(model)
    x = graph.rng.uniform(-3, 3, graph.shape).astype(np.float32)
    expected = precise_session(model).run(None, {"x": x})[0]
    step = graph.parameters[output][0]
    steps = np.rint((run(x) - expected) / step)
    assert np.abs(steps).max() <= (1 if differing else 0), steps
    assert np.count_nonzero(steps) <= differing * steps.size
    assert len(np.unique(expected)) > 8  # the ranges suit the numbers: something is compared
    return operators(planned)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    channels=st.sampled_from([1, 3, 16, 21]),
    filters=st.sampled_from([5, 16, 40]),
    size=st.integers(3, 9),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    relu=st.booleans(),
)
def test_convolutions_match_bit_for_bit(
    kind: str, channels: int, filters: int, size: int, kernel: int, stride: int, relu: bool
) -> None:
    graph = QuantizedGraph((1, channels, size, size + 1), kind)
    first = graph.quantize("x")
    second = graph.conv(first, filters, channels, kernel, strides=[stride, stride])
    second = graph.quantize(graph.node("Relu", second) if relu else second, low=0 if relu else None)
    third = graph.quantize(graph.conv(second, 20, filters, 3))
    names = check(graph, third)
    assert [kind for name, kind in names if name.startswith("nn.conv")] == ["int32", "int32"]


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_depthwise_and_grouped_convolutions(kind: str) -> None:
    graph = QuantizedGraph((1, 20, 9, 8), kind)
    first = graph.quantize("x")
    second = graph.quantize(graph.conv(first, 20, 20, 3, group=20))
    third = graph.quantize(graph.conv(second, 40, 20, 3, group=5, strides=[2, 2]))
    names = check(graph, third)
    assert [kind for name, kind in names if name.startswith("nn.conv")] == ["int32", "int32"]


def test_a_residual_block_with_pooling_holds_no_dequantization_inside() -> None:
    graph = QuantizedGraph((1, 3, 16, 16), "uint8")
    first = graph.quantize(graph.conv(graph.quantize("x"), 24, 3, 3), low=0)
    pooled = graph.node("MaxPool", first, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    graph.parameters[pooled] = graph.parameters[first]
    second = graph.quantize(graph.node("Relu", graph.conv(pooled, 24, 24, 3)), low=0)
    third = graph.quantize(graph.conv(second, 24, 24, 1))
    added = graph.quantize(graph.node("Relu", graph.node("Add", third, pooled)), low=0)
    last = graph.quantize(graph.conv(added, 8, 24, 1))
    names = check(graph, last)
    assert [name for name, _ in names].count("dequantize") == 1  # of the output
    assert ("nn.max_pool2d", "uint8") in names


def test_concatenation_joins_integers() -> None:
    graph = QuantizedGraph((1, 16, 6, 6), "uint8")
    first = graph.quantize("x")
    left, right = (graph.quantize(graph.conv(first, count, 16, 1)) for count in (16, 8))
    joined = graph.quantize(graph.node("Concat", left, right, axis=1))
    # Between different scales, ONNX Runtime divides where a look-up table of ours rounds once more: halves may differ.
    names = check(graph, graph.quantize(graph.conv(joined, 8, 24, 1)), differing=0.02)
    assert ("concat", "uint8") in names


def test_a_channel_shuffle_moves_bytes() -> None:
    """Values quantized after the shuffle are quantized before it, in the convolution's kernel."""
    graph = QuantizedGraph((1, 16, 6, 6), "uint8")
    data = graph.conv(graph.quantize("x"), 16, 16, 1)
    apart = graph.node("Reshape", data, graph.constant(np.array([1, 4, 4, 36])))
    shuffled = graph.node("Transpose", apart, perm=[0, 2, 1, 3])
    joined = graph.quantize(graph.node("Reshape", shuffled, graph.constant(np.array([1, 16, 6, 6]))))
    names = check(graph, graph.quantize(graph.conv(joined, 8, 16, 1)))
    assert ("permute_dims", "uint8") in names
    assert ("permute_dims", "float32") not in names


@pytest.mark.parametrize("operator", ["Mul", "Div"])
def test_what_is_rescaled_behind_a_move_is_rescaled_before_it(operator: str) -> None:
    """For example queries of attention, scaled by a quantized constant."""
    graph = QuantizedGraph((1, 16, 6, 6), "uint8")
    data = graph.quantize(graph.conv(graph.quantize("x"), 16, 16, 1))
    moved = graph.node("Transpose", data, perm=[0, 2, 1, 3])
    number = graph.constant(np.uint8(255)), graph.constant(np.float32(1.3 / 255)), graph.constant(np.uint8(0))
    factor = graph.node("DequantizeLinear", *number)
    # ONNX Runtime multiplies by a ratio of scales where this divides: halves may differ.
    names = check(graph, graph.quantize(graph.node(operator, moved, factor)), differing=0.02)
    rescaling = {"Mul": "multiply", "Div": "divide"}[operator]
    assert names.index((rescaling, "float32")) < names.index(("permute_dims", "uint8"))
    assert ("permute_dims", "float32") not in names


def test_a_classifier_of_integers() -> None:
    graph = QuantizedGraph((2, 5, 40), "uint8")
    weight, _ = graph.weight(40, 24, axis=1)
    first = graph.quantize(graph.node("MatMul", graph.quantize("x"), weight))
    names = check(graph, first)
    assert ("matmul", "int32") in names


def test_a_float_bias_stays_a_float() -> None:
    graph = QuantizedGraph((1, 16, 5, 5), "uint8")
    data = graph.quantize("x")
    weight, _ = graph.weight(16, 16, 1, 1)
    bias = graph.constant(graph.rng.uniform(-1, 1, 16).astype(np.float32))
    output = graph.quantize(graph.node("Conv", data, weight, bias))
    names = check(graph, output, differing=0.02)  # its sums are rounded in another order
    assert ("nn.conv2d", "int32") in names


def test_what_is_read_elsewhere_is_not_taken_apart() -> None:
    """A float result of a convolution that is an output too keeps its value."""
    graph = QuantizedGraph((1, 16, 5, 5), "uint8")
    conv = graph.conv(graph.quantize("x"), 16, 16, 1)
    total = graph.node("Add", conv, graph.quantize(conv))
    graph.parameters[total] = np.float32(1e-4), np.asarray(0)
    check(graph, total)


def test_a_graph_without_integers_is_left_alone() -> None:
    graph = QuantizedGraph((1, 3, 5, 5), "uint8")
    weight = graph.constant(graph.rng.uniform(-1, 1, (4, 3, 1, 1)).astype(np.float32))
    mod = get_pass("normalize")(import_model(graph.model(graph.node("Conv", "x", weight))).mod, PipelineContext())
    assert compute_in_integers(mod, PipelineContext()) is mod


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_by_winograd_match_bit_for_bit(kind: str, stride: int) -> None:
    """On processors without int8 products, with zero points in the padding and channels that do not fill whole
    blocks."""
    graph = QuantizedGraph((1, 124, 28, 28), kind)
    data = graph.quantize("x")
    output = graph.quantize(graph.node("Relu", graph.conv(data, 256, 124, 3, strides=[stride, stride])), low=0)
    model = graph.model(output)
    module = compiler.compile(model, target="x86-64-v3")
    assert "conv-winograd-integer" in {kernel.rule for kernel in module.manifest.kernels}
    x = graph.rng.uniform(-3, 3, graph.shape).astype(np.float32)
    session = precise_session(model)
    (expected,) = session.run(None, {"x": x})
    assert len(np.unique(expected)) > 8
    np.testing.assert_array_equal(module.run({"x": x})[output], expected)
