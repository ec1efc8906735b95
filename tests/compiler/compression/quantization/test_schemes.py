"""Schemes other than the static one: results, bytes, layers in float, and the limit."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compiler
from compiler.compression.quantization.rounding import rounded_by_gptq, rounded_to_nearest
from compiler.errors import AccuracyError, OptionError
from tests.compiler.compression.quantization.networks import (
    chain_net,
    convolution_chain,
    residual_net,
    samples,
    upsampling_net,
)
from tests.compiler.compression.quantization.test_quantize import onnxruntime_outputs, snr

# Decibels that the outputs of two products must keep, and bytes of a weight.
SCHEMES = {
    "weight-int4": (14, 0.5),
    "weight-int8": (35, 1),
    "dynamic-int8": (32, 1),
    "float16": (60, 2),
    "bfloat16": (42, 2),
}
WIDTH = 96


@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers_and_bytes(scheme: str) -> None:
    net = chain_net(2, WIDTH)
    quantized = compiler.quantize(net, samples((4, WIDTH)), scheme=scheme, group=32, max_drop=0.1, threads=1)
    assert quantized.report.scheme == scheme
    assert all(layer.integer for layer in quantized.report.layers)
    module = compiler.compile(quantized, threads=1)
    unseen = samples((4, WIDTH), 1, seed=9)[0]
    least, bytes_ = SCHEMES[scheme]
    assert snr(module.run(unseen)["y"], onnxruntime_outputs(net, unseen)) > least
    stored = sum(parameter.nbytes for parameter in module.manifest.parameters)
    columns = 128  # whole panels
    scales = 2 * 2 * columns * WIDTH // 32 if scheme.startswith("weight") else 2 * 4 * 3 * columns
    assert stored <= 2 * WIDTH * columns * bytes_ + scales


# The filters of the chain differ by a factor of 100, and one scale serves what all of them give.
@pytest.mark.parametrize(
    ("net", "shape", "least"), [(residual_net(), (2, 8, 6, 6), 30), (convolution_chain(), (1, 4, 6, 6), 20)]
)
def test_convolutions_by_dynamic_integers_are_near(net: object, shape: tuple[int, ...], least: float) -> None:
    quantized = compiler.quantize(net, scheme="dynamic-int8", threads=1)
    assert quantized.report.generated
    unseen = samples(shape, 1, seed=9)[0]
    got = compiler.compile(quantized, threads=1).run(unseen)["y"]
    assert snr(got, onnxruntime_outputs(net, unseen)) > least
    assert len(re.findall(r'out_dtype="int32"', quantized.mod.script())) == 3


def test_each_row_has_its_own_scale() -> None:
    net = chain_net(1, WIDTH)
    module = compiler.compile(compiler.quantize(net, scheme="dynamic-int8", threads=1), threads=1)
    data = samples((4, WIDTH), 1)[0]["x"]
    factors = np.array([[1], [1e-6], [1e6], [0]], np.float32)
    got, wanted = (module.run({"x": each})["y"] for each in (data * factors, data))
    np.testing.assert_allclose(got, wanted * factors, rtol=1e-5)


@pytest.mark.parametrize("techniques", [(), ("adaround",)])
def test_filters_are_bytes_where_weights_alone_are_rounded(techniques: tuple[str, ...]) -> None:
    net, data = residual_net(channels=32), samples((2, 32, 6, 6))
    quantized = compiler.quantize(net, data, scheme="weight-int8", techniques=techniques, threads=1)
    assert all(layer.integer for layer in quantized.report.layers)
    assert quantized.report.size.integer_bytes < 0.4 * quantized.report.size.float_bytes
    unseen = samples((2, 32, 6, 6), 1, seed=9)[0]
    got = compiler.compile(quantized, threads=1).run(unseen)["y"]
    assert snr(got, onnxruntime_outputs(net, unseen)) > 35


# Decibels that transposed convolutions must keep.
@pytest.mark.parametrize(
    ("scheme", "least"), [("static-int8", 30), ("dynamic-int8", 30), ("weight-int8", 35), ("float16", 60)]
)
def test_transposed_convolutions(scheme: str, least: float) -> None:
    net, data = upsampling_net(), samples((1, 16, 5, 5))
    quantized = compiler.quantize(net, data, scheme=scheme, keep_slower=True, threads=1)
    assert all(layer.integer for layer in quantized.report.layers)
    assert quantized.report.size.integer_bytes < 0.7 * quantized.report.size.float_bytes
    unseen = samples((1, 16, 5, 5), 1, seed=9)[0]
    module = compiler.compile(quantized, threads=1)
    assert snr(module.run(unseen)["y"], onnxruntime_outputs(net, unseen)) > least
    kernels = [kernel.kernel for kernel in module.manifest.kernels]
    assert scheme != "static-int8" or sum("dequantize" in kernel for kernel in kernels) <= 1, kernels


def test_the_limit_sends_the_worst_back_and_fails_where_none_is_left() -> None:
    net, data = chain_net(3, 32), samples((4, 32))
    score = compiler.quantize(net, data, scheme="weight-int4", max_drop=0.5, threads=1).report.drop
    report = compiler.quantize(net, data, scheme="weight-int4", max_drop=score * 0.8, threads=1).report
    assert report.drop <= score * 0.8
    assert 1 <= len(report.in_float) < 3
    with pytest.raises(AccuracyError):
        compiler.quantize(net, data, scheme="weight-int4", max_drop=1e-9, threads=1)


@pytest.mark.parametrize(
    "arguments",
    [{"scheme": "int3"}, {"scheme": "weight-int4", "group": 7}, {"scheme": "weight-int4", "scales": "int8"}, {}],
)
def test_bad_options(arguments: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        compiler.quantize(chain_net(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_lessens_the_error_of_products(bits: int) -> None:
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((8, 64)).astype(np.float32)  # the data has 8 directions
    data = generator.standard_normal((500, 8)).astype(np.float32) @ mixing
    data += 0.05 * generator.standard_normal(data.shape).astype(np.float32)
    weight = generator.standard_normal((64, 24)).astype(np.float32)

    def error(values: np.ndarray, scales: np.ndarray) -> float:
        wide = values * np.repeat(scales, 32, 0)
        return float(np.linalg.norm(data @ (wide - weight)))

    nearest = error(*rounded_to_nearest(weight, 32, bits, "float16"))
    corrected = error(*rounded_by_gptq(weight, data.T @ data, 32, bits, "float16"))
    assert corrected < nearest / 2


@settings(max_examples=11, deadline=None)
@given(seed=st.integers(0, 1000), depth=st.integers(1, 40))
def test_nearest_is_nearest_in_exact_arithmetic(seed: int, depth: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((depth, 2)).astype(np.float32)
    values, scales = rounded_to_nearest(weight, 16, 4, "float32")
    for row in range(depth):
        for column in range(2):
            exact, step = Fraction(float(weight[row, column])), Fraction(float(scales[row // 16, column]))
            own = abs(exact - step * int(values[row, column]))
            least = min(abs(exact - step * level) for level in range(-8, 8))
            assert own <= least + step / 10**6  # float32 decides between levels that are equally near


def test_a_column_without_data_keeps_gptq_going() -> None:
    weight = np.ones((16, 3), np.float32)
    values, scales = rounded_by_gptq(weight, np.zeros((16, 16), np.float32), 16, 4, "float16")
    np.testing.assert_allclose(values * scales, weight, rtol=0.05)
