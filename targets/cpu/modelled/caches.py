"""Bytes that a kernel's loop nest moves into each cache: the distinct lines of what fits, over again where it does not.

A loop whose single iterations fit into a cache keeps there what the next iteration reads again; of one whose iterations
do not, each starts anew (Wolf and Lam 1991).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from targets.cpu.modelled.accesses import Access, Accesses, Nest
from targets.cpu.modelled.ranges import Ranges, bytes_of_lines

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
        accesses: of the kernel.
        tasks: iterations of a parallel loop that the core runs, for a number of all.
    """

    def __init__(self, accesses: Accesses, cores: int) -> None:
        self._accesses, self._cores = accesses, cores
        self._extents: dict[int, int] = {}
        self._root = self._level(accesses.nest)

    def into(self, capacity: int) -> Footprint:
        """Bytes by buffer that enter a cache of so many bytes."""
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
