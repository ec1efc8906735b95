"""Lower bounds of kernel times: the machine's speed is measured, and no kernel beats its bound."""

from __future__ import annotations

import pytest

from compiler.tuning.lower_bounds import Peaks, measure_peaks, min_seconds
from compiler.tuning.measuring.messages import Effort
from compiler.tuning.measuring.pool import MeasurementPool, Trial
from compiler.tuning.session import Session, reason_to_stop
from compiler.tuning.state import TaskState
from tests.compiler.tuning.kernels import product_task, target


def test_a_floor_comes_from_what_the_machine_can_do() -> None:
    task = product_task(rows=96, depth=128, columns=128)
    machine = target().machine
    with MeasurementPool(target(), serial=True, builders=1) as pool:
        peaks, error = measure_peaks(pool, machine)
        assert error == ""
        pool.define(task.kernel)
        assert pool.prepare([task.key]) == {}
        (outcome,) = pool.trials([Trial(task.key, task.default, Effort(0.05))], lambda _trial, _outcome: None)
    assert outcome.seconds is not None, outcome.note
    floor = min_seconds(task, machine, peaks)
    assert floor >= 2 * 96 * 128 * 128 / peaks.operations
    assert floor > 0


def test_a_task_at_the_floor_is_done() -> None:
    task = product_task()
    state = TaskState(task, target().machine)
    state.note(task.default, 1e-5)
    assert reason_to_stop(state, 1e-5) == ""
    state.lower_bound = 0.97e-5
    assert "97%" in reason_to_stop(state, 1e-5)


def test_floors_are_known_for_measured_machines_only() -> None:
    task = product_task()
    assert min_seconds(task, target().machine, Peaks()) == 0.0


@pytest.mark.parametrize("slowest", ["operations", "nbytes"])
def test_the_longer_of_arithmetic_and_reading_counts(slowest: str) -> None:
    task = product_task()
    task.operations = 1_000_000
    task.kernel = type(task.kernel)(task.key, task.rule.name, "", task.kernel.arguments, 1 << 40)
    peaks = Peaks(1e9, 1e15) if slowest == "operations" else Peaks(1e15, 1e6)
    weights = 48 * 64 * 4
    expected = 1e-3 if slowest == "operations" else weights / 1e6
    assert min_seconds(task, target().machine, peaks) == pytest.approx(expected)


def test_floors_that_a_kernel_beats_are_forgotten() -> None:
    task = product_task()
    state = TaskState(task, target().machine)
    state.note(task.default, 1e-5)
    state.lower_bound = 1.2e-5
    session = object.__new__(Session)
    session.states, session.problems = [state], []
    session._check_lower_bounds()
    assert state.lower_bound == 0.0
    assert "faster than the device's measured peak" in session.problems[0]
