"""Records that a compilation uses: shipped with the package, the user's own, and those named by the caller."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import targets
from compiler.errors import StorageError
from compiler.records.folders import shipped_folder, user_folder
from compiler.records.identity import file_name, fingerprint, target_description
from compiler.records.record_set import (
    MIN_GAIN_ELSEWHERE,
    IsDefault,
    alternative_taken_over,
    by_task,
    decisive,
    of_measures,
    taken_over,
    without_stale,
)
from compiler.records.records import ChosenKernel, Loaded, ModelLine, Record, read
from schedules.config import Config
from schedules.gpu import gpu_rules
from schedules.rule import AnyRule, Workload
from schedules.selection.alternatives import Alternative
from schedules.selection.apply import record_key
from schedules.selection.registry import rules
from targets.measure import TIMED, Measure, Setting

NETWORK_RULE, NETWORK_VERSION = "network", 1
"""Rule and version in records of a whole network's settings, which belong to no schedule rule."""
RecordSource = str | Path | Sequence[str | Path] | bool | None


def read_current(path: str | Path) -> Loaded:
    """The records of a file or folder for the current versions of the rules, and notes about the others."""
    loaded = read(path)
    versions = {rule.name: rule.version for rule in (*rules(), *gpu_rules())}
    kept, lines = without_stale(loaded.records, {**versions, NETWORK_RULE: NETWORK_VERSION})
    return Loaded(kept, loaded.targets, loaded.models, [*loaded.problems, *lines])


class TunedConfigs:
    """The recorded configs for each kernel of one model on one target, for `schedules.apply_schedules`.

    If the model itself was tuned, only the choices for it as a whole count. Otherwise, records of its kernels from
    other models are used if they are reliable enough: see `record_set.taken_over`.

    Args:
        loaded: the records for the current versions of the rules.
        model: the model's fingerprint; "" for one that was certainly not tuned.

    Attributes:
        problems: notes about records that could not be used.
        tuned_itself: the line about this model, if there is one.
    """

    def __init__(self, target: targets.Target, loaded: Loaded, model: str = "") -> None:
        self._machine = target.machine
        target_key = fingerprint(target_description(target))
        measurer = target.measurer()
        self._margin = MIN_GAIN_ELSEWHERE if measurer is None else measurer.margin
        fits = (lambda _: False) if measurer is None else measurer.fits
        records, unfit = of_measures((each for each in loaded.records if each.target == target_key), fits)
        models, _ = of_measures((each for each in loaded.models if each.target == target_key), fits)
        self._records = {task: group for (_, task), group in by_task(records).items()}
        self.tuned_itself: ModelLine | None = decisive(line for line in models if line.model == model)
        self._chosen = {each.kernel: each for each in (self.tuned_itself.choices if self.tuned_itself else ())}
        self._alternatives: dict[str, Record] = {}
        self._origins: dict[str, str] = {}
        self._measures: dict[str, Measure] = {}
        self.problems = [*loaded.problems, *unfit]

    @property
    def settings(self) -> dict[str, Setting]:
        """Settings chosen for the whole model, if the target has such settings and the model was tuned."""
        return dict(self.tuned_itself.settings) if self.tuned_itself is not None else {}

    def __bool__(self) -> bool:
        return bool(self._records or self._chosen)

    def __call__(self, rule: AnyRule, workload: Workload) -> Config | None:
        """The config for a kernel; None if no record beats, or is, the rule's current default."""
        key = record_key(rule, workload)
        if self.tuned_itself is not None:
            chosen = self._chosen.get(key)
            config = None if chosen is None else self._checked(chosen, rule, workload)
            origin, measure = self.tuned_itself.origin, self.tuned_itself.measure
        else:
            record = self._alternatives.get(key) or taken_over(
                self._inside(key, rule, workload), self._is_default(rule, workload), self._margin
            )
            config = None if record is None else Config.of(record.config)
            origin, measure = ("", TIMED) if record is None else (record.origin, record.measure)
        if config is not None:
            self._origins[key], self._measures[key] = origin, measure
        return config

    def choose(self, alternatives: Sequence[Alternative]) -> int:
        """The index of the alternative to use among those for the same computation; the first is the untuned one."""
        if self.tuned_itself is not None:
            for index, alternative in enumerate(alternatives[1:], 1):
                chosen = self._chosen.get(alternative.key)
                if chosen is not None and chosen.task == alternatives[0].key:
                    return index if self._checked(chosen, _rule(alternative), alternative.workload) is not None else 0
            return 0
        groups = [
            self._inside(alternative.key, _rule(alternative), alternative.workload) for alternative in alternatives
        ]
        is_default = self._is_default(_rule(alternatives[0]), alternatives[0].workload)
        index, record = alternative_taken_over(groups, is_default)
        if record is not None:
            self._alternatives[alternatives[index].key] = record
        return index

    def _checked(self, chosen: ChosenKernel, rule: AnyRule, workload: Workload) -> Config | None:
        """The config, unless the rule no longer has it, or has another default than the one it beat."""
        config = Config.of(chosen.config)
        fits = config in rule.space(workload, self._machine) and self._is_default(rule, workload)(chosen.default)
        return config if fits else None

    def _is_default(self, rule: AnyRule, workload: Workload) -> IsDefault:
        """A predicate that is True for configs equal to the rule's current default, except for the split into tasks."""
        default = rule.default(workload, self._machine)
        return lambda config: rule.same_kernel(config, default)

    def _inside(self, key: str, rule: AnyRule, workload: Workload) -> list[Record]:
        """The records of a kernel whose configs are still in the rule's space."""
        space = rule.space(workload, self._machine)
        return [record for record in self._records.get(key, ()) if Config.of(record.config) in space]

    def origin(self, task: str) -> str | None:
        """The file of the config used for a task; files of the package by their name inside it."""
        origin = self._origins.get(task)
        if not origin:
            return None
        path = Path(origin)
        return f"tuning_logs/{path.name}" if path.parent == shipped_folder() else str(path)

    def measure(self, task: str) -> str | None:
        """The name of the measure by which the config used for a task won; None if it came from no record."""
        return self._measures[task].name if task in self._measures else None


def _rule(alternative: Alternative) -> AnyRule:
    return next(rule for rule in rules() if rule.name == alternative.rule)


def tuned_configs(target: targets.Target, records: RecordSource = None, model: str = "") -> TunedConfigs:
    """The configs that `compile` uses for a model on a target. Raises StorageError if a file cannot be read, or a named
    one does not exist.

    Args:
        model: its fingerprint, from `identity.model_fingerprint`.
        records: None for the shipped records and the user's own; False for none; a file or folder, or several of them,
            instead of the user's own.
    """
    if records is False:
        return TunedConfigs(target, Loaded(), model)
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
    return TunedConfigs(target, loaded, model)
