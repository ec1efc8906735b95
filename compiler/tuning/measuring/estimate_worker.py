"""Computes the cost of kernels by the target's measurer. A process of
`python -m compiler.tuning.measuring.estimate_worker`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compiler.tuning.measuring.build_worker import Builder, in_short
from compiler.tuning.measuring.channel import serve
from compiler.tuning.measuring.messages import BuildRequest, Estimated, KernelTask, WorkerSetup


@dataclass(frozen=True)
class Candidate:
    """A `targets.measure.ScheduledKernel`."""

    function: Any
    constants: frozenset[int]
    constant_bytes: int
    builder: Builder

    def build(self) -> Any:
        """TVM's module of the kernel."""
        return self.builder.module(self.function)


class Estimator:
    """Answers build requests for known tasks with estimates."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._builder = Builder(setup)
        self._measurer = setup.target.measurer()
        self._tasks: dict[str, KernelTask] = {}

    def handle(self, request: KernelTask | BuildRequest) -> Estimated | None:
        """Register a task, or estimate a config's cost."""
        if isinstance(request, KernelTask):
            self._tasks[request.key] = request
            self._builder.handle(request)
            return None
        try:
            estimate = self._measurer.estimate(self._candidate(request))
        except Exception as error:  # TVM passes on any exception of its passes
            return Estimated(None, error=in_short(error))
        return Estimated(estimate.cost, dict(estimate.parts))

    def _candidate(self, request: BuildRequest) -> Candidate:
        task = self._tasks[request.key]
        constants = frozenset(index for index, each in enumerate(task.arguments) if each.is_constant)
        return Candidate(self._builder.scheduled(request), constants, task.constant_bytes, self._builder)


def _handler(setup: WorkerSetup) -> Callable[[Any], Any]:
    return Estimator(setup).handle


if __name__ == "__main__":
    serve(_handler)
