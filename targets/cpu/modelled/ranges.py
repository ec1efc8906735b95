"""Distinct cache lines that accesses reach, each moved by the loops around it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LINE = 64
_MOST = 1 << 16  # ranges to tell apart; of more, the bytes between the first and the last are shared out
Ranges = tuple[float, float, tuple[tuple[float, int], ...]]
"""An access: its first byte, how many bytes it spans, and the stride and iterations of each loop that moves it,
sorted."""
_Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def bytes_of_lines(accesses: Iterable[Ranges], nbytes: int) -> float:
    """Bytes of the lines of a buffer of so many bytes that any of the accesses reaches."""
    begins, ends, dense = [], [], 0.0
    for access in accesses:
        found = _ranges(access)
        if found is None:
            dense += _shared_out(access)
        else:
            begins.append(found[0])
            ends.append(found[1])
    whole = float(-(-nbytes // LINE) * LINE)
    if not begins:
        return min(dense, whole)
    first = np.maximum(np.floor(np.concatenate(begins) / LINE) * LINE, 0.0)
    last = np.minimum(np.ceil(np.concatenate(ends) / LINE) * LINE, whole)
    inside = last > first  # borders that conditions leave out are not in the buffer
    begin, end = _joined(first[inside], last[inside])
    return min(float((end - begin).sum()) + dense, whole)


@lru_cache(maxsize=4096)
def _ranges(access: Ranges) -> _Pair | None:
    """Beginnings and ends of the bytes that an access reaches; None when they are too many."""
    start, span, moved = access
    begin, end = np.array([start]), np.array([start + span])
    for stride, times in moved:
        if times == 1:
            continue
        if len(begin) == 1 and stride <= max(end[0] - begin[0], LINE):  # no line between is left out
            end = end + stride * (times - 1)
            continue
        if len(begin) * times > _MOST:
            return None
        offsets = stride * np.arange(times)
        begin, end = _joined((begin[:, None] + offsets).ravel(), (end[:, None] + offsets).ravel())
    return begin, end


def _joined(begin: NDArray[np.float64], end: NDArray[np.float64]) -> _Pair:
    """Ranges that overlap or touch as one, in order."""
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(end[order])
    if not len(begin):
        return begin, end
    apart = begin[1:] > end[:-1]
    return begin[np.append(True, apart)], end[np.append(apart, True)]


def _shared_out(access: Ranges) -> float:
    """Bytes of the lines of an access whose ranges are too many to tell apart: no two of them are taken to meet."""
    _, span, moved = access
    count = 1.0
    for stride, times in moved:
        if stride <= max(span, LINE):
            span += stride * (times - 1)
        else:
            count *= times
    return count * max(span, LINE)
