"""Alternative kernels of a convolution: extracted, compared, and used by `compile` if recorded as faster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import compiler
import targets
from compiler.frontends.source import import_model
from compiler.passes.context import PassOptions
from compiler.records.identity import model_fingerprint, target_description
from compiler.records.record_set import MIN_GAIN
from compiler.records.records import ChosenKernel, ModelLine, RecordWriter, read
from compiler.tuning import in_model
from compiler.tuning.cost_models.roofline import RooflineModel
from compiler.tuning.in_model import Choices, Compared, ModelComparison, Times, conclude
from compiler.tuning.measuring.messages import Outcome
from compiler.tuning.search.evolutionary import RandomSearch
from compiler.tuning.session import Origin, Session, _join_alternatives, expected_gain, reason_to_stop, seconds_of_model
from compiler.tuning.state import TaskState
from compiler.tuning.tasks import Task, extract_tasks
from schedules.config import Config
from schedules.machine import Machine
from targets.measure import TIMED
from tests.fuzz.tuning import convolution_model

NONE: Any = None  # of a session's parts that a test does not use
POOL: Any = SimpleNamespace(serial=False, measure=TIMED, margin=MIN_GAIN, margin_of_alternatives=0.03)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    model = import_model(convolution_model(stride=1))
    return extract_tasks(model.mod, targets.get("host", cores=1)).tasks


@pytest.fixture(scope="module")
def untuned() -> compiler.Module:
    return compiler.compile(convolution_model(stride=1), threads=1, records=False)


def test_all_ways_of_a_convolution_are_tasks(tasks: list[Task]) -> None:
    alternatives = [task for task in tasks if task.rule.name in ("conv-direct", "conv-winograd")]
    (first,) = [task for task in alternatives if not task.instead_of]
    others = [task for task in alternatives if task.instead_of]
    assert {task.instead_of for task in others} == {first.key}
    assert {getattr(task.workload, "tile", None) for task in alternatives} == {None, 2, 4}
    assert all(task.count == first.count and task.names[0].startswith(first.names[0]) for task in others)


def test_without_other_ways_there_is_the_untuned_module_alone(tasks: list[Task]) -> None:
    model = import_model(convolution_model(stride=1))
    alone = extract_tasks(model.mod, targets.get("host", cores=1), alternatives=False).tasks
    assert {task.key for task in alone} == {task.key for task in tasks if not task.instead_of}


@pytest.mark.parametrize("tile", [None, 2, 4])
@pytest.mark.parametrize("tuned_itself", [True, False])
def test_compile_takes_the_way_that_won_in_the_model(
    tasks: list[Task], untuned: compiler.Module, tile: int | None, tuned_itself: bool, tmp_path: Path
) -> None:
    """In this model, or in another one of the same kernels."""
    target = targets.get("host", cores=1)
    model = import_model(convolution_model(stride=1))
    alternatives = [task for task in tasks if task.rule.name.startswith("conv")]
    (first,) = [task for task in alternatives if not task.instead_of]
    (wanted,) = [task for task in alternatives if getattr(task.workload, "tile", None) == tile]
    options, other = PassOptions(checks=model.checks), Origin(model_key="other")
    with RecordWriter.in_folder(tmp_path, target_description(target)) as writer:
        if tuned_itself:
            values = dict(wanted.default)
            alternative = "" if wanted is first else wanted.key
            choices = (ChosenKernel(task=first.key, way=alternative, config=values, default=values),)
            key = model_fingerprint(model.mod, options.precision)
            writer.append(ModelLine(target=writer.target, model=key, choices=choices))
        for task in [] if tuned_itself else alternatives:
            seconds = 1e-5 if task is wanted else 2e-5
            session = Session(target, [task], POOL, writer, NONE, NONE, origin=other)
            for in_model in (False, True):
                outcome = Outcome(task.default, seconds=seconds)
                writer.append(session._record(session.states[0], outcome, in_model=in_model))
    tuned = compiler.compile(convolution_model(stride=1), threads=1, records=tmp_path)
    kernels = [each for each in tuned.artifact.manifest.kernels if (each.rule or "").startswith("conv")]
    assert [each.rule for each in kernels] == ["conv-direct" if tile is None else "conv-winograd"]
    assert all(each.origin == str(writer.path) for each in kernels)
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
    _join_alternatives(states)
    assert seconds_of_model(states) == pytest.approx(2 * 0.9 + 2 * 5.0)
    assert first.contested
    assert not other.contested
    assert "an alternative is 3.3 times as fast" in reason_to_stop(far, 10.0)
    assert reason_to_stop(first, 10.0) == ""
    assert expected_gain(near) > expected_gain(first) > 0.0


def times(run: float, **kernels: float) -> Times:
    """Times of six processes that differ by about 0.1%."""
    noise = [1.0, 1.001, 0.999, 1.002, 0.998, 1.0]
    samples = {key: [seconds * each for each in noise] for key, seconds in kernels.items()}
    return Times(samples, [run * each for each in noise])


def test_a_model_is_faster_by_more_than_chance_or_not_at_all() -> None:
    same, faster, slower = (Compared(times(1.0), times(run)) for run in (1.0, 0.97, 1.03))
    assert (same.is_faster, faster.is_faster, slower.is_faster) == (False, True, False)
    assert (same.is_slower, faster.is_slower, slower.is_slower) == (False, False, True)
    assert faster.gain == pytest.approx(1 / 0.97)
    uneven = Compared(Times({}, [1.0] * 6), Times({}, [0.8, 1.1, 0.9, 1.05, 0.85, 1.0]))
    assert uneven.gain > 1.05
    assert not uneven.is_faster


class Comparison:
    """Replaces a `ModelComparison` with given measurements."""

    def __init__(self, *found: Compared) -> None:
        self._found = list(found)

    def measure(self, choices: Choices, deadline: float) -> Compared:
        return self._found.pop(0)


@pytest.fixture
def session(tasks: list[Task], tmp_path: Path) -> Session:
    """A session in which an alternative was faster than the untuned kernel when timed alone."""
    target = targets.get("host", cores=1)
    alternatives = [task for task in tasks if task.rule.name.startswith("conv")]
    writer = RecordWriter.in_folder(tmp_path, target_description(target))
    pool: Any = POOL
    made = Session(target, alternatives, pool, writer, RooflineModel(), RandomSearch(), origin=Origin("", "m", "net"))
    other = next(each for each in made.states if each.task.instead_of)
    for each in made.states:
        each.note(each.task.default, 1e-5 if each is other else 2e-5)
    return made


def chosen_line(tmp_path: Path) -> ModelLine:
    return read(tmp_path).models[-1]


def keys_of(session: Session) -> tuple[str, str]:
    first = next(each for each in session.states if not each.task.instead_of)
    return first.task.key, first.fastest_alternative.task.key


def measured(session: Session, kernel: float, run: float) -> Compared:
    """Measurements in which the untuned kernel takes 30 us and a run 1 s."""
    first, other = keys_of(session)
    return Compared(times(1.0, **{first: 3e-5}), times(run, **{other: kernel}))


def test_what_wins_in_the_model_is_chosen_for_it(session: Session, tmp_path: Path) -> None:
    first, other = keys_of(session)
    found: Any = Comparison(measured(session, 2e-5, 0.9))
    assert conclude(session, found, None, 0.0) == pytest.approx((1.0, 0.9))
    line = chosen_line(tmp_path)
    assert (line.model, line.name) == ("m", "net")
    assert [(each.task, each.way) for each in line.choices] == [(first, other)]
    assert line.tuned == pytest.approx(0.9)
    inside = [record for record in read(tmp_path).records if record.in_model]
    assert {record.model for record in inside} == {"m"}


def test_a_kernel_that_loses_in_the_model_is_given_up(session: Session, tmp_path: Path) -> None:
    first = next(each for each in session.states if not each.task.instead_of)
    assert conclude(session, Comparison(measured(session, 4e-5, 0.9)), None, 0.0) is None  # type: ignore[arg-type]
    assert first.best == (first.task.default, 2e-5)
    assert not Choices(session.states)
    assert chosen_line(tmp_path).choices == ()


def test_a_model_that_is_not_faster_as_a_whole_stays_untuned(session: Session, tmp_path: Path) -> None:
    assert conclude(session, Comparison(measured(session, 2e-5, 1.0)), None, 0.0) is None  # type: ignore[arg-type]
    assert not Choices(session.states)
    assert chosen_line(tmp_path).choices == ()
    assert "not significantly faster as a whole" in session.problems[-1]


@pytest.mark.parametrize(("run", "stays"), [(1.0, True), (1.1, False)])
def test_what_was_chosen_before_stays_unless_it_is_slower(
    session: Session, run: float, stays: bool, tmp_path: Path
) -> None:
    values = dict(session.states[0].task.default)
    choice = ChosenKernel(task=keys_of(session)[0], config=values, default=values)
    before = ModelLine(target="t", model="m", choices=(choice,))
    assert conclude(session, Comparison(measured(session, 2e-5, run)), before, 0.0) is None  # type: ignore[arg-type]
    assert bool(read(tmp_path).models) is not stays


def test_kernels_and_runs_are_timed_in_the_model(tasks: list[Task]) -> None:
    """Both modules run, and their kernels are known by the keys of their records."""
    target = targets.get("host", cores=1)
    session = Session(target, tasks, POOL, NONE, RooflineModel(), RandomSearch())
    for each in session.states:
        each.note(each.task.default, 1e-5 if each.task.instead_of else 2e-5)
    choices = Choices(session.states)
    (first, other) = next(iter(choices.alternatives.items()))
    model = import_model(convolution_model(stride=1))
    with ModelComparison(model, target, PassOptions(), 1) as comparison:
        found = comparison.measure(choices, 0.0)
    assert first in found.untuned.kernels
    assert first not in found.tuned.kernels
    assert other in found.tuned.kernels
    assert len(found.untuned.runs) == len(found.tuned.runs) == in_model.MIN_PAIRS
    assert all(seconds > 0.0 for seconds in found.untuned.kernels[first])
