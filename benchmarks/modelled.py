"""Modelled times of nets on a described x86-64 processor, by what `compiler.quantize` estimates with.

    python -m benchmarks.modelled resnet50 vit_b_16 --target granite-rapids:2 --precision bf16
    python -m benchmarks.modelled resnet50 --target granite-rapids:2 --int8

For each net: the time at a clock of 3 GHz, perfectly shared by the cores; the share of it in kernels whose sums stay in
tiles; and those kernels' share of the unit's peak (16 x 16 sums of 64 bytes of a row take 16 cycles). A model orders
candidates; it is no measurement.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

import compiler
import targets
from benchmarks._models import Task, task_of
from compiler.compression.predicted_times import KernelTime, PredictedClock
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import import_model

_HERTZ = 3e9  # of the predictions
_PEAKS = {"tdpbf16ps": 16 * 16 * 32 * 2 / 16 * _HERTZ}
_BYTES_PEAK = 2 * _PEAKS["tdpbf16ps"]


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+")
    parser.add_argument("--target", default="granite-rapids:2")
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16"))
    parser.add_argument("--int8", action="store_true", help="quantize by random data first")
    given = parser.parse_args()
    target = targets.get(given.target)
    table = Table(title=f"{target.name}, {target.machine.cores} cores, {'int8' if given.int8 else given.precision}")
    for name in ("net", "modelled ms", "of it in tiles", "share of the unit's peak there"):
        table.add_column(name)
    for name in given.nets:
        task = task_of(name)
        model = _quantized(task) if given.int8 else import_model(str(task.path), shapes=task.shapes)
        [times] = PredictedClock(target, given.precision)([model.mod])
        table.add_row(name, *_summary(times, target.machine.cores))
    Console().print(table)


def _quantized(task: Task) -> ImportedModel:
    with np.load(task.arrays) as arrays:
        return compiler.quantize(str(task.path), [dict(arrays)], shapes=task.shapes)


def _summary(times: list[KernelTime], cores: int) -> tuple[str, str, str]:
    """Milliseconds, the share in kernels of tiles, and their share of the peak."""
    total, tiles = sum(each.seconds for each in times), [each for each in times if each.tiles]
    inside = sum(each.seconds for each in tiles)
    ideal = sum(each.operations / _PEAKS.get(each.tiles, _BYTES_PEAK) for each in tiles)
    return (
        f"{total / cores * 1e3:.2f}",
        f"{inside / total:.0%}",
        f"{ideal / inside:.0%}" if inside else "",
    )


if __name__ == "__main__":
    main()
