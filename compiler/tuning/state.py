"""The state of a task during tuning, the progress of a run, the cost of its search, and its limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compiler.records.record_set import MIN_GAIN_OF_ALTERNATIVES
from schedules.config import Config
from schedules.machine import Machine
from targets.measure import Unit

if TYPE_CHECKING:
    from compiler.tuning.measuring.messages import Outcome
    from compiler.tuning.tasks import Task


@dataclass
class TaskState:
    """A task and its trials.

    Attributes:
        margin: the fraction by which an alternative must be faster to replace the task.
        lower_bound: seconds that no config can beat, from `lower_bounds.min_seconds`; 0 if unknown.
        results: seconds of every config that was tried; None for failed trials.
        best: the fastest config so far and its seconds.
        curve: (trials of this task, best seconds) at each improvement.
        leaders: the outcomes whose libraries are kept for the final comparison, best first.
        trials: number of trials in this run; `seconds` is their duration, building and measuring.
        finished: why the task gets no more trials, or "".
        alternatives: the states of all tasks for the same computation, including this one; empty if it is the only one.
        proven: the replacement of the task if it won in the model: the key of the kernel and its config.
    """

    task: Task
    machine: Machine
    margin: float = MIN_GAIN_OF_ALTERNATIVES
    lower_bound: float = 0.0
    results: dict[Config, float | None] = field(default_factory=dict)
    best: tuple[Config, float] | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    leaders: list[Outcome] = field(default_factory=list)
    trials: int = 0
    failed: int = 0
    seconds: float = 0.0
    finished: str = ""
    alternatives: list[TaskState] = field(default_factory=list, repr=False, compare=False)
    proven: tuple[str, Config] | None = None

    @property
    def default_seconds(self) -> float | None:
        """Seconds of the rule's default, if measured."""
        return self.results.get(self.task.default)

    @property
    def best_seconds(self) -> float:
        """Seconds of the best config; infinite if nothing was measured."""
        return self.best[1] if self.best is not None else math.inf

    @property
    def fastest_seconds(self) -> float:
        """Seconds of the fastest alternative for the same computation."""
        return min((alternative.best_seconds for alternative in self.alternatives), default=self.best_seconds)

    @property
    def fastest_alternative(self) -> TaskState:
        """The fastest alternative for this task's computation; this one unless another is significantly faster."""
        fastest = min(self.alternatives, key=lambda alternative: alternative.best_seconds, default=self)
        return fastest if fastest.best_seconds * (1 + self.margin) < self.best_seconds else self

    @property
    def contested(self) -> bool:
        """True if an alternative to the untuned module's kernel is the fastest."""
        first = next((alternative for alternative in self.alternatives if not alternative.task.instead_of), self)
        return self.fastest_seconds < first.best_seconds

    @property
    def is_changed(self) -> bool:
        """True if this kernel of the untuned module is replaced or gets another config."""
        if self.task.instead_of or self.best is None:
            return False
        return self.fastest_alternative is not self or self.best[0] != self.task.default

    @property
    def gain(self) -> float:
        """Default over best; 1 if either is unknown."""
        default = self.default_seconds
        return default / self.best_seconds if default is not None and self.best is not None else 1.0

    @property
    def of_limit(self) -> float | None:
        """The lower bound over the best: 1 is optimal; None if either is unknown."""
        return self.lower_bound / self.best_seconds if self.lower_bound and self.best is not None else None

    def note(self, config: Config, seconds: float | None, *, new: bool = True) -> None:
        """Add a result; `new` counts it as a trial of this run."""
        if self.results.get(config) is None:
            self.results[config] = seconds
        if new:
            self.trials += 1
            self.failed += seconds is None
        if seconds is not None and seconds < self.best_seconds:
            self.best = (config, seconds)
            self.curve.append((self.trials, seconds))

    def fastest_configs(self, most: int) -> list[Config]:
        """The `most` fastest configs, fastest first."""
        measured = [(seconds, config) for config, seconds in self.results.items() if seconds is not None]
        return [config for _, config in sorted(measured, key=lambda each: each[0])[:most]]

    def keep_leader(self, outcome: Outcome, most: int) -> None:
        """Keep the library of one of the fastest outcomes, and always the default's."""
        if outcome.seconds is None:
            return
        kept = sorted([*self.leaders, outcome], key=lambda each: each.seconds or math.inf)
        default = [each for each in kept if each.config == self.task.default][:1]
        others = [each for each in kept if each.config != self.task.default]
        self.leaders = [*default, *others[:most]]

    def keep_default(self) -> None:
        """Keep the kernel's default, regardless of other measurements."""
        known_seconds = self.default_seconds or self.best_seconds
        self.best = (self.task.default, known_seconds)
        for alternative in self.alternatives:
            if alternative is not self and alternative.best is not None:
                alternative.best = (alternative.best[0], max(known_seconds, alternative.best[1]))

    def since_improvement(self) -> int:
        """Trials of this run since the last improvement."""
        return self.trials - (self.curve[-1][0] if self.curve else 0)


@dataclass
class Progress:
    """The progress of a tuning run; passed to the caller after every trial.

    Attributes:
        seconds: seconds since the start; `limit_seconds` (known when the search begins) and `limit_trials` are limits.
        before, now: cost of a run of the model in kernels, untuned and as tuned so far, in `unit`: "s" or "cycles".
        phase: the current step.
        resumed: number of trials found in the records.
        current: the task being tried.
        history: (seconds since the start, trials, `now`) at each improvement of `now`.
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
        """Estimated seconds until the end; None if unknown."""
        estimates = []
        if self.limit_seconds is not None:
            estimates.append(self.limit_seconds - self.seconds)
        if self.limit_trials is not None and self.rate:
            estimates.append((self.limit_trials - self.trials) / self.rate)
        return max(0.0, min(estimates)) if estimates else None


@dataclass(frozen=True)
class SearchCost:
    """Cost of the search, without the defaults before it and the comparison after it. `processor`: seconds of
    processors for proposing ("search"), building and measuring."""

    trials: int = 0
    seconds: float = 0.0
    processor: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Limits:
    """Limits of a search, whichever is reached first; None is no limit. `reserve` seconds are kept for the steps after
    the search."""

    trials: int | None = None
    seconds: float | None = None
    reserve: float = 0.0
