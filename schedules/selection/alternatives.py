"""Alternative kernels of different rules for the same computation: one is chosen while layouts are planned.

Estimates choose, unless alternatives were measured (they are tuning tasks like any other): then the records do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schedules.rule import Workload


@dataclass(frozen=True)
class Alternative:
    """The name of the rule that would serve the kernel, and its workload."""

    rule: str
    workload: Workload

    @property
    def key(self) -> str:
        """The key of its tuning records."""
        from schedules.selection.apply import record_key
        from schedules.selection.registry import rules

        return record_key(next(each for each in rules() if each.name == self.rule), self.workload)


Choice = Callable[[Sequence[Alternative]], int]
"""The index of the alternative to use; the first has the lowest estimate."""
