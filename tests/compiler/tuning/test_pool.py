"""A builder or kernel that crashes, hangs or gives wrong results costs one trial, and the pool continues."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from compiler.support.interrupts import interruptible
from compiler.tuning.measuring.channel import Worker
from compiler.tuning.measuring.messages import Effort, Outcome, WaitingClock
from compiler.tuning.measuring.pool import MeasurementPool, Trial
from compiler.tuning.tasks import Task
from schedules.config import Config
from tests.compiler.tuning.kernels import product_task, target

EFFORT = Effort(0.02)


@pytest.fixture(scope="module")
def task() -> Task:
    return product_task()


@pytest.fixture(scope="module")
def pool(task: Task) -> Iterator[MeasurementPool]:
    with MeasurementPool(target(), builders=1, build_timeout=600.0, measure_timeout=600.0) as pool:
        pool.define(task.kernel)
        assert pool.prepare([task.key]) == {}
        yield pool


def run(pool: MeasurementPool, task: Task, configs: list[Config]) -> list[Outcome]:
    seen: list[Outcome] = []
    outcomes = pool.trials([Trial(task.key, each, EFFORT) for each in configs], lambda _, outcome: seen.append(outcome))
    assert sorted(map(id, seen)) == sorted(map(id, outcomes))
    return outcomes


def test_good_configs_are_timed(pool: MeasurementPool, task: Task) -> None:
    other = next(config for config in task.space if config != task.default)
    outcomes = run(pool, task, [task.default, other])
    for outcome in outcomes:
        assert outcome.status == "ok", outcome.note
        assert outcome.seconds is not None
        assert outcome.seconds > 0
        assert outcome.runs >= 3


def test_a_config_outside_of_what_the_rule_understands_is_a_build_error(pool: MeasurementPool, task: Task) -> None:
    (outcome,) = run(pool, task, [Config.of(rows=3)])
    assert outcome.status == "build-error"
    assert "KeyError" in outcome.note


def test_leaders_are_compared_in_turns(pool: MeasurementPool, task: Task) -> None:
    outcomes = run(pool, task, [task.default, task.default])
    again = pool.compare(task.key, outcomes, EFFORT, rounds=4)
    assert [each.status for each in again] == ["ok", "ok"]
    assert all(each.runs == 4 for each in again)


def test_threads_that_end_keep_what_they_waited() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    clock = WaitingClock()
    before = clock.seconds()
    entry = Path(f"/proc/self/task/{thread.native_id}")
    ended.set()
    thread.join()
    while entry.exists():  # the system removes it after the thread is joined
        pass
    assert clock.seconds() >= before


@pytest.fixture(scope="module")
def misbehaving(task: Task) -> Iterator[MeasurementPool]:
    """Its kernels do what the "mode" of their config says."""
    module = "tests.compiler.tuning.misbehaving_builder"
    with MeasurementPool(target(), builders=1, measure_timeout=60.0, build_module=module) as pool:
        pool.define(task.kernel)
        assert pool.prepare([task.key]) == {}
        yield pool


def modes(pool: MeasurementPool, task: Task, *modes: str) -> list[Outcome]:
    return run(pool, task, [Config.of(mode=mode) for mode in modes])


def test_what_misbehaves_costs_one_trial(misbehaving: MeasurementPool, task: Task) -> None:
    wanted = {
        "good": "ok",
        "crash": "crash",
        "lie": "wrong-numbers",
        "build-crash": "crash",
        "build-error": "build-error",
        "wild": "crash",
    }
    order = ["good", "crash", "good", "lie", "good", "build-crash", "build-error", "good", "wild", "good"]
    outcomes = modes(misbehaving, task, *order)
    assert [each.status for each in outcomes] == [wanted[mode] for mode in order], [each.note for each in outcomes]
    assert "SIGABRT" in outcomes[1].note


@pytest.mark.parametrize(("mode", "limit"), [("hang", "measure_timeout"), ("build-hang", "build_timeout")])
def test_what_hangs_is_ended(
    misbehaving: MeasurementPool, task: Task, mode: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered while the workers run, so that only hanging trials exceed it."""
    assert [each.status for each in modes(misbehaving, task, "good")] == ["ok"]
    monkeypatch.setattr(misbehaving, limit, 0.5)
    outcomes = modes(misbehaving, task, mode)
    assert [each.status for each in outcomes] == ["timeout"]
    monkeypatch.undo()
    assert [each.status for each in modes(misbehaving, task, "good")] == ["ok"]


def test_an_interrupt_while_workers_end_waits_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Worker] = []

    def close(worker: Worker) -> None:
        ended.append(worker)
        signal.raise_signal(signal.SIGINT)

    @interruptible
    def tuned() -> None:
        with MeasurementPool(target(), serial=True, builders=1):
            pass

    monkeypatch.setattr(Worker, "close", close)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            tuned()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(ended) == 2
