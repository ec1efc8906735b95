"""The messages between the tuner and its workers. Reading them does not need TVM.

Also statistics of repeated timings on a shared machine, and how long threads waited for a processor.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compiler.device.credentials import Credentials
from schedules.config import Config

Failure = Literal["build-error", "crash", "timeout", "wrong-numbers", "run-error"]

AS_IT_IS = "as-it-is"
"""Used instead of a rule's name for a kernel that is already scheduled."""


@dataclass(frozen=True)
class Argument:
    """A kernel's parameter. `is_constant`: a weight, which the model reads from different memory in every run."""

    shape: tuple[int, ...]
    dtype: str
    is_output: bool = False
    is_constant: bool = False


@dataclass(frozen=True)
class KernelTask:
    """A kernel as needed by the workers.

    Attributes:
        key: the task's record key.
        rule: the name of the schedule rule, or `AS_IT_IS`.
        function: the unscheduled PrimFunc as TVM's JSON.
        arguments: its parameters.
        constant_bytes: bytes of weights that the whole model reads between two runs of this kernel.
    """

    key: str
    rule: str
    function: str
    arguments: tuple[Argument, ...]
    constant_bytes: int = 0


@dataclass(frozen=True)
class BuildRequest:
    """Build a task's kernel with a config; None builds the reference, by the rule that serves any kernel."""

    key: str
    config: Config | None


@dataclass(frozen=True)
class KernelLibrary:
    """A shared library of one kernel.

    `workspaces` are its additional parameters: buffers between its launches.
    """

    code: bytes
    workspaces: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Built:
    """A kernel's library, or an error. `tasks` is the number of parallel tasks of the kernel."""

    library: KernelLibrary | None
    tasks: int = 1
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Estimated:
    """The cost of a kernel in the unit of the measurer, with its parts; or an error."""

    cost: float | None
    parts: dict[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Effort:
    """Effort of a timing.

    Attributes:
        seconds: limit on the running time; less if the samples agree earlier.
        give_up_above: a candidate slower than this is timed only until that is certain.
    """

    seconds: float = 0.15
    give_up_above: float | None = None


@dataclass(frozen=True)
class ReferenceRequest:
    """Run this library and keep its outputs as the reference for other libraries of the task."""

    key: str
    library: KernelLibrary


@dataclass(frozen=True)
class MeasureRequest:
    """Check and time the libraries of a task; several are timed alternately, `rounds` times."""

    key: str
    libraries: tuple[KernelLibrary, ...]
    effort: Effort
    rounds: int = 1


@dataclass(frozen=True)
class Timing:
    """Seconds per call: `samples` in order; `error` and `failure` if there are none."""

    samples: tuple[float, ...] = ()
    failure: Failure | None = None
    error: str = ""


@dataclass(frozen=True)
class Measured:
    """One timing per library; `device` is the fleet's device that took them, "" without a fleet."""

    timings: tuple[Timing, ...] = ()
    seconds: float = 0.0
    device: str = ""


@dataclass(frozen=True)
class ModelSetup:
    """The .twm file for a worker; with one thread, runs are timed by processor time."""

    path: str
    threads: int


@dataclass(frozen=True)
class ModelRequest:
    """Time kernels with the instrument, then runs, with a time budget for each."""

    seconds: float


@dataclass(frozen=True)
class ModelTimes:
    """Seconds of a run, and of each kernel's calls in it by name, with their number."""

    run: float
    kernels: dict[str, tuple[float, int]]


@dataclass
class Outcome:
    """The outcome of a trial; `device` is the fleet's device that ran it."""

    config: Config
    status: Literal["ok"] | Failure = "ok"
    seconds: float | None = None
    spread: float = 0.0
    runs: int = 0
    note: str = ""
    built: Built | None = field(default=None, repr=False)
    device: str = ""


def summed_up(config: Config, samples: Sequence[float]) -> Outcome:
    """The outcome of a config, from the seconds of its calls."""
    return Outcome(config, "ok", typical(samples), min(spread(samples), 9.99), len(samples))


@dataclass(frozen=True)
class Stop:
    """End the worker."""


@dataclass(frozen=True)
class WorkerSetup:
    """The first message: the setup of a worker. `target` is pickled, since third parties may define it.

    With one thread, local times are processor time. `memory` is the memory of kernels' arguments on the device: "cpu"
    or "cuda". `credentials` are for an encrypted connection to the device.
    """

    target: Any = None
    threads: int = 1
    device: str = "local"
    l3_bytes: int = 0
    timeout: float = 10.0
    memory: str = "cpu"
    credentials: Credentials | None = None


# Robust statistics of repeated timings on a shared machine.


_LOWEST = 3


def typical(samples: Sequence[float]) -> float:
    """The median of the three shortest: interference only adds time, and a single time may be an outlier."""
    lowest = sorted(samples)[:_LOWEST]
    return lowest[len(lowest) // 2]


def spread(samples: Sequence[float]) -> float:
    """Spread of the three shortest times, relative to the shortest; infinite if there are fewer."""
    if len(samples) < _LOWEST:
        return float("inf")
    lowest = sorted(samples)[:_LOWEST]
    return (lowest[-1] - lowest[0]) / lowest[0]


# How long this process's threads have waited for a processor, according to Linux.


class WaitingClock:
    """Reads the run queue delay of the threads that exist at its creation, until they end; zero if the system does not
    report it.

    /proc/PID/task/TID/schedstat has "time on a processor, time waiting for one, time slices", times in nanoseconds.
    """

    def __init__(self) -> None:
        self._files: list[int] = []
        try:
            for task in Path("/proc/self/task").iterdir():
                self._files.append(os.open(task / "schedstat", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            pass
        self._waited = [0] * len(self._files)

    def seconds(self) -> float:
        """The sum over the threads since they started."""
        for number, file in enumerate(self._files):
            try:
                fields = os.pread(file, 96, 0).split()
            except ProcessLookupError:  # the thread ended: what it waited before stays
                continue
            if len(fields) >= 2:
                self._waited[number] = int(fields[1])
        return sum(self._waited) * 1e-9

    def __del__(self) -> None:
        for file in self._files:
            os.close(file)
