"""Requantization against rational arithmetic with the kernels' documented rounding, bit for bit including ties.

The rounding of every target: the sum as float32, times the factor as float32 (each to nearest, halves to even), to the
nearest integer (halves to even), limited. The factor is (x.scale * w.scale) / y.scale, each step rounded to float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import IRModule

import compiler
from compiler.compression.quantization.affine import Affine, QuantizedWeight
from compiler.compression.quantization.insertion import dequantized_weight, pair
from compiler.passes.rewriting.matching import as_constant
from tests.compiler.compression.quantization.networks import residual_net
from tests.compiler.device.emulators import target_that_runs

Array = NDArray[Any]
_FILTERS = 32
# An eighth and dyadic neighbours give ties in plenty, the others every other way to round.
_SCALES = (0.125, 0.5, 0.375, 0.0625, 1.0, 3.0, 0.1, 1 / 3, 0.0171, 1e-4, 7.77, 0.2)
# The seed, the types of data and results, and the step of the results.
_CASES = ((0, "uint8", "uint8", 2.0), (1, "uint8", "int8", 4.0), (2, "int8", "int8", 9.7))
_BITS = 24  # of a float32's significand


def nearest(value: Fraction) -> int:
    """The nearest integer, halves to even."""
    return round(value)


def as_float32(value: Fraction) -> Fraction:
    """The nearest float32 of normal size, halves to even."""
    if value == 0:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (exponent - _BITS + 1)
    return nearest(value / step) * step


def factor_of(x: float, weight: float, y: float) -> Fraction:
    """Compute the factor like the kernels, step by step."""
    product = as_float32(Fraction(float(np.float32(x))) * Fraction(float(np.float32(weight))))
    return as_float32(product / Fraction(float(np.float32(y))))


def requantized(total: int, factor: Fraction, y: Affine) -> int:
    """Requantize a sum to an integer."""
    info = np.iinfo(y.dtype)
    rounded = nearest(as_float32(as_float32(Fraction(total)) * factor))
    return int(min(max(rounded + y.zero, int(info.min)), int(info.max)))


@dataclass(frozen=True)
class Case:
    """Three kernels in one module: a matmul, a convolution, a depthwise convolution; each adds `steps` and quantizes
    to `y`; its data has the parameters `x`."""

    x: Affine
    y: Affine
    scales: Array
    steps: Array
    matrix: Array  # (depth, filters)
    filters: Array  # (filters, channels, 3, 3)
    planes: Array  # (filters, 1, 3, 3)

    def module(self) -> IRModule:
        shapes = ((6, self.matrix.shape[0]), (1, self.filters.shape[1], 5, 5), (1, _FILTERS, 5, 5))
        data = [relax.Var(f"x{index}", relax.TensorType(shape, self.x.dtype)) for index, shape in enumerate(shapes)]
        builder = relax.BlockBuilder()
        with builder.function("main", data):
            with builder.dataflow():
                floats = [builder.emit(dequantized(each, self.x)) for each in data]
                weights = [
                    builder.emit(dequantized_weight(QuantizedWeight(values, self.scales, axis)))
                    for values, axis in ((self.matrix, 1), (self.filters, 0), (self.planes, 0))
                ]
                sums = [
                    relax.op.matmul(floats[0], weights[0]),
                    relax.op.nn.conv2d(floats[1], weights[1], padding=1),
                    relax.op.nn.conv2d(floats[2], weights[2], padding=1, groups=_FILTERS),
                ]
                results = [self._quantized(each, index, builder) for index, each in enumerate(sums)]
                output = builder.emit_output(relax.Tuple(results))
            builder.emit_func_output(output)
        return builder.get()

    def _quantized(self, product: Any, index: int, builder: Any) -> Any:
        bias = (self.steps * (np.float64(np.float32(self.x.scale)) * self.scales)).astype(np.float32)
        shape = (_FILTERS,) if index == 0 else (_FILTERS, 1, 1)
        total = builder.emit(relax.op.add(builder.emit(product), as_constant(bias.reshape(shape))))
        step, zero = (
            as_constant(np.asarray(self.y.scale, np.float32)),
            as_constant(np.asarray(self.y.zero, self.y.dtype)),
        )
        return builder.emit(relax.op.quantize(total, step, zero, -1, self.y.dtype))

    def inputs(self, generator: np.random.Generator) -> list[Array]:
        info = np.iinfo(self.x.dtype)
        return [
            generator.integers(info.min, info.max + 1, [int(size) for size in variable.ty.shape]).astype(self.x.dtype)
            for variable in self.module()["main"].params
        ]

    def sums(self, data: list[Array]) -> list[Array]:
        """int64, without the steps; filters along axis 1."""
        first, second, third = (each.astype(np.int64) - self.x.zero for each in data)
        return [first @ self.matrix.astype(np.int64), _convolved(second, self.filters), _convolved(third, self.planes)]

    def expected(self, data: list[Array]) -> list[Array]:
        """Compute the expected integers by definition, in integers and rationals."""
        factors = [factor_of(self.x.scale, float(each), self.y.scale) for each in self.scales]
        results = []
        for total in self.sums(data):
            result = np.empty(total.shape, self.y.dtype)
            for place in np.ndindex(*total.shape):
                channel = place[1]
                result[place] = requantized(int(total[place]) + int(self.steps[channel]), factors[channel], self.y)
            results.append(result)
        return results


def dequantized(data: Any, affine: Affine) -> Any:
    """Integers as floats."""
    scale, zero = as_constant(np.asarray(affine.scale, np.float32)), as_constant(np.asarray(affine.zero, affine.dtype))
    return relax.op.dequantize(data, scale, zero, -1, "float32")


def _convolved(data: Array, filters: Array) -> Array:
    """3x3, padded by one; of filters with one channel each its own plane."""
    padded = np.pad(data, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = data.shape[2:]
    result = np.zeros((1, len(filters), height, width), np.int64)
    for row, column in np.ndindex(3, 3):
        window = padded[:, :, row : row + height, column : column + width]
        taps = filters[:, :, row, column].astype(np.int64)
        result += window * taps.T[..., None, None] if taps.shape[1] == 1 else np.einsum("nchw,fc->nfhw", window, taps)
    return result


def random_case(seed: int, operand: str, result: str, step: float) -> Case:
    """Integers of every size, and scales with many ties if the result's `step` is a power of two."""
    generator = np.random.default_rng(seed)
    info = np.iinfo(result)
    scales = np.asarray([_SCALES[each] for each in generator.integers(0, len(_SCALES), _FILTERS)], np.float32)
    symmetric = operand == "int8"
    x = Affine(operand, 0.5, 0 if symmetric else int(generator.integers(0, 256)))
    y = Affine(result, step, int(generator.integers(info.min, info.max + 1)))
    magnitudes = generator.permutation([2, 9, 127])

    def integers(magnitude: int, *shape: int) -> Array:
        return generator.integers(-magnitude, magnitude + 1, shape).astype(np.int8)

    steps = (
        generator.standard_normal(_FILTERS) * generator.choice([3, 500, 2**25], _FILTERS, p=[0.5, 0.4, 0.1])
    ).astype(np.int64)
    return Case(
        x,
        y,
        scales,
        steps,
        integers(int(magnitudes[0]), 21, _FILTERS),
        integers(int(magnitudes[1]), _FILTERS, 8, 3, 3),
        integers(int(magnitudes[2]), _FILTERS, 1, 3, 3),
    )


