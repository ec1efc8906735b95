"""`take`: converts the results of a pack to records.

The program copies the header of a pack unchanged into its results.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import targets
from compiler.driver.compile import find_target
from compiler.errors import OptionError, storage_errors
from compiler.records.folders import user_folder
from compiler.records.identity import fingerprint, target_description
from compiler.records.library import read_current
from compiler.records.record_set import MIN_GAIN, best, decisive
from compiler.records.records import ChosenKernel, KnobValues, ModelLine, Record, RecordWriter, Status
from compiler.tuning.measuring.messages import spread
from schedules.config import Config
from schedules.gpu import gpu_rules

_METHOD: Literal["timed"] = "timed"


@dataclass(frozen=True)
class TakenTask:
    """One kernel: seconds per call with the default and with the current choice, None if not measured."""

    kernel: str
    rule: str
    count: int
    default_seconds: float | None
    best_seconds: float | None
    config: dict[str, bool | int | str]

    @property
    def gain(self) -> float:
        """Default over best."""
        return self.default_seconds / self.best_seconds if self.default_seconds and self.best_seconds else 1.0


@dataclass(frozen=True)
class Taken:
    """Result of `take`.

    Attributes:
        added: number of new records; `known` existed already.
        failed: number of results of candidates that were wrong or did not run.
    """

    records: Path
    device: str
    model: str
    added: int
    known: int
    failed: int
    tasks: tuple[TakenTask, ...]


def take(results: Path, target: str | targets.Target, *, records: str | Path | None = None) -> Taken:
    """Append a pack's measurements to the records, and the choices for the model according to all records.

    Args:
        results: results.json, possibly incomplete.
        target: the target that the pack was made for.
        records: the folder; None: the user's own.

    Raises:
        OptionError: the file does not contain results of a pack, or they are for another target or another version of
            the rules.
        StorageError: it cannot be read, or the records cannot be written.
    """
    measured, header = _read(results)
    chosen = find_target(target)
    description = target_description(chosen)
    if header.target != fingerprint(description):
        raise OptionError(
            f"{results} holds times of target {header.target_name!r}, and not of {chosen.name!r}",
            f"take them with --target {header.target_name}",
        )
    _check_rules(results, header)
    folder = Path(records) if records is not None else user_folder()
    with RecordWriter.in_folder(folder, description) as writer:
        earlier = {_identity(record) for record in read_current(writer.path).records}
        trials = list(_records(measured, header, writer.target))
        fresh = [record for record in trials if _identity(record) not in earlier]
        for record in fresh:
            writer.append(record)
        everything = read_current(writer.path)
        tasks, choices = _chosen(header, [each for each in everything.records if each.target == writer.target])
        if fresh:
            kept = _kept(header, everything.models)
            writer.append(_model_line(header, writer.target, [*kept, *choices], measured.device))
        failed = sum(record.status != "ok" for record in trials)
        return Taken(
            writer.path, measured.device, header.model_name, len(fresh), len(trials) - len(fresh), failed, tuple(tasks)
        )


def _read(path: Path) -> tuple[PackResults, PackHeader]:
    with storage_errors(path):
        text = path.read_text(encoding="utf-8")
    try:
        measured = PackResults.model_validate_json(text)
        header = PackHeader.model_validate_json(measured.header)
    except ValidationError as error:
        raise OptionError(
            f"{path} holds no results of a pack: {error.errors()[0]['msg']}", "give the results.json that its run wrote"
        ) from error
    for trial in measured.results:
        if not (
            0 <= trial.task < len(header.tasks) and 0 <= trial.candidate < len(header.tasks[trial.task].candidates)
        ):
            raise OptionError(f"{path} holds a result of a candidate that the pack does not have", "run the pack again")
        if trial.status == "ok" and not (trial.seconds and min(trial.seconds) > 0):
            raise OptionError(f"{path} holds a result without a time", "run the pack again")
    return measured, header


def _check_rules(path: Path, header: PackHeader) -> None:
    versions = {rule.name: rule.version for rule in gpu_rules()}
    for task in header.tasks:
        if versions.get(task.rule) != task.rule_version:
            raise OptionError(
                f"{path} holds times of version {task.rule_version} of the rule {task.rule!r}, which generates other "
                "code now",
                "make a new pack",
            )


def _identity(record: Record) -> tuple[str, str, int, bool]:
    return record.task, record.config_key, record.unix_time, record.compared


def _records(measured: PackResults, header: PackHeader, target: str) -> Iterator[Record]:
    for result in measured.results:
        task = header.tasks[result.task]
        for config in task.candidates[result.candidate]:
            yield _record(result, task, config, target, measured.device)


def _record(
    result: PackResult, task: PackedTask, config: dict[str, bool | int | str], target: str, device: str
) -> Record:
    ordered = sorted(result.seconds)
    return Record(
        target=target,
        rule=task.rule,
        rule_version=task.rule_version,
        workload=task.workload,
        config=config,
        status=result.status,
        # Nothing else runs on a device, so there is no overhead to subtract.
        seconds=ordered[len(ordered) // 2] if result.status == "ok" else None,
        spread=round(min(spread(result.seconds), 9.99), 4) if result.status == "ok" else 0.0,
        runs=len(result.seconds),
        is_default=config == task.default,
        compared=result.compared,
        device=device,
        method=_METHOD,
        unix_time=result.unix_time,
        note=result.note,
    )


def _chosen(header: PackHeader, records: Sequence[Record]) -> tuple[list[TakenTask], list[ChosenKernel]]:
    """Choices for a model's kernels according to all records."""
    tasks, choices = [], []
    for task in header.tasks:
        own = [each for each in records if each.task == task.key and each.method == _METHOD]
        fastest = best(own, MIN_GAIN)
        ok = [each for each in own if each.is_default and each.seconds is not None]
        default = next((each for each in reversed(ok) if each.compared), ok[-1] if ok else None)
        before = default.seconds if default is not None else None
        after = fastest.seconds if fastest is not None else None
        config = dict(fastest.config) if fastest is not None else dict(task.default)
        tasks.append(TakenTask(task.name, task.rule, task.count, before, after, config))
        if fastest is not None and before is not None and Config.of(config) != Config.of(task.default):
            choices.append(ChosenKernel(task=task.key, config=config, default=task.default))
    return tasks, choices


