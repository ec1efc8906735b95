"""Gradient-boosted trees on measured trials, with XGBoost (Chen and Guestrin 2016), as TVM and Ansor use them.

The target is the logarithm of how much slower than the best of its task a config is, so tasks of all sizes teach the
same thing. Failed trials count as slow. A model that was trained before adds its own trials' weight by starting the
boosting from its predictions.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import MissingDependencyError
from compiler.tuning.cost_models import CostModel, Sample, Subject, cost_models
from compiler.tuning.cost_models.features import FEATURES_VERSION, NAMES, Featurizer
from compiler.tuning.cost_models.roofline import RooflineModel
from schedules.config import Config
from targets.measure import Measure

MIN_SAMPLES = 12
_SLOWEST = -3.0  # log2: beyond eight times the best it does not matter how slow
_PARAMETERS = {
    "objective": "reg:squarederror",
    "max_depth": 6,
    "eta": 0.12,
    "min_child_weight": 2,
    "subsample": 0.8,
    "colsample_bytree": 0.7,
    "nthread": 1,
    "verbosity": 0,
}
_ROUNDS = 120
_ROUNDS_ON_TOP = 60


def _xgboost() -> Any:
    try:
        return importlib.import_module("xgboost")
    except ImportError as error:
        raise MissingDependencyError(
            "the cost model 'xgboost' needs the package xgboost",
            "pip install 'tensorwright[tune]', or choose the cost model 'roofline'",
        ) from error


@cost_models.register("xgboost")
class XgboostModel:
    """The main cost model.

    Args:
        pretrained: a model file to start from, or None.
        start: what ranks before there is anything to learn from; the analytic model when None.
    """

    def __init__(self, pretrained: str | Path | None = None, seed: int = 0, start: CostModel | None = None) -> None:
        self._xgb = _xgboost()
        self._seed = seed
        self._base: Any = None
        if pretrained is not None:
            booster = self._xgb.Booster({"nthread": 1})  # more would only get in the way of the builders
            booster.load_model(str(pretrained))
            if booster.attr("features") == str(FEATURES_VERSION):
                self._base = booster
        self._booster: Any = None
        self._start: CostModel = start if start is not None else RooflineModel()
        self._featurizers: dict[str, Featurizer] = {}
        self._rows: dict[tuple[str, Config], list[float]] = {}

    def update(self, samples: Sequence[Sample]) -> None:
        targets = relative_speeds(samples)
        if len(samples) < MIN_SAMPLES:
            return
        rows = np.array([self._row(each.subject, each.config) for each in samples], dtype=np.float32)
        matrix = self._matrix(rows, label=targets, weight=np.exp2(targets))
        rounds = _ROUNDS
        if self._base is not None:
            matrix.set_base_margin(self._base.predict(self._matrix(rows), output_margin=True))
            rounds = _ROUNDS_ON_TOP
        self._booster = self._xgb.train({**_PARAMETERS, "seed": self._seed}, matrix, num_boost_round=rounds)

    def predict(self, subject: Subject, configs: Sequence[Config]) -> NDArray[np.float64]:
        if self._booster is None and self._base is None:
            return self._start.predict(subject, configs)
        matrix = self._matrix(self._featurizer(subject).matrix(list(configs)))
        if self._base is not None and self._booster is not None:
            matrix.set_base_margin(self._base.predict(matrix, output_margin=True))
        model = self._booster if self._booster is not None else self._base
        return np.asarray(model.predict(matrix, output_margin=True), dtype=np.float64)

    def save(self, path: str | Path) -> None:
        """Store the model (without what it was pretrained with), to be given as `pretrained` later."""
        self._booster.set_attr(features=str(FEATURES_VERSION), names=",".join(NAMES))
        self._booster.save_model(str(path))

    def _matrix(self, rows: NDArray[np.float32], **values: NDArray[np.float64]) -> Any:
        return self._xgb.DMatrix(rows, nthread=1, **values)

    def _featurizer(self, subject: Subject) -> Featurizer:
        key = f"{subject.task}|{subject.machine}"
        if key not in self._featurizers:
            self._featurizers[key] = Featurizer(subject)
        return self._featurizers[key]

    def _row(self, subject: Subject, config: Config) -> list[float]:
        key = (f"{subject.task}|{subject.machine}", config)
        if key not in self._rows:
            self._rows[key] = self._featurizer(subject).row(config)
        return self._rows[key]


def relative_speeds(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """log2(best of the task / seconds) of each sample, between `_SLOWEST` and 0."""
    best: dict[tuple[str, str, Measure], float] = {}
    for each in samples:
        if each.seconds is not None:
            key = _group(each)
            best[key] = min(best.get(key, np.inf), each.seconds)
    values = [
        _SLOWEST if each.seconds is None else max(_SLOWEST, float(np.log2(best[_group(each)] / each.seconds)))
        for each in samples
    ]
    return np.array(values)


def _group(sample: Sample) -> tuple[str, str, Measure]:
    return sample.subject.task, str(sample.subject.machine), sample.measure
