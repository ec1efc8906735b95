"""The estimated cost of a config: cycles of arithmetic and of memory traffic, and load balance."""

from __future__ import annotations

from dataclasses import dataclass

from schedules.ir.numbers import ceil_div
from schedules.machine import Machine
from schedules.task_split import EXPOSED, SHARED_CACHE_RATE, TASK_CYCLES, busiest_share


@dataclass(frozen=True)
class Estimate:
    """Estimate of one call of the kernel.

    Attributes:
        cycles: arithmetic of all tasks, on one core.
        moved: bytes from beyond the L2 cache, over all tasks.
        tasks: number of tasks shared by the threads.
        task_bytes: working set of a task.
        tile: independent sums in registers.
        code: multiply-adds in the innermost loop's body.
        tail: fraction of the arithmetic in tiles that are smaller than the tile.
    """

    cycles: float
    moved: float
    tasks: int
    task_bytes: float
    tile: int
    code: int
    tail: float = 0.0

    def share(self, machine: Machine) -> float:
        """Fraction of the work that the busiest core does."""
        return busiest_share(max(self.tasks, 1), machine.cores)

    def total(self, machine: Machine) -> float:
        """Cycles until the kernel is done: arithmetic and data movement mostly overlap."""
        moved = self.moved / SHARED_CACHE_RATE
        if self.task_bytes > machine.l2_bytes:
            moved += self.cycles * 0.2
        both = max(self.cycles, moved) + EXPOSED * min(self.cycles, moved)
        return both * self.share(machine) + TASK_CYCLES * ceil_div(self.tasks, machine.cores)


def tail(extent: int, tile: int) -> float:
    """The fraction of an extent that whole tiles do not cover."""
    return extent % tile / extent if extent else 0.0
