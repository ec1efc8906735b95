"""Robust statistics of repeated timings on a machine that other programs use too."""

from __future__ import annotations

from collections.abc import Sequence

_LOWEST = 3


def typical(samples: Sequence[float]) -> float:
    """The median of the three shortest: interference only ever adds time, and a single time may be luck."""
    lowest = sorted(samples)[:_LOWEST]
    return lowest[len(lowest) // 2]


def spread(samples: Sequence[float]) -> float:
    """How far the three shortest lie apart, as a share of the shortest; infinite when there are fewer."""
    if len(samples) < _LOWEST:
        return float("inf")
    lowest = sorted(samples)[:_LOWEST]
    return (lowest[-1] - lowest[0]) / lowest[0]
