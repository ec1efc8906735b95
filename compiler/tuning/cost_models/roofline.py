"""The analytic model: no measurement needed, so it is what a search starts with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.tuning.cost_models import Sample, Subject, cost_models
from compiler.tuning.cost_models.analytic import estimate
from schedules.config import Config


@cost_models.register("roofline")
class RooflineModel:
    """Fewer cycles are better; a rule without an estimate gets equal scores."""

    def update(self, samples: Sequence[Sample]) -> None:
        """It does not learn."""

    def predict(self, subject: Subject, configs: Sequence[Config]) -> NDArray[np.float64]:
        estimates = [estimate(subject.rule, subject.workload, config, subject.machine) for config in configs]
        return np.array(
            [0.0 if each is None else -np.log2(max(each.total(subject.machine), 1.0)) for each in estimates]
        )


@cost_models.register("random")
class RandomModel:
    """Knows nothing: the baseline."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)

    def update(self, samples: Sequence[Sample]) -> None:
        """It does not learn."""

    def predict(self, subject: Subject, configs: Sequence[Config]) -> NDArray[np.float64]:
        return self._generator.random(len(configs))