def _kept(header: PackHeader, models: Sequence[ModelLine]) -> list[ChosenKernel]:
    """Choices of earlier packs of the model for kernels that are not in this one."""
    line = decisive(each for each in models if (each.target, each.model) == (header.target, header.model))
    own = {task.key for task in header.tasks}
    return [choice for choice in (line.choices if line is not None else ()) if choice.task not in own]


def _model_line(header: PackHeader, target: str, choices: Sequence[ChosenKernel], device: str) -> ModelLine:
    return ModelLine(
        target=target,
        model=header.model,
        name=header.model_name,
        choices=tuple(choices),
        method=_METHOD,
        device=device,
        unix_time=int(time.time()),
    )


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PackedTask(_Part):
    """A task: its rule and workload as in a record, the number of calls in the model, the default's config, the configs
    of each candidate (the first's include the default), and configs that produced no code."""

    rule: str
    rule_version: int
    workload: str
    name: str
    count: int
    default: KnobValues
    candidates: tuple[tuple[KnobValues, ...], ...]
    failed: tuple[KnobValues, ...] = ()

    @property
    def key(self) -> str:
        """Key of a task, as in `Record.task`."""
        return f"{self.rule}@{self.rule_version}/{self.workload}"


class PackHeader(_Part):
    """A pack: the target's fingerprint and description, the model's fingerprint and name, and the tasks in order."""

    version: Literal[1] = 1
    target: str
    target_name: str
    description: dict[str, Any]
    model: str
    model_name: str
    tasks: tuple[PackedTask, ...]


class PackResult(_Part):
    """A measurement by the program; see compiler/device/cpp/tune_plan.h."""

    task: int
    candidate: int
    compared: bool
    status: Status
    seconds: tuple[float, ...]
    note: str
    unix_time: int


class PackResults(_Part):
    """The file results.json."""

    format: Literal[1]
    digest: str
    device: str
    header: str
    results: tuple[PackResult, ...]
