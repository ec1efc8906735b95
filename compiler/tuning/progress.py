"""The progress of a tuning run, the cost of its search, and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compiler.tuning.state import TaskState
from targets.measure import Unit


@dataclass
class Progress:
    """The progress of a tuning run; passed to the caller after every trial.

    Attributes:
        seconds: since the start; `limit_seconds` and `limit_trials` are what was allowed.
        before, now: of a run of the model in kernels, untuned and as tuned so far, in `unit`: "s" or "cycles".
        phase: what is being done.
        resumed: trials found in the records.
        current: the task being tried.
        history: (seconds since the start, trials, `now`) whenever `now` became less.
    """

    states: Sequence[TaskState]
    phase: str = ""
    seconds: float = 0.0
    trials: int = 0
    resumed: int = 0
    limit_seconds: float | None = None
    limit_trials: int | None = None
    before: float = 0.0
    now: float = 0.0
    unit: Unit = "s"
    current: TaskState | None = None
    history: list[tuple[float, int, float]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Trials per second."""
        return self.trials / self.seconds if self.seconds else 0.0

    @property
    def remaining(self) -> float | None:
        """Estimated seconds until the end; None when that is not known."""
        left = []
        if self.limit_seconds is not None:
            left.append(self.limit_seconds - self.seconds)
        if self.limit_trials is not None and self.rate:
            left.append((self.limit_trials - self.trials) / self.rate)
        return max(0.0, min(left)) if left else None


@dataclass(frozen=True)
class SearchCost:
    """Cost of the search, without the defaults before it and the comparison after it.

    Attributes:
        processor: seconds of processors for proposing ("search"), building and measuring.
    """

    trials: int = 0
    seconds: float = 0.0
    processor: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Limits:
    """Limits of a search, whichever is reached first; None is no limit. `reserve` seconds are kept for what follows the
    search."""

    trials: int | None = None
    seconds: float | None = None
    reserve: float = 0.0
