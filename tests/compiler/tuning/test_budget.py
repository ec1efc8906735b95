"""The budget is spent where time can be saved, and not elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from compiler.tuning.session import PATIENCE, expected_gain, next_task, reason_to_stop
from compiler.tuning.state import TaskState
from schedules.config import Config
from schedules.machine import Machine

DEFAULT = Config.of(x=0)


def state(seconds: float | None, count: int = 1, lower_bound: float = 0.0) -> TaskState:
    task: Any = SimpleNamespace(default=DEFAULT, count=count, tunable=True, instead_of="")
    made = TaskState(task, Machine(), lower_bound=lower_bound)
    made.note(DEFAULT, seconds)
    return made


def spend(made: TaskState, trials: int, seconds: float) -> None:
    for i in range(trials):
        made.note(Config.of(x=len(made.results) + i), seconds)


def test_the_larger_share_of_time_comes_first() -> None:
    small, large, often = state(1e-4), state(1e-3), state(4e-4, count=5)
    assert next_task([small, large, often]) is often


def test_trials_without_gain_lower_the_expectation() -> None:
    one, other = state(1.0e-3), state(0.9e-3)
    assert next_task([one, other]) is one
    spend(one, 16, 2e-3)
    assert next_task([one, other]) is other


def test_a_gain_raises_it() -> None:
    idle, gaining = state(1e-3), state(1e-3)
    spend(idle, 16, 2e-3)
    spend(gaining, 16, 0.8e-3)
    assert expected_gain(gaining) > expected_gain(idle)


def test_dear_trials_count() -> None:
    cheap, dear = state(1e-3), state(1e-3)
    for each, cost in ((cheap, 0.1), (dear, 1.0)):
        spend(each, 16, 2e-3)
        each.seconds = each.trials * cost
    assert expected_gain(cheap) > expected_gain(dear)


def test_a_task_ends_when_nothing_is_gained_or_left() -> None:
    stuck, at_bound, tiny, broken = state(1e-3), state(1e-3, lower_bound=0.99e-3), state(1e-9), state(None)
    spend(stuck, PATIENCE, 2e-3)
    assert "nothing gained" in reason_to_stop(stuck, 1.0e-3)
    assert "limit" in reason_to_stop(at_bound, 1.0e-3)
    assert "negligible" in reason_to_stop(tiny, 1.0)
    assert "not be measured" in reason_to_stop(broken, 1.0)
    assert next_task([stuck, at_bound, tiny, broken]) is None
