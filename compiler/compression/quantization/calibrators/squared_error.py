"""mse: the range whose expected squared error, rounding and clipping together, is smallest."""

from __future__ import annotations

import numpy as np

from compiler.compression.quantization.affine import affine_for
from compiler.compression.quantization.calibrators.registry import calibrator
from compiler.compression.quantization.histogram import Array, Histogram
from compiler.compression.quantization.scheme import Scheme

_COARSE = np.linspace(0.1, 1.0, 19)
_FINE = np.linspace(-0.05, 0.05, 11)


@calibrator("mse")
def squared_error(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """Both ends are shrunk, together at first, then each for itself."""
    seen = histogram.counts > 0
    values = np.clip(histogram.centers[seen], histogram.low, histogram.high)
    weights = histogram.counts[seen] / histogram.total

    def error(low_share: float, high_share: float) -> float:
        return _error(values, weights, histogram.low * low_share, histogram.high * high_share, scheme)

    best = min(float(share) for share in _COARSE[np.argmin([error(s, s) for s in _COARSE])][None])
    low = high = best
    for _ in range(2):
        low = _best(lambda share, fixed=high: error(share, fixed), low)
        high = _best(lambda share, fixed=low: error(fixed, share), high)
    return histogram.low * low, histogram.high * high


def _best(error: object, start: float) -> float:
    """The share near `start`, or anywhere on the coarse grid, of the smallest error; the larger one of equals."""
    assert callable(error)
    shares = np.unique(np.clip(np.concatenate([_COARSE, start + _FINE]), 0.02, 1.0))[::-1]
    return float(shares[int(np.argmin([error(float(share)) for share in shares]))])


def _error(values: Array, weights: Array, low: float, high: float, scheme: Scheme) -> float:
    affine = affine_for(low, high, scheme.activations, symmetric=scheme.symmetric_activations)
    return float((weights * (affine.round_trip(values) - values) ** 2).sum())
