"""Any calibration data, metric or option gives a result or one clear error, never a stray exception."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import compiler
from compiler.errors import AccuracyError, InputError, OptionError
from tests.compiler.compression.quantization.networks import _model, chain_net, samples

NET = chain_net(2)
SAMPLES = samples((4, 16), 2)
X = SAMPLES[0]["x"]
SCHEMES = ("static-int8", "dynamic-int8", "weight-int4")


def failing_samples() -> Iterator[dict[str, Any]]:
    yield SAMPLES[0]
    raise ValueError("the disk is gone")


@pytest.mark.parametrize(
    ("calibration", "error", "words"),
    [
        (5, OptionError, "is an int"),
        ("samples.npz", OptionError, "is a str"),
        (X, OptionError, "is an ndarray"),
        (SAMPLES[0], OptionError, "is a dict"),
        ([X], OptionError, r"\[0\] is an ndarray"),
        (iter([]), OptionError, "no samples"),
        (failing_samples(), OptionError, "ValueError: the disk is gone"),
        ([{"x": np.where(X > 1, np.nan, X)}], InputError, "NaN in 'x'"),
        ([{"x": X[:, :8]}], InputError, "must be 16"),
        ([SAMPLES[0], {"x": X[:2]}], InputError, "must be 4"),
        ([{"x": X.astype(np.float64)}], InputError, "float64"),
        ([{"x": "words"}], InputError, "element type"),
        ([{"x": X, 3: X}], InputError, "'3'"),
    ],
)
@pytest.mark.parametrize("scheme", ["static-int8", "weight-int4"])
def test_calibration(scheme: str, calibration: Any, error: type[Exception], words: str) -> None:
    if isinstance(calibration, Iterator):
        calibration = failing_samples() if "disk" in words else iter([])
    with pytest.raises(error, match=words):
        compiler.quantize(NET, calibration, scheme=scheme, threads=1)


def raising(run: Any) -> float:
    raise KeyError("label")


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        (0.9, "is a float"),
        (raising, "failed: KeyError: 'label'"),
        (lambda run: None, "returned None"),
        (lambda run: "good", "returned good"),
        (lambda run: np.zeros(3), "returned an ndarray"),
        (lambda run: float("inf"), "returned inf"),
    ],
)
def test_evaluate(evaluate: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        compiler.quantize(NET, SAMPLES, evaluate=evaluate, threads=1)


def test_what_evaluate_does_wrong_with_the_module_is_said_as_it_is() -> None:
    with pytest.raises(InputError, match="'y'"):
        compiler.quantize(NET, SAMPLES, evaluate=lambda run: len(run({"y": X})), threads=1)


@pytest.mark.parametrize(
    "options",
    [
        {"max_drop": "1%"},
        {"max_drop": float("nan")},
        {"max_drop": None},
        {"max_drop": 1.0},
        {"techniques": "smoothing"},
        {"techniques": None},
        {"techniques": ["magic"]},
        {"techniques": ["smoothing", 5, []]},
        {"in_float": "m0"},
        {"method": None},
        {"method": "best"},
        {"activations": "int4"},
        {"scheme": None},
        {"scheme": "weight-int4", "group": "64"},
    ],
)
def test_options(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        compiler.quantize(NET, SAMPLES, threads=1, **options)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_to_quantize(scheme: str) -> None:
    relu = _model([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": (4, 16)}, "y")
    with pytest.raises(AccuracyError, match="no layer that this scheme quantizes"):
        compiler.quantize(relu, SAMPLES, scheme=scheme, threads=1)


@pytest.mark.parametrize("scheme", [*SCHEMES, "weight-int8", "float16", "bfloat16"])
def test_a_layer_with_infinite_weights_stays_in_float(scheme: str) -> None:
    net = onnx.ModelProto()
    net.CopyFrom(NET)
    weight = numpy_helper.to_array(net.graph.initializer[0]).copy()
    weight[3] = np.inf  # the ReLU behind it makes them infinite or 0
    net.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, net.graph.initializer[0].name))
    try:
        report = compiler.quantize(net, [{"x": np.abs(X)}], scheme=scheme, threads=1).report
    except (AccuracyError, InputError) as error:
        assert "infinite" in str(error)  # noqa: PT017
        return
    assert [layer.reason for layer in report.in_float] == ["its weights hold NaN or infinite numbers"]


@pytest.mark.parametrize("value", [np.inf, 3e38])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_infinite_and_huge_data_come_to_an_end(scheme: str, value: float) -> None:
    data = X.copy()
    data[0, 0] = value
    try:
        report = compiler.quantize(NET, [{"x": data}], scheme=scheme, max_drop=0.99, threads=1).report
    except (AccuracyError, InputError):
        return
    assert np.isfinite(report.after)
