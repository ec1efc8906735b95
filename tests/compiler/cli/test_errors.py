"""Every failure gives one clear error and the right exit code, and leaves no partial file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import compiler
from compiler.errors import CompilationError
from tests.compiler.cli.running import Run


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile", "{tmp}/missing.onnx"],
        ["compile", "{tmp}"],
        ["compile", "{tmp}/junk.onnx"],
        ["compile", "{tmp}/empty.onnx"],
        ["compile", "{model}", "--target", "x86-64-v33"],
        ["compile", "{model}", "--precision", "float63"],
        ["compile", "{model}", "--threads", "0"],
        ["compile", "{model}", "--threads", "many"],
        ["compile", "{model}", "--shape", "x"],
        ["compile", "{model}", "--shape", "q=1,64"],
        ["compile", "{model}", "--shape", "x=1,65,2"],
        ["compile", "{model}", "--constant", "x=words"],
        ["compile", "{model}", "--pass", "after:no-such-pass=os:getcwd"],
        ["compile", "{model}", "--pass", "sideways:normalize=none"],
        ["compile", "{model}", "--sign", "{tmp}/missing.pem"],
        ["compile", "{model}", "-o", "{tmp}/missing/out.twm"],
        ["compile", "{model}", "-o", "{tmp}"],
        ["compile"],
        ["compile", "{model}", "--no-such-option"],
        ["no-such-command"],
        ["run", "{tmp}/missing.twm"],
        ["run", "{tmp}/junk.onnx"],
        ["run", "{module}", "--input", "q=3"],
        ["run", "{module}", "--input", "x=3"],
        ["run", "{module}", "--shape", "length=3"],
        ["run", "{module}", "--output", "{tmp}/missing/out.npz"],
        ["run", "{model}"],
        ["compile", "{module}"],
        ["inspect", "{tmp}/missing.onnx"],
        ["inspect", "{tmp}/junk.twm"],
        ["inspect", "{module}", "--shape", "x=1,2"],
        ["inspect", "{model}", "--target", "toaster"],
        ["bench", "{tmp}/junk.twm"],
        ["bench", "{module}", "--runs", "0"],
        ["bench", "{module}", "--seconds", "-1"],
        ["profile", "{tmp}/missing.twm"],
        ["profile", "{module}", "-o", "{tmp}/junk.twm"],
    ],
    ids=lambda arguments: " ".join(arguments) or "none",
)
def test_a_users_mistake(
    tensorwright: Run,
    arguments: list[str],
    model_path: Path,
    module_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("junk.onnx", b"\x00junk" * 40), ("empty.onnx", b""), ("junk.twm", b"junk")):
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    filled = [text.format(tmp=tmp_path, model=model_path, module=module_path) for text in arguments]
    result = tensorwright(*filled)
    assert result.code == 2, result.err
    assert result.err.count("error: ") == 1
    assert "Traceback" not in result.err
    assert "defect" not in result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_near_names_are_suggested(tensorwright: Run, model_path: Path) -> None:
    assert "x86-64-v3" in tensorwright("compile", model_path, "--target", "x86-64-v33").err
    assert "fold-constants" in tensorwright("compile", model_path, "--pass", "instead-of:fold-constant=none").err


def test_errors_as_json(tensorwright: Run, tmp_path: Path) -> None:
    result = tensorwright("inspect", tmp_path / "missing.onnx", "--json")
    assert result.code == 2
    assert result.json["error"]["class"] == "StorageError"
    assert "missing.onnx" in result.json["error"]["message"]


@pytest.mark.parametrize("error", [CompilationError("TVM failed"), ValueError("surprise"), AssertionError()])
def test_a_defect_of_ours(
    tensorwright: Run, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(compiler, "compile", fail)
    arguments = ("compile", model_path, "-o", tmp_path / "out.twm")
    result = tensorwright(*arguments)
    assert result.code == 70
    assert "please report it" in result.err
    assert "Traceback" not in result.err
    assert "Traceback" in tensorwright(*arguments, "--debug").err
    monkeypatch.setenv("TENSORWRIGHT_DEBUG", "1")
    assert "Traceback" in tensorwright(*arguments).err
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_early_is_no_error(module_path: Path) -> None:
    code = "import sys; from compiler.cli import main; sys.exit(main())"
    pipeline = f"{sys.executable} -c '{code}' passes --json | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.splitlines()[-1].endswith("0")
    assert "Traceback" not in done.stderr


def _start(*arguments: object) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        "import sys; from compiler.cli import main; sys.exit(main())",
        *map(str, arguments),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_results_and_messages_do_not_mix(module_path: Path) -> None:
    process = _start("run", module_path, "--json")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0
    assert "stored example" in err
    assert "stored example" not in out


def test_arrays_of_other_types_are_refused(tensorwright: Run, module_path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 64)))
    result = tensorwright("run", module_path, "--input", f"x={tmp_path}/x.npy")
    assert result.code == 2
    assert "float64" in result.err


@pytest.mark.parametrize(
    ("command", "options", "problem"),
    [
        ("compile", ("-o", "no/such/folder/m.twm"), "does not exist"),
        ("quantize", ("--scheme", "weight-int8", "--report", "report.txt"), "must end in .html or .json"),
        ("quantize", ("--scheme", "weight-int8", "--precisions", "no/such/layers.json"), "does not exist"),
        ("compress", ("--recipe", "share-weights", "--report", "no/such/page.html"), "does not exist"),
        ("tune", ("--report", "page.pdf"), "must end in .html"),
        ("tune", ("--report", "no/such/page.html"), "does not exist"),
    ],
)
def test_files_that_cannot_be_written_are_found_first(
    tensorwright: Run, model_path: Path, command: str, options: tuple[str, ...], problem: str
) -> None:
    result = tensorwright(command, model_path, *options)
    assert result.code == 2
    assert problem in result.err
    assert "canonicalize" not in result.err
