"""Compile a net in a separate process and compare it with ONNX Runtime on random inputs; started by `__main__`.

    python -m benchmarks.families.check NAME MODULE.twm THREADS

Prints the compile time (seconds of wall clock and of processor time) and the largest difference, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.families.registry import Array, Net, nets

SEEDS = (1, 2)


def main() -> int:
    """Compile, export, compare."""
    import compiler

    name, output, threads = sys.argv[1:]
    entry = nets()[name]
    path = entry.path()
    start_times, start = os.times(), time.perf_counter()
    module = compiler.compile(str(path), shapes=entry.shapes, threads=int(threads), records=False)
    seconds, end_times = time.perf_counter() - start, os.times()
    module.export(output)
    difference = max(_differences(entry, path, module))
    processor = sum(end_times[:4]) - sum(start_times[:4])
    print(json.dumps({"seconds": seconds, "processor_seconds": processor, "difference": difference}))
    return 0


def _differences(entry: Net, path: Path, module: Any) -> list[float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several threads of its ScatterND lose sums of the same row (6 runs of 300, 1.32)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    differences = []
    for sizes in entry.sizes:
        for seed in SEEDS:
            inputs = entry.sample(seed, sizes)
            ours = list(module.run(inputs).values())
            differences.append(largest_difference(ours, session.run(None, inputs)))
    return differences


def largest_difference(ours: Sequence[Array], reference: Sequence[Array]) -> float:
    """Return the largest difference over outputs, relative to the largest absolute value of each; infinite if shapes,
    positions of NaN or infinities, or integers differ."""
    if len(ours) != len(reference):
        return float("inf")
    return max((_difference(mine, np.asarray(other)) for mine, other in zip(ours, reference, strict=True)), default=0.0)


def _difference(mine: Array, other: Array) -> float:
    if mine.shape != other.shape:
        return float("inf")
    if mine.dtype.kind not in "fc":
        return 0.0 if np.array_equal(mine, other) else float("inf")
    first, second = mine.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(second)
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = max(float(np.abs(second[finite]).max()), 1e-30)
    return float(np.abs(first[finite] - second[finite]).max()) / scale


if __name__ == "__main__":
    sys.exit(main())
