"""Cost models: estimates of the time of a config. To add your own:

    @cost_models.register("mine")
    class Mine:
        def update(self, samples): ...  # all measurements so far, of all tasks
        def predict(self, subject, configs): ...  # a score per config, higher is faster

in a module of this package, or register the class as an entry point of the group `tensorwright.cost_models`; then
select it by `tensorwright.tune(..., cost_model="mine")`. Scores are compared only within a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.support.registry import Registry
from schedules.config import Config
from schedules.machine import Machine
from targets.measure import TIMED, Measure


@dataclass(frozen=True)
class Subject:
    """The subject of a prediction: a rule by name, its workload, the machine, and the rule's default config."""

    task: str
    rule: str
    workload: Any
    machine: Machine
    default: Config


@dataclass(frozen=True)
class Sample:
    """A cost in the unit of its measure; only costs of the same measure are compared. None if the trial failed."""

    subject: Subject
    config: Config
    seconds: float | None
    measure: Measure = TIMED


class CostModel(Protocol):
    """Ranks configs of a task before they are measured."""

    def update(self, samples: Sequence[Sample]) -> None:
        """Learn from all measurements so far."""

    def predict(self, subject: Subject, configs: Sequence[Config]) -> NDArray[np.float64]:
        """A score for each config, higher is faster."""


cost_models: Registry[CostModel] = Registry("cost model", __name__, "tensorwright.cost_models")
