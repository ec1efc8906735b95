"""`tensorwright generate` and `tensorwright chat`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tests.compiler.cli.running import Run
from tests.compiler.generation.models import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("language"))


@pytest.fixture
def module(folder: Path, tensorwright: Run) -> Path:
    path = folder / "model.twm"
    if not path.exists():
        result = tensorwright("compile", folder, "-o", path, "--precision", "int8", "--threads", 1)
        assert result.code == 0, result.err
        assert "2: key_0, value_0" in result.out
        assert "key_0: float32" not in result.out
    return path


def _type(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_generate(tensorwright: Run, module: Path) -> None:
    found = tensorwright("generate", module, "-p", "Hi", "--max-new-tokens", 4, "--json").json
    assert found["prompt_tokens"] == 2 + 3  # of the chat template
    assert len(found["tokens"]) <= 4
    assert found["prompt_tokens_per_second"] > 0
    raw = tensorwright("generate", module, "-p", "Hi", "--raw", "--max-new-tokens", 4, "--json").json
    assert raw["prompt_tokens"] == 2
    plain = tensorwright("generate", module, "Hi", "--raw", "--max-new-tokens", 4)
    assert plain.out == raw["text"] + "\n"
    assert "given twice" in tensorwright("generate", module, "Hi", "-p", "Hi").err


def test_the_prompt_comes_from_standard_input(tensorwright: Run, module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _type(monkeypatch, b"Hello")
    assert tensorwright("generate", module, "--raw", "--max-new-tokens", 1, "--json").json["prompt_tokens"] == 5
    _type(monkeypatch, b"\xff\xfe")
    result = tensorwright("generate", module)
    assert result.code == 2
    assert "not valid UTF-8" in result.err


def test_chat(tensorwright: Run, module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _type(monkeypatch, b"Hi\n\n\xff\n" + b"x" * 200 + b"\n/reset\nHo\n/quit\nnever\n")
    result = tensorwright("chat", module, "--max-new-tokens", 3)
    assert result.code == 0, result.err
    assert result.err.count("ended by") == 2
    assert "not valid UTF-8" in result.err
    assert "the context of 96" in result.err


def test_commands_of_chat_do_not_reach_the_model(
    tensorwright: Run, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _type(monkeypatch, b"/help\n/bye now\n//Hi\n")
    result = tensorwright("chat", module, "--max-new-tokens", 1)
    assert result.code == 0, result.err
    assert "/reset" in result.out
    assert "/bye is not a command" in result.err
    assert result.err.count("ended by") == 1


def test_a_prompt_that_is_too_long_is_one_error(tensorwright: Run, module: Path) -> None:
    result = tensorwright("generate", module, "-p", "x" * 200)
    assert result.code == 2
    assert "the context of 96" in result.err


def test_a_model_in_place_of_a_module_is_told_from_it(tensorwright: Run, folder: Path) -> None:
    result = tensorwright("generate", folder, "-p", "Hi")
    assert result.code == 2
    assert f"compile it first: tensorwright compile {folder}" in result.err.replace("\n", " ")
