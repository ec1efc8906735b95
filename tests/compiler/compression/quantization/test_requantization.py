"""Kernels between two quantized tensors against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax

import compiler
from compiler.compression.quantization.affine import affine_for, quantize_weight
from compiler.compression.quantization.insertion import dequantized_weight
from compiler.passes.rewriting.matching import as_constant

Array = NDArray[Any]
_ROWS, _TERMS, _FILTERS = 4, 16, 8


def requantizing_module(weight: Array, bias: Array, x: Any, y: Any) -> tuple[Any, Array, Array]:
    """quantize(dequantize(x) @ dequantize(w) + bias); the module, the integer weights and their scales."""
    quantized = quantize_weight(weight, 1, per_channel=True)
    scale, zero = as_constant(np.asarray(x.scale, np.float32)), as_constant(np.asarray(x.zero, x.dtype))
    data = relax.Var("data", relax.TensorType((_ROWS, _TERMS), x.dtype))
    builder = relax.BlockBuilder()
    with builder.function("main", [data]):
        with builder.dataflow():
            left = builder.emit(relax.op.dequantize(data, scale, zero, -1, "float32"))
            product = builder.emit(relax.op.matmul(left, builder.emit(dequantized_weight(quantized))))
            total = builder.emit(relax.op.add(product, as_constant(bias)))
            step, offset = as_constant(np.asarray(y.scale, np.float32)), as_constant(np.asarray(y.zero, y.dtype))
            result = builder.emit_output(relax.op.quantize(total, step, offset, -1, y.dtype))
        builder.emit_func_output(relax.Tuple([result]))
    return compiler.compile(builder.get(), threads=1), quantized.values, quantized.scale


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("seed", range(3))
def test_requantization_is_the_exact_value_rounded(dtype: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = affine_for(-float(generator.uniform(0, 3)), float(generator.uniform(0.5, 5)), dtype)
    y = affine_for(-float(generator.uniform(0, 3)), float(generator.uniform(0.5, 5)), dtype)
    weight = generator.standard_normal((_TERMS, _FILTERS)).astype(np.float32)
    steps = np.rint(generator.standard_normal(_FILTERS) * 500).astype(np.int64)
    scales = quantize_weight(weight, 1, per_channel=True).scale
    bias = (steps * (np.float64(x.scale) * scales)).astype(np.float32)
    module, integers, scales = requantizing_module(weight, bias, x, y)
    info = np.iinfo(dtype)
    data = generator.integers(info.min, info.max + 1, (_ROWS, _TERMS)).astype(dtype)
    got = next(iter(module.run({"data": data}).values()))
    sums = (data.astype(np.int64) - x.zero) @ integers.astype(np.int64) + steps
    for row in range(_ROWS):
        for column in range(_FILTERS):
            exact = Fraction(int(sums[row, column])) * Fraction(x.scale) * Fraction(float(scales[column]))
            exact /= Fraction(y.scale)
            limited = min(max(exact, Fraction(int(info.min) - y.zero)), Fraction(int(info.max) - y.zero))
            distance = abs(Fraction(int(got[row, column]) - y.zero) - limited)
            # The factor and the product are rounded to float32, 2**-24 each: only so near to a tie may it turn.
            assert distance <= Fraction(1, 2) + abs(limited) * Fraction(1, 2**20), (row, column)
