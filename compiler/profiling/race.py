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

from compiler.errors import InternalError

WORKER = "compiler.profiling.contestant"


@dataclass(frozen=True)
class Entry:
    """A participant.

    Attributes:
        contestant: a name of `CONTESTANTS` in `worker`.
        path: the file that it reads.
        precision: "f32", or "default", which leaves it to the runtime.
        variant: tells two of one kind apart.
        worker: the module that is run as its process.
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
    """Run `rounds` turns of `seconds` each, interleaved.

    Args:
        name: the model's, for `report`.
        examples: .npz files of inputs, all of the same shapes, which runs take in turn.
        report: receives a line about a contestant that cannot load the model, which is then left out.
        settings: environment variables of all contestants.

    Raises:
        InternalError: a contestant failed.
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
                    process.turn(seconds)
        finally:
            for process in processes:
                process.end()
    return [process.result for process in processes]
