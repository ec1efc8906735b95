"""Search strategies: they choose the configs to try next. How to add your own:

    @searches.register("mine")
    class Mine:
        def propose(self, state, score, count): ...

(and, if it does not only choose among a task's listed knobs, `serves(task)`: whether it can propose for a task) in a
module of this package, or as an entry point of the group `tensorwright.searches`; then select it by
`tensorwright.tune(..., search="mine")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.support.registry import Registry
from compiler.tuning.state import TaskState
from schedules.config import Config

if TYPE_CHECKING:
    from compiler.tuning.tasks import Task

Score = Callable[[Sequence[Config]], NDArray[np.float64]]


class Search(Protocol):
    """Proposes configs of a task."""

    def propose(self, state: TaskState, score: Score, count: int) -> list[Config]:
        """Up to `count` configs of the task's space that were not tried yet, the most promising first.

        `score` is the cost model's, higher is faster. Fewer, or none, if the space is exhausted.
        """


searches: Registry[Search] = Registry("search", __name__, "tensorwright.searches")


def serves(search: Search, task: Task) -> bool:
    """True if a search can propose for a task: by its own `serves`, or because there is a choice of knobs."""
    own = getattr(search, "serves", None)
    return bool(own(task)) if own is not None else task.space.size > 1
