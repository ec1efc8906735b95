"""Models of dynamic shape: ours compiled once, at several sizes, compared with ONNX Runtime on the same file and with
ours compiled for only that size.

    python -m benchmarks.dynamic_sizes resnet18-batch unet-image minilm

Each contestant runs in its own process on one thread, alternating; times are medians of processor time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks._models import cache_folder
from benchmarks._open_models import OPEN_MODELS, OpenModel
from benchmarks._race import Entry, Result, race


@dataclass
class Row:
    """One model at one size; milliseconds, and processor seconds to compile it (with dynamic sizes, for that size)."""

    model: str
    sizes: dict[str, int]
    ours: float
    fixed: float | None
    onnxruntime: float
    difference: float
    compile_seconds: float
    compile_fixed_seconds: float | None


def main() -> int:
    """Compile, time and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dynamic_sizes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(OPEN_MODELS)}; all when none")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=0.4, help="length of a turn")
    parser.add_argument("--no-fixed", action="store_true", help="skip ours compiled for only that size")
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    if unknown := set(options.models) - set(OPEN_MODELS):
        parser.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(OPEN_MODELS)}")
    console = Console()
    console.width = max(console.width, 120)
    rows = []
    for name in options.models or OPEN_MODELS:
        rows += _rows(OPEN_MODELS[name], options, console)
    _print(rows, console)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


def _rows(model: OpenModel, options: Any, console: Console) -> list[Row]:
    path = model.path()
    console.print(f"[dim]{model.name}: compiling")
    ours = cache_folder() / f"{model.name}-open.twm"
    compile_seconds = _compiled(path, model.shapes, ours)
    rows = []
    for sizes in model.sizes:
        task = model.task(path, sizes)
        entries = [Entry("tensorwright", ours), Entry("onnxruntime", path)]
        fixed_seconds = None
        if not options.no_fixed:
            fixed = cache_folder() / f"{task.name}-fixed.twm"
            fixed_seconds = _compiled(path, task.shapes, fixed)
            entries.append(Entry("tensorwright", fixed, variant="fixed"))
        results = race(task, entries, 1, options.rounds, options.seconds)
        mine, peer, *others = (each.seconds("cpu") * 1e3 for each in results)
        row = Row(
            model.name,
            dict(sizes),
            mine,
            others[0] if others else None,
            peer,
            _difference(results[0], results[1]),
            compile_seconds,
            fixed_seconds,
        )
        rows.append(row)
        fixed_text = "" if row.fixed is None else f", fixed {row.fixed:.3f}"
        console.print(f"[dim]{task.name}: {mine:.3f} ms, ONNX Runtime {peer:.3f}{fixed_text}")
    return rows


def _compiled(path: Path, shapes: Any, output: Path) -> float:
    """Compile and export, untuned and for one thread; return processor seconds."""
    import compiler

    start = os.times()
    module = compiler.compile(str(path), shapes=shapes, threads=1, records=False)
    seconds = sum(os.times()[:4]) - sum(start[:4])  # of this process and of processes that built kernels
    module.export(output)
    return seconds


def _difference(ours: Result, peer: Result) -> float:
    """Return the largest difference of an output, over the largest value of that output."""
    worst = 0.0
    for mine, other in zip(ours.outputs, peer.outputs, strict=True):
        if mine.shape != other.shape:
            return math.inf
        worst = max(worst, float(np.abs(mine - other).max() / max(float(np.abs(other).max()), 1e-30)))
    return worst


def _print(rows: list[Row], console: Console) -> None:
    table = Table(title="dynamic sizes, one thread, milliseconds of processor time")
    headings = ("model", "sizes", "ours", "fixed", "to fixed", "ONNX Runtime", "ratio", "compile s", "fixed", "differs")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right")
    for row in rows:
        fixed = ("", "") if row.fixed is None else (f"{row.fixed:.3f}", f"{row.ours / row.fixed:.2f}")
        seconds = "" if row.compile_fixed_seconds is None else f"{row.compile_fixed_seconds:.1f}"
        table.add_row(
            row.model,
            " x ".join(map(str, row.sizes.values())),
            f"{row.ours:.3f}",
            *fixed,
            f"{row.onnxruntime:.3f}",
            f"{row.onnxruntime / row.ours:.2f}",
            f"{row.compile_seconds:.1f}",
            seconds,
            f"{row.difference:.0e}",
        )
    console.print(table)
    mean = math.exp(sum(math.log(row.onnxruntime / row.ours) for row in rows) / len(rows))
    console.print(f"geometric mean of the ratios to ONNX Runtime: {mean:.2f}")


if __name__ == "__main__":
    sys.exit(main())
