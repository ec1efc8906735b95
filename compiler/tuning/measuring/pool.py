"""The caller's side of the workers: runs trials and returns outcomes, even if candidates crash the processes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from typing_extensions import Self

import targets
from compiler.device.credentials import Credentials
from compiler.errors import DeviceError, UserError
from compiler.records.record_set import MIN_GAIN, MIN_GAIN_OF_ALTERNATIVES
from compiler.runtime.thread_pool import library_path
from compiler.support.interrupts import uninterrupted
from compiler.tuning.measuring.channel import Worker, WorkerDiedError, WorkerTimeoutError, first_done
from compiler.tuning.measuring.device_names import LOCAL
from compiler.tuning.measuring.messages import (
    BuildRequest,
    Built,
    Effort,
    Failure,
    KernelLibrary,
    KernelTask,
    Measured,
    MeasureRequest,
    Outcome,
    ReferenceRequest,
    Timing,
    WorkerSetup,
    spread,
    typical,
)
from compiler.tuning.measuring.runners import is_reachable
from schedules.config import Config
from schedules.task_split import busiest_share
from targets.measure import TIMED, Measure

BUILD_MODULE = "compiler.tuning.measuring.build_worker"
MEASURE_MODULE = "compiler.tuning.measuring.measure_worker"
BUILD_TIMEOUT = 30.0  # seconds, as counted by `Worker`
MEASURE_TIMEOUT = 15.0
_MAX_FAILURES = 4  # consecutive failures of any candidates after which the device is considered faulty
_SPARE_CORES = 2  # building takes several times as long as measuring: with fewer, measuring waits for one builder


class DeviceLostError(UserError):
    """No device to measure on can be reached any more."""


@dataclass(frozen=True)
class Trial:
    """A config of a task to be measured."""

    key: str
    config: Config
    effort: Effort = field(default_factory=Effort)


Emit = Callable[[Trial, Outcome], None]


@dataclass
class _Job:
    """A trial in progress in a worker."""

    number: int
    limit: float
    built: Built | None = None


@dataclass
class _Batch:
    """The state of `MeasurementPool.trials`."""

    trials: Sequence[Trial]
    emit: Emit
    todo: deque[int]
    ready: deque[tuple[int, Built]] = field(default_factory=deque)
    building: dict[Worker, _Job] = field(default_factory=dict)
    measuring: dict[Worker, _Job] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def finish(self, number: int, outcome: Outcome) -> None:
        self.outcomes[number] = outcome
        self.emit(self.trials[number], outcome)


class CandidatePool(ABC):
    """Worker processes that run trials and return outcomes.

    Attributes:
        measure: the unit and source of the outcomes.
        margin: the fraction by which a candidate must beat the default, in addition to the spread of its samples.
        margin_of_alternatives: the same for another algorithm.
        serial: whether times are of one core.
        memory: memory of kernels' arguments, as `Target.memory`.
    """

    measure: Measure
    margin: float
    margin_of_alternatives: float
    serial: bool
    memory: str

    def __init__(self) -> None:
        self._tasks: dict[str, KernelTask] = {}
        self._known: dict[int, tuple[int, set[str]]] = {}

    @abstractmethod
    def _workers(self) -> Sequence[Worker]: ...

    @abstractmethod
    def prepare(self, keys: Sequence[str]) -> dict[str, str]: ...

    @abstractmethod
    def trials(self, trials: Sequence[Trial], emit: Emit) -> list[Outcome]: ...

    @abstractmethod
    def compare(self, key: str, candidates: Sequence[Outcome], effort: Effort, rounds: int) -> list[Outcome]: ...

    @abstractmethod
    def processor_seconds(self) -> dict[str, float]: ...

    def define(self, task: KernelTask) -> None:
        """Make a task known."""
        self._tasks[task.key] = task

    def kill(self) -> None:
        """End all workers at once, busy or idle."""
        for worker in self._workers():
            worker.kill()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers():
            worker.close()

    def __enter__(self) -> Self:
        return self

    @uninterrupted
    def __exit__(self, *_: object) -> None:
        self.close()

    def _known_keys(self, worker: Worker) -> set[str]:
        """Keys of the tasks that a worker knows; starts the worker if necessary."""
        worker.connection  # noqa: B018  (starts it)
        starts, keys = self._known.get(id(worker), (0, set()))
        if starts != worker.starts:
            keys = set()
        self._known[id(worker)] = (worker.starts, keys)
        return keys


class MeasurementPool(CandidatePool):
    """Build workers and one measuring worker per device.

    Builds run in parallel. They overlap with measuring if the device is another machine or this one has spare cores;
    otherwise a batch is built first and then measured on the idle machine.

    `serial` is for a shared machine: local kernels run on one thread, by processor time, and the time on all cores is
    computed from the load balance of the tasks: T * ceil(tasks / cores) / tasks.
    """

    measure = TIMED
    margin, margin_of_alternatives = MIN_GAIN, MIN_GAIN_OF_ALTERNATIVES

    def __init__(
        self,
        target: targets.Target,
        devices: Sequence[str] = (LOCAL,),
        *,
        serial: bool = False,
        builders: int | None = None,
        build_timeout: float = BUILD_TIMEOUT,
        measure_timeout: float = MEASURE_TIMEOUT,
        build_module: str = BUILD_MODULE,
        credentials: Mapping[str, Credentials] | None = None,
    ) -> None:
        super().__init__()
        library_path()  # a worker that compiled it might be ended while compiling
        keys = dict(credentials or {})
        cores = os.cpu_count() or 1
        self.memory = target.memory
        self._target = target.name
        self._cores = target.machine.cores
        self.build_timeout, self.measure_timeout = build_timeout, measure_timeout
        self.serial = serial and LOCAL in devices
        threads = 1 if self.serial else self._cores
        self.overlaps = LOCAL not in devices or cores - threads >= _SPARE_CORES
        count = builders or max(1, cores - (threads if LOCAL in devices and self.overlaps else 0))
        self.builders = [Worker(build_module, WorkerSetup(target=target)) for _ in range(count)]
        self.measurers = [
            Worker(
                MEASURE_MODULE,
                WorkerSetup(
                    None, threads, device, target.machine.l3_bytes, measure_timeout, target.memory, keys.get(device)
                ),
                {"TVM_NUM_THREADS": str(threads)},
                threads=threads,
            )
            for device in devices
        ]
        self._devices = {id(worker): device for worker, device in zip(self.measurers, devices, strict=True)}
        self._names = dict(self._devices)  # for a fleet: once known, while in use
        self._proven: set[int] = set()  # workers that ran a kernel
        self._failures = dict.fromkeys(self._devices, 0)  # consecutive
        self.lost: list[str] = []
        self._references: dict[str, KernelLibrary] = {}

    def set_reference(self, key: str, library: KernelLibrary) -> None:
        """Compare a task's candidates with this kernel, instead of one built by `prepare`."""
        self._references[key] = library

    def prepare(self, keys: Sequence[str]) -> dict[str, str]:
        """Build the reference kernels of tasks, needed once before their trials; returns errors by key."""
        missing = [key for key in keys if key not in self._references]
        errors: dict[str, str] = {}
        waiting: dict[Worker, str] = {}
        while missing or waiting:
            for worker in self.builders:
                if missing and worker not in waiting:
                    key = missing.pop(0)
                    try:
                        self._introduce(worker, key)
                        worker.send(BuildRequest(key, None))
                        waiting[worker] = key
                    except WorkerDiedError as error:
                        errors[key] = error.message
            for worker in first_done(dict.fromkeys(waiting, self.build_timeout)):
                key = waiting.pop(worker)
                try:
                    built: Built = worker.receive(self.build_timeout)
                except (WorkerDiedError, WorkerTimeoutError) as error:
                    errors[key] = f"building its reference: {error.message}"
                    continue
                if built.library is None:
                    errors[key] = f"its reference cannot be built: {built.error}"
                else:
                    self._references[key] = built.library
        return errors

    def trials(self, trials: Sequence[Trial], emit: Emit) -> list[Outcome]:
        """Build and time configs; `emit` is called with each outcome as soon as it is known. Bad candidates never
        raise. Raises DeviceLostError if no device can be reached any more; configs not yet measured are not recorded as
        failed."""
        batch = _Batch(trials, emit, deque(range(len(trials))))
        while len(batch.outcomes) < len(trials):
            self._dispatch(batch)
            self._collect(batch)
        return [batch.outcomes[number] for number in range(len(trials))]

    def compare(self, key: str, candidates: Sequence[Outcome], effort: Effort, rounds: int) -> list[Outcome]:
        """Time several outcomes of a task again, alternately, on the first device, one sample per round. A crash fails
        all of them."""
        measurer = self.measurers[0]
        built = [each.built for each in candidates]
        libraries = tuple(each.library for each in built if each is not None and each.library is not None)
        limit = self.measure_timeout + 3 * rounds * len(libraries) * effort.seconds
        try:
            self._introduce(measurer, key)
            measured: Measured = measurer.ask(MeasureRequest(key, libraries, effort, rounds), limit)
        except (WorkerDiedError, WorkerTimeoutError) as error:
            return [Outcome(each.config, "crash", note=error.message) for each in candidates]
        timings = zip(candidates, measured.timings, built, strict=True)
        return [self._outcome(each.config, timing, library) for each, timing, library in timings]

    def _factor(self, built: Built | None) -> float:
        """Time on all cores relative to the measured time."""
        if not self.serial or built is None:
            return 1.0
        return busiest_share(built.tasks, self._cores)

    def _unscaled(self, effort: Effort, built: Built) -> Effort:
        limit = effort.give_up_above
        return effort if limit is None else replace(effort, give_up_above=limit / self._factor(built))

    def _outcome(self, config: Config, timing: Timing, built: Built | None) -> Outcome:
        if timing.failure is not None or not timing.samples:
            return Outcome(config, timing.failure or "run-error", note=timing.error)
        samples = [seconds * self._factor(built) for seconds in timing.samples]
        return Outcome(config, "ok", typical(samples), min(spread(samples), 9.99), len(samples), built=built)

    def _workers(self) -> Sequence[Worker]:
        return (*self.builders, *self.measurers)

    def processor_seconds(self) -> dict[str, float]:
        """Processor time of the workers so far to "build" and to "measure"."""
        return {
            "build": sum(worker.processor_seconds for worker in self.builders),
            "measure": sum(worker.processor_seconds for worker in self.measurers),
        }

    def _introduce(self, worker: Worker, key: str) -> None:
        """Send a task to a worker (again after a restart), and its reference to a measuring worker."""
        keys = self._known_keys(worker)
        if key in keys:
            return
        worker.send(self._tasks[key])
        if worker in self.measurers:
            reference = self._references[key]
            answer: Measured = worker.ask(ReferenceRequest(key, reference), self.measure_timeout)
            if answer.timings[0].failure is not None:
                raise WorkerDiedError(f"failed: {answer.timings[0].error}")
            self._note_device(worker, answer)
        keys.add(key)

    def _note_device(self, worker: Worker, answer: Measured) -> None:
        self._proven.add(id(worker))
        if answer.device:
            self._names[id(worker)] = answer.device

    def _is_lost(self, worker: Worker, outcome: Outcome) -> bool:
        """True if the device is lost, rather than a candidate faulty."""
        device = self._names[id(worker)]
        if outcome.status in ("ok", "wrong-numbers"):
            self._failures[id(worker)] = 0
            return False
        self._failures[id(worker)] += 1
        return device != LOCAL and (self._failures[id(worker)] >= _MAX_FAILURES or not is_reachable(device))

    def _drop(self, worker: Worker) -> None:
        """Stop using a device. Raises DeviceLostError if it was the last one."""
        worker.kill()
        self.measurers.remove(worker)
        self.lost.append(self._names[id(worker)])
        if not self.measurers:
            raise DeviceLostError(
                f"device {', '.join(self.lost)} does not answer any more; everything measured before is on record",
                "run the same command again when the device is back: it resumes from there",
            )

    def _is_unproven(self, worker: Worker) -> bool:
        """True for another device that has not run a kernel yet."""
        return self._devices[id(worker)] != LOCAL and id(worker) not in self._proven

    def _refuse(self, worker: Worker, key: str, reason: str) -> None:
        """Raise DeviceError: a device answers, but cannot run the first kernel, as any device of the target could."""
        raise DeviceError(
            f"device {self._names[id(worker)]} is reachable, but cannot run kernels of target {self._target!r}: "
            f"the reference of the first one ({key.partition('/')[0]}) {reason}",
            "its CPU does not match the target, whatever its server or its key says: name its own target",
        )

    def _dispatch(self, batch: _Batch) -> None:
        for worker in self.builders:
            if batch.todo and worker not in batch.building:
                self._start(batch, worker, batch.building, batch.todo.popleft(), None)
        if not self.overlaps and (batch.todo or batch.building):
            return
        for worker in self.measurers:
            if batch.ready and worker not in batch.measuring:
                self._start(batch, worker, batch.measuring, *batch.ready.popleft())

    def _start(self, batch: _Batch, worker: Worker, jobs: dict[Worker, _Job], number: int, built: Built | None) -> None:
        trial = batch.trials[number]
        request: Any = BuildRequest(trial.key, trial.config)
        if built is not None and built.library is not None:
            request = MeasureRequest(trial.key, (built.library,), self._unscaled(trial.effort, built))
        try:
            self._introduce(worker, trial.key)
            worker.send(request)
        except (WorkerDiedError, WorkerTimeoutError) as error:
            outcome = Outcome(trial.config, "crash", note=error.message)
            if built is not None and self._is_lost(worker, outcome):
                batch.ready.append((number, built))
                self._drop(worker)
            elif built is not None and isinstance(error, WorkerDiedError) and self._is_unproven(worker):
                self._refuse(worker, trial.key, error.message)
            else:
                batch.finish(number, outcome)
            return
        limit = self.build_timeout if built is None else self.measure_timeout
        jobs[worker] = _Job(number, limit, built)

    def _collect(self, batch: _Batch) -> None:
        jobs = {**batch.building, **batch.measuring}
        if not jobs:
            return
        for worker in first_done({worker: job.limit for worker, job in jobs.items()}):
            batch.building.pop(worker, None)
            batch.measuring.pop(worker, None)
            self._take(batch, worker, jobs[worker])

    def _take(self, batch: _Batch, worker: Worker, job: _Job) -> None:
        config = batch.trials[job.number].config
        outcome: Outcome
        try:
            answer = worker.receive(job.limit)
        except (WorkerTimeoutError, WorkerDiedError) as error:
            status: Failure = "timeout" if isinstance(error, WorkerTimeoutError) else "crash"
            outcome = Outcome(config, status, note=error.message)
        else:
            if not isinstance(answer, Measured):
                if answer.library is None:
                    batch.finish(job.number, Outcome(config, "build-error", note=answer.error))
                else:
                    batch.ready.append((job.number, answer))
                return
            self._note_device(worker, answer)
            outcome = replace(self._outcome(config, answer.timings[0], job.built), device=answer.device)
            if outcome.status != "ok":
                worker.kill()  # it may have corrupted memory
        if job.built is not None and self._is_lost(worker, outcome):
            batch.ready.append((job.number, job.built))
            self._drop(worker)
            return
        batch.finish(job.number, outcome)
