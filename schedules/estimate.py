"""The estimated cost of a config: cycles of arithmetic and of memory traffic, and load balance."""

from __future__ import annotations

from dataclasses import dataclass

from schedules.ir.numbers import ceil_div
from schedules.machine import Machine

_CACHE_RATE = 16.0  # bytes per cycle and core from the cache behind the second one
_TASK_CYCLES = 150.0  # cycles to start a task


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
        tasks = max(self.tasks, 1)
        return ceil_div(tasks, machine.cores) / tasks

    def total(self, machine: Machine) -> float:
        """Cycles until the kernel is done: arithmetic and movement overlap for the most part."""
        moved = self.moved / _CACHE_RATE
        if self.task_bytes > machine.l2_bytes:
            moved += self.cycles * 0.2
        both = max(self.cycles, moved) + 0.3 * min(self.cycles, moved)
        return both * self.share(machine) + _TASK_CYCLES * ceil_div(self.tasks, machine.cores)


def tail(extent: int, tile: int) -> float:
    """The share of an extent that whole tiles do not cover."""
    return extent % tile / extent if extent else 0.0
