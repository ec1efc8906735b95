"""Gradient-boosted trees on measured trials, with XGBoost (Chen and Guestrin 2016), as TVM and Ansor use them.

The target is the logarithm of a config's slowdown relative to the best of its task, so tasks of all sizes contribute
equally. Failed trials count as slow. A pretrained model contributes its own trials: boosting starts from its
predictions.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import MissingDependencyError
from compiler.tuning.cost_models import CostModel, Sample, Subject, cost_models
from compiler.tuning.cost_models.roofline import Estimate, RooflineModel, estimate
from schedules.config import Config
from targets.extras import install_command
from targets.measure import Measure

MIN_SAMPLES = 12
_SLOWEST = -3.0  # log2: slowdowns beyond eight times the best are all the same
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
            f"{install_command('tune')}, or choose the cost model 'roofline'",
        ) from error


@cost_models.register("xgboost")
class XgboostModel:
    """The main cost model.

    Args:
        pretrained: a model file to start from, or None.
        start: ranks candidates before there is training data; the analytic model if None.
    """

    def __init__(self, pretrained: str | Path | None = None, seed: int = 0, start: CostModel | None = None) -> None:
        self._xgb = _xgboost()
        self._seed = seed
        self._base: Any = None
        if pretrained is not None:
            booster = self._xgb.Booster({"nthread": 1})  # more threads would slow down the builders
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
        """Save the model (without the one it was pretrained with), for use as `pretrained` later."""
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
    for sample in samples:
        if sample.seconds is not None:
            key = _group(sample)
            best[key] = min(best.get(key, np.inf), sample.seconds)
    values = [
        _SLOWEST if sample.seconds is None else max(_SLOWEST, float(np.log2(best[_group(sample)] / sample.seconds)))
        for sample in samples
    ]
    return np.array(values)


def _group(sample: Sample) -> tuple[str, str, Measure]:
    return sample.subject.task, str(sample.subject.machine), sample.measure


FEATURES_VERSION = 1

KNOBS = ("pixels", "blocks", "rows", "columns", "chunks", "unroll", "tiles", "splits", "vectors", "pack", "depth")
_OTHER_KNOBS = 4
_RULES = ("conv-direct", "conv-winograd", "conv-depthwise", "pool", "matmul", "matmul-bf16", "attention")
_SIZES = ("batch", "channels", "filters", "block", "in_block", "groups", "tile", "rows", "columns", "depth", "width")
_MORE_SIZES = ("queries", "keys", "epilogue", "out_blocks", "in_blocks")
_WINDOWS = ("height", "width_out", "kernel", "stride")
_ESTIMATES = ("cycles", "moved", "tasks", "task_bytes", "tile", "code", "tail", "share", "total", "in_l1", "in_l2")
_MACHINE = ("vector_bits", "vector_registers", "l1_bytes", "l2_bytes", "l3_bytes", "cores", "fma_ports", "fma_latency")

NAMES: tuple[str, ...] = (
    *(f"knob.{name}" for name in KNOBS),
    *(f"knob.other{i}" for i in range(_OTHER_KNOBS)),
    *(f"moved.{name}" for name in KNOBS),
    *(f"rule.{name}" for name in _RULES),
    *(f"work.{name}" for name in (*_SIZES, *_MORE_SIZES, *_WINDOWS)),
    *(f"estimate.{name}" for name in _ESTIMATES),
    *(f"better.{name}" for name in _ESTIMATES),
    *(f"machine.{name}" for name in _MACHINE),
)


def _log(value: object) -> float:
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float):
        return math.nan
    return math.log2(value + 1) if value >= 0 else math.nan


class Featurizer:
    """Features of the configs of one subject; those that do not depend on the config are computed once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._default = _estimates(estimate(subject.rule, subject.workload, subject.default, subject.machine), subject)
        self._fixed = [float(subject.rule == name) for name in _RULES] + _workload(subject.workload)
        self._machine = [_log(getattr(subject.machine, name)) for name in _MACHINE]

    def row(self, config: Config) -> list[float]:
        """The features of one config, in the order of `NAMES`."""
        subject = self._subject
        knobs = [_log(config[name]) if name in config else math.nan for name in KNOBS]
        other_knobs = [_log(config[name]) for name in sorted(set(config) - set(KNOBS))][:_OTHER_KNOBS]
        other_knobs += [math.nan] * (_OTHER_KNOBS - len(other_knobs))
        start = [_log(subject.default[name]) if name in subject.default else math.nan for name in KNOBS]
        moved = [knob - from_ for knob, from_ in zip(knobs, start, strict=True)]
        found = _estimates(estimate(subject.rule, subject.workload, config, subject.machine), subject)
        better = [a - b for a, b in zip(self._default, found, strict=True)]
        return [*knobs, *other_knobs, *moved, *self._fixed, *found, *better, *self._machine]

    def matrix(self, configs: list[Config]) -> NDArray[np.float32]:
        """One row per config."""
        return np.array([self.row(config) for config in configs], dtype=np.float32).reshape(len(configs), len(NAMES))


def _workload(work: object) -> list[float]:
    values = [_log(getattr(work, name, math.nan)) for name in (*_SIZES, *_MORE_SIZES)]
    spatial: Any = getattr(work, "out_spatial", ())
    kernel: Any = getattr(work, "kernel", ())
    values.append(_log(spatial[-2]) if len(spatial) > 1 else math.nan)
    values.append(_log(spatial[-1]) if spatial else math.nan)
    values.append(_log(math.prod(kernel)) if kernel else math.nan)
    strides: Any = getattr(work, "strides", ())
    values.append(_log(strides[-1]) if strides else math.nan)
    return values


def _estimates(found: Estimate | None, subject: Subject) -> list[float]:
    if found is None:
        return [math.nan] * len(_ESTIMATES)
    machine = subject.machine
    return [
        _log(found.cycles),
        _log(found.moved),
        _log(found.tasks),
        _log(found.task_bytes),
        _log(found.tile),
        _log(found.code),
        found.tail,
        found.share(machine) * machine.cores,
        _log(found.total(machine)),
        _log(found.task_bytes / machine.l1_bytes),
        _log(found.task_bytes / machine.l2_bytes),
    ]
