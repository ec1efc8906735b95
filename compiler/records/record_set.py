"""Sets of records: those that still apply, the best of each task, and summary statistics.

Coverage of each target's records: measures, number of kernels, and models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from compiler.records.records import ModelLine, Record
from compiler.reports.formatting import plural
from targets.measure import TIMED, Measure

_Line = TypeVar("_Line", Record, ModelLine)

IsDefault = Callable[[Mapping[str, object]], bool]

MIN_GAIN = 0.01
"""A config replaces the default if it is faster by at least this fraction, and by more than the spread."""
MIN_GAIN_OF_ALTERNATIVES = 0.03
"""The same for an alternative kernel: the two were not measured alternately."""
MIN_GAIN_ELSEWHERE = 0.05
"""The same for a config that was not compared in any model."""


def without_stale(records: Iterable[Record], versions: Mapping[str, int]) -> tuple[list[Record], list[str]]:
    """The records for the current versions of the rules, and one line for each rule with records of another version.
    `versions`: the version of each existing rule; records of unknown rules are also left out, with a line."""
    fresh: list[Record] = []
    stale: Counter[tuple[str, int]] = Counter()
    for record in records:
        if versions.get(record.rule) == record.rule_version:
            fresh.append(record)
        else:
            stale[record.rule, record.rule_version] += 1
    lines = []
    for (rule, version), count in sorted(stale.items()):
        now = f"the rule is at version {versions[rule]} now" if rule in versions else "there is no such rule"
        lines.append(f"{plural(count, 'tuning record')} of {rule!r} version {version} ignored: {now}")
    return fresh, lines


def of_measures(lines: Iterable[_Line], fits: Callable[[Measure], bool]) -> tuple[list[_Line], list[str]]:
    """The records, or model lines, whose measure a target supports, and one note for each unsupported measure."""
    usable: list[_Line] = []
    unfit: Counter[str] = Counter()
    for line in lines:
        if line.measure == TIMED or fits(line.measure):
            usable.append(line)
        else:
            unfit[str(line.measure)] += 1
    notes = [f"{count} tuning record(s) ignored: {name} is no measure of this target" for name, count in unfit.items()]
    return usable, notes


def deduplicated(records: Iterable[Record]) -> list[Record]:
    """One record per target, task, config, method and context (isolated, or in which model): the last successful one,
    otherwise the last one."""
    newest: dict[tuple[Hashable, ...], Record] = {}
    for record in records:
        key = (record.target, record.task, record.config_key, record.comparable, record.in_model, record.model)
        if record.status == "ok" or key not in newest or newest[key].status != "ok":
            newest[key] = record
    return list(newest.values())


def newest_of_models(models: Iterable[ModelLine]) -> list[ModelLine]:
    """The latest line for each target, model and measure, whatever the version of the measure's tool."""
    newest: dict[tuple[str, str, str], ModelLine] = {}
    for line in models:
        key = (line.target, line.model, line.measure.name)
        if key not in newest or line.unix_time >= newest[key].unix_time:
            newest[key] = line
    return list(newest.values())


def decisive(models: Iterable[ModelLine]) -> ModelLine | None:
    """The decisive line among those of one model on one target: timed ones first, then the latest; None if there is
    none."""
    lines = newest_of_models(models)
    return max(lines, key=lambda line: (line.measure == TIMED, line.unix_time), default=None)


def merged(*sets: Iterable[Record]) -> list[Record]:
    """The distinct records of several sets, oldest first."""
    return sorted(deduplicated(record for each in sets for record in each), key=lambda record: record.unix_time)


