"""Which records a compilation uses: those that ship with the package, the user's own, and those it is told of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import StorageError
from compiler.tuning.identity import file_name, fingerprint, target_description
from compiler.tuning.record_set import best_against, by_task, fastest_way, without_stale
from compiler.tuning.records import Loaded, Record, read
from schedules.apply import record_key
from schedules.config import Config
from schedules.registry import rules
from schedules.ways import Way

if TYPE_CHECKING:
    import targets
    from schedules.rule import ScheduleRule

USER_FOLDER = "TENSORWRIGHT_RECORDS"
"""Environment variable: the folder of the user's records."""
PRETRAINED = "cost_model.ubj"
RecordSource = str | Path | Sequence[str | Path] | bool | None


def user_folder() -> Path:
    """Where `tune` writes and `compile` looks unless told otherwise."""
    chosen = os.environ.get(USER_FOLDER)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(base) / "tensorwright" / "tuning"


def shipped_folder() -> Path:
    """The records that ship with the package."""
    return Path(str(resources.files("tuning_logs")))


def pretrained_model() -> Path | None:
    """The cost model that ships with the package, if one does."""
    path = shipped_folder() / PRETRAINED
    return path if path.is_file() else None


def read_current(path: str | Path) -> Loaded:
    """The records of a file or folder that belong to the rules as they are now; a note for those that do not."""
    loaded = read(path)
    kept, lines = without_stale(loaded.records, {rule.name: rule.version for rule in rules()})
    return Loaded(kept, loaded.targets, [*loaded.problems, *lines])


class TunedConfigs:
    """The best recorded config of each kernel on one target, for `schedules.apply_schedules`.

    Attributes:
        problems: notes about records that could not be used.
    """

    def __init__(self, target: targets.Target, records: Sequence[Record], problems: Sequence[str] = ()) -> None:
        self._machine = target.machine
        own = fingerprint(target_description(target))
        self._records = {task: group for (where, task), group in by_task(records).items() if where == own}
        self._used: dict[str, Record] = {}
        self.problems = list(problems)

    def __call__(self, rule: ScheduleRule, workload: Any) -> Config | None:
        record = self.record(rule, workload)
        return None if record is None else Config.of(record.config)

    def __bool__(self) -> bool:
        return bool(self._records)

    def record(self, rule: ScheduleRule, workload: Any) -> Record | None:
        """The record for a kernel; None when none beats, or is, what the rule would do by itself today."""
        record = self._best(rule, workload)
        if record is not None:
            self._used[record.task] = record
        return record

    def choose(self, ways: Sequence[Way]) -> int:
        """Of ways to compute the same, the first being the untuned one: see `record_set.fastest_way`."""
        by_name = {rule.name: rule for rule in rules()}
        return fastest_way([self._best(by_name[way.rule], way.workload) for way in ways])

    def _best(self, rule: ScheduleRule, workload: Any) -> Record | None:
        group = self._records.get(record_key(rule, workload))
        if group is None:
            return None
        space = rule.space(workload, self._machine)
        inside = [record for record in group if Config.of(record.config) in space]
        return best_against(inside, rule.default(workload, self._machine))

    def origin(self, task: str) -> str | None:
        """The file that the record used for a task came from; files of the package by their name in it."""
        record = self._used.get(task)
        if record is None or not record.origin:
            return None
        path = Path(record.origin)
        return f"tuning_logs/{path.name}" if path.parent == shipped_folder() else str(path)


def tuned_configs(target: targets.Target, records: RecordSource = None) -> TunedConfigs:
    """The configs that `compile` uses for a target.

    Args:
        records: None for what ships and the user's own; False for none at all; a file or folder, or several of them,
            in place of the user's own.

    Raises:
        StorageError: a file can not be read, or one that was named does not exist.
    """
    if records is False:
        return TunedConfigs(target, [])
    name = file_name(target_description(target))
    paths: list[Path] = [shipped_folder() / name]
    if records is None or records is True:
        paths.append(user_folder() / name)
    else:
        named = [Path(records)] if isinstance(records, str | Path) else [Path(each) for each in records]
        if missing := [path for path in named if not path.exists()]:
            raise StorageError(
                f"there are no tuning records at {missing[0]}", "tune writes them; or leave records= out"
            )
        paths += named
    loaded = Loaded()
    for path in paths:
        if path.exists():
            loaded.extend(read_current(path))
    return TunedConfigs(target, loaded.records, loaded.problems)
