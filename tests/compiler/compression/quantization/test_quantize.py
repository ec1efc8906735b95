"""`quantize` from a model and its data to integers, with satisfiable and unsatisfiable limits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
from compiler.errors import AccuracyError, InputError, OptionError
from tests.compiler.compression.quantization.networks import chain_net, residual_net, samples

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def snr(got: np.ndarray, expected: np.ndarray) -> float:
    difference = got.astype(np.float64) - expected
    return float(10 * np.log10((expected.astype(np.float64) ** 2).sum() / (difference**2).sum()))


def onnxruntime_outputs(model: Any, inputs: Mapping[str, Any]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(inputs))[0])


def test_a_net_computes_in_integers_and_is_near_the_float_one(tmp_path: Path) -> None:
    net, data = residual_net(), samples((2, 8, 6, 6))
    quantized = compiler.quantize(net, data, method="min-max", threads=1)
    assert quantized.report.drop < 1e-3
    assert all(layer.integer for layer in quantized.report.layers)
    # What feeds each product is rounded to 8 bits: 6 dB a bit, less what the range leaves unused.
    assert all(layer.noise is not None and layer.noise > 25 for layer in quantized.report.layers)
    text = quantized.mod.script()
    assert len(re.findall(r"R\.quantize\(", text)) == 5  # x, r1, r2, the pooled tensor, the mean
    module = compiler.compile(quantized, threads=1)
    unseen = samples((2, 8, 6, 6), 1, seed=9)[0]
    assert snr(module.run(unseen)["y"], onnxruntime_outputs(net, unseen)) > 25
    quantized.report.save(tmp_path / "report.html")
    assert quantized.report.layers[0].name in (tmp_path / "report.html").read_text()


def test_the_worst_layer_goes_back_to_float() -> None:
    quantized = compiler.quantize(
        chain_net(spoiled=1),
        samples((4, 16), 2),
        max_drop=0.01,
        per_channel=False,
        method="min-max",
        keep_slower=True,
        threads=1,
    )
    report = quantized.report
    assert report.drop <= 0.01
    assert report.evaluations == 2
    assert [layer.name for layer in report.in_float] == [report.layers[1].name]
    assert "sensitive" in report.in_float[0].reason
    scores = [layer.sensitivity for layer in report.layers]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[1] < scores[0] - 10


def test_a_limit_that_can_not_hold_is_an_error() -> None:
    calls: list[int] = []

    def evaluate(run: Run) -> float:
        calls.append(1)
        return 1.0 if len(calls) == 1 else 0.5

    with pytest.raises(AccuracyError, match=r"at best 0\.5"):
        compiler.quantize(chain_net(2), samples((4, 16), 1), evaluate=evaluate, method="min-max", threads=1)


def test_what_the_caller_asks_for_stays_in_float() -> None:
    data = samples((4, 16), 1)
    with pytest.raises(OptionError, match="not a layer") as raised:
        compiler.quantize(chain_net(2), data, in_float=["matmul_9"], threads=1)
    assert "m0, m1" in str(raised.value)  # the names of the nodes
    quantized = compiler.quantize(chain_net(2), data, in_float=["m1"], method="min-max", keep_slower=True, threads=1)
    assert [(layer.name, layer.reason) for layer in quantized.report.in_float] == [("m1", "asked for")]


def test_calibration_that_does_not_fit() -> None:
    with pytest.raises(OptionError, match="no samples"):
        compiler.quantize(chain_net(2), [])
    with pytest.raises(InputError, match=r"calibration\[0\] lacks \['x'\]"):
        compiler.quantize(chain_net(2), [{}])
    with pytest.raises(InputError, match="z"):
        compiler.quantize(chain_net(2), [{**samples((4, 16), 1)[0], "z": np.zeros(1)}])
    with pytest.raises(OptionError, match="max_drop"):
        compiler.quantize(chain_net(2), samples((4, 16), 1), max_drop=-1)
