"""Calibration methods: how the range of a tensor is chosen from a histogram of its values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from compiler.compression.quantization.affine import Affine, affine_for
from compiler.compression.quantization.histogram import Array, Histogram
from compiler.compression.quantization.scheme import Scheme
from compiler.errors import OptionError

# The range to represent exactly, for a tensor of that histogram; values outside are clipped.
Calibrator = Callable[[Histogram, Scheme], tuple[float, float]]

_CALIBRATORS: dict[str, Calibrator] = {}


def calibrator(name: str) -> Callable[[Calibrator], Calibrator]:
    """Register the decorated function as the method `name`."""

    def register(function: Calibrator) -> Calibrator:
        _CALIBRATORS[name] = function
        return function

    return register


def calibrators() -> list[str]:
    """The names of all methods."""
    return sorted(_CALIBRATORS)


def get_calibrator(name: str) -> Calibrator:
    """The method `name`. Raises OptionError with the names there are."""
    if name not in _CALIBRATORS:
        raise OptionError(f"no calibration method is named {name!r}", f"use one of {', '.join(calibrators())}")
    return _CALIBRATORS[name]


def parameters_of(histogram: Histogram, method: Calibrator, scheme: Scheme) -> Affine:
    """Scale and zero point for a tensor of that histogram."""
    if not histogram.total:
        return affine_for(0.0, 0.0, scheme.activations, symmetric=scheme.symmetric_activations)
    low, high = method(histogram, scheme)
    return affine_for(low, high, scheme.activations, symmetric=scheme.symmetric_activations)


@calibrator("min-max")
def min_max(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """The extremes themselves."""
    return histogram.low, histogram.high


# percentile: the few values farthest from the rest are clipped.

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


# mse: the range whose expected squared error, rounding and clipping together, is smallest.

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


# entropy: the range that loses least information, by the Kullback-Leibler divergence.
#
# Szymon Migacz, "8-bit Inference with TensorRT", GTC 2017; for ranges that are not symmetric both ends shrink together.

_SHARES = np.linspace(0.1, 1.0, 91)
# Bins that many times finer than the levels; finer ones hold too few values to be a distribution.
_BINS_PER_LEVEL = 8


@calibrator("entropy")
def entropy(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """The candidate range with the smallest divergence of the clipped values from the original ones."""
    divergences = [
        _divergence(histogram, histogram.low * float(share), histogram.high * float(share), scheme) for share in _SHARES
    ]
    share = float(_SHARES[int(np.argmin(divergences))])
    return histogram.low * share, histogram.high * share


def _divergence(histogram: Histogram, low: float, high: float, scheme: Scheme) -> float:
    """Divergence of the quantized values from the values clipped to the range."""
    affine = affine_for(low, high, scheme.activations, symmetric=scheme.symmetric_activations)
    start, end = affine.limits
    info = np.iinfo(scheme.activations)
    levels = int(info.max) - int(info.min) + 1
    bins = levels * _BINS_PER_LEVEL
    centers = histogram.centers
    inside = (centers >= start - affine.scale / 2) & (centers <= end + affine.scale / 2)
    places = np.clip(((centers - start) / affine.scale + 0.5) * _BINS_PER_LEVEL, 0, bins - 1).astype(np.int64)
    counts = histogram.counts.astype(np.float64)
    kept = np.bincount(places[inside], counts[inside], minlength=bins)
    reference = np.bincount(places, counts, minlength=bins)
    return _kullback_leibler(reference, _spread(kept, levels))


def _spread(counts: Array, levels: int) -> Array:
    """Each level's count in equal parts over those of its bins that hold something."""
    grouped = counts.reshape(levels, -1)
    occupied = grouped > 0
    share = grouped.sum(axis=1, keepdims=True) / np.maximum(occupied.sum(axis=1, keepdims=True), 1)
    return (occupied * share).reshape(-1)


def _kullback_leibler(reference: Array, other: Array) -> float:
    """sum of p log(p / q); where q is 0 but p is not, a small q stands in."""
    p = reference / reference.sum()
    q = other / max(float(other.sum()), 1.0)
    present = p > 0
    return float((p[present] * np.log(p[present] / np.maximum(q[present], 1e-9))).sum())
