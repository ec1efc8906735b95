"""The process that `bench` measures in: a request as JSON on standard input, the answer as JSON on standard output."""

from __future__ import annotations

import time

_STARTED = time.perf_counter()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from typing import Any  # noqa: E402

import ml_dtypes  # noqa: E402, F401  (numpy then knows its element types by name)
import numpy as np  # noqa: E402

from compiler.errors import InternalError, TensorwrightError  # noqa: E402
from compiler.runtime import Module, load  # noqa: E402
from compiler.runtime.tvm_runtime import runtime_library  # noqa: E402
from compiler.support.processes import end_with_parent  # noqa: E402

_MIN_RUNS = 3
_WARM_UP_SHARE = 0.1
_MAX_WARM_UP_SECONDS = 1.0


def measure(request: dict[str, Any], import_seconds: float) -> dict[str, Any]:
    """Load the module and run it according to the request; times in seconds, memory in bytes."""
    inputs = {entry["name"]: _read_input(entry) for entry in request["inputs"]}
    _reset_peak()
    base_memory = _resident_bytes()
    start = time.perf_counter()
    trusted = request["trusted_keys"]
    keys = [bytes.fromhex(key) for key in trusted] if trusted is not None else None
    module = load(request["module"], threads=request["threads"], trusted_keys=keys)
    load_seconds = time.perf_counter() - start
    load_memory = _resident_bytes() - base_memory
    first_seconds = _timed_run(module, inputs)
    _warm_up(module, inputs, request)
    started = time.perf_counter()
    if request["streams"] == 1:
        samples = _sample(module, inputs, request["runs"], request["seconds"])
    else:
        samples = _sample_streams(module, inputs, request)
    elapsed = time.perf_counter() - started
    return {
        "threads": module.threads,
        "import_seconds": import_seconds,
        "load_seconds": load_seconds,
        "first_seconds": first_seconds,
        "load_memory": load_memory,
        "peak_memory": _peak_bytes() - base_memory,
        "samples": samples,
        "elapsed": elapsed,
    }


def _read_input(entry: dict[str, Any]) -> np.ndarray:
    return np.fromfile(entry["path"], dtype=np.dtype(entry["dtype"])).reshape(entry["shape"])


def _timed_run(module: Module, inputs: dict[str, Any]) -> float:
    start = time.perf_counter()
    module.run(inputs)
    return time.perf_counter() - start


def _warm_up(module: Module, inputs: dict[str, Any], request: dict[str, Any]) -> None:
    """Run for a tenth of the requested time, at most a second, and at least twice."""
    deadline = time.perf_counter() + min(_MAX_WARM_UP_SECONDS, _WARM_UP_SHARE * request["seconds"])
    module.run(inputs)
    module.run(inputs)
    while time.perf_counter() < deadline:
        module.run(inputs)


def _sample(module: Module, inputs: dict[str, Any], runs: int | None, seconds: float) -> list[float]:
    if runs is not None:
        return [_timed_run(module, inputs) for _ in range(runs)]
    samples: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(samples) < _MIN_RUNS or time.perf_counter() < deadline:
        samples.append(_timed_run(module, inputs))
    return samples


def _sample_streams(module: Module, inputs: dict[str, Any], request: dict[str, Any]) -> list[float]:
    """Times of runs on several threads of this process, each of which runs the module on its own inputs."""
    streams = request["streams"]
    runs = None if request["runs"] is None else max(1, request["runs"] // streams)

    def stream(_: int) -> list[float]:
        own = {name: array.copy() for name, array in inputs.items()}
        return _sample(module, own, runs, request["seconds"])

    with ThreadPoolExecutor(streams) as pool:
        return [sample for samples in pool.map(stream, range(streams)) for sample in samples]


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _reset_peak() -> None:
    """Reset the system's peak counter; if that is impossible (not Linux), the peak is that of the whole process."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")


def _peak_bytes() -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except FileNotFoundError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def main() -> int:
    """Answer one request; errors are part of the answer."""
    runtime_library()
    import_seconds = time.perf_counter() - _STARTED
    answer: dict[str, Any]
    try:
        request = json.load(sys.stdin)
        end_with_parent(request["parent"])
        answer = measure(request, import_seconds)
    except TensorwrightError as error:
        answer = {"error": {"class": type(error).__name__, "message": error.message, "hint": error.hint}}
    except Exception as error:
        failure = InternalError(f"measuring failed: {type(error).__name__}: {error}")
        answer = {"error": {"class": "InternalError", "message": failure.message, "hint": None}}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
