"""Compares compiled modules with ONNX Runtime and OpenVINO, model by model, alternately.

    python -m benchmarks.compare resnet18 resnet50 mobilenet_v2 --threads 2
    python -m benchmarks.compare model.onnx --operators

Each contestant runs in its own process, which is stopped while another one runs. Times are medians over rounds of the
median in a round (or the best run of all, --statistic best); ratios above 1 mean that ours is faster.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import targets
from benchmarks._avx2_peers import limits
from benchmarks._models import Task, cache_folder, task_of
from benchmarks._quantized import quantized
from benchmarks._race import Entry, Result, race
from compiler.artifact import read_artifact
from compiler.reports.formatting import plural
from schedules.instructions.dot_products.table import dot_instructions
from schedules.machine import Machine
from targets import cpuinfo

_COMPILE = """
import sys, time
start = time.perf_counter()
import compiler
module = compiler.compile(
    sys.argv[1], target=sys.argv[3], shapes=eval(sys.argv[4]), threads=int(sys.argv[5]), precision=sys.argv[6],
    records=None if sys.argv[7] == "tuned" else False,
)
print(time.perf_counter() - start)
module.export(sys.argv[2])
"""
_UNTUNED = "untuned"
_PEAK = "import sys; from benchmarks._peak import measure_peak; print(measure_peak(int(sys.argv[1]), sys.argv[2]))"


@dataclass
class Row:
    """One line of the table; times in milliseconds. `untuned` is ours without records, if requested."""

    model: str
    ours: float
    peers: dict[str, float]
    ratio: float
    gflops: float
    share_of_peak: float
    compile_seconds: float
    difference: float
    untuned: float | None = None


def main() -> int:
    """Parse the arguments, time the contestants, print the table."""
    options = _parser().parse_args()
    console = Console()
    console.width = max(console.width, 120)  # the table is useless with truncated columns
    peak = measured_peak(options.threads, options.target)
    rows: list[Row] = []
    versions: set[str] = set()
    failed = False
    for name in options.models:
        try:
            task = task_of(name)
            task = quantized(task) if options.precision == "int8" else task
            rows.append(_compare(task, options, peak, versions, console))
        except (RuntimeError, ValueError, subprocess.CalledProcessError) as error:
            console.print(f"[red]{name}: {error}")
            failed = True
    if rows:
        _print(rows, options, peak, versions, console)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="names of the catalog, torchvision models, or .onnx files")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--target",
        default="host",
        help="our target; without 512-bit vectors the other runtimes are limited to AVX2 too",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a turn")
    parser.add_argument(
        "--precision",
        choices=("f32", "bf16", "int8"),
        default="f32",
        help="bf16: OpenVINO at its default, ONNX Runtime at f32 (it has no other); int8: all on the quantized model",
    )
    parser.add_argument(
        "--statistic",
        choices=("median", "best", "cpu"),
        default="median",
        help="for a machine with other load: best run, or processor time (one thread)",
    )
    parser.add_argument("--tuned", action="store_true", help="compile with tuning records, and also time ours without")
    parser.add_argument("--operators", action="store_true", help="show our time by kernel")
    parser.add_argument("--json", help="write the rows to this file")
    return parser


def measured_peak(threads: int, target: str) -> float:
    """Float32 operations per second on a number of threads with a target's vectors, measured in a separate process."""
    environment = {**os.environ, "TVM_NUM_THREADS": str(threads)}
    output = subprocess.run(
        [sys.executable, "-c", _PEAK, str(threads), target], check=True, capture_output=True, text=True, env=environment
    ).stdout
    return float(output.split()[-1])


def _compare(task: Task, options: Any, peak: float, versions: set[str], console: Console) -> Row:
    console.print(f"[dim]{task.name}: compiling")
    parts = [
        task.name,
        options.precision,
        str(options.threads),
        *([] if options.target == "host" else [options.target]),
    ]
    artifact = cache_folder() / f"{'-'.join(parts)}.twm"
    bf16 = options.precision == "bf16"
    if bf16:
        console.print(
            "[dim]ONNX Runtime has no bf16 on this processor: its time is f32 and does not count in the ratio"
        )
    compile_seconds = _compiled(task, artifact, options, tuned=options.tuned)
    entries = [
        Entry("tensorwright", artifact),
        Entry("onnxruntime", task.path),
        Entry("openvino", task.path, "f32" if options.precision == "f32" else "default"),
    ]
    same = options.tuned and not _uses_records(artifact)
    if same:
        console.print(f"[dim]{task.name}: no record is used, so the untuned module is the same")
    elif options.tuned:
        plain = artifact.with_stem(f"{artifact.stem}-untuned")
        _compiled(task, plain, options, tuned=False)
        entries.append(Entry("tensorwright", plain, variant=_UNTUNED))
    settings = limits(targets.get(options.target).machine)
    results = race(
        task, entries, options.threads, options.rounds, options.seconds, report=console.print, settings=settings
    )
    if len(results) < 2 or results[0].label != "tensorwright":
        raise RuntimeError("nothing to compare")
    ours, *rivals = results
    untuned = ours.seconds(options.statistic) if same else None
    untuned = untuned or next(
        (each.seconds(options.statistic) for each in rivals if each.label.endswith(_UNTUNED)), None
    )
    peers = [each for each in rivals if not each.label.endswith(_UNTUNED)]
    if not peers:
        raise RuntimeError("nothing to compare")
    versions.update(result.version for result in (ours, *peers))
    if options.operators:
        _print_operators(artifact, task, options.threads, console)
    mine = ours.seconds(options.statistic)
    peer_seconds = {peer.label: peer.seconds(options.statistic) for peer in peers}
    rate = task.operations / mine
    return Row(
        task.name,
        mine * 1e3,
        {label: seconds * 1e3 for label, seconds in peer_seconds.items()},
        min(seconds for label, seconds in peer_seconds.items() if not (bf16 and label == "onnxruntime")) / mine,
        rate / 1e9,
        rate / peak,
        compile_seconds,
        _difference(ours, peers[0]),
        None if untuned is None else untuned * 1e3,
    )


