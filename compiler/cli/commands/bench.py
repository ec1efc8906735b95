"""`tensorwright bench`."""

from __future__ import annotations

from typing import Any

import typer

from compiler.cli import options

HELP = """Measure latency, throughput, memory and load time.

The module runs in a fresh process, with the runtime alone, after a warm-up. A model is compiled first.

[bold]Typical[/]

  tensorwright bench model.twm

[bold]Examples[/]

  One thread, exactly 1000 runs:
    tensorwright bench model.twm --threads 1 --runs 1000

  An open dimension set to 8; real inputs:
    tensorwright bench bert.twm --shape batch=8
    tensorwright bench bert.twm --input inputs.npz --seconds 10
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench", help=HELP)(_bench)


def _bench(
    file: options.AnyPath,
    inputs: options.Inputs = None,
    shape: options.RunShapes = None,
    runs: options.Runs = None,
    seconds: options.Seconds = 3.0,
    threads: options.Threads = None,
    target: options.TargetName = "host",
    trusted: options.TrustedKeys = None,
    as_json: options.Json = False,
) -> None:
    import compiler
    from compiler.cli.output import print_json
    from compiler.cli.progress import Steps
    from compiler.cli.sources import prepare

    prepared = prepare(file, target, shape, inputs, threads, trusted)
    with Steps() as steps:
        steps("measure")
        result = compiler.bench(
            prepared.source,
            prepared.inputs,
            runs=runs,
            seconds=seconds,
            threads=threads,
            sizes=prepared.sizes,
            trusted_keys=prepared.trusted_keys,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def _print(result: Any) -> None:
    from compiler.cli.output import print_facts
    from compiler.profiling.formatting import format_bytes, format_count, format_seconds

    latency = result.latency
    plan = f", {format_bytes(result.planned_memory)} of it planned activations" if result.planned_memory else ""
    print_facts(
        [
            ("module", f"{result.model} on {result.target}, {result.threads} thread(s)"),
            ("inputs", "\n".join(f"{name}: {shape}" for name, shape in result.inputs.items()) or "none"),
            ("latency p50", format_seconds(latency.p50)),
            ("latency p90", format_seconds(latency.p90)),
            ("latency p99", format_seconds(latency.p99)),
            ("mean", f"{format_seconds(latency.mean)}, deviation {format_seconds(latency.deviation)}"),
            ("fastest, slowest", f"{format_seconds(latency.minimum)}, {format_seconds(latency.maximum)}"),
            ("throughput", f"{format_count(latency.throughput)} runs/s ({latency.runs} runs)"),
            (
                "load",
                f"{format_seconds(result.load_seconds)} (the runtime itself: {format_seconds(result.import_seconds)})",
            ),
            ("first run", format_seconds(result.first_seconds)),
            ("memory peak", f"{format_bytes(result.peak_memory)} over the bare runtime{plan}"),
            ("after load", format_bytes(result.load_memory)),
            ("file", f"{format_bytes(result.file_bytes)}, parameters {format_bytes(result.parameter_bytes)}"),
        ]
    )
