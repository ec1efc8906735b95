"""Times contestants alternately: each in its own process, stopped while another runs (idle thread pools spin)."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._models import Task


@dataclass(frozen=True)
class Entry:
    """Who takes part: a contestant of `_contestant`, the file it reads, its precision; `variant` tells two of one kind
    apart."""

    contestant: str
    path: Path
    precision: str = "f32"
    variant: str = ""

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
        """A time out of all runs.

        "median": the median over the rounds of the median in a round. "best": the shortest run. "cpu": the median of
        processor time, which leaves out what others took; it says nothing of several threads, which wait by spinning.
        """
        if statistic == "best":
            return min(elapsed for times in self.rounds for elapsed, _ in times)
        if statistic == "cpu":
            return statistics.median(used for times in self.rounds for _, used in times)
        return statistics.median(self.medians())

    def medians(self, statistic: str = "median") -> list[float]:
        """The median of each round, in seconds: of processor time when `statistic` is "cpu", else of elapsed time."""
        index = 1 if statistic == "cpu" else 0
        return [statistics.median(times[index] for times in round_) for round_ in self.rounds]


class _Process:
    """A contestant's process, stopped but for its turns."""

    def __init__(
        self,
        entry: Entry,
        task: Task,
        threads: int,
        folder: Path,
        *,
        quiet: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        outputs = folder / f"{entry.label}.npz".replace(" ", "-")
        command = [sys.executable, "-m", "benchmarks._contestant", entry.contestant, str(entry.path)]
        command += [str(path) for path in (task.arrays, *task.further_arrays)]
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
            raise RuntimeError(f"{label} ended with status {self._process.wait()}")
        return json.loads(line)

    def turn(self, seconds: float) -> None:
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
    task: Task,
    entries: Sequence[Entry],
    threads: int,
    rounds: int,
    seconds: float,
    *,
    report: Callable[[str], None] | None = None,
    settings: Mapping[str, str] | None = None,
) -> list[Result]:
    """`rounds` turns of `seconds` each, interleaved; `settings` are environment variables of all contestants.

    Raises RuntimeError when a contestant fails; with `report`, one that cannot load the model is reported and left out.
    """
    processes: list[_Process] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for entry in entries:
                try:
                    processes.append(
                        _Process(entry, task, threads, Path(folder), quiet=report is not None, settings=settings)
                    )
                except RuntimeError as error:
                    if report is None:
                        raise
                    report(f"{task.name}: {error}; left out")
            for number in range(rounds):
                order = processes if number % 2 == 0 else processes[::-1]
                for process in order:
                    process.turn(seconds)
        finally:
            for process in processes:
                process.end()
    return [process.result for process in processes]
