"""`tensorwright tune`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compiler
from compiler.cli import options
from compiler.cli.arguments import parse_bytes, parse_duration, parse_imports
from compiler.cli.options import argument, command_of, keywords_of, option
from compiler.cli.output import EXIT_INTERRUPTED, print_facts, print_json, print_line, print_note, print_table
from compiler.cli.progress import Steps, TuningDisplay
from compiler.errors import OptionError
from compiler.reports.formatting import format_bytes, format_cost, format_seconds

if TYPE_CHECKING:
    from compiler.support.options import ImportArguments
    from compiler.tuning.result import NetworkResult, TuneResult

HELP = """Find fast configurations for a model's kernels by measuring them.

The results are stored as records, which `tensorwright compile` uses automatically. Tuning can be stopped at any time:
no measurement is lost, and the next run continues.

[bold]Typical[/]

  tensorwright tune model.onnx

[bold]Examples[/]

  Five minutes, with your own folder of records and a page of plots:
    tensorwright tune model.onnx --time-budget 5m --records logs --report tuning.html

  On a board that runs TVM's RPC server, or on a fleet behind a tracker:
    tensorwright tune model.onnx --target raspberry-pi-5 --device 192.168.1.7:9090
    tensorwright tune model.onnx --target raspberry-pi-5 --device pi@192.168.1.2:9190 --device pi@192.168.1.2:9190

  A network on an Ethos-U, by Vela's cycles, within 128 KiB of SRAM (no device is needed):
    tensorwright tune quantized.onnx --target cortex-m55+ethos-u55-128 --sram 128KiB

  For a GPU: compile candidates here, time them there with the program in the folder, import the results here:
    tensorwright tune model.onnx --target h100 --pack tuning
    scp -r tuning gpu: && ssh gpu tuning/run && scp gpu:tuning/results.json .
    tensorwright tune --target h100 --take results.json
