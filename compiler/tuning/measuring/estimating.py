"""Trials without a device: candidates are built, and their cost is computed by the target's measurer."""

from __future__ import annotations

import os
from collections.abc import Sequence

import targets
from compiler.tuning.measuring.channel import Worker, WorkerDiedError, WorkerTimeoutError, first_done
from compiler.tuning.measuring.messages import BuildRequest, Effort, Estimated, Outcome, WorkerSetup
from compiler.tuning.measuring.pool import CandidatePool, Emit, Trial
from targets.measure import Measurer

ESTIMATE_LIMIT = 600.0
"""Seconds of processor time, or of idleness, after which a candidate is abandoned."""
ESTIMATE_MODULE = "compiler.tuning.measuring.estimate_worker"


class EstimatingPool(CandidatePool):
    """Processes that estimate in parallel. Outcomes are returned in the order of the trials, so that everything derived
    from them is the same in every run; they hold no library.

    Args:
        limit: seconds after which a candidate is abandoned, as counted by `Worker`.

    Raises ToolchainMissing if the measurer's tool is missing.
    """

    serial = False

    def __init__(
        self,
        target: targets.Target,
        measurer: Measurer,
        *,
        workers: int | None = None,
        limit: float = ESTIMATE_LIMIT,
        module: str = ESTIMATE_MODULE,
    ) -> None:
        super().__init__()
        self.measure, self.memory = measurer.measure(), target.memory
        self.margin, self.margin_of_alternatives = measurer.margin, measurer.margin_of_alternatives
        self._limit = limit
        self.workers = [Worker(module, WorkerSetup(target=target)) for _ in range(workers or os.cpu_count() or 1)]

    def _workers(self) -> Sequence[Worker]:
        return self.workers

    def prepare(self, keys: Sequence[str]) -> dict[str, str]:
        """Do nothing, since an estimate needs no reference. Returns no errors."""
        return {}

    def trials(self, trials: Sequence[Trial], emit: Emit) -> list[Outcome]:
        """Estimate configs; `emit` is called with each outcome, in order. Bad candidates never raise."""
        outcomes: dict[int, Outcome] = {}
        waiting: dict[Worker, int] = {}
        started = emitted = 0
        while emitted < len(trials):
            for worker in self.workers:
                if started < len(trials) and worker not in waiting:
                    self._start(worker, trials[started])
                    waiting[worker] = started
                    started += 1
            for worker in first_done(dict.fromkeys(waiting, self._limit)):
                number = waiting.pop(worker)
                outcomes[number] = self._outcome(worker, trials[number])
            while emitted in outcomes:
                emit(trials[emitted], outcomes[emitted])
                emitted += 1
        return [outcomes[number] for number in range(len(trials))]

    def compare(self, key: str, candidates: Sequence[Outcome], effort: Effort, rounds: int) -> list[Outcome]:
        """The candidates unchanged: estimating again would return the same."""
        return list(candidates)

    def processor_seconds(self) -> dict[str, float]:
        """Processor time of the workers so far."""
        return {"build": sum(worker.processor_seconds for worker in self.workers), "measure": 0.0}

    def _start(self, worker: Worker, trial: Trial) -> None:
        """Send a trial to a worker, after its task if necessary. A dead worker is noticed when its answer is due."""
        keys = self._known_keys(worker)
        try:
            if trial.key not in keys:
                worker.send(self._tasks[trial.key])
                keys.add(trial.key)
            worker.send(BuildRequest(trial.key, trial.config))
        except WorkerDiedError:
            self._start(worker, trial)

    def _outcome(self, worker: Worker, trial: Trial) -> Outcome:
        try:
            answer: Estimated = worker.receive(self._limit)
        except WorkerTimeoutError as error:
            return Outcome(trial.config, "timeout", note=error.message)
        except WorkerDiedError as error:
            return Outcome(trial.config, "crash", note=error.message)
        if answer.cost is None:
            return Outcome(trial.config, "build-error", note=answer.error)
        return Outcome(trial.config, "ok", answer.cost, runs=1)
