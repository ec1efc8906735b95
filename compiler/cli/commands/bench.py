"""`tensorwright bench`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import compiler
from compiler.cli import options
from compiler.cli.options import command_of, keywords_of, option
from compiler.cli.output import print_facts, print_json, print_line, print_note, print_table
from compiler.cli.progress import Steps
from compiler.errors import OptionError
from compiler.reports.formatting import format_bytes, format_count, format_seconds, plural

HELP = """Measure latency, throughput, memory and load time.

The module runs in a fresh process with only the runtime, after a warm-up. A model is compiled first.

[bold]Typical[/]

  tensorwright bench model.twm

[bold]Examples[/]

  One thread, exactly 1000 runs:
    tensorwright bench model.twm --threads 1 --runs 1000

  A dynamic dimension set to 8; real inputs:
    tensorwright bench bert.twm --shape batch=8
    tensorwright bench bert.twm --input inputs.npz --seconds 10

  Compared with other runtimes, each in its own process, on the same inputs:
    tensorwright bench model.onnx --compare onnxruntime,openvino --threads 2

  The highest throughput: threads divided among 1, 2, 4, ... streams:
    tensorwright bench model.twm --hint throughput

  A module's stored example on a device server, without making the module active:
    tensorwright bench model.twm --device gpu:9090 --runs 50 --key laptop.pem --device-key device.pem.pub
"""

_DEVICE_RUNS = 20
_KINDS = {
    "ms": "latency",
    "device_ms": "without copies, by the device's clock",
    "host_ms": "without copies, until the results are available",
    "graph_ms": "CUDA graph, by the device's clock",
    "graph_host_ms": "CUDA graph, until the results are available",
}


@dataclass(frozen=True, kw_only=True)
class _Options:
    file: Path = options.ANY_PATH
    inputs: list[str] | None = options.INPUTS
    shape: list[str] | None = options.RUN_SHAPES
    batch: int | None = option("Rows of inputs with a dynamic first dimension; 1 if not given.", "N", min=1)
    hint: str = option("latency, or throughput: find the fastest number of streams.", "HINT", default="latency")
    streams: int = option("Number of concurrent runs, each with --threads threads.", "N", default=1, min=1)
    runs: int | None = options.RUNS
    seconds: float = options.SECONDS
    threads: int | None = options.THREADS
    target: str = options.TARGET
    trusted: list[Path] | None = options.TRUSTED_KEYS
    compare: str | None = option(
        "Time other runtimes alternately on the same ONNX file: onnxruntime,openvino.", "NAMES"
    )
    device: str | None = option("Measure there: a tensorwright-server.", "HOST:PORT")
    key: Path | None = options.CONNECTION_KEY
    device_key: Path | None = option("The X25519 public key of the server.", "FILE")
    passphrase_file: Path | None = options.PASSPHRASE_FILE
    as_json: bool = options.JSON


@command_of
def command(given: _Options) -> None:
    from compiler.cli.paths import prepare

    if given.device is not None:
        from compiler.cli.passphrases import load_credentials

        _check_only_runs(given.inputs, given.shape, given.threads, given.batch)
        keys = load_credentials(given.key, given.device_key, given.passphrase_file)
        _bench_there(given.file, given.device, keys, given.trusted, given.runs, given.as_json)
        return
    peers = [name.strip() for name in given.compare.split(",")] if given.compare is not None else []
    if peers:
        from compiler.profiling.peers import check_peers

        check_peers(peers, given.file)
    prepared = prepare(given.file, given.target, given.shape, given.inputs, given.threads, given.trusted)
    if peers:
        if given.streams > 1 or given.hint != "latency":
            raise OptionError("--compare times one run after another", "leave out --streams and --hint")
        _compare(given, prepared, peers)
        return
    with Steps() as steps:
        steps("measure")
        keywords = keywords_of(compiler.bench, given, inputs=prepared.inputs, sizes=prepared.sizes)
        result = compiler.bench(prepared.source, **keywords, trusted_keys=prepared.trusted_keys)
    if given.as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def _compare(given: _Options, prepared: Any, peers: list[str]) -> None:
    """Print one row per runtime, the module first."""
    from compiler.profiling.bench import bench_inputs
    from compiler.profiling.peers import compare_runtimes

    module = prepared.source
    arrays, rows = bench_inputs(module, prepared.inputs, prepared.sizes, given.batch)
    with Steps() as steps:
        steps("measure")
        results = compare_runtimes(
            given.file, module, arrays, peers, rows=rows or 1, seconds=given.seconds, report=print_note
        )
    if given.as_json:
        print_json([result.to_dict() for result in results])
        return
    shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())
    print_line(f"{module.manifest.model_name}, {plural(module.threads, 'thread')}: {shapes}")
    columns = ("runtime", "p50", "fastest", "items/s", "time to ours", "load, first run", "difference")
    lines = [
        (
            f"{result.runtime} {result.version}",
            format_seconds(result.p50),
            format_seconds(result.fastest),
            format_count(result.items_per_second),
            f"{result.speedup:.2f}",
            format_seconds(result.load),
            f"{result.difference:.1e}",
        )
        for result in results
    ]
    print_table(columns, lines, columns[1:])


def _check_only_runs(*others: object) -> None:
    """Raise OptionError for options of a run: with --device only the module's stored example is run."""

    if any(each is not None for each in others):
        raise OptionError(
            "--device runs the module's stored example: no --input, --shape, --batch or --threads goes with it"
        )


