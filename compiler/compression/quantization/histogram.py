"""Histograms of tensors that are seen batch by batch and never kept."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
BINS = 8192


class Histogram:
    """Counts of values in `BINS` equal bins over [-reach, reach], with the exact extremes.

    `reach` is a power of two and doubles when a value lies outside; then pairs of bins are joined, so no value that was
    seen is needed again. At least a quarter of the bins covers the values on the side that reaches further.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.reach = 0.0
        self.low = np.inf
        self.high = -np.inf

    @property
    def total(self) -> int:
        """Number of values seen."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2 * self.reach / BINS

    @property
    def centers(self) -> Array:
        """The middle of each bin."""
        return (np.arange(BINS) - BINS / 2 + 0.5) * self.width

    def add(self, values: Array) -> None:
        """Count the finite values of a float tensor."""
        flat = values.ravel()
        if not np.isfinite(flat).all():
            flat = flat[np.isfinite(flat)]
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach_to(max(abs(low), abs(high)))
        places = (flat * np.float32(BINS / (2 * self.reach)) + np.float32(BINS / 2)).astype(np.int32)
        self.counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)

    def _reach_to(self, magnitude: float) -> None:
        if not self.reach:
            self.reach = float(2.0 ** np.ceil(np.log2(max(magnitude, 2.0**-100))))
        while self.reach < magnitude:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self.reach *= 2

    def share_outside(self, low: float, high: float) -> float:
        """The share of values below `low` or above `high`, to the width of a bin."""
        if not self.total:
            return 0.0
        half = self.width / 2
        outside = (self.centers < low - half) | (self.centers > high + half)
        return float(self.counts[outside].sum() / self.total)


# Calibration statistics of a tensor.


class Statistics:
    """Statistics of one tensor: its histogram, and the mean and the largest magnitude of each channel.

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
