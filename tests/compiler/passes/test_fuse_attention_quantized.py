"""fuse-attention of quantized tensors: one kernel, of integers where bytes are multiplied fast; numpy's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

import targets
from compiler.codegen.kernel_lowering import PIPELINE
from compiler.passes.context import PipelineContext
from compiler.passes.layout.fuse_attention import fuse_attention
from schedules import apply_schedules
from tests.compiler.passes.building import operators

op = relax.op
LENGTH, HEADS, SIZE = 9, 3, 8
SHAPE = (2, LENGTH, HEADS, SIZE)
TARGETS = {"integers": "icelake", "floats": "x86-64-v3"}


@dataclass(frozen=True)
class Parameters:
    """Scale and zero point of a quantized tensor."""

    scale: float
    zero: int
    dtype: str = "uint8"

    @property
    def constants(self) -> tuple[Any, Any]:
        return relax.const(np.float32(self.scale)), relax.const(np.asarray(self.zero, self.dtype))

    def quantize(self, values: Any) -> Any:
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(values / np.float32(self.scale)) + self.zero, limits.min, limits.max).astype(self.dtype)

    def dequantize(self, values: Any) -> Any:
        return ((values.astype("int32") - self.zero) * np.float32(self.scale)).astype("float32")


QUERY, KEY, VALUE = Parameters(2**-5, 120), Parameters(2**-5, -3, "int8"), Parameters(2**-4, 131)
SCORES, MASKED, WEIGHTS, RESULT = (
    Parameters(2**-3, 128),
    Parameters(2**-4, 100),
    Parameters(1 / 255, 0),
    Parameters(2**-6, 90),
)
FACTOR = 0.75


def build(*, of_weights: Parameters | None = WEIGHTS, of_dequantized: Parameters | None = None) -> tvm.IRModule:
    """Attention as ONNX Runtime's quantizer writes it; `of_weights`: None leaves them as floats."""
    builder = relax.BlockBuilder()
    operands = [
        relax.Var(name, relax.TensorType(list(SHAPE), each.dtype))
        for name, each in zip("qkv", (QUERY, KEY, VALUE), strict=True)
    ]
    mask = relax.Var("m", relax.TensorType([2, 1, 1, LENGTH], "float32"))

    def emit(value: Any) -> Any:
        return builder.emit(value)

    def dequantized(value: Any, by: Parameters) -> Any:
        return emit(op.dequantize(value, *by.constants, -1, "float32"))

    def rounded(value: Any, by: Parameters, back: Parameters | None = None) -> Any:
        return dequantized(emit(op.quantize(value, *by.constants, -1, by.dtype)), back or by)

    with builder.function("main", [*operands, mask]):
        with builder.dataflow():
            orders = [0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]
            query, key, value = (
                dequantized(emit(op.permute_dims(each, order)), by)
                for each, order, by in zip(operands, orders, (QUERY, KEY, VALUE), strict=True)
            )
            scores = rounded(emit(op.matmul(query, key)), SCORES)
            scores = emit(op.multiply(scores, relax.const(FACTOR, "float32")))
            scores = rounded(emit(op.add(scores, mask)), MASKED)
            weights = emit(op.nn.softmax(scores))
            weights = weights if of_weights is None else rounded(weights, of_weights, of_dequantized)
            result = emit(op.quantize(emit(op.matmul(weights, value)), *RESULT.constants, -1, RESULT.dtype))
            output = builder.emit_output(op.permute_dims(result, [0, 2, 1, 3]))
        builder.emit_func_output(output)
    return builder.get()


def operands() -> list[Any]:
    generator = np.random.default_rng(0)
    tensors = [
        Parameters(0.02, each.zero, each.dtype).quantize(generator.standard_normal(SHAPE))
        for each in (QUERY, KEY, VALUE)
    ]
    mask = np.where(generator.random((2, 1, 1, LENGTH)) < 0.2, -4.0, 0.0).astype("float32")
    return [*tensors, mask]


def exact(query: Any, key: Any, value: Any, mask: Any) -> Any:
    query, value = (by.dequantize(each).transpose(0, 2, 1, 3) for by, each in ((QUERY, query), (VALUE, value)))
    key = KEY.dequantize(key).transpose(0, 2, 3, 1)
    scores = SCORES.dequantize(SCORES.quantize(query @ key)) * np.float32(FACTOR) + mask
    scores = MASKED.dequantize(MASKED.quantize(scores))
    powers = np.exp(scores.astype("float64") - scores.max(-1, keepdims=True))
    weights = WEIGHTS.dequantize(WEIGHTS.quantize(powers / powers.sum(-1, keepdims=True)))
    return RESULT.quantize(weights @ value).transpose(0, 2, 1, 3)


def run(mod: tvm.IRModule, target: Any) -> Any:
    machine = relax.VirtualMachine(relax.build(mod, target=target, tir_pipeline=PIPELINE), tvm.cpu())
    return machine["main"](*map(tvm.runtime.tensor, operands())).numpy()


@pytest.mark.parametrize("kind", ["integers", "floats"])
def test_it_becomes_one_kernel_of_the_same_numbers(kind: str) -> None:
    target = targets.get(TARGETS[kind])
    after = fuse_attention(build(), PipelineContext(machine=target.machine))
    names = operators(after)
    wanted = {"integers": [], "floats": ["dequantize"] * 3 + ["quantize"] + ["permute_dims"] * 4}[kind]
    assert sorted(name for name in names if name not in ("call_tir", "reshape")) == sorted(wanted)
    assert ("uint8" in str(after["attention"].params[0].ty.dtype)) is (kind == "integers")
    scheduled, report = apply_schedules(relax.transform.LegalizeOps()(after), target.machine)
    rule = {"integers": "attention-int8", "floats": "attention"}[kind]
    assert rule in [kernel.rule for kernel in report.kernels]
    if not target.fits_this_machine():
        pytest.skip(f"this machine does not run {target.name}")
    result = run(scheduled, target.tvm_target()).astype("int32")
    difference = np.abs(result - exact(*operands()))
    # A number next to a half may round to the other side, by another order of the same operations.
    assert difference.max() <= 1
    assert np.mean(difference != 0) < 0.02


def test_weights_that_stay_floats_are_multiplied_as_floats() -> None:
    after = fuse_attention(build(of_weights=None), PipelineContext(machine=targets.get(TARGETS["integers"]).machine))
    assert str(after["attention"].params[0].ty.dtype) == "float32"


def test_weights_that_are_rescaled_are_not_attention() -> None:
    before = build(of_dequantized=Parameters(1 / 127, 0))
    assert fuse_attention(before, PipelineContext(machine=targets.get(TARGETS["integers"]).machine)) is before
