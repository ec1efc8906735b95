"""Transposed convolutions of quantized tensors: interleaved plain ones, in integers, against exact sums."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import IRModule

import compiler
from compiler.compression.quantization.affine import Affine, QuantizedWeight
from compiler.compression.quantization.insertion import dequantized_weight
from compiler.passes.rewriting.constant_products import Interleaved
from compiler.passes.rewriting.matching import as_constant

Array = NDArray[Any]
# Sizes of the data, the kernel, strides, padding, output padding, groups.
GEOMETRIES = (
    ((5, 7), (2, 2), (2, 2), (0, 0), (0, 0), 1),
    ((5, 7), (4, 4), (2, 2), (1, 1), (0, 0), 1),
    ((4, 5), (3, 5), (2, 3), (1, 2), (1, 2), 1),
    ((4, 4), (3, 3), (1, 1), (1, 1), (0, 0), 1),
    ((1, 1), (4, 4), (1, 1), (0, 0), (0, 0), 1),
    ((3, 4), (2, 1), (3, 4), (0, 0), (2, 3), 1),
    ((6, 5), (4, 4), (2, 2), (1, 1), (0, 0), 4),
    ((9,), (5,), (3,), (2,), (1,), 1),
    ((3, 4, 3), (2, 3, 2), (2, 1, 2), (0, 1, 0), (0, 0, 0), 1),
)


def _transposed(data: Any, weight: Any, geometry: tuple[Any, ...]) -> Any:
    _, kernel, strides, padding, extra, groups = geometry
    rank = len(kernel)
    function = getattr(relax.op.nn, f"conv{rank}d_transpose")
    return function(data, weight, strides=strides, padding=padding * 2, output_padding=extra, groups=groups)


def _exact(data: Array, weight: Array, geometry: tuple[Any, ...]) -> Array:
    _, kernel, strides, padding, extra, groups = geometry
    function = getattr(torch.nn.functional, f"conv_transpose{len(kernel)}d")
    operands = (torch.from_numpy(each.astype(np.float64)) for each in (data, weight))
    result: Array = function(*operands, None, strides, padding, extra, groups).numpy()
    return result


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_interleaving_gives_the_transposed_one(geometry: tuple[Any, ...]) -> None:
    generator = np.random.default_rng(0)
    sizes, kernel, *_, groups = geometry
    values = generator.standard_normal((8, 12 // groups, *kernel)).astype(np.float32)
    data = relax.Var("data", relax.TensorType((2, 8, *sizes), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [data]):
        with builder.dataflow():
            form = Interleaved.of(builder.normalize(_transposed(data, as_constant(values), geometry)))
            assert form is not None
            plain = builder.emit(form.convolution(data, as_constant(form.kernels(values)), "float32"))
            output = builder.emit_output(form.interleave(plain, builder.emit))
        builder.emit_func_output(output)
    inputs = generator.standard_normal((2, 8, *sizes)).astype(np.float32)
    (got,) = compiler.compile(builder.get(), threads=1).run([inputs]).values()
    np.testing.assert_allclose(got, _exact(inputs, values, geometry), rtol=1e-4, atol=1e-4)


def _module(weight: QuantizedWeight, geometry: tuple[Any, ...], x: Affine, y: Affine, bias: Array) -> IRModule:
    data = relax.Var("data", relax.TensorType((1, weight.values.shape[0], *geometry[0]), x.dtype))
    builder = relax.BlockBuilder()

    def parameters(of: Affine) -> tuple[Any, Any]:
        return as_constant(np.asarray(of.scale, np.float32)), as_constant(np.asarray(of.zero, of.dtype))

    with builder.function("main", [data]):
        with builder.dataflow():
            wide = builder.emit(relax.op.dequantize(data, *parameters(x), -1, "float32"))
            product = builder.emit(_transposed(wide, builder.emit(dequantized_weight(weight)), geometry))
            total = builder.emit(relax.op.add(product, as_constant(bias.reshape(-1, *[1] * len(geometry[0])))))
            limited = builder.emit(relax.op.nn.relu(total))
            output = builder.emit_output(relax.op.quantize(limited, *parameters(y), -1, y.dtype))
        builder.emit_func_output(output)
    return builder.get()


@pytest.mark.parametrize("geometry", [each for each in GEOMETRIES if each[5] == 1])
def test_quantized_ones_compute_in_integers(geometry: tuple[Any, ...]) -> None:
    """All scales are powers of two, so that every step is exact: the sum rounded, halves to even."""
    generator = np.random.default_rng(1)
    integers = generator.integers(-127, 128, (16, 24, *geometry[1])).astype(np.int8)
    scales = (2.0 ** generator.integers(-6, -2, 24)).astype(np.float32)
    x, y = Affine("uint8", 0.125, 131), Affine("uint8", 4.0, 3)
    steps = generator.integers(-900, 900, 24)
    weight = QuantizedWeight(integers, scales, 1)
    bias = (steps * scales * x.scale).astype(np.float32)
    mod = _module(weight, geometry, x, y, bias)
    module = compiler.compile(mod, threads=1)
    kernels = " ".join(kernel.kernel for kernel in module.manifest.kernels)
    assert "conv" in kernels
    assert "quantize" in kernels
    assert not re.search(r"d_transpose|dequantize", kernels)
    data = generator.integers(0, 256, (1, 16, *geometry[0])).astype(np.uint8)
    sums = _exact(data.astype(np.int64) - x.zero, integers, geometry)
    spread = (1, -1, *[1] * len(geometry[0]))
    exact = (sums + steps.reshape(spread)) * (scales.astype(np.float64).reshape(spread) * x.scale / y.scale)
    expected = np.clip(np.rint(np.maximum(exact, 0)) + y.zero, 0, 255)
    (got,) = module.run([data]).values()
    np.testing.assert_array_equal(got, expected)
