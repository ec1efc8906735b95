"""How the learning rate goes in a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import Any

SCHEDULES = ("constant", "one-cycle")
_WARM_UP = 0.3  # of a training
_FIRST, _LAST = 1 / 25, 1e-4  # of the peak, as torch's OneCycleLR has them but for the end


def one_cycle(progress: float) -> float:
    """The share of the peak at a place in the training, from 0 to 1: up along a cosine, then down along one."""
    if progress < _WARM_UP:
        return _between(_FIRST, 1.0, progress / _WARM_UP)
    return _between(1.0, _LAST, (progress - _WARM_UP) / (1 - _WARM_UP))


def _between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


class Scheduled:
    """An optimizer's learning rate over a training; the rates that the optimizer was made with are the peaks.

    Args:
        schedule: of `SCHEDULES`.
        epochs: of the training.
    """

    def __init__(self, schedule: str, epochs: int) -> None:
        self._schedule, self._epochs = schedule, epochs
        self._peaks: list[float] = []

    def batches(self, batches: Iterable[Any], epoch: int) -> Iterator[tuple[float, Any]]:
        """(progress of the training, batch) of one epoch. Batches without a length count as the start of the epoch."""
        length = length_hint(batches)
        for index, batch in enumerate(batches):
            part = min(index / length, 1.0) if length else 0.0
            yield (epoch + part) / self._epochs, batch

    def apply(self, optimizer: Any, progress: float) -> None:
        """Set the rates for the step at that progress."""
        if self._schedule == "constant":
            return
        groups = optimizer.param_groups
        self._peaks = self._peaks or [float(group["lr"]) for group in groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * one_cycle(progress)
