"""Bytes that a kernel's loop nest moves into each cache: the distinct lines of what fits, over again where it does not.

A loop whose single iterations fit into a cache keeps there what the next iteration reads again; of one whose iterations
do not, each starts anew (Wolf and Lam 1991).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from targets.cpu.modelled.accesses import Access, Accesses, Nest

_USABLE = 0.75  # of a cache: the rest goes to conflicts and to what others hold there
Footprint = dict[int, float]


@dataclass
class _Level:
    """Bytes that one execution of a loop touches, and one iteration of it, by buffer."""

    nest: Nest
    inside: list[Access | _Level]
    whole: Footprint
    once: Footprint


class Traffic:
    """Bytes that enter caches during one call of a kernel on one core.

    Args:
        accesses: accesses of the kernel.
        tasks: iterations of a parallel loop that the core runs, for a number of all.
    """

    def __init__(self, accesses: Accesses, cores: int) -> None:
        self._accesses, self._cores = accesses, cores
        self._extents: dict[int, int] = {}
        self._root = self._level(accesses.nest)

    def into(self, capacity: int) -> Footprint:
        """Bytes by buffer that enter a cache of a size in bytes."""
        return self._missed(self._root, _USABLE * capacity)

    def touched(self) -> Footprint:
        """Bytes by buffer that the core touches at all."""
        return self._root.whole

    def _level(self, nest: Nest) -> _Level:
        extent = -(-nest.extent // self._cores) if nest.parallel else nest.extent
        self._extents[nest.variable] = extent
        inside: list[Access | _Level] = [self._level(each) if isinstance(each, Nest) else each for each in nest.body]
        within = list(_accesses(nest))
        variables = set(_variables(nest))
        whole = self._footprint(within, variables)
        once = self._footprint(within, variables - {nest.variable})
        return _Level(nest, inside, whole, once)

    def _footprint(self, accesses: Sequence[Access], variables: set[int]) -> Footprint:
        """Bytes of the distinct lines by buffer. What several accesses reach counts once."""
        reached: dict[int, dict[Ranges, None]] = {}
        for each in accesses:
            start, moved = each.address.constant, []
            for over, by in each.address.terms:
                if over in variables:
                    moved.append((abs(by), self._extents[over]))
                    start += min(by, 0.0) * (self._extents[over] - 1)
            span = max(each.lanes * max(each.stride, 0), each.bytes)
            reached.setdefault(each.buffer, {})[(start, float(span), tuple(sorted(moved)))] = None
        return {buffer: bytes_of_lines(ranges, self._accesses.nbytes[buffer]) for buffer, ranges in reached.items()}

    def _missed(self, level: _Level, capacity: float) -> Footprint:
        if sum(level.whole.values()) <= capacity or sum(level.once.values()) <= capacity:
            return level.whole
        times = self._extents[level.nest.variable]
        missed: Footprint = {}
        loose = self._footprint([each for each in level.inside if isinstance(each, Access)], set())
        parts = [self._missed(each, capacity) for each in level.inside if isinstance(each, _Level)]
        for part in (loose, *parts):
            for buffer, nbytes in part.items():
                missed[buffer] = missed.get(buffer, 0.0) + times * nbytes
        return missed


def _accesses(nest: Nest) -> Iterable[Access]:
    for each in nest.body:
        if isinstance(each, Access):
            yield each
        else:
            yield from _accesses(each)


def _variables(nest: Nest) -> Iterable[int]:
    yield nest.variable
    for each in nest.body:
        if isinstance(each, Nest):
            yield from _variables(each)


LINE = 64
_MOST = 1 << 16  # ranges to tell apart; of more, the bytes between the first and the last are shared out
Ranges = tuple[float, float, tuple[tuple[float, int], ...]]
"""An access: its first byte, how many bytes it spans, and the stride and iterations of each loop that moves it,
sorted."""
_Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def bytes_of_lines(accesses: Iterable[Ranges], nbytes: int) -> float:
    """Bytes of the cache lines of a buffer, of a size in bytes, that any of the accesses reaches."""
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