def _bench_there(
    file: Path, address: str, credentials: Any, trusted: list[Path] | None, runs: int | None, as_json: bool
) -> None:
    from compiler.cli.paths import check_is_module
    from compiler.device.push import measure

    check_is_module(file)
    with Steps() as steps:
        result = measure(
            file, address, credentials=credentials, trusted_keys=trusted or None, runs=runs or _DEVICE_RUNS,
            progress=steps,
        )  # fmt: skip
    if as_json:
        print_json(asdict(result))
        return
    rows = [("device", result.device or "the processor"), ("difference", f"{result.difference:.3g}")]
    for name, each in result.times.items():
        p50, p99 = (format_seconds(1e-3 * each[part]) for part in ("p50", "p99"))
        rows.append((_KINDS.get(name, name), f"p50 {p50}, p99 {p99}"))
    if result.graph_problem is not None:
        rows.append(("CUDA graph", result.graph_problem))
    print_facts(rows)


def _stream_text(each: Any) -> str:
    return f"{format_count(each.runs_per_second)} runs/s, p50 {format_seconds(each.p50)}"


def _threads_text(result: Any) -> str:
    each = plural(result.threads, "thread")
    return each if result.streams == 1 else f"{plural(result.streams, 'stream')} of {each}"


def _print(result: Any) -> None:
    latency = result.latency
    plan = f", {format_bytes(result.planned_memory)} of it planned activations" if result.planned_memory else ""
    print_facts(
        [
            ("module", f"{result.model} on {result.target}, {_threads_text(result)}"),
            ("inputs", "\n".join(f"{name}: {shape}" for name, shape in result.inputs.items()) or "none"),
            ("latency p50", format_seconds(latency.p50)),
            ("latency p90", format_seconds(latency.p90)),
            ("latency p99", format_seconds(latency.p99)),
            ("mean", f"{format_seconds(latency.mean)}, deviation {format_seconds(latency.deviation)}"),
            ("fastest, slowest", f"{format_seconds(latency.minimum)}, {format_seconds(latency.maximum)}"),
            *((f"{each.streams} x {each.threads}", _stream_text(each)) for each in result.sweep),
            ("throughput", f"{format_count(result.runs_per_second)} runs/s ({latency.runs} runs){result.items_text()}"),
            (
                "load",
                f"{format_seconds(result.load_seconds)} (the runtime itself: {format_seconds(result.import_seconds)})",
            ),
            ("first run", format_seconds(result.first_seconds)),
            ("memory peak", f"{format_bytes(result.peak_memory)} more than the bare runtime{plan}"),
            ("after load", format_bytes(result.load_memory)),
            ("file", f"{format_bytes(result.file_bytes)}, parameters {format_bytes(result.parameter_bytes)}"),
            *([("precision", result.faster_precisions)] if result.faster_precisions else []),
        ]
    )
