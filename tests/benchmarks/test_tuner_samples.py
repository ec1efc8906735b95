"""Records are converted to samples: rule, workload and machine are parsed from their texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import targets
from benchmarks._tuner_samples import machine_of, samples_of, workload_of
from compiler.records.identity import fingerprint, target_description
from compiler.records.records import Record
from targets.cpu.x86 import X86Target
from tests.compiler.tuning.kernels import product_task, target


def record(**changes: Any) -> Record:
    task = product_task()
    values = {
        "target": fingerprint(target_description(target())),
        "rule": task.rule.name,
        "rule_version": task.rule.version,
        "workload": task.workload.key(),
        "config": dict(task.default),
        "seconds": 1e-3,
    }
    return Record(**{**values, **changes})


def test_a_workload_is_read_back_from_its_key() -> None:
    task = product_task()
    assert workload_of(task.workload.key()) == task.workload
    assert workload_of('ConvWorkload{"no":1}') is None
    assert workload_of("Unheard{}") is None
    assert workload_of("MatmulWorkload") is None


def test_a_machine_is_read_back_from_its_description() -> None:
    described = target_description(target())
    assert target_description_of(machine_of(described)) == described["machine"]


def test_how_fast_memory_is_does_not_orphan_records() -> None:
    znver5 = targets.get("znver5")
    assert isinstance(znver5, X86Target)
    other = replace(znver5, machine=znver5.machine.model_copy(update={"memory_rate": 3.0}))
    assert fingerprint(target_description(other)) == fingerprint(target_description(znver5))


def target_description_of(machine: Any) -> dict[str, Any]:
    fields = machine.model_dump(mode="json")
    described = target_description(target())["machine"]
    return {name: sorted(fields[name]) if name == "features" else fields[name] for name in described}


def test_samples_of_known_rules_and_targets_alone() -> None:
    targets = {record().target: target_description(target())}
    records = [record(), record(rule_version=99), record(rule="gone"), record(target="0" * 16), record(workload="X{}")]
    (sample,) = samples_of(records, targets)
    task = product_task()
    assert sample.subject.workload == task.workload
    assert sample.subject.default == task.default == sample.config
    assert sample.seconds == 1e-3
