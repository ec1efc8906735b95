"""A config as numbers: the knobs, the workload, the machine, and the analytic estimate. Sizes are logarithms.

The order of the features is part of a stored model: count `FEATURES_VERSION` up when it changes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.tuning.cost_models import Subject
from compiler.tuning.cost_models.roofline import Estimate, estimate
from schedules.config import Config

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
    """Features of the configs of one subject; what does not depend on the config is computed once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._default = _estimates(estimate(subject.rule, subject.workload, subject.default, subject.machine), subject)
        self._fixed = [float(subject.rule == name) for name in _RULES] + _workload(subject.workload)
        self._machine = [_log(getattr(subject.machine, name)) for name in _MACHINE]

    def row(self, config: Config) -> list[float]:
        """The features of one config, in the order of `NAMES`."""
        subject = self._subject
        knobs = [_log(config[name]) if name in config else math.nan for name in KNOBS]
        others = [_log(config[name]) for name in sorted(set(config) - set(KNOBS))][:_OTHER_KNOBS]
        others += [math.nan] * (_OTHER_KNOBS - len(others))
        start = [_log(subject.default[name]) if name in subject.default else math.nan for name in KNOBS]
        moved = [knob - from_ for knob, from_ in zip(knobs, start, strict=True)]
        found = _estimates(estimate(subject.rule, subject.workload, config, subject.machine), subject)
        better = [a - b for a, b in zip(self._default, found, strict=True)]
        return [*knobs, *others, *moved, *self._fixed, *found, *better, *self._machine]

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
