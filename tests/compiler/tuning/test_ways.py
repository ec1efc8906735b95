"""Several ways to compute a convolution: extracted, compared, and taken by `compile` when one is faster on record."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import compiler
import targets
from compiler.frontends.source import import_model
from compiler.tuning.budget import expected_gain, reason_to_stop, seconds_of_model
from compiler.tuning.cost_models.roofline import RooflineModel
from compiler.tuning.identity import target_description
from compiler.tuning.in_model import Choices, measure_in_model
from compiler.tuning.library import tuned_configs
from compiler.tuning.measuring.messages import Outcome
from compiler.tuning.record_set import MIN_GAIN_OF_WAYS, best, deduplicated, essential, fastest_way
from compiler.tuning.records import Record, RecordWriter
from compiler.tuning.search.evolutionary import RandomSearch
from compiler.tuning.session import Session, _join_ways
from compiler.tuning.state import TaskState
from compiler.tuning.tasks import Task, extract_tasks
from schedules.config import Config
from schedules.machine import Machine
from schedules.ways import Way
from tests.fuzz.tuning import convolution_model


def record(seconds: float, **fields: Any) -> Record:
    values: dict[str, Any] = {"target": "t", "rule": "r", "rule_version": 1, "workload": "w", "config": {}}
    return Record(**{**values, "seconds": seconds, **fields})


def test_the_untuned_way_stays_unless_another_wins_by_more_than_chance() -> None:
    first = record(1.0)
    assert fastest_way([first, record(0.5), record(0.4)]) == 2
    assert fastest_way([first, record(1.0 / (1 + MIN_GAIN_OF_WAYS / 2))]) == 0
    assert fastest_way([first, record(0.9, spread=0.2)]) == 0
    assert fastest_way([first, record(0.5, method="serial")]) == 0
    assert fastest_way([None, record(0.5)]) == 0
    assert fastest_way([first, None, record(0.5)]) == 2


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    model = import_model(convolution_model(stride=1))
    return extract_tasks(model.mod, targets.get("host", cores=1)).tasks


def test_all_ways_of_a_convolution_are_tasks(tasks: list[Task]) -> None:
    ways = [task for task in tasks if task.rule.name in ("conv-direct", "conv-winograd")]
    (first,) = [task for task in ways if not task.instead_of]
    others = [task for task in ways if task.instead_of]
    assert {task.instead_of for task in others} == {first.key}
    assert {getattr(task.workload, "tile", None) for task in ways} == {None, 2, 4}
    assert all(task.count == first.count and task.names[0].startswith(first.names[0]) for task in others)


def test_without_other_ways_there_is_the_untuned_module_alone(tasks: list[Task]) -> None:
    model = import_model(convolution_model(stride=1))
    alone = extract_tasks(model.mod, targets.get("host", cores=1), other_ways=False).tasks
    assert {task.key for task in alone} == {task.key for task in tasks if not task.instead_of}


@pytest.mark.parametrize("tile", [None, 2, 4])
def test_compile_takes_the_way_that_is_fastest_on_record(tasks: list[Task], tile: int | None, tmp_path: Path) -> None:
    target = targets.get("host", cores=1)
    with RecordWriter.in_folder(tmp_path, target_description(target)) as writer:
        for task in tasks:
            if not task.tunable:
                continue
            wanted = getattr(task.workload, "tile", None) == tile and task.rule.name.startswith("conv")
            writer.append(
                Record(
                    target=writer.target,
                    rule=task.rule.name,
                    rule_version=task.rule.version,
                    workload=task.workload.key(),
                    config=dict(task.default),
                    seconds=1e-5 if wanted else 2e-5,
                    is_default=True,
                )
            )
    tuned = compiler.compile(convolution_model(stride=1), threads=1, records=tmp_path)
    kernels = [each for each in tuned.artifact.manifest.kernels if (each.rule or "").startswith("conv")]
    assert [each.rule for each in kernels] == ["conv-direct" if tile is None else "conv-winograd"]
    untuned = compiler.compile(convolution_model(stride=1), threads=1, records=False)
    x = np.random.default_rng(2).standard_normal((1, 32, 14, 14)).astype(np.float32)
    np.testing.assert_allclose(tuned.run({"x": x})["y"], untuned.run({"x": x})["y"], rtol=1e-4, atol=1e-4)


def state(key: str, seconds: float, instead_of: str = "") -> TaskState:
    default = Config.of(x=0)
    task: Any = SimpleNamespace(key=key, default=default, count=2, tunable=True, instead_of=instead_of)
    made = TaskState(task, Machine())
    made.note(default, seconds)
    return made


def test_ways_count_once_and_a_slow_one_gets_no_trials() -> None:
    first, near, far = state("a", 1.0), state("b", 0.9, "a"), state("c", 3.0, "a")
    other = state("d", 5.0)
    states = [first, near, far, other]
    _join_ways(states)
    assert seconds_of_model(states) == pytest.approx(2 * 0.9 + 2 * 5.0)
    assert first.contested
    assert not other.contested
    assert "another way is 3.3 times as fast" in reason_to_stop(far, 10.0)
    assert reason_to_stop(first, 10.0) == ""
    assert expected_gain(near) > expected_gain(first) > 0.0


def test_what_loses_in_the_model_is_given_up(tasks: list[Task], tmp_path: Path) -> None:
    """A way that is faster alone and slower in the model is not taken, by the session and by its records."""
    target = targets.get("host", cores=1)
    ways = [task for task in tasks if task.rule.name.startswith("conv")]
    with RecordWriter.in_folder(tmp_path, target_description(target)) as writer:
        lab: Any = SimpleNamespace(serial=False)
        session = Session(target, ways, lab, writer, RooflineModel(), RandomSearch())
        first = next(each for each in session.states if not each.task.instead_of)
        other = next(each for each in session.states if each.task.instead_of)
        for each, seconds in ((first, 2e-5), (other, 1e-5)):
            each.note(each.task.default, seconds)
            writer.append(session._record(each, Outcome(each.task.default, seconds=seconds), compared=True))
        choices = Choices(session.states)
        assert choices.ways == {first.task.key: other.task.key}
        places = [Way(each.task.rule.name, each.task.workload) for each in (first, other)]
        assert choices.choose(places) == 1
        assert tuned_configs(target, writer.path).choose(places) == 1
        untuned, tuned = {first.task.key: [3e-5] * 5}, {other.task.key: [4e-5] * 5}
        assert session.settle_in_model(untuned, tuned) == 1
        assert first.best == (first.task.default, 3e-5)
        assert not Choices(session.states)
        assert tuned_configs(target, writer.path).choose(places) == 0
        assert session.settle_in_model(untuned, tuned) == 0


def test_times_of_the_model_are_compared_with_each_other_alone() -> None:
    alone = [record(1e-5, is_default=True), record(0.9e-5, config={"x": 1})]
    in_model = [record(3e-5, is_default=True, in_model=True), record(2e-5, config={"x": 1}, in_model=True)]
    chosen = best([*alone, *in_model])
    assert chosen is in_model[1]
    assert fastest_way([in_model[0], alone[1]]) == 0
    later = record(0.8e-5, is_default=True)
    assert best(deduplicated([*alone, *in_model, later])) is in_model[1]
    assert essential([*alone, *in_model, later]) == in_model


def test_kernels_are_timed_in_the_model(tasks: list[Task]) -> None:
    """Both modules run, and their kernels are known by the keys of their records."""
    target = targets.get("host", cores=1)
    session = Session(target, tasks, SimpleNamespace(serial=False), None, RooflineModel(), RandomSearch())  # type: ignore[arg-type]
    for each in session.states:
        each.note(each.task.default, 1e-5 if each.task.instead_of else 2e-5)
    choices = Choices(session.states)
    (first, other) = next(iter(choices.ways.items()))
    model = import_model(convolution_model(stride=1))
    untuned, tuned = measure_in_model(model, target, {"precision": "float32"}, choices, 1)
    assert first in untuned.kernels
    assert first not in tuned.kernels
    assert other in tuned.kernels
    assert all(0.0 < seconds < untuned.latency for seconds in untuned.kernels[first])
