"""The commands in the order of their help.

The output of `--version`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Sequence
from typing import Annotated

import typer

import compiler

COMMANDS = (
    "compile",
    "run",
    "generate",
    "chat",
    "inspect",
    "bench",
    "profile",
    "compare",
    "quantize",
    "compress",
    "search",
    "calibrate",
    "split",
    "tune",
    "records",
    "cache",
    "key",
    "sign",
    "bundle",
    "push",
    "serve",
    "targets",
    "passes",
)
"""Files of `compiler/cli/commands` in the order of the help. Each defines `HELP` and the function `command` or, for
several commands, `register`."""

_OVERVIEW = """Compile trained models to small, fast, verified modules.

A model (.onnx, .pt2) goes in, one file (.twm) comes out that runs with a 6 MB runtime and no compiler.

[bold]A first session[/]

  tensorwright inspect model.onnx               what is in it
  tensorwright compile model.onnx -o model.twm  build it
  tensorwright run model.twm                    try it, on random inputs
  tensorwright bench model.twm                  latency, throughput, memory
  tensorwright profile model.twm -o profile     where the time goes
  tensorwright tune model.onnx                  search for faster kernels
  tensorwright chat model.twm                   talk to a language model
  tensorwright serve model.twm                  answer requests over HTTP

Each command explains itself: tensorwright COMMAND --help.
"""


def _version(wanted: bool) -> None:
    if not wanted:
        return
    typer.echo(version_text())
    raise typer.Exit


def application(arguments: Sequence[str] = ()) -> typer.Typer:
    """Return the application with only the command that the arguments begin with, to save importing the others, or with
    all commands."""
    if os.environ.get("NO_COLOR"):  # https://no-color.org: otherwise the help would still be bold and dim
        vars(importlib.import_module("typer.rich_utils"))["COLOR_SYSTEM"] = None
    app = typer.Typer(
        name="tensorwright",
        no_args_is_help=False,
        rich_markup_mode="rich",
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True, help=_OVERVIEW)(_overview)
    for name in arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS:
        module = importlib.import_module(f"compiler.cli.commands.{name}")
        if hasattr(module, "command"):
            app.command(name, help=module.HELP)(module.command)
        else:
            module.register(app)
    wrap_freely(app)
    return app


def _overview(
    context: typer.Context,
    _version_option: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions and the machine.")
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error (or set TENSORWRIGHT_DEBUG=1).")
    ] = False,
) -> None:
    """Show the help if there is no command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_EXAMPLE = re.compile(r"(  +)tensorwright ")
_WORDS = re.compile(r'(?:--?[a-z][\w-]* +(?!-))?(?:"[^"]*"|\S)+')  # an option stays with its value


def wrap_freely(app: typer.Typer) -> None:
    """Join the lines of each paragraph in the help of commands and groups; typer keeps the source's line breaks."""
    for command in app.registered_commands:
        if command.help is not None:
            command.help = joined(command.help)
    for group in app.registered_groups:
        inner = group.typer_instance
        if inner is not None:
            if isinstance(inner.info.help, str):
                inner.info.help = joined(inner.info.help)
            wrap_freely(inner)


def joined(text: str, width: int | None = None) -> str:
    """Join the lines of each paragraph. Indented lines are kept, except that commands wider than the terminal are
    broken as a shell reads them."""
    columns = (shutil.get_terminal_size().columns if width is None else width) - 2  # the margins of typer
    paragraphs = "\n\n".join(map(_paragraph, text.split("\n\n")))
    return "\n".join(_broken(line, columns) for line in paragraphs.split("\n"))


def _broken(line: str, columns: int) -> str:
    """Break a command into several lines, each but the last ending in a backslash."""
    example = _EXAMPLE.match(line)
    if len(line) <= columns or example is None:
        return line
    lines = [example[1]]
    for word in _WORDS.findall(line):
        if len(lines[-1]) + len(word) + 2 > columns and lines[-1].strip():
            lines[-1] += "\\"
            lines.append(f"{example[1]}    ")
        lines[-1] += f"{word} "
    return "\n".join(lines).rstrip()


def _paragraph(text: str) -> str:
    lines: list[str] = []
    for line in text.split("\n"):
        if lines and lines[-1] and line and not line[0].isspace() and not lines[-1][0].isspace():
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def version_text() -> str:
    """Return a line with the versions of Tensorwright and of the parts that affect modules, without importing them."""
    parts = [f"{name} {_installed(name)}" for name in ("apache-tvm", "apache-tvm-ffi", "onnx")]
    parts.append(f"Python {platform.python_version()}")
    parts.append(f"{platform.system()} {platform.machine()}")
    return f"tensorwright {compiler.__version__} ({', '.join(parts)})"
