"""entropy: the range that loses least information, by the Kullback-Leibler divergence.

Szymon Migacz, "8-bit Inference with TensorRT", GTC 2017; for ranges that are not symmetric both ends shrink together.
"""

from __future__ import annotations

import numpy as np

from compiler.compression.quantization.affine import affine_for
from compiler.compression.quantization.calibrators.registry import calibrator
from compiler.compression.quantization.histogram import Array, Histogram
from compiler.compression.quantization.scheme import Scheme

_SHARES = np.linspace(0.1, 1.0, 91)
# Bins that many times finer than the levels; finer ones hold too few values to be a distribution.
_BINS_PER_LEVEL = 8


@calibrator("entropy")
def entropy(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """Of the candidates, the range with the smallest divergence of what is kept from what was there."""
    divergences = [
        _divergence(histogram, histogram.low * float(share), histogram.high * float(share), scheme) for share in _SHARES
    ]
    share = float(_SHARES[int(np.argmin(divergences))])
    return histogram.low * share, histogram.high * share


def _divergence(histogram: Histogram, low: float, high: float, scheme: Scheme) -> float:
    """Of the values as quantized from the values clipped to the range."""
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
