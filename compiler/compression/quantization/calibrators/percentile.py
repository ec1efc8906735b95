"""percentile: the few values farthest from the rest are clipped."""

from __future__ import annotations

import numpy as np

from compiler.compression.quantization.calibrators.registry import calibrator
from compiler.compression.quantization.histogram import Histogram
from compiler.compression.quantization.scheme import Scheme

# Of all values; half of the rest is clipped at either end. The default of ONNX Runtime's calibrator.
KEPT = 0.99999


@calibrator("percentile")
def percentile(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """The range that holds `KEPT` of the values, to the width of a bin."""
    share = np.cumsum(histogram.counts) / histogram.total
    tail = (1 - KEPT) / 2
    first = int(np.searchsorted(share, tail, side="right"))
    last = int(np.searchsorted(share, 1 - tail, side="left"))
    half = histogram.width / 2
    low = max(histogram.low, float(histogram.centers[first]) - half)
    return low, min(histogram.high, float(histogram.centers[min(last, len(share) - 1)]) + half)
