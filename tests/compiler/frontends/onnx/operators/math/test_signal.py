"""DFT, STFT and MelWeightMatrix against numpy.fft in float64 and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.errors import InputError, InvalidModelError
from tests.compiler.frontends.onnx.operators.onnxruntime_check import assert_equal_to_onnxruntime, node_model
from tests.coverage.tvm_pipeline import import_and_build

# float32 sums of up to a thousand products of order one, against float64.
TOLERANCE = 5e-6


def dft(
    signal: np.ndarray[Any, Any], length: int | None, size: str | None = None, **attributes: Any
) -> np.ndarray[Any, Any]:
    """Our DFT along axis 1, whose size in the model may be symbolic."""
    initializers = [numpy_helper.from_array(np.array(1, np.int64), "axis")]
    if length is not None:
        initializers.append(numpy_helper.from_array(np.array(length, np.int64), "length"))
    node = helper.make_node("DFT", ["x", "" if length is None else "length", "axis"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "dft",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size or signal.shape[1], *signal.shape[2:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    # TVM's own pipeline does not build matrices of computed roots: it takes a float for an integer.
    run = import_and_build(model) if size is None else compiler.compile(model, threads=1).run
    result: np.ndarray[Any, Any] = run({"x": signal})["y"]
    return result


def parts(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack([values.real, values.imag], axis=-1)


def assert_close(ours: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("length", [1, 2, 9, 13, 60, 512, 521])
@pytest.mark.parametrize("inverse", [False, True])
def test_complex(length: int, inverse: bool) -> None:
    signal = np.random.default_rng(length).standard_normal((3, length, 2)).astype(np.float32)
    values = signal[..., 0].astype(np.float64) + 1j * signal[..., 1]
    transform = np.fft.ifft if inverse else np.fft.fft
    assert_close(dft(signal, None, inverse=int(inverse)), parts(transform(values, axis=1)))


@pytest.mark.parametrize(("samples", "length"), [(8, 8), (8, 5), (8, 13), (400, 400), (7, 7)])
def test_onesided_and_back(samples: int, length: int) -> None:
    signal = np.random.default_rng(samples).standard_normal((2, samples, 1)).astype(np.float32)
    spectrum = parts(np.fft.rfft(signal[..., 0].astype(np.float64), length, axis=1))
    assert_close(dft(signal, length, onesided=1), spectrum)
    back = np.fft.irfft(spectrum[..., 0] + 1j * spectrum[..., 1], length, axis=1)[..., None]
    assert_close(dft(spectrum.astype(np.float32), length, onesided=1, inverse=1), back)


@pytest.mark.parametrize("inverse", [False, True])
def test_complex_of_dynamic_length(inverse: bool) -> None:
    signal = np.random.default_rng(0).standard_normal((3, 30, 2)).astype(np.float32)
    values = signal[..., 0].astype(np.float64) + 1j * signal[..., 1]
    transform = np.fft.ifft if inverse else np.fft.fft
    for length in (None, 21, 37):
        found = dft(signal, length, "n", inverse=int(inverse))
        assert_close(found, parts(transform(values, length or 30, axis=1)))


def test_dynamic_length_is_at_least_one() -> None:
    with pytest.raises(InputError, match="at least 1"):
        dft(np.zeros((1, 0, 1), np.float32), None, "n")


@pytest.mark.parametrize(("samples", "length"), [(8, 5), (9, 13), (40, None)])
def test_onesided_and_back_of_dynamic_length(samples: int, length: int | None) -> None:
    signal = np.random.default_rng(samples).standard_normal((2, samples, 1)).astype(np.float32)
    spectrum = parts(np.fft.rfft(signal[..., 0].astype(np.float64), length or samples, axis=1))
    assert_close(dft(signal, length, "n", onesided=1), spectrum)
    back = np.fft.irfft(spectrum[..., 0] + 1j * spectrum[..., 1], length or samples, axis=1)[..., None]
    assert_close(dft(spectrum.astype(np.float32), length, "n", onesided=1, inverse=1), back)


@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(onesided: int) -> None:
    generator = np.random.default_rng(0)
    inputs: dict[str, np.ndarray[Any, Any]] = {
        "signal": generator.standard_normal((2, 200, 1)).astype(np.float32),
        "frame_step": np.array(17, np.int64),
        "window": generator.uniform(0, 1, 64).astype(np.float32),
        "frame_length": np.array(64, np.int64),
    }
    model = node_model("STFT", inputs, constants=["frame_step", "frame_length"], onesided=onesided)
    assert_equal_to_onnxruntime(model, {key: inputs[key] for key in ("signal", "window")}, atol=1e-4)


def test_transform_along_the_complex_pair_is_refused() -> None:
    node = node_model("DFT", {"x": np.zeros((1, 4, 2), np.float32)}, axis=2)
    with pytest.raises(InvalidModelError, match="last axis"):
        import_and_build(node)
