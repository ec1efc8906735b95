"""Convert records to samples for the cost models, with workloads reconstructed from their keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from compiler.records.records import Record
from compiler.tuning.cost_models import Sample, Subject
from schedules.config import Config
from schedules.discovery import import_all
from schedules.machine import Machine
from schedules.rule import Workload
from schedules.selection.registry import rules


def samples_of(records: Iterable[Record], targets: Mapping[str, Mapping[str, object]]) -> list[Sample]:
    """Return samples of records with a known rule, workload class and target; others are ignored."""
    by_name = {rule.name: rule for rule in rules()}
    machines = {key: machine_of(description) for key, description in targets.items()}
    subjects: dict[tuple[str, str], Subject | None] = {}
    samples = []
    for record in records:
        key = (record.target, record.task)
        if key not in subjects:
            rule, machine = by_name.get(record.rule), machines.get(record.target)
            workload = workload_of(record.workload)
            subjects[key] = None
            if (
                rule is not None
                and machine is not None
                and workload is not None
                and rule.version == record.rule_version
            ):
                default = rule.default(workload, machine)
                subjects[key] = Subject(record.task, rule.name, workload, machine, default)
        subject = subjects[key]
        if subject is not None:
            samples.append(Sample(subject, Config.of(record.config), record.cost, record.measure))
    return samples


def machine_of(description: Mapping[str, Any]) -> Machine | None:
    """Return the processor in a target's description; None if kernels run on another device."""
    machine = description["machine"]
    return Machine(**machine) if "vector_bits" in machine else None


def workload_of(key: str) -> Workload | None:
    """Reconstruct the workload of a key; None if its class is unknown or has changed."""
    name, brace, fields = key.partition("{")
    workload_class = _workload_classes().get(name)
    if workload_class is None or not brace:
        return None
    try:
        values = json.loads(brace + fields)
        return workload_class(**{field: _tuples(value) for field, value in values.items()})
    except (TypeError, ValueError):
        return None


def _tuples(value: object) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


@cache
def _workload_classes() -> dict[str, Any]:
    rules()  # including other packages' rules
    import_all("schedules")
    classes: dict[str, Any] = {}
    waiting: list[type[Workload]] = [Workload]
    while waiting:
        each = waiting.pop()
        waiting += each.__subclasses__()
        classes[each.__name__] = each
    return classes