@pytest.mark.parametrize("name", ["host", "raspberry-pi-4", "graviton3"])
@pytest.mark.parametrize("number", range(len(_CASES)))
def test_results_are_the_defined_ones_bit_for_bit(name: str, number: int) -> None:
    case = random_case(*_CASES[number])
    target = "host" if name == "host" else target_that_runs(name)
    module = compiler.compile(case.module(), target, threads=1)
    assert not [kernel for kernel in module.manifest.kernels if "dequantize" in kernel.kernel], "computed in float"
    data = case.inputs(np.random.default_rng(number))
    for index, (got, expected) in enumerate(zip(module.run(data).values(), case.expected(data), strict=True)):
        np.testing.assert_array_equal(got, expected, err_msg=f"output {index}")


def test_halves_are_met() -> None:
    """Without ties, the cases above could not distinguish ways of rounding halves."""
    case = random_case(*_CASES[0])
    data = case.inputs(np.random.default_rng(0))
    sums = [each.swapaxes(1, -1).reshape(-1, _FILTERS) + case.steps for each in case.sums(data)]
    factors = [factor_of(case.x.scale, float(each), case.y.scale) for each in case.scales]
    exact = [int(total) * factor for row in np.concatenate(sums) for total, factor in zip(row, factors, strict=True)]
    halves = [each for each in exact if each.denominator == 2 and 0 <= each + case.y.zero < 255]
    assert {nearest(each) - (each - Fraction(1, 2)) for each in halves} == {0, 1}, "halves that go up and that go down"


def test_additions_are_the_exact_sums_rounded() -> None:
    """quantize(dequantize(a) + dequantize(b)): rounded with the zero point included, like ONNX Runtime's QLinearAdd,
    which rounds halves the other way if the zero point is odd. With these scales every step is exact in float32."""
    generator = np.random.default_rng(5)
    parameters, y = (Affine("uint8", 0.5, 13), Affine("uint8", 0.25, 200)), Affine("uint8", 1.0, 7)
    variables = [relax.Var(name, relax.TensorType((64, 64), "uint8")) for name in "ab"]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            floats = [builder.emit(dequantized(*each)) for each in zip(variables, parameters, strict=True)]
            output = builder.emit_output(pair(builder.emit(relax.op.add(*floats)), y, builder.emit))
        builder.emit_func_output(output)
    a, b = (generator.integers(0, 256, (64, 64)).astype(np.uint8) for _ in range(2))
    quarters = (a.astype(np.int64) - 13) * 2 + (b.astype(np.int64) - 200)
    expected = np.clip(np.rint(quarters / 4 + y.zero), 0, 255) - y.zero
    for target in ("host", target_that_runs("graviton3")):
        (got,) = compiler.compile(builder.get(), target, threads=1).run([a, b]).values()
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["raspberry-pi-4", "graviton3"])
def test_a_quantized_net_gives_the_same_bits_on_arm(name: str) -> None:
    """A net quantized for this machine: convolutions, residual sums, pooling and a matmul."""
    generator = np.random.default_rng(3)
    samples = [{"x": generator.standard_normal((2, 8, 6, 6)).astype(np.float32)} for _ in range(4)]
    quantized = compiler.quantize(residual_net(), samples, evaluate=lambda run: 1.0, keep_slower=True, threads=1)
    assert all(layer.integer for layer in quantized.report.layers)
    here, there = (compiler.compile(quantized, each, threads=1) for each in ("host", target_that_runs(name)))
    for sample in samples:
        np.testing.assert_array_equal(here.run(sample)["y"], there.run(sample)["y"])