def by_task(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records by (target, task)."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.target, record.task), []).append(record)
    return groups


def essential(records: Iterable[Record]) -> list[Record]:
    """Records that a compilation needs: for each target and task all times measured in models, and the best isolated
    time with the default it is compared with."""
    selected: list[Record] = []
    for group in by_task(deduplicated(records)).values():
        selected += [record for record in group if record.in_model and record.status == "ok"]
        chosen = best(group)
        if chosen is None:
            continue
        default = _default_beside(chosen, group)
        selected += [chosen] if default is None or default is chosen else [default, chosen]
    return selected


def _default_beside(chosen: Record, group: Sequence[Record]) -> Record | None:
    """The default's isolated record that is comparable with the given one."""
    return next((each for each in _alone(group) if each.is_default and each.comparable == chosen.comparable), None)


def _alone(records: Iterable[Record]) -> list[Record]:
    return [each for each in records if each.status == "ok" and each.cost is not None and not each.in_model]


def best(records: Iterable[Record], least: float = MIN_GAIN) -> Record | None:
    """The fastest of one task's records; None if none succeeded.

    It is the default's unless another beats that by more than chance, and by a fraction of `least`. Times of different
    methods are not compared: only those count by which the last default was measured, and a clock takes precedence over
    a model.
    """
    measured = _alone(records)
    if not measured:
        return None
    newest = max(measured, key=lambda record: (record.measure == TIMED, record.is_default, record.unix_time))
    measured = [record for record in measured if record.comparable == newest.comparable]
    # The minimum over many configs measured once is biased by luck: if leaders were compared again, the result is one
    # of them.
    compared = [record for record in measured if record.compared]
    fastest = min(compared or measured, key=_cost)
    default = next((record for record in measured if record.is_default), None)
    return fastest if default is None or wins(fastest, default, least) else default


def taken_over(records: Iterable[Record], is_default: IsDefault, margin: float = MIN_GAIN_ELSEWHERE) -> Record | None:
    """The record to use in a model that none of them was measured in, instead of the current default config.

    A config that won in some model, and was slower in none; otherwise one that is faster in isolation by
    `MIN_GAIN_ELSEWHERE`. None if the current default was never measured: records that beat another default do not
    apply.

    Args:
        is_default: returns True if a config is the current default.
        margin: replaces `MIN_GAIN_ELSEWHERE` for costs that were not timed.
    """
    known = [as_of_today(record, is_default) for record in deduplicated(records)]
    if not any(record.is_default and record.status == "ok" for record in known):
        return None
    gains = _gains_in_models(known, [record for record in known if record.is_default])
    won = [record for record in known if record.in_model and _won(gains.get(record.config_key, []), MIN_GAIN)]
    if won:
        return max(won, key=lambda record: min(gain for gain, _ in gains[record.config_key]))
    lost = {config for config, each in gains.items() if any(gain <= 1.0 for gain, _ in each)}
    left = [record for record in known if record.config_key not in lost]
    timed = any(record.measure == TIMED and record.status == "ok" for record in left)
    return best(left, MIN_GAIN_ELSEWHERE if timed else margin)


def alternative_taken_over(groups: Sequence[Sequence[Record]], is_default: IsDefault) -> tuple[int, Record | None]:
    """Position and record of the alternative to use in a model that was not measured, among tasks for the same
    computation.

    The first, untuned one stays (with no record) unless another won in some model, and was slower than it in none.
    Isolated times of alternatives do not count: they differ most in their use of the memory that a model shares.
    `is_default`: returns True if a config is the current default of the first.
    """
    known = [as_of_today(record, is_default) for record in deduplicated(groups[0])] if groups else []
    untuned = [record for record in known if record.is_default and record.in_model]
    candidates: list[tuple[float, int, Record]] = []
    for index, group in enumerate(groups[1:], 1):
        inside = [record for record in deduplicated(group) if record.in_model]
        gains = _gains_in_models(inside, untuned)
        for record in inside:
            config_gains = gains.get(record.config_key, [])
            if _won(config_gains, MIN_GAIN_OF_ALTERNATIVES):
                candidates.append((min(gain for gain, _ in config_gains), index, record))
    if not candidates:
        return 0, None
    _, index, record = max(candidates, key=lambda each: each[0])
    return index, record


def _gains_in_models(records: Iterable[Record], untuned: Iterable[Record]) -> dict[str, list[tuple[float, float]]]:
    """By config, for every model in which it replaced an untuned kernel: its speedup there, and the relative
    uncertainty of that."""
    beside = {(each.model, each.comparable): each for each in untuned if each.in_model and each.status == "ok"}
    gains: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        default = beside.get((record.model, record.comparable))
        if record.in_model and record.cost and default is not None and record is not default:
            gain = _cost(default) / record.cost
            gains.setdefault(record.config_key, []).append((gain, max(record.spread, default.spread)))
    return gains


def _won(gains: Sequence[tuple[float, float]], least: float) -> bool:
    return any(gain > 1 + max(least, spread) for gain, spread in gains) and all(gain > 1.0 for gain, _ in gains)


def as_of_today(record: Record, is_default: IsDefault) -> Record:
    """The record with `is_default` updated to the current default."""
    return record.model_copy(update={"is_default": is_default(record.config)})


def wins(challenger: Record, default: Record, least: float = MIN_GAIN) -> bool:
    """True if a config is faster than the default by more than chance, and by a fraction of `least`."""
    margin = max(least, challenger.spread, default.spread)
    return _cost(challenger) * (1 + margin) < _cost(default)


def _cost(record: Record) -> float:
    assert record.cost is not None
    return record.cost


@dataclass(frozen=True)
class RuleSummary:
    """Statistics of one rule's records on one target by one measure. `gain` is the geometric mean of default over
    best."""

    target: str
    measure: str
    rule: str
    version: int
    tasks: int
    trials: int
    failed: int
    gain: float | None


def summary(records: Iterable[Record]) -> list[RuleSummary]:
    """One line per target, measure, rule and version."""
    groups: dict[tuple[str, str, str, int], list[Record]] = {}
    for record in records:
        key = (record.target, record.measure.text, record.rule, record.rule_version)
        groups.setdefault(key, []).append(record)
    lines = []
    for (target, measure, rule, version), group in sorted(groups.items()):
        tasks = by_task(group)
        gains = [gain for each in tasks.values() if (gain := _gain(each)) is not None]
        product = 1.0
        for gain in gains:
            product *= gain
        failed = sum(record.status != "ok" for record in group)
        mean = product ** (1 / len(gains)) if gains else None
        trials = sum(not record.in_model for record in group)  # kernels timed again in the model are not trials
        lines.append(RuleSummary(target, measure, rule, version, len(tasks), trials, failed, mean))
    return lines


def _gain(records: Sequence[Record]) -> float | None:
    chosen = best(deduplicated(records))
    default = None if chosen is None else _default_beside(chosen, deduplicated(records))
    return None if chosen is None or default is None else _cost(default) / _cost(chosen)


@dataclass(frozen=True)
class TargetCoverage:
    """The records of one target by one measure, whatever its tool's version.

    Attributes:
        kernels: number of distinct kernels with a recorded cost.
        models: number of tuned models; `changed` of these have any choices.
    """

    target: str
    measure: str
    kernels: int
    models: int
    changed: int


def coverage(records: Iterable[Record], models: Iterable[ModelLine]) -> list[TargetCoverage]:
    """One line for each target and measure."""
    kernels: dict[tuple[str, str], set[str]] = {}
    tuned: dict[tuple[str, str], list[ModelLine]] = {}
    for record in records:
        if record.status == "ok":
            kernels.setdefault((record.target, record.measure.text), set()).add(record.task)
    for line in newest_of_models(models):
        tuned.setdefault((line.target, line.measure.text), []).append(line)
    lines = []
    for target, measure in sorted(kernels.keys() | tuned.keys()):
        own = tuned.get((target, measure), [])
        changed = sum(bool(line.choices or line.settings) for line in own)
        lines.append(TargetCoverage(target, measure, len(kernels.get((target, measure), ())), len(own), changed))
    return lines
