"""The analytic model: it needs no measurements, so searches start with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.tuning.cost_models import Sample, Subject, cost_models
from schedules.config import Config
from schedules.estimate import Estimate
from schedules.machine import Machine
from schedules.selection.registry import rules


@cost_models.register("roofline")
class RooflineModel:
    """Fewer cycles are better; a rule without an estimate gets equal scores."""

    def update(self, samples: Sequence[Sample]) -> None:
        """Do nothing: the model does not learn."""

    def predict(self, subject: Subject, configs: Sequence[Config]) -> NDArray[np.float64]:
        estimates = [estimate(subject.rule, subject.workload, config, subject.machine) for config in configs]
        return np.array(
            [0.0 if each is None else -np.log2(max(each.total(subject.machine), 1.0)) for each in estimates]
        )


@cost_models.register("random")
class RandomModel:
    """Random scores: the baseline."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)

    def update(self, samples: Sequence[Sample]) -> None:
        """Do nothing: the model does not learn."""

    def predict(self, subject: Subject, configs: Sequence[Config]) -> NDArray[np.float64]:
        return self._generator.random(len(configs))


# The estimated cost of a config, from its rule; configs without an estimate are ranked by measurements.


def estimate(rule: str, workload: object, config: Config, machine: Machine) -> Estimate | None:
    """The estimate for a config; None if the rule has none, or the config lacks the rule's knobs."""
    matching = next((each for each in rules() if each.name == rule), None)
    if matching is None:
        return None
    try:
        return matching.estimate(workload, config, machine)
    except KeyError:
        return None


__all__ = ["Estimate", "estimate"]
