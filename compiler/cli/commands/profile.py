"""`tensorwright profile`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import compiler
from compiler.cli import options
from compiler.cli.options import command_of, flag, keywords_of, option
from compiler.cli.output import print_facts, print_json, print_line, print_table
from compiler.cli.progress import Steps
from compiler.reports.formatting import format_bytes, format_percent, format_rate, format_seconds, plural, shorten

_SHOWN = 15

HELP = """Measure the time of each layer of a module, under the model's names of its nodes.

The overhead of the instrumentation is measured in the same run and subtracted. A model is compiled first.

[bold]Typical[/]

  tensorwright profile model.twm --output profile

writes profile/profile.html (a page with plots), profile/trace.json (for ui.perfetto.dev) and profile/profile.json.

[bold]Examples[/]

  More runs, one thread:
    tensorwright profile model.twm --runs 200 --threads 1

  Two modules of one model, layer by layer (or a module and an earlier profile.json):
    tensorwright profile tuned.twm --compare untuned.twm

  The same as a page, side by side:
    tensorwright profile tuned.twm --compare untuned.twm --output profile

  A dynamic dimension set to 8:
    tensorwright profile bert.twm --shape batch=8 --output profile
"""


@dataclass(frozen=True, kw_only=True)
class _Options:
    file: Path = options.ANY_PATH
    output: Path | None = option("Write the page, the trace and the JSON to this folder.", "DIR", "--output", "-o")
    inputs: list[str] | None = options.INPUTS
    shape: list[str] | None = options.RUN_SHAPES
    runs: int | None = options.RUNS
    seconds: float = options.SECONDS
    threads: int | None = options.THREADS
    target: str = options.TARGET
    everything: bool = flag(f"Show all layers, not the first {_SHOWN}.", "--all")
    compare: Path | None = option("Another module, model or profile.json to compare with.", "FILE")
    as_json: bool = options.JSON


@command_of
def command(given: _Options) -> None:
    from compiler.cli.paths import check_writable_folder, prepare
    from compiler.profiling.difference import differences, layer_times, read_profile

    if given.output is not None:
        check_writable_folder(given.output)

    def measured(path: Path) -> Any:
        prepared = prepare(path, given.target, given.shape, given.inputs, given.threads)
        with Steps() as steps:
            steps("measure")
            keywords = keywords_of(compiler.profile, given, inputs=prepared.inputs, sizes=prepared.sizes)
            return compiler.profile(prepared.source, **keywords)

    other = read_profile(given.compare) if given.compare is not None and given.compare.suffix == ".json" else None
    profile = measured(given.file)
    if given.compare is not None and other is None:
        other = measured(given.compare).to_dict()
    paths = profile.save(given.output, other) if given.output is not None else {}
    compared = differences(layer_times(profile), layer_times(other)) if other is not None else []
    if given.as_json:
        beside = {"compared": [asdict(each) for each in compared]} if other is not None else {}
        print_json({**profile.to_dict(), **beside, "files": paths})
        return
    limit = None if given.everything else _SHOWN
    if other is not None:
        _print_comparison(profile.latency.p50, other["latency"]["p50"], compared, limit)
    else:
        _print(profile, paths, limit)


def _print_comparison(p50: float, other_p50: float, compared: list[Any], limit: int | None) -> None:
    def text(seconds: float | None) -> str:
        return "-" if seconds is None else format_seconds(seconds)

    ratio = f"{other_p50 / p50:.2f}" if p50 > 0 else "-"
    print_facts([("latency p50", f"{format_seconds(p50)}, the other {format_seconds(other_p50)}: a ratio of {ratio}")])
    print_line()
    rows = [
        (
            shorten(layer.name, 48),
            text(layer.seconds),
            text(layer.other),
            f"{layer.other / layer.seconds:.2f}" if layer.seconds and layer.other is not None else "-",
        )
        for layer in compared[:limit]
    ]
    numbers = ("time", "other", "ratio")
    print_table(("layer", *numbers), rows, numbers)
    if len(compared) > len(rows):
        print_line(f"and {len(compared) - len(rows)} more with smaller differences: --all shows them")


def _print(profile: Any, paths: dict[str, Path], limit: int | None) -> None:
    from compiler.support.balance import tasks_text

    latency = profile.latency
    print_facts(
        [
            ("module", f"{profile.model} on {profile.target}, {plural(profile.threads, 'thread')}"),
            ("inputs", "\n".join(f"{name}: {shape}" for name, shape in profile.inputs.items()) or "none"),
            ("latency p50", f"{format_seconds(latency.p50)} ({latency.runs} runs)"),
            ("instrument", f"{format_seconds(profile.crossing)} per call, subtracted"),
            ("untracked", profile.untracked_text()),
        ]
    )
    print_line()
    layers = profile.layers[:limit]
    rows = [
        (
            shorten(kernel.label, 48),
            kernel.kind,
            str(kernel.calls),
            format_seconds(kernel.seconds),
            format_percent(kernel.share),
            format_rate(kernel.rate) if kernel.rate is not None else "-",
            format_bytes(kernel.nbytes) if kernel.nbytes else "-",
            "-" if kernel.rule is None else tasks_text(kernel.tasks, kernel.serial),
            "-" if kernel.balance is None else format_percent(kernel.balance),
            shorten(kernel.name, 32) if kernel.nodes else "-",
        )
        for kernel in layers
    ]
    numbers = ("calls", "time", "share", "rate", "bytes", "tasks", "balance")
    print_table(("layer", "kind", *numbers, "kernel"), rows, numbers)
    hidden = profile.layers[len(layers) :]
    if hidden:
        rest = format_percent(sum(kernel.share for kernel in hidden))
        print_line(f"and {len(hidden)} more, {rest} of the time: --all shows them")
    print_line()
    kinds = ", ".join(f"{kind} {format_seconds(seconds)}" for kind, seconds in profile.seconds_by_kind().items())
    print_line(f"by kind: {kinds}")
    if paths:
        print_line(f"wrote {', '.join(map(str, paths.values()))}")
