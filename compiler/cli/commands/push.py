"""`tensorwright push`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from compiler.cli import options

HELP = """Send a module to a device server, which switches to it only after it proved itself there.

Upload, checksums, the stored reference input run and compared, latency measured, and only then the switch; if anything
fails, the module that was active stays. The server is bin/tensorwright-server of `tensorwright bundle`.

[bold]Typical[/]

  tensorwright push model.twm 192.168.0.7:9090
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("push", help=HELP)(_push)


def _push(
    module: options.ModulePath,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The device server.", show_default=False)],
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="How many runs to measure.")] = 20,
    run_seconds: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="How long the reference run may take there.")
    ] = 600,
    as_json: options.Json = False,
) -> None:
    from compiler.cli.output import print_facts, print_json
    from compiler.cli.progress import Steps
    from compiler.device.push import push
    from compiler.profiling.formatting import format_seconds
    from compiler.profiling.summary import check_is_module

    check_is_module(module)
    with Steps() as steps:
        result = push(module, address, runs=runs, run_seconds=run_seconds, progress=steps)
    if as_json:
        print_json(asdict(result))
        return
    print_facts(
        [
            ("active", f"{result.active[:16]} at {address}"),
            ("before", result.replaced[:16] if result.replaced else "none"),
            ("reference run", f"largest difference {result.difference:.3g}"),
            ("latency p50", format_seconds(result.p50_milliseconds / 1000)),
            ("latency p99", f"{format_seconds(result.p99_milliseconds / 1000)}, {result.runs} runs"),
        ]
    )
