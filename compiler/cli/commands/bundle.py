"""`tensorwright bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.cli import options

HELP = """Write a folder with everything a device needs to run a module: no Python there.

The module, the runtime's libraries, a runner, a device server, a C header with its library, and an example that `make`
builds.

[bold]Typical[/]

  tensorwright compile model.onnx --target raspberry-pi-5 -o model.twm
  tensorwright bundle model.twm --output model-bundle
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bundle", help=HELP)(_bundle)


def _bundle(
    module: options.ModulePath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The folder; MODULE-bundle if not given.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="NAME", help="The device; if not given, what it was compiled for."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    from compiler.artifact import read_artifact
    from compiler.cli.output import print_json
    from compiler.device.bundle import write_bundle
    from compiler.driver import find_target, translated_target_errors
    from compiler.profiling.summary import check_is_module

    check_is_module(module)
    artifact = read_artifact(module)
    folder = output if output is not None else Path(f"{module.stem}-bundle")
    with translated_target_errors():
        bundle = write_bundle(artifact, find_target(target or artifact.manifest.target.name), folder)
    if as_json:
        print_json(
            {"folder": bundle.folder, "files": dict(bundle.files), "runtime_bytes": bundle.runtime_bytes,
             "onnx_runtime_bytes": bundle.onnx_runtime_bytes}
        )  # fmt: skip
    else:
        _print(bundle)


def _print(bundle: Any) -> None:
    from compiler.cli.output import print_line, print_table
    from compiler.profiling.formatting import format_bytes

    print_table(("file", "size"), [(name, format_bytes(size)) for name, size in bundle.files.items()], ("size",))
    print_line()
    line = f"runtime: {format_bytes(bundle.runtime_bytes)}"
    if bundle.onnx_runtime_bytes:
        line += f" (libonnxruntime.so 1.32.0 for this architecture: {format_bytes(bundle.onnx_runtime_bytes)})"
    print_line(line)
    print_line(f"wrote {bundle.folder}; its README says what to run")