def _compiled(task: Task, artifact: Path, options: Any, *, tuned: bool) -> float:
    """Compile in a separate process; return seconds including the import of the compiler."""
    arguments = [str(task.path), str(artifact), options.target, repr(dict(task.shapes or {})), str(options.threads)]
    arguments += ["bf16" if options.precision == "bf16" else "float32", "tuned" if tuned else _UNTUNED]
    finished = subprocess.run([sys.executable, "-c", _COMPILE, *arguments], capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(finished.stderr.strip().splitlines()[-1] if finished.stderr else "the compiler died")
    return float(finished.stdout.split()[-1])


def _uses_records(artifact: Path) -> bool:
    """True if any kernel of a module was built from a tuning record."""
    return any(kernel.source == "record" for kernel in read_artifact(artifact).manifest.kernels)


def _difference(ours: Result, peer: Result) -> float:
    """Return the largest difference of an output, over the largest value of that output."""
    worst = 0.0
    for mine, other in zip(ours.outputs, peer.outputs, strict=False):
        if mine.shape != other.shape:
            return math.inf
        if mine.size and mine.dtype.kind == "f":
            worst = max(worst, float(np.abs(mine - other).max() / max(float(np.abs(other).max()), 1e-30)))
    return worst


def _processor(machine: Machine, peak: float) -> str:
    """Return the processor's name and its multiply-add rates, measured or described."""
    rates = {
        product.name: product.rate_on(machine)
        for operand, other in (("bfloat16", "bfloat16"), ("uint8", "int8"))
        for product in dot_instructions(machine, operand, other)
    }
    wide = ", ".join(f"{name} {rate * peak:.0f}" for name, rate in rates.items()) or "no products of narrow operands"
    vectors = ("avx", "amx", "neon", "dot", "i8")
    features = " ".join(sorted(each for each in machine.features if each.startswith(vectors)))
    return f"{cpuinfo.model_name()}: float32 {peak:.0f} GFLOP/s measured; by described rates {wide}\n{features}"


def _print(rows: list[Row], options: Any, peak: float, versions: set[str], console: Console) -> None:
    peers = list(dict.fromkeys(peer for row in rows for peer in row.peers))
    console.print(_processor(targets.get(options.target).machine, peak / 1e9))
    machine = f"{plural(options.threads, 'thread')}, target {options.target}, peak {peak / 1e9:.0f} GFLOP/s"
    title = f"{machine}; {time.strftime('%F')}"
    table = Table(title=title, caption=", ".join(sorted(versions)))
    table.add_column("model", no_wrap=True)
    for heading in (
        "ours ms",
        *((f"{_UNTUNED} ms", "gain") if options.tuned else ()),
        *(f"{peer} ms" for peer in peers),
        "ratio",
        "GFLOP/s",
        "of peak",
        "compile s",
        "differs",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        times = [f"{row.peers[peer]:.3f}" if peer in row.peers else "-" for peer in peers]
        color = "green" if row.ratio >= 1 else "yellow" if row.ratio >= 0.9 else "red"
        table.add_row(
            row.model,
            f"{row.ours:.3f}",
            *((f"{row.untuned:.3f}", f"{row.untuned / row.ours:.2f}") if row.untuned is not None else ()),
            *times,
            f"[{color}]{row.ratio:.2f}",
            f"{row.gflops:.0f}",
            f"{row.share_of_peak:.0%}",
            f"{row.compile_seconds:.1f}",
            f"{row.difference:.0e}",
        )
    console.print(table)
    mean = math.exp(sum(math.log(row.ratio) for row in rows) / len(rows))
    console.print(f"geometric mean of the ratios to the faster peer: {mean:.2f}")


def _print_operators(artifact: Path, task: Task, threads: int, console: Console) -> None:
    from compiler.profiling.profile import profile

    with np.load(task.arrays) as stored:
        inputs = {name: stored[name] for name in stored.files}
    measured = profile(artifact, inputs, threads=threads, seconds=2.0)
    table = Table(title=f"{task.name}: kernels")
    for heading in ("kernel", "rule", "calls", "us", "share", "GFLOP/s"):
        table.add_column(heading, justify="left" if heading in ("kernel", "rule") else "right")
    for kernel in sorted(measured.kernels, key=lambda each: -each.seconds):
        rate = f"{kernel.operations / kernel.seconds / 1e9:.0f}" if kernel.operations and kernel.seconds else ""
        values = (str(kernel.calls), f"{kernel.seconds * 1e6:.0f}", f"{kernel.share:.1%}", rate)
        table.add_row(kernel.name, kernel.rule or "", *values)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
