"""Signals end a command soon, and leave neither a process nor a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import typer

import compiler
from compiler.cli.output import EXIT_INTERRUPTED
from tests.compiler.building import perceptron, write
from tests.compiler.cli.running import Run

_LIMIT = 120  # seconds until a process is taken to hang; a busy machine needs a few


def _start(*arguments: object, temporary: Path | None = None) -> subprocess.Popen[str]:
    """Start the command, with code generation in two processes on any machine."""
    code = (
        "import sys; from compiler import cli; from compiler.codegen import build as b; "
        "b.processes = lambda: 2; sys.exit(cli.main())"
    )
    environment = os.environ if temporary is None else {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _forked(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait for the code generation processes of a command."""
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            if found := [child for child in parent.children() if child.cmdline() == parent.cmdline()]:
                return found
        time.sleep(0.01)
    raise AssertionError(f"it started none: {process.communicate()}")


def _wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read standard error up to a line that contains `text`."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} did not come: {seen}")


def test_an_interrupt_that_the_engine_swallowed(
    tensorwright: Run, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            raise RuntimeError("KeyboardInterrupt in a callback") from None

    monkeypatch.setattr(compiler, "compile", interrupted)
    result = tensorwright("compile", model_path, "-o", tmp_path / "out.twm")
    assert result.code == 130
    assert "error: interrupted" in result.err


def test_a_command_with_results_so_far_says_once_that_it_was_ended(
    tensorwright: Run, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_LIMIT)
        except KeyboardInterrupt:  # as `tune` does, which prints what it found
            raise typer.Exit(EXIT_INTERRUPTED) from None

    monkeypatch.setattr(compiler, "compile", ended)
    result = tensorwright("compile", model_path, "-o", tmp_path / "out.twm")
    assert (result.code, result.err.count("terminated")) == (143, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_where_exceptions_are_dropped(
    tensorwright: Run, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    class Callback:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(_LIMIT)

    went_on = []

    def interrupted(*_: object, **__: object) -> None:
        Callback()
        went_on.append(True)
        time.sleep(_LIMIT)

    monkeypatch.setattr(compiler, "compile", interrupted)
    result = tensorwright("compile", model_path, "-o", tmp_path / "out.twm")
    assert went_on
    assert result.code == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_import_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    model = write(perceptron(width=512, layers=24), tmp_path / "model.onnx")
    process = _start("compile", model, "-o", tmp_path / "out.twm")
    _wait_for(process, "] import")
    process.send_signal(number)
    _, err = process.communicate(timeout=_LIMIT)
    assert process.returncode == 128 + number
    assert "interrupted" in err or "terminated" in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_code_is_generated_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals) -> None:
    model = write(perceptron(width=[16 * size for size in range(1, 15)]), tmp_path / "model.onnx")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = _start("compile", model, "-o", tmp_path / "out.twm", temporary=temporary)
    started = _forked(process)
    process.send_signal(number)
    process.communicate(timeout=_LIMIT)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    psutil.wait_procs(started, timeout=_LIMIT)
    assert not [each for each in started if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    if number != signal.SIGKILL:
        assert list(temporary.iterdir()) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "temporary"]


def test_ctrl_c_ends_a_measurement_and_its_process(module_path: Path) -> None:
    process = _start("bench", module_path, "--seconds", 60)
    _wait_for(process, "] measure")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 130


def test_ctrl_c_ends_machine_code_that_never_returns() -> None:
    # Stands for TVM: code that the interpreter's own reaction to the signal does not stop.
    code = """
from time import sleep
from compiler.cli.entry import Interrupts
with Interrupts(patience=0.2):
    while True:
        try:
            print("ready", flush=True)
            sleep(60)
        except KeyboardInterrupt:
            continue
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "interrupted" in err
