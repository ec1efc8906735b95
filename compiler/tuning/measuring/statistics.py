"""One number out of several times of the same thing on a machine that does other things too."""

from __future__ import annotations

from collections.abc import Sequence

_LOWEST = 3


def typical(samples: Sequence[float]) -> float:
    """The middle of the three shortest: what others take from the machine only ever adds, and one may be luck."""
    lowest = sorted(samples)[:_LOWEST]
    return lowest[len(lowest) // 2]


def spread(samples: Sequence[float]) -> float:
    """How far the three shortest lie apart, as a share of the shortest; infinite when there are fewer."""
    if len(samples) < _LOWEST:
        return float("inf")
    lowest = sorted(samples)[:_LOWEST]
    return (lowest[-1] - lowest[0]) / lowest[0]
