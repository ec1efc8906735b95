"""Find slow kernels: compare every kernel above a fraction of its model's time with the machine's limits.

    python -m benchmarks.audit                     # all nets of the catalog
    python -m benchmarks.audit resnet18 model.onnx --precision bf16 --share 0.02

A kernel's limit is the time of its operations at the measured peak of this machine, or of its bytes at the speed of the
caches (of memory, if they do not fit), whichever is longer. The list contains kernels of the fallback rule, which run
as plain loops, and kernels that take several times their limit. Exits with status 1 if a fallback kernel also takes
several times its limit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import compiler
import targets
from benchmarks._models import Task, task_of
from benchmarks._quantized import quantized
from benchmarks.catalog import CATALOG
from benchmarks.compare import measured_peak
from compiler.errors import TensorwrightError
from compiler.profiling.measured import KernelTime
from compiler.profiling.profile import profile
from compiler.reports.formatting import plural
from compiler.support.roofline import Roofline

_PLAIN = ("fallback", "as-is")
_CALL_SECONDS = 1e-6
"""Shortest kernel call for which a rate is shown."""


@dataclass(frozen=True)
class Finding:
    """A kernel of a net; `share` of the net's time, `limit` in seconds."""

    model: str
    kernel: KernelTime
    limit: float

    @property
    def is_plain(self) -> bool:
        return self.kernel.rule is None or self.kernel.rule in _PLAIN

    @property
    def times_limit(self) -> float:
        """The kernel's time over its limit."""
        return self.kernel.seconds / (self.limit + _CALL_SECONDS * self.kernel.calls)


def main() -> int:
    """Parse the arguments, profile each net, print the table."""
    options = _parser().parse_args()
    console = Console()
    console.width = max(console.width, 120)
    machine = targets.get(options.target).machine
    peak = measured_peak(options.threads, options.target)
    roofline = Roofline.of(machine.model_copy(update={"cores": options.threads}), measured=options.target == "host")
    findings: list[Finding] = []
    failed = False
    for name in options.models or CATALOG:
        try:
            task = task_of(name)
            task = quantized(task) if options.precision == "int8" else task
            audited = _audited(task, options, peak, roofline)
        except (ValueError, TensorwrightError) as error:
            console.print(f"[red]{name}: {error}")
            failed = True
            continue
        console.print(f"[dim]{name}: {len(audited)} to look at")
        findings += audited
    _print(findings, options, console)
    return 1 if failed or any(each.is_plain and each.times_limit > options.times for each in findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names of the catalog (all of them), torchvision models, .onnx files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="host")
    parser.add_argument("--precision", choices=("f32", "bf16", "int8"), default="f32")
    parser.add_argument(
        "--share", type=float, default=0.01, help="fraction of a net's time below which kernels are ignored"
    )
    parser.add_argument("--times", type=float, default=4.0, help="allowed multiple of a kernel's limit")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring each net")
    return parser


def _audited(task: Task, options: Any, peak: float, roofline: Roofline) -> list[Finding]:
    module = compiler.compile(
        str(task.path),
        target=options.target,
        shapes=dict(task.shapes or {}),
        threads=options.threads,
        precision="bf16" if options.precision == "bf16" else "float32",
        records=False,
    )
    with np.load(task.arrays) as stored:
        inputs = {name: np.asarray(stored[name], order="C") for name in stored.files}
    measured = profile(module, inputs, threads=options.threads, seconds=options.seconds)
    mine = {entry.kernel for entry in module.manifest.kernels}
    findings = []
    for kernel in measured.kernels:
        if kernel.name not in mine or kernel.share < options.share:
            continue
        each = kernel.nbytes / kernel.calls
        bandwidth = roofline.cache_bandwidth if each <= roofline.cache_bytes else roofline.memory_bandwidth
        limit = max((kernel.operations or 0) / peak, kernel.nbytes / bandwidth)
        finding = Finding(task.name, kernel, limit)
        if finding.is_plain or finding.times_limit > options.times:
            findings.append(finding)
    return findings


def _print(findings: Sequence[Finding], options: Any, console: Console) -> None:
    if not findings:
        console.print(f"no kernel above {options.share:.0%} is of the fallback or {options.times:g} times its limit")
        return
    table = Table(title=f"{plural(options.threads, 'thread')}, target {options.target}, {options.precision}")
    table.add_column("model", no_wrap=True)
    table.add_column("kernel", overflow="ellipsis", no_wrap=True, max_width=48)
    table.add_column("rule")
    for heading in ("us", "share", "GFLOP/s", "GB/s", "times limit"):
        table.add_column(heading, justify="right")
    for each in sorted(findings, key=lambda finding: -finding.kernel.share):
        kernel = each.kernel
        color = "red" if each.times_limit > options.times else "green"
        table.add_row(
            each.model,
            kernel.name,
            kernel.rule or "",
            f"{kernel.seconds * 1e6:.1f}",
            f"{kernel.share:.1%}",
            f"{(kernel.rate or 0) / 1e9:.1f}",
            f"{(kernel.bandwidth or 0) / 1e9:.1f}",
            f"[{color}]{each.times_limit:.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
