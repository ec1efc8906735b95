from __future__ import annotations

from pathlib import Path

import pytest

from compiler.cli import main
from tests.compiler.building import perceptron, scaled_sum, write
from tests.compiler.cli.running import Result, isolated_consoles


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x (batch, 64) -> y (batch, 64), with a dynamic batch."""
    return write(perceptron(batch="batch"), tmp_path_factory.mktemp("models") / "perceptron.onnx")


@pytest.fixture(scope="session")
def sum_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = a * x + b: a float vector of 3, an int64 scalar, a float scalar."""
    return write(scaled_sum(), tmp_path_factory.mktemp("models") / "sum.onnx")


@pytest.fixture(scope="session")
def module_path(model_path: Path) -> Path:
    """The perceptron compiled on the command line."""
    path = model_path.with_suffix(".twm")
    with isolated_consoles():
        assert main(["compile", str(model_path), "-o", str(path), "--threads", "1"]) == 0
    return path


@pytest.fixture
def tensorwright(capsys: pytest.CaptureFixture[str]) -> object:
    """Run a command line in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with isolated_consoles():
            code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
