"""min-max: everything that was seen can be represented."""

from __future__ import annotations

from compiler.compression.quantization.calibrators.registry import calibrator
from compiler.compression.quantization.histogram import Histogram
from compiler.compression.quantization.scheme import Scheme


@calibrator("min-max")
def min_max(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """The extremes themselves."""
    return histogram.low, histogram.high
