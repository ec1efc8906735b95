"""`bench`: latency, throughput, memory and load time of a compiled module, in a separate process.

The compiler's memory and threads do not affect the measurements: a fresh interpreter loads the module with only TVM's
runtime, like a device.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from compiler import errors
from compiler.artifact import Key, public_keys
from compiler.errors import InternalError, OptionError, TensorwrightError
from compiler.profiling.tensor_fields import named_types
from compiler.profiling.timing import Latency
from compiler.profiling.workload import as_module, batch_dimension, complete_inputs, with_rows
from compiler.reports.formatting import format_bytes, format_seconds, plural
from compiler.runtime import Module
from compiler.support.interrupts import interruptible
from compiler.support.notebook import facts_html

Hint = Literal["latency", "throughput"]


@dataclass(frozen=True)
class StreamTime:
    """Runs per second and median seconds per run, for a number of streams with a number of threads each."""

    streams: int
    threads: int
    runs_per_second: float
    p50: float


@dataclass(frozen=True)
class BenchResult:
    """Result of `bench`; times in seconds, sizes in bytes.

    Attributes:
        inputs: dtype and shape of each input, as text.
        latency, samples: statistics and single times of `Module.run`, with numpy inputs and outputs, after warm-up.
        import_seconds: importing the runtime in a fresh interpreter.
        load_seconds: from the file (in the system's cache) to a module that can run.
        first_seconds: the first inference.
        file_bytes, parameter_bytes: size of the file, and of the parameters in it.
        load_memory: growth of the process while loading. peak_memory: its largest growth at any time, inputs and
        outputs included.
        planned_memory: bytes of activations in the module's memory plan; None if there is no plan.
        batch: rows per run, the size of the symbolic first dimension of its inputs; None if unknown.
        faster_precisions: precisions estimated to be much faster than float32 on the module's target, as text.
        streams: number of threads of the process that run the module concurrently, each with `threads` threads.
        elapsed: wall-clock seconds of all runs.
        sweep: for the hint "throughput", the result of each number of streams tried; this result is the fastest one's.
    """

    model: str
    target: str
    threads: int
    inputs: dict[str, str]
    latency: Latency
    samples: tuple[float, ...]
    import_seconds: float
    load_seconds: float
    first_seconds: float
    file_bytes: int
    parameter_bytes: int
    load_memory: int
    peak_memory: int
    planned_memory: int | None
    batch: int | None = None
    faster_precisions: str = ""
    streams: int = 1
    elapsed: float = 0.0
    sweep: tuple[StreamTime, ...] = ()

    @property
    def runs_per_second(self) -> float:
        """Runs per second over all streams."""
        return self.latency.throughput if self.streams == 1 else self.latency.runs / self.elapsed

    @property
    def items_per_second(self) -> float:
        """Rows per second; runs per second if the batch size is unknown."""
        return self.runs_per_second * (self.batch or 1)

    def items_text(self) -> str:
        """Items per second, appended to runs per second; "" if a run has one item."""
        return f", {self.items_per_second:.4g} items/s at batch {self.batch}" if (self.batch or 1) > 1 else ""

    def __repr__(self) -> str:
        latency, seconds = self.latency, format_seconds
        return (
            f"<BenchResult {self.model!r} on {self.target}, {plural(self.threads, 'thread')}: "
            f"p50 {seconds(latency.p50)}, "
            f"p99 {seconds(latency.p99)}, {self.runs_per_second:.4g} runs/s; loads in {seconds(self.load_seconds)}, "
            f"peak memory {format_bytes(self.peak_memory)}>"
        )

    def _repr_html_(self) -> str:
        latency = self.latency
        times = {"p50": latency.p50, "p90": latency.p90, "p99": latency.p99, "mean": latency.mean}
        facts = [(f"latency {name}", format_seconds(seconds)) for name, seconds in times.items()]
        facts += [
            ("throughput", f"{self.runs_per_second:.4g} runs/s ({latency.runs} runs){self.items_text()}"),
            ("load, first run", f"{format_seconds(self.load_seconds)}, {format_seconds(self.first_seconds)}"),
            ("peak memory", format_bytes(self.peak_memory)),
            ("file", f"{format_bytes(self.file_bytes)}, parameters {format_bytes(self.parameter_bytes)}"),
        ]
        inputs = "\n".join(f"{name}: {shape}" for name, shape in self.inputs.items()) or "none"
        title = f"{self.model} on {self.target}, {plural(self.threads, 'thread')}"
        return facts_html(title, [("inputs", inputs), *facts])

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data for JSON, without the single times."""
        fields = asdict(self)
        del fields["samples"]
        return {**fields, "inputs": named_types(self.inputs), "latency": self.latency.to_dict()}


@interruptible
def bench(
    source: object,
    inputs: Mapping[str, object] | Sequence[object] | None = None,
    *,
    runs: int | None = None,
    seconds: float = 3.0,
    threads: int | None = None,
    sizes: Mapping[str, int] | None = None,
    batch: int | None = None,
    streams: int = 1,
    hint: Hint = "latency",
    trusted_keys: Sequence[Key] | None = None,
) -> BenchResult:
    """Measure a module in a fresh process.

    Args:
        source: a `Module`, or the path of a `.twm` file.
        inputs: by name or in order, as for `Module.run`; None: the stored reference or random inputs.
        runs: number of runs to time; None: as many as fit in `seconds`, at least 3.
        threads: number of threads per run; None: the module's own setting.
        sizes: sizes of symbolic dimensions by name, for random inputs; 1 for missing ones.
        batch: rows of each input whose first dimension is symbolic; 1 if neither this nor inputs nor sizes are given.
        streams: number of threads that run the module concurrently.
        hint: "latency" measures `streams` streams, by default one. "throughput" divides the threads among 1, 2, 4, ...
            streams, measures each for a part of `seconds`, and returns the fastest one's result.
        trusted_keys: Ed25519 public keys, as for `load`: a file must be signed by one of them.

    Raises:
        UserError: the file or an input is invalid.
        InternalError: TVM failed, or the process died.
    """
    if streams < 1 or hint not in get_args(Hint) or (streams > 1 and hint == "throughput"):
        raise OptionError(f"streams={streams}, hint={hint!r}", "give a number of streams, or the hint throughput")
    if runs is not None and runs < 1:
        raise OptionError(f"runs={runs}: at least one run is needed")
    if not seconds > 0:
        raise OptionError(f"seconds={seconds}: a time above 0 is needed")
    trusted = [key.hex() for key in public_keys(trusted_keys)] if trusted_keys is not None else None
    module = as_module(source, threads, trusted_keys)
    arrays, rows = bench_inputs(module, inputs, sizes, batch)
    with tempfile.TemporaryDirectory(prefix="tensorwright-bench-") as folder:
        path = Path(source) if isinstance(source, str | os.PathLike) else Path(folder) / "module.twm"
        if not isinstance(source, str | os.PathLike):
            module.export(path)
        request: dict[str, Any] = {
            "parent": os.getpid(),
            "module": str(path.resolve()),
            "inputs": _save_inputs(arrays, Path(folder)),
            "runs": runs,
            "seconds": seconds,
            "threads": threads,
            "streams": streams,
            "trusted_keys": trusted if isinstance(source, str | os.PathLike) else None,
        }
        choices = [(streams, threads)] if hint == "latency" else _divided(threads or module.threads)
        results = []
        for count, worker_threads in choices:
            changed = {"streams": count, "threads": worker_threads, "seconds": seconds / len(choices)}
            results.append((count, _run_worker({**request, **changed})))
        sweep = [_stream_time(count, each) for count, each in results] if hint == "throughput" else []
        streams, measured = max(results, key=lambda each: _stream_time(*each).runs_per_second)
        file_bytes = path.stat().st_size
    manifest = module.manifest
    plan = manifest.memory_plan
    samples = tuple(measured.pop("samples"))
    return BenchResult(
        model=manifest.model_name,
        target=manifest.target.name,
        inputs={name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()},
        latency=Latency.of(samples),
        samples=samples,
        file_bytes=file_bytes,
        parameter_bytes=sum(parameter.nbytes for parameter in manifest.parameters),
        planned_memory=plan.peak_bytes if plan is not None else None,
        batch=rows,
        faster_precisions=manifest.target.faster_precisions,
        streams=streams,
        sweep=tuple(sweep),
        **measured,
    )


def _divided(threads: int) -> list[tuple[int, int]]:
    """Combinations of streams and threads per stream that use all threads."""
    streams = [1 << power for power in range(threads.bit_length()) if 1 << power < threads] + [threads]
    return [(count, max(1, threads // count)) for count in streams]


def _stream_time(streams: int, measured: Mapping[str, Any]) -> StreamTime:
    latency = Latency.of(measured["samples"])
    rate = latency.throughput if streams == 1 else latency.runs / measured["elapsed"]
    return StreamTime(streams, measured["threads"], rate, latency.p50)


def bench_inputs(
    module: Module,
    inputs: Mapping[str, object] | Sequence[object] | None,
    sizes: Mapping[str, int] | None,
    batch: int | None,
) -> tuple[dict[str, np.ndarray], int | None]:
    """The inputs for `bench`, and their rows, None if the batch size is fixed. Raises as `bench`."""
    arrays = complete_inputs(module, inputs, sizes)
    dimension = batch_dimension(module)
    if batch is not None and batch < 1:
        raise OptionError(f"batch={batch}: at least one row is needed")
    if dimension is None:
        if batch is not None:
            hint = "compile it with a symbolic first dimension: shapes={...: ('batch', ...)}"
            raise OptionError(f"batch={batch}: the module's batch size is fixed", hint)
        return arrays, None
    rows = batch if batch is not None or inputs or sizes else 1
    if rows is not None:
        arrays = with_rows(module, arrays, dimension, rows)
    named = next(spec.name for spec in module.inputs if spec.shape and spec.shape[0] == dimension)
    return arrays, int(arrays[named].shape[0])


def _save_inputs(arrays: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Write each input's bytes to its own file; numpy's format does not support every element type."""
    entries = []
    for index, (name, value) in enumerate(arrays.items()):
        array = np.ascontiguousarray(value)
        path = folder / f"input-{index}.bin"
        array.tofile(path)
        shape = list(np.shape(value))
        entries.append({"name": name, "path": str(path), "dtype": str(array.dtype), "shape": shape})
    return entries


def _run_worker(request: Mapping[str, object]) -> dict[str, Any]:
    command = [sys.executable, "-m", "compiler.profiling.bench_worker"]
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.run(
        command,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise InternalError(f"the process that ran the module died of {name}", process.stderr.strip()[-2000:] or None)
    try:
        answer: dict[str, Any] = json.loads(process.stdout)
    except json.JSONDecodeError:
        details = process.stderr.strip()[-2000:]
        raise InternalError(
            f"the process that ran the module failed (exit code {process.returncode}): {details}"
        ) from None
    if "error" in answer:
        raise _as_error(answer["error"])
    return answer


def _as_error(error: Mapping[str, Any]) -> TensorwrightError:
    """The worker's error, with its original class."""
    kind = getattr(errors, str(error["class"]), InternalError)
    made = kind.__new__(kind)
    TensorwrightError.__init__(made, error["message"], error["hint"])
    return made
