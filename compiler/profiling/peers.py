"""Compares a model's module with other runtimes on the same inputs: each in its own process, in turn, stopped while
another runs (idle thread pools spin)."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import InternalError, MissingDependencyError, OptionError
from compiler.runtime import Module

WORKER = "compiler.profiling.contestant"


@dataclass(frozen=True)
class Entry:
    """A participant.

    Attributes:
        contestant: a name of `CONTESTANTS` in `worker`.
        path: the model file that it loads.
        precision: "f32", or "default", which leaves it to the runtime.
        variant: distinguishes two participants of one kind.
        worker: the module run as its process.
    """

    contestant: str
    path: Path
    precision: str = "f32"
    variant: str = ""
    worker: str = WORKER

    @property
    def label(self) -> str:
        parts = (self.contestant, "" if self.precision == "f32" else self.precision, self.variant)
        return " ".join(part for part in parts if part)


@dataclass
class Result:
    """Seconds of all runs of one contestant, and their median in each round."""

    label: str
    version: str
    load_seconds: float
    outputs: list[np.ndarray]
    rounds: list[list[tuple[float, float]]] = field(default_factory=list)

    def seconds(self, statistic: str) -> float:
        """A statistic over all runs.

        "median": the median over the rounds of the median in a round. "best": the shortest run. "cpu": the median of
        processor time, which excludes other programs; it is meaningless with several threads, which spin while they
        wait.
        """
        if statistic == "best":
            return min(elapsed for times in self.rounds for elapsed, _ in times)
        if statistic == "cpu":
            return statistics.median(used for times in self.rounds for _, used in times)
        return statistics.median(self.medians())

    def medians(self, statistic: str = "median") -> list[float]:
        """The median of each round, in seconds: of processor time for "cpu", otherwise of elapsed time."""
        index = 1 if statistic == "cpu" else 0
        return [statistics.median(times[index] for times in round_) for round_ in self.rounds]


class _Process:
    """A contestant's process, stopped except during its turns."""

    def __init__(
        self,
        entry: Entry,
        examples: Sequence[Path],
        threads: int,
        folder: Path,
        *,
        quiet: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        outputs = folder / f"{entry.label}.npz".replace(" ", "-")
        command = [sys.executable, "-m", entry.worker, entry.contestant, str(entry.path), *map(str, examples)]
        command += ["--threads", str(threads), "--precision", entry.precision, "--outputs", str(outputs)]
        environment = {**os.environ, "TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        environment.update(settings or {})
        errors = subprocess.DEVNULL if quiet else None
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        ready = self._answer(entry.label)
        with np.load(outputs) as stored:
            arrays = [stored[name] for name in stored.files]
        self.result = Result(entry.label, ready["version"], ready["load_seconds"], arrays)
        self._process.send_signal(signal.SIGSTOP)

    def _answer(self, label: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InternalError(f"{label} ended with status {self._process.wait()}")
        return json.loads(line)

    def measure(self, seconds: float) -> None:
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        self.result.rounds.append(self._answer(self.result.label))
        self._process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()


def race(
    name: str,
    examples: Sequence[Path],
    entries: Sequence[Entry],
    threads: int,
    rounds: int,
    seconds: float,
    *,
    report: Callable[[str], None] | None = None,
    settings: Mapping[str, str] | None = None,
) -> list[Result]:
    """Time each contestant for `seconds` in each of `rounds` rounds, in turn. Raises InternalError if a contestant
    failed.

    Args:
        name: the model's name, for `report`.
        examples: .npz files of inputs, all of the same shapes, which runs cycle through.
        report: called with a line about a contestant that cannot load the model, which is then left out.
        settings: environment variables of all contestants.
    """
    processes: list[_Process] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for entry in entries:
                try:
                    processes.append(
                        _Process(entry, examples, threads, Path(folder), quiet=report is not None, settings=settings)
                    )
                except InternalError as error:
                    if report is None:
                        raise
                    report(f"{name}: {error.message}; left out")
            for number in range(rounds):
                order = processes if number % 2 == 0 else processes[::-1]
                for process in order:
                    process.measure(seconds)
        finally:
            for process in processes:
                process.end()
    return [process.result for process in processes]


PEERS = ("onnxruntime", "openvino")
_ROUNDS = 5


@dataclass(frozen=True)
class RuntimeTime:
    """One runtime's results.

    Attributes:
        p50: seconds per run, the median over rounds of the median in a round.
        fastest: seconds of the fastest run.
        load: seconds from the file to the first result.
        items_per_second: rows per second.
        speedup: p50 relative to the module's; above 1 the module is faster.
        difference: largest difference of an output from the module's, relative to the output's largest value.
    """

    runtime: str
    version: str
    p50: float
    fastest: float
    load: float
    items_per_second: float
    speedup: float
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def check_peers(names: Sequence[str], model: Path) -> None:
    """Raise OptionError for an unknown runtime or a file that is not an ONNX model, MissingDependencyError for one that
    is not installed."""
    for name in names:
        if name not in PEERS:
            raise OptionError(f"{name!r} is not a runtime to compare with", f"name one of {', '.join(PEERS)}")
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError(f"{name} is not installed", f"pip install {name}")
    if model.suffix != ".onnx":
        raise OptionError(f"{model}: other runtimes read ONNX files", "give the .onnx file that modules are made from")


def compare_runtimes(
    model: Path,
    module: Module,
    inputs: Mapping[str, np.ndarray],
    peers: Sequence[str],
    *,
    rows: int = 1,
    seconds: float = 3.0,
    report: Callable[[str], None] | None = None,
) -> list[RuntimeTime]:
    """Time a module and other runtimes in turn, with the module's number of threads.

    Args:
        model: the ONNX file that the module was compiled from.
        inputs: by name, the same for all.
        peers: names from `PEERS`; OpenVINO computes in float32.
        rows: items per run.
        seconds: time for each runtime, in five turns.
        report: called with a line about a runtime that cannot run the model, which is then left out.

    Raises:
        InputError: the inputs do not fit the module.
        InternalError: a runtime cannot run the model, and there is no `report`; or the module itself cannot.
    """
    module.run(inputs)  # raises errors of the inputs
    with tempfile.TemporaryDirectory(prefix="tensorwright-bench-") as folder:
        path, example = Path(folder) / "module.twm", Path(folder) / "inputs.npz"
        module.export(path)
        np.savez(example, allow_pickle=False, **inputs)
        entries = [Entry("tensorwright", path), *(Entry(name, model) for name in peers)]
        results = race(model.stem, [example], entries, module.threads, _ROUNDS, seconds / _ROUNDS, report=report)
    ours = results[0] if results else None
    if ours is None or ours.label != "tensorwright":
        raise InternalError(f"{model.stem}: the module did not run in a process of its own")
    return [_row(result, ours, rows) for result in results]


def _row(result: Result, ours: Result, rows: int) -> RuntimeTime:
    p50 = statistics.median(result.medians())
    return RuntimeTime(
        runtime=result.label,
        version=result.version.rpartition(" ")[2],
        p50=p50,
        fastest=result.seconds("best"),
        load=result.load_seconds,
        items_per_second=rows / p50,
        speedup=p50 / statistics.median(ours.medians()),
        difference=max(map(_difference, result.outputs, ours.outputs), default=0.0),
    )


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value; infinite for other shapes."""
    if actual.shape != expected.shape:
        return float("inf")
    if not actual.size:
        return 0.0
    wide, reference = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(wide - reference).max() / max(float(np.abs(reference).max()), 1e-30))
