"""Time one contestant in a process of its own: thread pools spin, and slow each other inside one process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WARM_UP = 10
ROUNDS = 3


def median_times(contestants: Mapping[str, Path], inputs: Path, threads: int, runs: int) -> dict[str, float]:
    """Median seconds of a run of each contestant, best of three turns each, in turn.

    Args:
        contestants: "tensorwright" or "onnxruntime", and the file that it runs.
        inputs: an .npz file of inputs by name.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, path in contestants.items():
            command = [sys.executable, "-m", "examples.timing", name, str(path), str(inputs), str(threads), str(runs)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
            times[name].append(float(json.loads(done.stdout)))
    return {name: min(values) for name, values in times.items()}


def _runner(contestant: str, path: str, threads: int) -> Callable[[dict[str, Array]], Any]:
    if contestant == "tensorwright":
        import compiler

        return compiler.load(path, threads=threads).run
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def _measure(contestant: str, path: str, inputs_path: str, threads: int, runs: int) -> float:
    inputs = dict(np.load(inputs_path))
    run = _runner(contestant, path, threads)
    for _ in range(WARM_UP):
        run(inputs)
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        run(inputs)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))))
