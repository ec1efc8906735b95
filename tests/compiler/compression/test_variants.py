"""`compress --variants`: a folder of modules, each with the accuracy and cost measured in its own runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import compiler
from compiler.artifact.variants import read_variants
from compiler.cli import main
from compiler.errors import OptionError
from compiler.runtime import load
from tests.compiler.building import perceptron


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("variants") / "net.onnx"
    onnx.save(perceptron(batch="batch", width=(64, 32)), str(path))
    return path


def test_the_command_writes_modules_with_what_they_cost_and_lose(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x)
    folder = tmp_path / "served"
    wanted = ["--variant", "int8", "--variant", "small=share-weights"]
    options = ["-s", str(tmp_path / "a.npz"), "--threads", "1", "--json"]
    main(["compress", str(model), "--variants", str(folder), *wanted, *options])
    printed = json.loads(capsys.readouterr().out)
    index = read_variants(folder)
    assert [each["name"] for each in printed["variants"]] == [each.name for each in index.variants]
    assert {each.name for each in index.variants} | set(printed["left_out"]) == {"float32", "int8", "small"}

    exact = onnxruntime.InferenceSession(str(model)).run(None, {"x": x})[0].ravel().astype(np.float64)
    for each in index.variants:
        y = load(folder / each.file, verify=True).run({"x": x})["y"].ravel()
        cosine = float(y @ exact / np.linalg.norm(y) / np.linalg.norm(exact))
        assert each.accuracy == pytest.approx(cosine, abs=1e-4)
        assert each.cost_ms > 0
    sizes = {each.name: each.bytes for each in index.variants}
    assert sizes["int8"] < 0.5 * sizes["float32"]


def test_variants_need_a_measure_and_known_names(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="measured"):
        compiler.write_variants(model, tmp_path)
    with pytest.raises(OptionError, match="no variant 'int7'"):
        compiler.write_variants(model, tmp_path, ["int7"], evaluate=lambda run: 1.0)
