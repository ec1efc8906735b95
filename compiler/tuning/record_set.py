"""Sets of records: the ones that still count, the best of each task, and what a set holds in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compiler.tuning.records import Record

MIN_GAIN = 0.01
"""A config is kept in the default's place when it is faster by this share at least, and by more than the spread."""
MIN_GAIN_OF_WAYS = 0.03
"""The same for another way to compute a kernel: the two were not measured in turns."""


def without_stale(records: Iterable[Record], versions: Mapping[str, int]) -> tuple[list[Record], list[str]]:
    """The records of rules as they are now, and one line for each rule with records of another version.

    Args:
        versions: the version of each rule that exists; records of unknown rules are left out with a line too.
    """
    kept: list[Record] = []
    stale: Counter[tuple[str, int]] = Counter()
    for record in records:
        if versions.get(record.rule) == record.rule_version:
            kept.append(record)
        else:
            stale[record.rule, record.rule_version] += 1
    lines = []
    for (rule, version), count in sorted(stale.items()):
        now = f"the rule is at version {versions[rule]} now" if rule in versions else "there is no such rule"
        lines.append(f"{count} tuning record(s) of {rule!r} version {version} ignored: {now}")
    return kept, lines


def deduplicated(records: Iterable[Record]) -> list[Record]:
    """One record a target, task, config, method and place (alone or in a model): the last one of those that succeeded,
    else the last one."""
    found: dict[tuple[str | bool, ...], Record] = {}
    for record in records:
        key = (record.target, record.task, record.config_key, record.method, record.in_model)
        if record.status == "ok" or key not in found or found[key].status != "ok":
            found[key] = record
    return list(found.values())


def merged(*sets: Iterable[Record]) -> list[Record]:
    """All records of several sets, each once, oldest first."""
    return sorted(deduplicated(record for each in sets for record in each), key=lambda record: record.unix_time)


def by_task(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records by (target, task)."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.target, record.task), []).append(record)
    return groups


def best_of(records: Iterable[Record]) -> dict[tuple[str, str], Record]:
    """The record to use for each (target, task): the fastest, unless the default is as fast to within the noise."""
    return {key: chosen for key, group in by_task(deduplicated(records)).items() if (chosen := best(group)) is not None}


def essential(records: Iterable[Record]) -> list[Record]:
    """What a compilation needs: of each target and task the record to use, and the default it is compared with."""
    kept: list[Record] = []
    for group in by_task(deduplicated(records)).values():
        chosen = best(group)
        if chosen is None:
            continue
        default = _default_beside(chosen, group)
        kept += [chosen] if default is None or default is chosen else [default, chosen]
    return kept


def _default_beside(chosen: Record, group: Sequence[Record]) -> Record | None:
    """The default's record that is comparable with one, else that of another place, else None."""
    same = [each for each in group if each.is_default and each.method == chosen.method and each.status == "ok"]
    return next((each for each in same if each.in_model == chosen.in_model), same[0] if same else None)


def best(records: Sequence[Record]) -> Record | None:
    """Of one task's records, the one to use; None when none succeeded.

    Times taken by different methods are not compared: those count that the last default was measured by.
    """
    measured = [record for record in records if record.seconds is not None and record.status == "ok"]
    if not measured:
        return None
    newest = max(measured, key=lambda record: (record.is_default, record.unix_time))
    measured = [record for record in measured if record.method == newest.method]
    # In the model a kernel takes longer than alone: these times are comparable with each other alone.
    in_model = [record for record in measured if record.in_model]
    # The fastest of many times taken once is the luckiest: where leaders were compared, one of them it is.
    compared = [record for record in measured if record.compared]
    fastest = min(in_model or compared or measured, key=_seconds)
    default = next((record for record in in_model or measured if record.is_default), None)
    if default is None or wins(fastest, default):
        return fastest
    return default


def best_against(records: Sequence[Record], default: Mapping[str, object]) -> Record | None:
    """The record to use in place of a config, which is the rule's default today: the fastest that beats it, or its own.

    None when that config was never measured: records that beat another default say nothing of this one.
    """
    known = [as_of_today(record, default) for record in deduplicated(records)]
    return best(known) if any(record.is_default and record.status == "ok" for record in known) else None


def fastest_way(records: Sequence[Record | None]) -> int:
    """The place of the fastest of records of tasks that compute the same in different ways.

    The first stays unless another beats it by more than chance; times taken by different methods, or in the
    model and alone, are not compared.
    """
    first = records[0]
    if first is None:
        return 0
    rivals = [
        (place, record)
        for place, record in enumerate(records)
        if record is not None and _comparable(record, first) and wins(record, first, MIN_GAIN_OF_WAYS)
    ]
    return min(rivals, key=lambda each: _seconds(each[1]))[0] if rivals else 0


def _comparable(record: Record, other: Record) -> bool:
    return record.method == other.method and record.in_model == other.in_model


def as_of_today(record: Record, default: Mapping[str, object]) -> Record:
    """The record with `is_default` as of today."""
    return record.model_copy(update={"is_default": record.config == dict(default)})


def wins(challenger: Record, default: Record, least: float = MIN_GAIN) -> bool:
    """Whether a config is faster than the default by more than chance, and by a share of `least`."""
    margin = max(least, challenger.spread, default.spread)
    return _seconds(challenger) * (1 + margin) < _seconds(default)


def _seconds(record: Record) -> float:
    assert record.seconds is not None
    return record.seconds


@dataclass(frozen=True)
class RuleSummary:
    """Numbers of one rule's records on one target. `gain` is the geometric mean of default over best."""

    target: str
    rule: str
    version: int
    tasks: int
    trials: int
    failed: int
    gain: float | None


def summary(records: Iterable[Record]) -> list[RuleSummary]:
    """One line a target, rule and version."""
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.target, record.rule, record.rule_version), []).append(record)
    lines = []
    for (target, rule, version), group in sorted(groups.items()):
        tasks = by_task(group)
        gains = [gain for each in tasks.values() if (gain := _gain(each)) is not None]
        product = 1.0
        for gain in gains:
            product *= gain
        failed = sum(record.status != "ok" for record in group)
        mean = product ** (1 / len(gains)) if gains else None
        lines.append(RuleSummary(target, rule, version, len(tasks), len(group), failed, mean))
    return lines


def _gain(records: Sequence[Record]) -> float | None:
    chosen = best(records)
    default = None if chosen is None else _default_beside(chosen, records)
    if chosen is None or default is None or default.in_model != chosen.in_model:
        return None
    return _seconds(default) / _seconds(chosen)
