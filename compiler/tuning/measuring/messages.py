"""The messages between the tuner and its workers. Reading them needs nothing of TVM.

Statistics of repeated timings on a machine that other programs use too; how long threads waited for a processor.
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
"""In place of a rule's name: the kernel is scheduled already."""


@dataclass(frozen=True)
class Argument:
    """A kernel's parameter. `is_constant`: a weight, which the model reads from other memory on every run."""

    shape: tuple[int, ...]
    dtype: str
    is_output: bool = False
    is_constant: bool = False


@dataclass(frozen=True)
class KernelTask:
    """A kernel as the workers need it.

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

    `workspaces` are its parameters after the task's: buffers between its launches.
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
    """Length of a timing.

    Attributes:
        seconds: the most to spend on running; less when the samples agree before.
        give_up_above: a candidate slower than this is timed no further than it takes to know that.
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
    """Seconds of one call: `samples` in the order they were taken; `error` and `failure` when there are none."""

    samples: tuple[float, ...] = ()
    failure: Failure | None = None
    error: str = ""


@dataclass(frozen=True)
class Measured:
    """One timing per library; `device` is the one of a fleet that took them, "" where there is no choice."""

    timings: tuple[Timing, ...] = ()
    seconds: float = 0.0
    device: str = ""


@dataclass(frozen=True)
class ModelSetup:
    """The .twm file that a worker is for; with one thread, runs are timed by processor time."""

    path: str
    threads: int


@dataclass(frozen=True)
class ModelRequest:
    """Watch kernels, then time runs, with a time budget for each."""

    seconds: float


@dataclass(frozen=True)
class ModelTimes:
    """Seconds of a run, and of each kernel's calls in it by name, with their number."""

    run: float
    kernels: dict[str, tuple[float, int]]


@dataclass
class Outcome:
    """The outcome of a trial; `device` where one of several ran it."""

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
    """The first message: the setup of a worker. `target` is pickled, as third parties may define it.

    With one thread, local times are processor time. `memory` is where kernels find their arguments on the device: "cpu"
    or "cuda". `credentials` are for an encrypted connection to the device.
    """

    target: Any = None
    threads: int = 1
    device: str = "local"
    l3_bytes: int = 0
    timeout: float = 10.0
    memory: str = "cpu"
    credentials: Credentials | None = None


# Robust statistics of repeated timings on a machine that other programs use too.


_LOWEST = 3


def typical(samples: Sequence[float]) -> float:
    """The median of the three shortest: interference only ever adds time, and a single time may be luck."""
    lowest = sorted(samples)[:_LOWEST]
    return lowest[len(lowest) // 2]


def spread(samples: Sequence[float]) -> float:
    """Spread of the three shortest times, as a share of the shortest; infinite when there are fewer."""
    if len(samples) < _LOWEST:
        return float("inf")
    lowest = sorted(samples)[:_LOWEST]
    return (lowest[-1] - lowest[0]) / lowest[0]


# How long the threads of this process have waited for a processor, as Linux counts it.


class WaitingClock:
    """Reads the run queue delay of the threads that there are when it is made; zero where the system does not say.

    /proc/PID/task/TID/schedstat holds "time on a processor, time waiting for one, time slices", times in nanoseconds.
    """

    def __init__(self) -> None:
        self._files: list[int] = []
        try:
            for task in Path("/proc/self/task").iterdir():
                self._files.append(os.open(task / "schedstat", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            pass

    def seconds(self) -> float:
        """The sum over the threads since they began."""
        total = 0
        for file in self._files:
            fields = os.pread(file, 96, 0).split()
            if len(fields) >= 2:
                total += int(fields[1])
        return total * 1e-9

    def __del__(self) -> None:
        for file in self._files:
            os.close(file)
