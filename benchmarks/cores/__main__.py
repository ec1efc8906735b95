"""Multi-core speedups of compiled networks: modelled, and measured as far as this machine has cores.

    python -m benchmarks.cores resnet50 vgg19@16 minilm-128 smollm2:decode --cores 2 8 32 [--kernels] [--json FILE]

Each net is compiled for each number of cores (or for `--compiled-for` cores), and the parts of its parallel regions are
timed one after another on one core of this machine; `benchmarks.cores.model` predicts the time on many cores from
these. `--cold` empties a core's own caches before each part, as if another core had computed its inputs; without it, a
part finds the data of earlier parts there. Measured times of ours and the other runtimes come from separate processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import targets
from benchmarks._race import Entry, race
from benchmarks.cores.model import SERIAL_SECONDS, Call, Prediction, predict
from benchmarks.cores.nets import Net, net_of
from compiler.reports.formatting import format_percent, format_seconds, shorten
from targets.processors import usable_cores

_COMPILE = """
import sys
import compiler, targets
target = targets.get(sys.argv[3], cores=int(sys.argv[5]))
options = {"precision": sys.argv[6]} if sys.argv[6] else {}
module = compiler.compile(sys.argv[1], target=target, shapes=eval(sys.argv[4]), **options)
module.export(sys.argv[2])
"""
_SHOWN = 12  # kernels
_SHORT = 20e-6


@dataclass
class Row:
    """A network on a number of cores; measured milliseconds by contestant, if this machine has the cores. `bound` is
    the speedup limit due to launching parallel regions, `serial` lists the calls that run on one core, longest first,
    except those under `_SHORT`."""

    net: str
    cores: int
    compiled_for: int
    modelled_ms: float
    one_core_ms: float
    speedup: float
    bound: float
    balance: float
    starting_share: float
    moving_share: float
    serial_share: float
    serial_kernels: int
    longest_serial_us: float
    measured_ms: dict[str, float] = field(default_factory=dict)
    serial: list[dict[str, Any]] = field(default_factory=list)


def main() -> int:
    """Parse the arguments, compile, time, print the table."""
    options = _parser().parse_args()
    console = Console()
    console.width = max(console.width, 150)
    rows: list[Row] = []
    failed = False
    for name in options.nets:
        try:
            net = net_of(name, dict(options.sizes))
            net_rows = _rows(net.fixed() if options.fixed else net, options, console)
        except (RuntimeError, ValueError) as error:
            console.print(f"[red]{name}: {error}", highlight=False)
            failed = True
            continue
        rows += net_rows
        if options.json:
            Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if rows:
        console.print(_table(rows, options))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cores", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nets", nargs="+", help="NAME, NAME@BATCH, FILE.onnx, smollm2:decode, FILE.gguf:prompt")
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64, 128])
    parser.add_argument(
        "--sizes", type=_size, nargs="*", default=[], help="height=640 ...: values of symbolic dimensions"
    )
    parser.add_argument("--fixed", action="store_true", help="compile for the sizes of the run instead of dynamic ones")
    parser.add_argument("--target", default="host", help="a target that this machine runs; its caches and memory count")
    parser.add_argument("--precision", default="", help="as for compile; a language model's own if not given")
    parser.add_argument("--compiled-for", type=int, help="compile once, for this many cores")
    parser.add_argument("--modules", help="store compiled modules in this folder, and reuse existing ones")
    parser.add_argument("--cold", action="store_true", help="empty a core's own caches before each part")
    parser.add_argument("--runs", type=int, default=15, help="number of runs; the shortest time of each part counts")
    parser.add_argument("--kernels", action="store_true", help="show the kernels that lose the most time")
    parser.add_argument(
        "--measured",
        action="store_true",
        help="also time ours and the other runtimes, if this machine has enough cores",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--json", help="write the rows to this file")
    return parser


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    return name, int(value)


def _rows(net: Net, options: argparse.Namespace, console: Console) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="tensorwright-cores-") as folder:
        module_folder = Path(options.modules) / net.name.replace("/", "_") if options.modules else Path(folder)
        module_folder.mkdir(parents=True, exist_ok=True)
        compiled = {
            cores: _compiled(net, options.compiled_for or cores if cores > 1 else 1, options, module_folder, console)
            for cores in sorted({1, *options.cores})
        }
        evicted = targets.get(options.target, cores=1).machine.l2_bytes if options.cold else 0
        modules = [
            {"path": str(path), "cores": cores, "evicted": evicted * (cores > 1)} for cores, path in compiled.items()
        ]
        plan = {"arrays": str(net.arrays), "sizes": dict(net.sizes), "runs": options.runs, "modules": modules}
        console.print(f"[dim]{net.name}: timing parts", highlight=False)
        calls = dict(zip(compiled, _emulated(plan, Path(folder)), strict=True))
        for cores in options.cores:
            machine = targets.get(options.target, cores=cores).machine
            prediction = predict(calls[cores], calls[1], machine)
            row = _row(net, prediction, options.compiled_for or cores)
            if options.measured and cores <= usable_cores() and net.task is not None:
                row.measured_ms = _measured(net, compiled[cores], cores, options, console)
            if options.kernels:
                console.print(_kernels(net, prediction))
            rows.append(row)
    return rows


def _compiled(net: Net, cores: int, options: argparse.Namespace, folder: Path, console: Console) -> Path:
    path = folder / f"{cores}.twm"
    if path.exists():
        return path
    console.print(f"[dim]{net.name}: compiling for {cores} cores", highlight=False)
    shapes = repr(dict(net.shapes) if net.shapes else None)
    arguments = [str(net.source), str(path), options.target, shapes, str(cores), options.precision]
    finished = subprocess.run([sys.executable, "-c", _COMPILE, *arguments], capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError((finished.stderr.strip().splitlines() or ["the compiler died"])[-1])
    return path


def _emulated(plan: dict[str, Any], folder: Path) -> list[list[dict[str, Any]]]:
    """Timed calls of each module, each measured in a separate process."""
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    command = [sys.executable, "-m", "benchmarks.cores.emulate", str(file)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError((finished.stderr.strip().splitlines() or ["timing died"])[-1])
    calls: list[list[dict[str, Any]]] = json.loads(finished.stdout.splitlines()[-1])
    return calls


def _row(net: Net, prediction: Prediction, compiled_for: int) -> Row:
    serial = prediction.serial()
    return Row(
        net=net.name,
        cores=prediction.cores,
        compiled_for=compiled_for,
        modelled_ms=prediction.seconds * 1e3,
        one_core_ms=prediction.one * 1e3,
        speedup=prediction.speedup,
        bound=prediction.bound,
        balance=prediction.balance,
        starting_share=prediction.starting_share,
        moving_share=prediction.moving_share,
        serial_share=prediction.serial_share,
        serial_kernels=sum(call.longest > SERIAL_SECONDS for call in serial),
        longest_serial_us=max((call.longest for call in serial), default=0.0) * 1e6,
        serial=[
            {
                "kernel": call.kernel,
                "node": next(iter(call.nodes), ""),
                "rule": call.rule,
                "microseconds": call.longest * 1e6,
                "share": call.seconds / prediction.seconds,
                "reason": call.reason,
            }
            for call in serial
            if call.longest > _SHORT
        ],
    )


def _measured(net: Net, module: Path, cores: int, options: argparse.Namespace, console: Console) -> dict[str, float]:
    assert net.task is not None
    entries = [Entry("tensorwright", module), Entry("onnxruntime", net.task.path), Entry("openvino", net.task.path)]
    results = race(net.task, entries, cores, options.rounds, 0.5, report=console.print)
    return {each.label: each.seconds("median") * 1e3 for each in results}


def _table(rows: Sequence[Row], options: argparse.Namespace) -> Table:
    caches = "a core's own caches empty" if options.cold else "caches warm"
    table = Table(title=f"modelled for {options.target}, {caches}; share: of the time on that many cores")
    table.add_column("net", no_wrap=True)
    contestants = list(dict.fromkeys(name for row in rows for name in row.measured_ms))
    headings = ("cores", "1 core ms", "ms", "speedup", "bound", "of linear", "balance", "starting", "moving", "serial")
    for heading in (*headings, f"serial > {SERIAL_SECONDS * 1e6:.0f} us", *(f"{name} ms" for name in contestants)):
        table.add_column(heading, justify="right")
    for row in rows:
        longest = f" ({row.longest_serial_us:.0f})" if row.serial_kernels else ""
        table.add_row(
            row.net,
            str(row.cores),
            f"{row.one_core_ms:.2f}",
            f"{row.modelled_ms:.3f}",
            f"{row.speedup:.1f}",
            f"{row.bound:.1f}",
            format_percent(row.speedup / row.cores),
            *map(format_percent, (row.balance, row.starting_share, row.moving_share, row.serial_share)),
            f"{row.serial_kernels}{longest}",
            *(f"{row.measured_ms[name]:.3f}" if name in row.measured_ms else "-" for name in contestants),
        )
    return table


def _kernels(net: Net, prediction: Prediction) -> Table:
    """The calls with the worst load balance, by kernel."""
    groups: dict[str, list[Call]] = {}
    for call in prediction.calls:
        groups.setdefault(call.kernel, []).append(call)

    def lost(calls: Sequence[Call]) -> float:
        return sum(call.seconds - call.one / prediction.cores for call in calls)

    ranked = sorted(groups.items(), key=lambda item: -lost(item[1]))
    table = Table(title=f"{net.name} on {prediction.cores} cores: kernels that lose the most time")
    for heading in ("kernel", "node", "rule"):
        table.add_column(heading)
    for heading in ("calls", "tasks", "parts", "1 core", "longest", "moving", "starting", "lost", "of all"):
        table.add_column(heading, justify="right")
    for name, calls in ranked[:_SHOWN]:
        first = calls[0]
        sums = [sum(getattr(call, part) for call in calls) for part in ("one", "longest", "moving", "starting")]
        table.add_row(
            shorten(name, 36),
            shorten(first.nodes[0], 28) if first.nodes else "",
            first.rule,
            str(len(calls)),
            " or ".join(sorted({call.tasks for call in calls})),
            ", ".join(map(str, sorted({call.parts for call in calls}))),
            *map(format_seconds, (*sums, lost(calls))),
            format_percent(lost(calls) / prediction.seconds),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