"""


@dataclass(frozen=True, kw_only=True)
class _Options(options.ImportOptions):
    model: Path | None = argument("As for `compile`; not used with --take.", "MODEL", default=None)
    target: str = options.TARGET
    device: list[str] | None = option(
        "Measure on this RPC server, or KEY@HOST:PORT of a tracker; repeat for more devices. This machine if "
        "not given.",
        "HOST:PORT",
    )
    key: Path | None = options.CONNECTION_KEY
    device_key: list[Path] | None = option(
        "The X25519 public key of the device server: one for all, or one per device.", "FILE"
    )
    passphrase_file: Path | None = options.PASSPHRASE_FILE
    trials: int | None = option("Number of configurations to measure.", "N", min=1)
    time_budget: str | None = option(
        "Time to search after the defaults are measured, at least 10s: 90s, 10m, 1h. 10m if neither this nor "
        "--trials is given.",
        "TIME",
    )
    records: Path | None = option("The folder of records; the user's own if not given.", "DIR")
    precision: str = option("Type that float operators compute in.", "TYPE", default="float32")
    threads: int | None = options.THREADS
    timing: str = option(
        "parallel: wall-clock time on all cores; serial: CPU time of one, for loaded machines; auto: detect.",
        "HOW",
        default="auto",
    )
    measure: str = option(
        "timed: on a device or here; modelled: computed from the generated code; auto: timed if possible.",
        "HOW",
        default="auto",
    )
    sram: str | None = option("Accelerators: limit the network's SRAM (192KiB); its cycles are minimized.", "SIZE")
    cost_model: str = option("The model that ranks configurations.", "NAME", default="xgboost")
    search: str = option("What proposes configurations.", "NAME", default="evolutionary")
    seed: int = option("Seed of the search.", "N", default=0)
    pack: Path | None = option("GPUs: write candidates and a program that times them into a new folder.", "DIR")
    take: Path | None = option("Import results.json, written by the program of a pack.", "FILE")
    report: Path | None = option("Write a page of plots (.html).", "FILE")
    as_json: bool = options.JSON


@command_of
def command(given: _Options) -> int:
    from compiler.cli.paths import check_report
    from compiler.tuning.result import TuningInterrupted

    check_report(given.report, (".html",))
    _check_kind(given.model, given.pack, given.take)
    if given.take is not None:
        return _take(given.take, given.target, given.records, given.as_json)
    assert given.model is not None
    imports = parse_imports(given.model, given)
    if given.pack is not None:
        return _pack(
            given.model,
            given.target,
            given.pack,
            imports,
            given.as_json,
            trials=given.trials,
            records=given.records,
            precision=given.precision,
        )
    seconds = parse_duration(given.time_budget) if given.time_budget is not None else None
    credentials = _credentials(given.device or [], given.key, given.device_key or [], given.passphrase_file)
    with TuningDisplay() as display:
        try:
            result = compiler.tune(
                given.model,
                devices=given.device or ["local"],
                credentials=credentials,
                memory_limit=parse_bytes(given.sram) if given.sram is not None else None,
                **keywords_of(compiler.tune, given, time_budget=seconds, progress=display),
                **imports,
            )
        except TuningInterrupted as interrupt:
            result = interrupt.result
    if given.report is not None:
        _write_report(given.report, result, given.model)
    if given.as_json:
        print_json(result.to_dict())
    else:
        _print(result)
    return EXIT_INTERRUPTED if result.interrupted else 0


def _write_report(path: Path, result: TuneResult, model: Path) -> None:
    from compiler.artifact.storage import write_atomically
    from compiler.tuning.plots import tuning_page

    write_atomically(path, [tuning_page(result, model.stem).encode()])


def _check_kind(model: Path | None, pack: Path | None, take: Path | None) -> None:
    if take is not None and (model is not None or pack is not None):
        raise OptionError(
            "--take needs no model and no --pack: results.json describes the measurements", "leave them out"
        )
    if take is None and model is None:
        raise OptionError("no model is given", "name a file; or --take results.json of a pack")


def _pack(model: Path, target: str, output: Path, imports: ImportArguments, as_json: bool, **settings: Any) -> int:
    from compiler.frontends.source import ImportOptions
    from compiler.tuning.pack.folder import write_pack

    with Steps() as steps:
        written = write_pack(model, target, output, imports=ImportOptions.of(imports), **settings, progress=steps)
    if as_json:
        print_json({**asdict(written), "folder": str(written.folder)})
        return 0
    for name, why in written.skipped.items():
        print_note(f"not tuned: {name}: {why}")
    known = f", {written.known} more already measured" if written.known else ""
    print_line(f"{written.candidates} candidates of {written.tasks} kernels ({written.configs} configs{known})")
    print_line(
        f"wrote {output}, {format_bytes(written.bytes)}: start {output}/run on the machine with the device, and then"
    )
    print_line(f"tensorwright tune --target {target} --take {output}/results.json")
    return 0


def _take(results: Path, target: str, records: Path | None, as_json: bool) -> int:
    from compiler.tuning.pack.results import take

    outcome = take(results, target, records=records)
    if as_json:
        tasks = [{**asdict(task), "gain": task.gain} for task in outcome.tasks]
        print_json({**asdict(outcome), "tasks": tasks, "records": str(outcome.records)})
        return 0
    rows = [
        (
            task.kernel,
            task.rule,
            str(task.count),
            format_seconds(task.default_seconds) if task.default_seconds else "",
            format_seconds(task.best_seconds) if task.best_seconds else "",
            f"{task.gain:.2f}",
        )
        for task in sorted(outcome.tasks, key=lambda task: -task.count * (task.default_seconds or 0.0))
    ]
    print_table(("kernel", "rule", "calls", "default", "best", "gain"), rows, ("calls", "default", "best", "gain"))
    print_facts(
        [
            ("model", outcome.model),
            ("device", outcome.device),
            ("records", f"{outcome.added} added to {outcome.records}, {outcome.known} already there"),
            ("failed", f"{outcome.failed} of them were wrong or did not run"),
        ]
    )
    return 0


def _credentials(
    devices: list[str], key: Path | None, device_keys: list[Path], passphrase_file: Path | None
) -> dict[str, Any] | None:
    """Return the keys for each device; None for plain connections."""
    if key is None and not device_keys:
        return None
    from compiler.artifact import KeyKind
    from compiler.cli.passphrases import load_private_key
    from compiler.device.credentials import load_credentials

    if key is None or not device_keys:
        raise OptionError("--key, this client's key, and --device-key, the server's, go together")

    if len(device_keys) not in (1, len(devices)):
        raise OptionError(f"{len(device_keys)} --device-key are given for {len(devices)} --device", "give one for each")
    theirs = device_keys * len(devices) if len(device_keys) == 1 else device_keys
    private = load_private_key(key, KeyKind.CONNECTION, passphrase_file)
    return {device: load_credentials(private, each) for device, each in zip(devices, theirs, strict=True)}


def _latency(result: TuneResult) -> list[tuple[str, str]]:
    """Return the line on the latency of whole runs, if it was measured."""

    if result.latency is None:
        return []
    before, after = result.latency
    return [("time per run", f"{format_seconds(before)} -> {format_seconds(after)} ({before / after:.2f} x)")]


def _print_network(result: TuneResult, network: NetworkResult) -> None:
    """Print the settings chosen for an accelerator, and the cost of a run before and after."""

    unit = result.measure.unit
    if network.settings:
        print_table(("setting", "chosen"), [(name, str(value)) for name, value in network.settings.items()])
    parts = [name for name in ("accelerator", "processor") if name in network.after.parts]
    print_facts(
        [
            ("cost", f"{format_cost(result.before, unit)} -> {format_cost(result.after, unit)}"),
            *(
                (
                    f"  {name}" + (" (estimate)" if name == "processor" else ""),
                    " -> ".join(format_cost(each.parts[name], unit) for each in (network.before, network.after)),
                )
                for name in parts
            ),
            ("SRAM", f"{format_bytes(network.before.memory)} -> {format_bytes(network.after.memory)}"),
            ("trials", f"{result.trials} in {format_seconds(result.seconds)}, {result.resumed} before"),
            ("measure", str(result.measure)),
            ("records", str(result.records)),
        ]
    )
    if result.interrupted:
        print_note("the results so far are recorded, and the same command continues")


def _print(result: TuneResult) -> None:
    for problem in result.problems:
        print_note(problem)
    if result.network is not None:
        _print_network(result, result.network)
        return
    if not result.tasks and result.skipped:
        print_note(
            "nothing to tune: all sizes are known only at run time; tune for given sizes with --shape NAME=SIZES"
        )
        return
    rows = [
        (
            task.layer,
            task.rule,
            str(task.count),
            format_seconds(task.default_seconds) if task.default_seconds else "",
            format_seconds(task.best_seconds) if task.best_seconds else "",
            f"{task.gain:.2f}",
            f"{task.of_limit:.0%}" if task.of_limit is not None else "",
            str(task.trials),
            task.finished,
        )
        for task in sorted(result.tasks, key=lambda task: -task.count * (task.default_seconds or 0.0))
    ]
    columns = ("layer", "rule", "calls", "default", "best", "gain", "of limit", "trials", "ended, because")
    print_table(columns, rows, ("calls", "default", "best", "gain", "of limit", "trials"))
    gain = result.before / result.after if result.after else 1.0
    rate = result.trials / result.seconds if result.seconds else 0.0
    print_facts(
        [
            ("kernels of a run", f"{format_seconds(result.before)} -> {format_seconds(result.after)} ({gain:.2f} x)"),
            *_latency(result),
            ("trials", f"{result.trials} in {format_seconds(result.seconds)} ({rate:.1f}/s), {result.resumed} before"),
            (
                "measure",
                f"{result.measure}, {result.method}" if result.measure.kind == "timed" else str(result.measure),
            ),
            ("records", str(result.records)),
        ]
    )
    if result.skipped:
        print_note(f"not tuned: {', '.join(sorted(result.skipped))} (sizes are known only at run time)")
    if result.interrupted:
        print_note(
            "measurements are recorded, and the same command continues; choices are compared in the model at the end"
        )
