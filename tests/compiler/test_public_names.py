"""Classes and errors show the names by which users import them."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

import tensorwright
from compiler.cli import main, output
from compiler.errors import InvalidModelError, TensorwrightError, UserError


@pytest.mark.parametrize("name", ["Module", "CompressedModel", "QuantizedModel", "SearchResult"])
def test_public_classes_are_those_of_tensorwright(name: str) -> None:
    public = getattr(tensorwright, name)
    assert f"{public.__module__}.{public.__qualname__}" == f"tensorwright.{name}"
    assert pickle.loads(pickle.dumps(public)) is public


@pytest.mark.parametrize("error", [TensorwrightError, UserError, InvalidModelError])
def test_errors_are_those_of_tensorwright(error: type[TensorwrightError]) -> None:
    assert f"{error.__module__}.{error.__name__}" == f"tensorwright.errors.{error.__name__}"
    assert str(pickle.loads(pickle.dumps(error("wrong")))) == "wrong"


def test_notebooks_show_the_frames_of_the_user_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        tensorwright.compile(tmp_path / "missing.onnx")
    lines = caught.value._render_traceback_()
    files = [line for line in lines if line.lstrip().startswith("File ")]
    assert [__file__ in line for line in files] == [True]
    assert lines[-1] == f"tensorwright.errors.StorageError: no such model file: {tmp_path / 'missing.onnx'}"


def test_no_color_sends_no_escape_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    for variable, styled in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", variable)
        monkeypatch.setenv("FORCE_COLOR", "1" if styled else "")
        console = output._console(to_stderr=False)
        with console.capture() as captured:
            console.print("[bold]text[/]")
        assert ("\x1b" in captured.get()) == styled


@pytest.mark.parametrize("variable", ["", "1"])
def test_no_color_sends_no_escape_in_the_help(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", True)
    monkeypatch.setattr("typer.rich_utils.COLOR_SYSTEM", "truecolor")
    monkeypatch.setenv("NO_COLOR", variable)
    assert main(["bench", "--help"]) == 0
    assert ("\x1b" in capsys.readouterr().out) == (variable == "")
