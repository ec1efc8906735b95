"""`tensorwright quantize`: a model and samples in, a module and a report out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import compiler
from tests.compiler.building import perceptron, write
from tests.compiler.cli.running import Run


def test_quantize_writes_a_module_and_a_report(tensorwright: Run, tmp_path: Path) -> None:
    model = write(perceptron(batch=4, width=32, layers=2), tmp_path / "net.onnx")
    values = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=values)
    output, report = tmp_path / "out.twm", tmp_path / "report.json"
    arguments = ("quantize", model, "-s", tmp_path / "a.npz", "-o", output)
    result = tensorwright(*arguments, "--report", report, "--precisions", tmp_path / "layers.json")
    assert result.code == 0, result.err
    assert "2 of 2 layers run in integers" in result.out
    assert json.loads(report.read_text())["drop"] < 0.01
    exact = compiler.compile(model).run({"x": values})["y"]
    got = compiler.load(output).run({"x": values})["y"]
    assert 0 < np.abs(got - exact).max() < 0.05 * np.abs(exact).max()
    assert tensorwright(*arguments, "--decide", tmp_path / "layers.json").code == 0
    assert tensorwright(*arguments, "--decide", "guess").code == 2


def test_samples_that_do_not_fit(tensorwright: Run, tmp_path: Path) -> None:
    model = write(perceptron(batch=4, width=32, layers=1), tmp_path / "net.onnx")
    np.savez(tmp_path / "a.npz", y=np.zeros(3, np.float32))
    result = tensorwright("quantize", model, "-s", tmp_path / "a.npz", "-o", tmp_path / "out.twm")
    assert result.code == 2
    assert "lacks ['x']" in result.err
    assert tensorwright("quantize", model, "-s", tmp_path / "none.npz", "-o", tmp_path / "out.twm").code == 2


def test_weights_alone_need_no_samples(tensorwright: Run, tmp_path: Path) -> None:
    model = write(perceptron(batch=4, width=64, layers=2), tmp_path / "net.onnx")
    output = tmp_path / "out.twm"
    result = tensorwright("quantize", model, "--scheme", "weight-int4", "--group", "16", "-o", output)
    assert result.code == 0, result.err
    assert "weight-int4: 2 of 2 layers run quantized" in result.out
    assert "random inputs" in result.out
    assert tensorwright("quantize", model, "--scheme", "static-int8", "-o", output).code == 2
