"""The estimated cost of a config: cycles of arithmetic and of memory traffic, and load balance."""

from __future__ import annotations

from dataclasses import dataclass

from schedules.cuts import EXPOSED, SHARED_CACHE_RATE, TASK_CYCLES, busiest_share
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine


@dataclass(frozen=True)
class Estimate:
    """Estimate of one call of the kernel.

    Attributes:
        cycles: arithmetic of all tasks, by one core.
        moved: bytes that come from beyond the second cache, over all tasks.
        tasks: what the threads share.
        task_bytes: what a task holds on to.
        tile: independent sums in registers.
        code: multiply-adds in the innermost loop's body.
        tail: share of the arithmetic in tiles that are smaller than the tile.
    """

    cycles: float
    moved: float
    tasks: int
    task_bytes: float
    tile: int
    code: int
    tail: float = 0.0

    def share(self, machine: Machine) -> float:
        """Share of the work of the busiest core."""
        return busiest_share(max(self.tasks, 1), machine.cores)

    def total(self, machine: Machine) -> float:
        """Cycles until the kernel is done: arithmetic and movement overlap for the most part."""
        moved = self.moved / SHARED_CACHE_RATE
        if self.task_bytes > machine.l2_bytes:
            moved += self.cycles * 0.2
        both = max(self.cycles, moved) + EXPOSED * min(self.cycles, moved)
        return both * self.share(machine) + TASK_CYCLES * ceil_div(self.tasks, machine.cores)


def tail(extent: int, tile: int) -> float:
    """The share of an extent that whole tiles do not cover."""
    return extent % tile / extent if extent else 0.0
