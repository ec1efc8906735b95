"""Trials whose builder or kernel crashes, hangs or lies cost one trial each, and the pool goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compiler.tuning.measuring.messages import Effort, Outcome
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
    with MeasurementPool(target(), builders=1) as pool:
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


def test_what_misbehaves_costs_one_trial(task: Task) -> None:
    with MeasurementPool(
        target(),
        builders=1,
        measure_timeout=10.0,
        build_module="tests.compiler.tuning.misbehaving_builder",
    ) as pool:
        pool.define(task.kernel)
        assert pool.prepare([task.key]) == {}
        modes = [
            "good",
            "crash",
            "good",
            "hang",
            "good",
            "lie",
            "good",
            "build-crash",
            "build-error",
            "good",
            "wild",
            "good",
        ]
        outcomes = run(pool, task, [Config.of(mode=mode) for mode in modes])
    found = [outcome.status for outcome in outcomes]
    assert found == [
        "ok",
        "crash",
        "ok",
        "timeout",
        "ok",
        "wrong-numbers",
        "ok",
        "crash",
        "build-error",
        "ok",
        "crash",
        "ok",
    ], [outcome.note for outcome in outcomes]
    assert "SIGABRT" in outcomes[1].note


def test_a_builder_that_hangs_is_ended(task: Task) -> None:
    module = "tests.compiler.tuning.misbehaving_builder"
    with MeasurementPool(target(), builders=1, build_timeout=20.0, build_module=module) as pool:
        pool.define(task.kernel)
        assert pool.prepare([task.key]) == {}
        outcomes = run(pool, task, [Config.of(mode="build-hang"), Config.of(mode="good")])
    assert [outcome.status for outcome in outcomes] == ["timeout", "ok"]
