"""Trials without a device: candidates are built, and their cost is computed by the target's measurer."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compiler.tuning.measuring.channel import Worker, WorkerDiedError, WorkerTimeoutError, wait_any
from compiler.tuning.measuring.messages import BuildRequest, Effort, Estimated, KernelTask, Outcome, WorkerSetup
from compiler.tuning.measuring.pool import Emit, Trial
from targets.measure import Measurer

if TYPE_CHECKING:
    import targets

PROCESSOR_SECONDS = 600.0
"""Of processor time, after which a candidate is given up: how busy the machine is must not decide what is found."""
IDLE_SECONDS = 600.0
"""Without any use of the processor, after which a worker hangs: one that waits for its turn uses some."""
_CHECK_SECONDS = 2.0
ESTIMATE_MODULE = "compiler.tuning.measuring.estimate_worker"


class EstimatingPool:
    """Processes that estimate in parallel. Outcomes come in the order of the trials, so that all that follows from them
    is the same on every run; they hold no library.

    Args:
        limits: seconds of processor time after which a candidate is given up, and seconds without any use of the
            processor after which its worker is taken to hang.

    Raises ToolchainMissing when the measurer lacks its tool.
    """

    serial = False

    def __init__(
        self,
        target: targets.Target,
        measurer: Measurer,
        *,
        workers: int | None = None,
        limits: tuple[float, float] = (PROCESSOR_SECONDS, IDLE_SECONDS),
        module: str = ESTIMATE_MODULE,
    ) -> None:
        self.measure, self.memory = measurer.measure(), target.memory
        self.margin, self.margin_of_alternatives = measurer.margin, measurer.margin_of_alternatives
        self._limit, self._idle_limit = limits
        self.workers = [Worker(module, WorkerSetup(target=target)) for _ in range(workers or os.cpu_count() or 1)]
        self._tasks: dict[str, KernelTask] = {}
        self._known: dict[int, tuple[int, set[str]]] = {}
        self._watches: dict[Worker, _Watch] = {}

    def define(self, task: KernelTask) -> None:
        """Make a task known."""
        self._tasks[task.key] = task

    def prepare(self, keys: Sequence[str]) -> dict[str, str]:
        """Nothing: an estimate needs no reference. No errors."""
        return {}

    def trials(self, trials: Sequence[Trial], emit: Emit) -> list[Outcome]:
        """Estimate configs; `emit` is called with each outcome, in order. Never raises for a bad candidate."""
        outcomes: dict[int, Outcome] = {}
        waiting: dict[Worker, int] = {}
        started = emitted = 0
        while emitted < len(trials):
            for worker in self.workers:
                if started < len(trials) and worker not in waiting:
                    self._start(worker, trials[started])
                    waiting[worker] = started
                    started += 1
            for worker in self._answered(list(waiting)):
                number = waiting.pop(worker)
                outcomes[number] = self._outcome(worker, trials[number])
            while emitted in outcomes:
                emit(trials[emitted], outcomes[emitted])
                emitted += 1
        return [outcomes[number] for number in range(len(trials))]

    def compare(self, key: str, candidates: Sequence[Outcome], effort: Effort, rounds: int) -> list[Outcome]:
        """The candidates as they are: to estimate them again gives the same."""
        return list(candidates)

    def processor_seconds(self) -> dict[str, float]:
        """What the workers have used so far."""
        return {"build": sum(worker.processor_seconds for worker in self.workers), "measure": 0.0}

    def kill(self) -> None:
        """End all workers at once, whatever they do."""
        for worker in self.workers:
            worker.kill()

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.close()

    def __enter__(self) -> EstimatingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answered(self, workers: list[Worker]) -> list[Worker]:
        """Those of the workers that have an answer, have died, or are to be given up; waits for the first."""
        while True:
            ready = wait_any(workers, min(_CHECK_SECONDS, self._limit))
            ready = ready or [worker for worker in workers if self._watches[worker].reason(worker)]
            if ready:
                return ready

    def _start(self, worker: Worker, trial: Trial) -> None:
        """Send a trial to a worker, told of the task first. A worker that died is noticed when its answer is due."""
        worker.connection  # noqa: B018  (starts it)
        starts, keys = self._known.get(id(worker), (0, set()))
        if starts != worker.starts:
            keys = set()
        self._known[id(worker)] = (worker.starts, keys)
        try:
            if trial.key not in keys:
                worker.send(self._tasks[trial.key])
                keys.add(trial.key)
            worker.send(BuildRequest(trial.key, trial.config))
            self._watches[worker] = _Watch(worker, self._limit, self._idle_limit)
        except WorkerDiedError:
            self._start(worker, trial)

    def _outcome(self, worker: Worker, trial: Trial) -> Outcome:
        try:
            answer: Estimated = worker.receive(0)
        except WorkerTimeoutError:
            return Outcome(trial.config, "timeout", note=f"no estimate within {self._watches[worker].exceeded}")
        except WorkerDiedError as error:
            return Outcome(trial.config, "crash", note=error.message)
        if answer.cost is None:
            return Outcome(trial.config, "build-error", note=answer.error)
        return Outcome(trial.config, "ok", answer.cost, runs=1)


class _Watch:
    """What a worker has used of the processor since it was asked.

    Attributes:
        exceeded: the limit that was reached, or "".
    """

    def __init__(self, worker: Worker, limit: float, idle_limit: float) -> None:
        self._limit, self._idle_limit = limit, idle_limit
        self._first = self._last = worker.processor_seconds
        self._changed = time.monotonic()
        self.exceeded = ""

    def reason(self, worker: Worker) -> str:
        """`exceeded`, as of now."""
        used, now = worker.processor_seconds, time.monotonic()
        if used != self._last:
            self._last, self._changed = used, now
        if used - self._first > self._limit:
            self.exceeded = f"{self._limit:.0f} s of processor time"
        elif now - self._changed > self._idle_limit:
            self.exceeded = f"{self._idle_limit:.0f} s, in which it did not use the processor"
        return self.exceeded
