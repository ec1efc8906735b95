"""Applying rules to a module: order, failures, records, registration."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from tvm import relax

from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError, RuleError
from schedules.ir.stages import Kernel
from schedules.machine import Machine
from schedules.rule import AnyRule, ScheduleRule
from schedules.selection import registry
from schedules.selection.apply import apply_schedules, kernel_schedule, record_key
from schedules.stages.rules import Fallback, GeneralWorkload
from tests.schedules.harness import AVX2, lowered, normal, run

MACHINE = Machine(vector_bits=256, vector_registers=16, cores=2)


def relu(builder: Any, x: Any) -> Any:
    return builder.emit(relax.op.nn.relu(x))


class Broken(ScheduleRule[GeneralWorkload]):
    """Matches everything, serves nothing."""

    name: ClassVar[str] = "broken"
    priority: ClassVar[int] = 90
    error: ClassVar[type[Exception]] = ValueError

    def match(self, kernel: Kernel, machine: Machine) -> GeneralWorkload:
        return GeneralWorkload(1)

    def apply(self, kernel: Kernel, workload: GeneralWorkload, config: Config, machine: Machine) -> Any:
        raise self.error("cannot")


class Declining(Broken):
    name: ClassVar[str] = "declining"
    error: ClassVar[type[Exception]] = NotScheduledError


class Splitting(ScheduleRule[GeneralWorkload]):
    """Transforms TVM's schedule, with one knob."""

    name: ClassVar[str] = "splitting"
    priority: ClassVar[int] = 80

    def match(self, kernel: Kernel, machine: Machine) -> GeneralWorkload:
        return GeneralWorkload(len(kernel.stages))

    def space(self, workload: GeneralWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({"factor": (4, 8)})

    def default(self, workload: GeneralWorkload, machine: Machine) -> Config:
        return Config.of(factor=8)

    def apply(self, kernel: Kernel, workload: GeneralWorkload, config: Config, machine: Machine) -> Any:
        schedule = kernel_schedule(kernel)
        (loop,) = schedule.get_loops(schedule.get_child_blocks(schedule.get_sblock("root"))[0])
        schedule.vectorize(schedule.split(loop, [None, config.integer("factor")])[1])
        return schedule.mod["main"]


def module() -> Any:
    return lowered(relu, [((64,), "float32")], AVX2)


class BrokenMatch(Broken):
    """Fails when it is asked."""

    name: ClassVar[str] = "broken-match"

    def match(self, kernel: Kernel, machine: Machine) -> GeneralWorkload:
        raise ValueError("cannot match")


class OutOfMemory(Broken):
    name: ClassVar[str] = "out-of-memory"
    error: ClassVar[type[Exception]] = MemoryError


@pytest.mark.parametrize("rule", [Broken(), BrokenMatch(), OutOfMemory()], ids=lambda rule: rule.name)
def test_any_other_exception_of_a_rule_names_it_and_the_kernel(rule: AnyRule) -> None:
    with pytest.raises(RuleError, match=rf"rule '{rule.name}' failed on kernel 'relu': \w+Error: cannot"):
        apply_schedules(module(), MACHINE, rules=[rule, Fallback()])


class BrokenWhenTuned(Splitting):
    """Fails on a config of its own space."""

    def apply(self, kernel: Kernel, workload: GeneralWorkload, config: Config, machine: Machine) -> Any:
        if config["factor"] == 4:
            raise MemoryError
        return super().apply(kernel, workload, config, machine)


def test_a_rule_that_fails_on_a_tuned_config_is_an_error() -> None:
    rule = BrokenWhenTuned()
    records = {record_key(rule, GeneralWorkload(1)): Config.of(factor=4)}
    with pytest.raises(RuleError, match="rule 'splitting' failed on kernel 'relu': MemoryError"):
        apply_schedules(module(), MACHINE, records, rules=[rule, Fallback()])


def test_declining_is_no_failure() -> None:
    _, report = apply_schedules(module(), MACHINE, rules=[Declining(), Fallback()])
    assert report.kernels[0].rule == "fallback"
    assert not report.failures


@pytest.mark.parametrize("factor", [4, 8])
def test_a_rule_may_transform_tvms_schedule_and_records_choose_its_config(factor: int) -> None:
    rule = Splitting()
    key = record_key(rule, GeneralWorkload(1))
    mod, report = apply_schedules(module(), MACHINE, {key: Config.of(factor=factor)}, rules=[rule])
    assert report.kernels[0].source == "record"
    assert report.kernels[0].config["factor"] == factor
    x = normal((64,))
    np.testing.assert_array_equal(run(mod, AVX2, [x]), np.maximum(x, 0))


class DecliningWhenTuned(Splitting):
    """Takes no factor of 4, as a trace that does not fit its kernel."""

    def apply(self, kernel: Kernel, workload: GeneralWorkload, config: Config, machine: Machine) -> Any:
        if config["factor"] == 4:
            raise NotScheduledError("no 4")
        return super().apply(kernel, workload, config, machine)


@pytest.mark.parametrize(("rule", "factor", "problem"), [(Splitting(), 5, "factor"), (DecliningWhenTuned(), 4, "no 4")])
def test_a_record_that_does_not_apply_is_reported_and_the_default_used(
    rule: Splitting, factor: int, problem: str
) -> None:
    records = {record_key(rule, GeneralWorkload(1)): Config.of(factor=factor)}
    mod, report = apply_schedules(module(), MACHINE, records, rules=[rule, Fallback()])
    (kernel,) = report.kernels
    assert (kernel.rule, kernel.source) == (rule.name, "default")
    assert problem in kernel.failures[0].error
    x = normal((64,))
    np.testing.assert_array_equal(run(mod, AVX2, [x]), np.maximum(x, 0))


def test_rules_come_by_falling_priority_and_the_fallback_is_last() -> None:
    found = registry.rules()
    assert [rule.priority for rule in found] == sorted((rule.priority for rule in found), reverse=True)
    assert found[-1].name == "fallback"
    assert len({rule.name for rule in found}) == len(found)


class _EntryPoint:
    def __init__(self, loaded: Any) -> None:
        self.name, self.value, self._loaded = "third", "package:Rule", loaded

    def load(self) -> Any:
        return self._loaded


@pytest.mark.parametrize(("loaded", "error"), [(Splitting, None), (3, "not a ScheduleRule"), (Fallback, "two rules")])
def test_other_packages_add_rules(loaded: Any, error: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [_EntryPoint(loaded)])
    registry.rules.cache_clear()
    try:
        if error is None:
            assert "splitting" in [rule.name for rule in registry.rules()]
        else:
            with pytest.raises(RuleError, match=error):
                registry.rules()
    finally:
        monkeypatch.undo()
        registry.rules.cache_clear()
