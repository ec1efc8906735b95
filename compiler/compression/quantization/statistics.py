"""Calibration statistics of a tensor."""

from __future__ import annotations

import numpy as np

from compiler.compression.quantization.histogram import Histogram

Array = np.ndarray


class Statistics:
    """Of one tensor: its histogram, and the mean and the largest magnitude of each channel.

    Args:
        axis: of the channels; None where channels are of no interest.

    Attributes:
        is_finite: whether all that was seen is; the histogram counts what is.
    """

    def __init__(self, axis: int | None) -> None:
        self.histogram = Histogram()
        self.is_finite = True
        self._axis = axis
        self._sums: Array = np.zeros(0)
        self._count = 0
        self.largest: Array = np.zeros(0, np.float32)

    @property
    def means(self) -> Array:
        """float64, one per channel."""
        return self._sums / max(self._count, 1)

    def add(self, values: Array) -> None:
        """Take in a tensor."""
        self.histogram.add(values)
        self.is_finite = self.is_finite and bool(np.isfinite(values).all())
        if self._axis is None or not values.size:
            return
        others = tuple(axis for axis in range(values.ndim) if axis != self._axis)
        sums = values.sum(axis=others, dtype=np.float64)
        magnitudes = np.abs(values).max(axis=others)
        self._sums = sums if not self._count else self._sums + sums
        self.largest = magnitudes if not self._count else np.maximum(self.largest, magnitudes)
        self._count += values.size // values.shape[self._axis]
