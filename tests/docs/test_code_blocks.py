"""The code of README and of the tutorial runs as it is written, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.cli import main
from tests.compiler.cli.running import isolated_consoles
from tests.docs.pages import ROOT, Block, blocks, pages


def save_model(path: Path) -> None:
    """The `model.onnx` of README: an input of 64 numbers a row, a matrix product and a ReLU."""
    weight = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["h"]), helper.make_node("Relu", ["h"], ["output"])],
        "model",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)


def run_page(page: Path) -> int:
    """Run the blocks of a page in order, in the current folder; returns how many there were.

    Python shares one namespace; a block "text" behind it is what it prints. Lines of "bash" are commands of ours.
    """
    namespace: dict[str, Any] = {"__name__": "page"}
    printed = None
    count = 0
    for block in blocks(page):
        if block.language == "text" and printed is not None:
            assert printed.strip() == block.text.strip(), f"{page.name}, line {block.line}"
        printed = None
        if block.language == "python":
            printed = run_python(block, page, namespace)
        elif block.language == "bash":
            run_commands(block, page)
        count += block.language in ("python", "bash")
    return count


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        # The line numbers of a traceback are those of the page.
        exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
    return output.getvalue()


def run_commands(block: Block, page: Path) -> None:
    for line in block.text.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "tensorwright"
        with isolated_consoles():
            assert main(arguments) == 0, f"{page.name}, line {block.line}: {line}"


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_code_runs_as_written(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model.onnx")
    assert run_page(ROOT / page) >= 4


def shell_lines() -> list[tuple[Path, str]]:
    """The commands of ours in blocks without a language or of "bash", lines joined at their backslashes."""
    found = []
    for page in pages():
        for block in blocks(page):
            if block.language in ("", "bash"):
                text = re.sub(r"\\\n\s*", "", block.text)
                found += [(page, part) for line in text.splitlines() for part in commands_in(line)]
    return found


def commands_in(line: str) -> list[str]:
    """Commands in a line: from each `tensorwright NAME` to the next `&&`, comment, or column of an other machine."""
    return [f"tensorwright {each}" for each in re.findall(r"(?:^|\s)tensorwright ((?:(?!&&|\s#|   ).)*)", line)]


def test_options_in_the_documents_exist() -> None:
    from typer.main import get_command

    from compiler.cli.app import application

    lines = shell_lines()
    assert len(lines) >= 30
    root: Any = get_command(application())
    for page, line in lines:
        command = root
        words = shlex.split(line.replace("...", ""))[1:]
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            name = words.pop(0)
            if name not in command.commands:
                assert command.name == "targets" or not name.isidentifier() or name.isupper(), f"{page.name}: {line}"
                break
            command = command.commands[name]
        known = {option for each in command.params for option in each.opts} | {"--help", "-h"}
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= known, f"{page.name}: {line}: {given - known}"
