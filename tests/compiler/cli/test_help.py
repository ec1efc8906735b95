from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from compiler.cli.app import joined
from tests.compiler.cli.running import Run

COMMANDS = (
    "compile",
    "run",
    "inspect",
    "bench",
    "profile",
    "compare",
    "quantize",
    "tune",
    "records",
    "sign",
    "verify",
    "bundle",
    "push",
    "targets",
    "passes",
)


def test_alone_it_shows_the_overview(tensorwright: Run) -> None:
    result = tensorwright()
    assert result.code == 0
    assert "A first session" in result.out
    for command in COMMANDS:
        assert command in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_typical_call(tensorwright: Run, command: str) -> None:
    result = tensorwright(command, "--help")
    assert result.code == 0
    assert "Typical" in result.out
    assert f"tensorwright {command}" in result.out.split("Typical")[1]
    assert "--json" in result.out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, compiler.cli; compiler.cli.main(['--help']);"
        "heavy = {'tvm', 'tvm_ffi', 'torch', 'onnx', 'numpy', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_command_loads_the_files_of_no_other() -> None:
    code = (
        "import sys, compiler.cli; compiler.cli.main(['generate', '--help']);"
        "print([name for name in sys.modules if name.startswith('compiler.cli.commands.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "['compiler.cli.commands.generate']"


def test_version_names_all_parts(tensorwright: Run) -> None:
    result = tensorwright("--version")
    assert result.code == 0
    (line,) = result.out.splitlines()
    assert re.fullmatch(
        r"tensorwright [\d.]+ \(apache-tvm \S+, apache-tvm-ffi \S+, onnx \S+, Python \S+, \w+ \w+\)", line
    )


def test_paragraphs_wrap_at_any_width_and_examples_stay_as_they_are() -> None:
    text = "One line\nand its rest.\n\n[bold]Examples[/]\n\n  A title:\n    command --a\n    command --b\n"
    assert (
        joined(text) == "One line and its rest.\n\n[bold]Examples[/]\n\n  A title:\n    command --a\n    command --b\n"
    )


def test_commands_continue_as_a_shell_reads_them() -> None:
    command = 'tensorwright generate m.twm -p "What is this?" --top-p 0.95 --raw'
    found = joined(f"    {command}", width=40)
    assert found.splitlines() == [
        "    tensorwright generate m.twm \\",
        '        -p "What is this?" \\',
        "        --top-p 0.95 --raw",
    ]
    assert shlex.split(found.replace("\\\n", " ")) == shlex.split(command)
