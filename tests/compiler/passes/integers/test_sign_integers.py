"""sign-integers: uint8 tensors become int8 for targets that multiply only int8, with equal results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import relax
from tvm.ir import assert_structural_equal

import targets
from compiler.passes.context import PipelineContext
from compiler.passes.integers.sign_integers import sign_integers
from compiler.passes.rewriting.matching import as_constant
from tests.compiler.passes.building import Build, run_module

CONTEXT = PipelineContext(target=targets.get("cuda-simulated"))  # whose tensor cores multiply int8 alone


def constant(value: Any, dtype: str) -> Any:
    return as_constant(np.asarray(value, dtype))


def quantized(build: Build, value: Any, zero: int, dtype: str = "uint8") -> Any:
    return build.emit(relax.op.quantize(value, constant(0.05, "float32"), constant(zero, dtype), -1, dtype))


def test_a_product_between_quantizations_before_and_after() -> None:
    weight = np.random.default_rng(0).integers(-128, 128, (6, 5)).astype(np.int8)
    before = Build()
    x = before.input("x", [4, 6])
    product = before.emit(relax.op.matmul(quantized(before, x, 130), as_constant(weight), out_dtype="int32"))
    module = before.module(product)

    expected = Build()
    x = expected.input("x", [4, 6])
    product = expected.emit(relax.op.matmul(quantized(expected, x, 2, "int8"), as_constant(weight), out_dtype="int32"))
    sums = 128 * weight.astype(np.int32).sum(axis=0, dtype=np.int32)
    made = expected.module(expected.emit(relax.op.add(product, as_constant(sums))))
    assert_structural_equal(sign_integers(module, CONTEXT), relax.transform.Normalize()(made))
    assert sign_integers(module, PipelineContext()) is module


def _convolution(build: Build, data: Any) -> Any:
    weight = as_constant(np.random.default_rng(1).integers(-128, 128, (7, 3, 3, 3)).astype(np.int8))
    return relax.op.nn.conv2d(data, weight, strides=[2, 1], padding=[1, 0, 2, 1], out_dtype="int32")


def _depthwise(build: Build, data: Any) -> Any:
    weight = as_constant(np.random.default_rng(1).integers(-128, 128, (3, 1, 3, 2)).astype(np.int8))
    return relax.op.nn.conv2d(data, weight, padding=[1, 1, 1, 1], groups=3, out_dtype="int32")


def _concat(build: Build, data: Any) -> Any:
    other = quantized(build, build.emit(relax.op.astype(data, "float32")), 3)
    return relax.op.concat([data, other], 1)


def _dequantize(build: Build, data: Any) -> Any:
    return relax.op.dequantize(data, constant(0.05, "float32"), constant(130, "uint8"), -1, "float32")


CASES: dict[str, Callable[[Build, Any], Any]] = {
    "convolution": _convolution,
    "depthwise": _depthwise,
    "concat": _concat,
    "dequantize": _dequantize,
    "pool": lambda _, data: relax.op.nn.max_pool2d(data, [3, 3], [2, 2], [1, 1, 1, 1]),
    "move": lambda build, data: relax.op.permute_dims(build.emit(relax.op.reshape(data, [6, 45])), [1, 0]),
    "pad": lambda _, data: relax.op.nn.pad(data, [0, 0, 0, 0, 1, 2, 0, 3], "constant", 9),
    "clip": lambda _, data: relax.op.clip(data, 100, 180),
    "float": lambda _, data: relax.op.astype(data, "float32"),
    "integer": lambda _, data: relax.op.astype(data, "int32"),
}


@pytest.mark.parametrize("given", ["float32", "uint8"])
@pytest.mark.parametrize("name", CASES)
def test_numbers_stay_the_same(name: str, given: str) -> None:
    build = Build()
    x = build.input("x", [2, 3, 9, 5], given)
    data = quantized(build, x, 130) if given == "float32" else x
    module = build.module(build.emit(CASES[name](build, data)))
    signed = sign_integers(module, CONTEXT)
    random = np.random.default_rng(2)
    values = random.integers(0, 256, (2, 3, 9, 5)).astype("uint8")
    array = (4 * random.standard_normal(values.shape)).astype("float32") if given == "float32" else values
    for found, expected in zip(run_module(signed, array), run_module(module, array), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    if given == "float32" or name == "convolution":
        assert signed is not module
