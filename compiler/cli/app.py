"""The commands in the order of their help."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated

import typer

from compiler.cli.help_text import wrap_freely

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
"""The files of `compiler/cli/commands` in the order of the help; each registers the command of its name."""

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
    from compiler.cli.versions import version_text

    typer.echo(version_text())
    raise typer.Exit


def application(arguments: Sequence[str] = ()) -> typer.Typer:
    """The commands: the one that the arguments begin with, which spares the start of the others, or all of them."""
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
        importlib.import_module(f"compiler.cli.commands.{name}").register(app)
    wrap_freely(app)
    return app


def _overview(
    context: typer.Context,
    _version_option: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Versions of all parts, and the machine."),
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error (or set TENSORWRIGHT_DEBUG=1).")
    ] = False,
) -> None:
    """Without a command, show the help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
