"""Choice of the task that gets the next trials: the one where a second of tuning is expected to save the model the most
time.

As in Ansor's task scheduler, the expectation looks back (what the last trials won) and ahead (what may still be there);
a task is finished when its space is used up, when nothing was won for long, or when it hardly counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from compiler.tuning.state import TaskState

PATIENCE = 64
"""Trials without a gain after which a task is finished."""
_SMALL_SHARE = 0.0005  # of the model's time
_HOPE = 0.25  # what a fresh task is thought to win by `_HOPE_TRIALS` trials
_HOPE_TRIALS = 32
_NEAR_BOUND = 1.05
_LOOK_BACK = 32
_HOPELESS = 1.25  # times as slow as an alternative to compute the same


def next_task(states: Sequence[TaskState]) -> TaskState | None:
    """The task to try next; None when all are finished."""
    total = seconds_of_model(states)
    for state in states:
        state.finished = state.finished or reason_to_stop(state, total)
    open_ones = [state for state in states if not state.finished]
    return max(open_ones, key=expected_gain, default=None)


def seconds_in_model(state: TaskState) -> float:
    """Seconds of one run of the model that the task takes, in the fastest alternative and with the best config."""
    return state.task.count * state.fastest_seconds if math.isfinite(state.fastest_seconds) else 0.0


def seconds_of_model(states: Iterable[TaskState]) -> float:
    """Seconds of one run in kernels; of several alternatives that compute the same, one counts."""
    return sum(seconds_in_model(state) for state in states if not state.task.instead_of)


def reason_to_stop(state: TaskState, total: float) -> str:
    """Reason why a task gets no more trials; "" while it does."""
    if state.best is None:
        return "it could not be measured"
    if state.best_seconds <= _NEAR_BOUND * state.lower_bound:
        return f"at {state.lower_bound / state.best_seconds:.0%} of the machine's limit"
    if state.best_seconds > _HOPELESS * state.fastest_seconds:
        return f"an alternative is {state.best_seconds / state.fastest_seconds:.1f} times as fast"
    if seconds_in_model(state) < _SMALL_SHARE * total:
        return "it takes a negligible share of the time"
    if state.since_improvement() >= PATIENCE:
        return f"nothing gained in {PATIENCE} trials"
    return ""


def expected_gain(state: TaskState) -> float:
    """Seconds of a run of the model that a second of trials is expected to win."""
    behind = state.best_seconds - state.fastest_seconds
    hope = max(0.0, _HOPE * state.best_seconds - behind)
    ahead = hope / (_HOPE_TRIALS + 2 * state.since_improvement() + state.trials)
    if state.lower_bound:
        ahead *= max(0.0, 1 - state.lower_bound / state.best_seconds) ** 0.5
    cost = state.seconds / state.trials if state.trials and state.seconds else 1.0
    back = 0.5 * _recent_slope(state) if not behind else 0.0
    return state.task.count * max(ahead, back) / cost


def _recent_slope(state: TaskState) -> float:
    """Seconds won by a trial, over the last trials."""
    since = state.trials - _LOOK_BACK
    before = [seconds for trials, seconds in state.curve if trials <= since]
    first = before[-1] if before else (state.curve[0][1] if state.curve else state.best_seconds)
    return max(0.0, first - state.best_seconds) / max(1, min(state.trials, _LOOK_BACK))
