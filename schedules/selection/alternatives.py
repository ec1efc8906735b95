"""Alternative kernels that compute the same, of different rules: one is chosen while layouts are planned.

Estimates choose; where alternatives were measured (they are tasks of the tuner like any other), the records do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schedules.rule import Workload


@dataclass(frozen=True)
class Alternative:
    """The rule that would serve the kernel, by name, and its workload."""

    rule: str
    workload: Workload

    @property
    def key(self) -> str:
        """The key of its tuning records."""
        from schedules.selection.apply import record_key
        from schedules.selection.registry import rules

        return record_key(next(each for each in rules() if each.name == self.rule), self.workload)


Choice = Callable[[Sequence[Alternative]], int]
"""The index of the alternative to use; the first is the one that is estimated to be fastest."""
