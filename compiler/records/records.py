"""Tuning records: one JSON object per line, append-only.

A record file has three kinds of lines: "target" describes a target once, "trial" is one measurement on it, "model" has
the choices for a whole model. A line is a single write to a file opened for appending, under a lock, so two processes
can append concurrently and a killed process loses at most the line it was about to write. The loss when a machine fails
is bounded by `FSYNC_SECONDS`. A torn line is skipped when reading and terminated by the next append.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compiler.artifact.storage import write_atomically
from compiler.errors import StorageError
from compiler.records.identity import file_name, fingerprint
from compiler.reports.formatting import plural
from targets.measure import TIMED, Measure

SCHEMA_VERSION = 4
"""The newest supported schema version. A line has the version that introduced its kind and fields."""
FSYNC_SECONDS = 1.0
"""A file is flushed to disk at most this long after a record, and when it is closed."""

Status = Literal["ok", "build-error", "crash", "timeout", "wrong-numbers", "run-error"]
KnobValues = dict[str, bool | int | str]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Annotated[int, Field(alias="v")] = 1


class TargetLine(_Line):
    """The target of the trials in the file; `description` is from `identity.target_description`."""

    kind: Literal["target"] = "target"
    target: str
    description: dict[str, Any]


class Record(_Line):
    """One trial.

    Attributes:
        target: fingerprint of the target's description.
        rule, rule_version, workload: the scheduled kernel; together with `target` the key.
        config: values of the knobs.
        status: "ok", or how the trial failed.
        seconds: duration of one run, a low quantile over `runs`; None unless "ok", or if the measure counts cycles.
        cycles: cycles of one run, if the measure counts those; otherwise None.
        spread: range of repeated measurements, relative to `seconds`.
        is_default: whether the config is the rule's default.
        compared: whether it was measured alternately with the default and other leaders, which is more reliable.
        in_model: whether it was measured as part of a model, alternately with the untuned module; see
            `compiler.tuning.in_model`.
        model: fingerprint of that model; "" if not recorded.
        device: the device it ran on.
        method: "parallel": timed on all cores; "serial": on one, and scaled by the load balance of the tasks; "timed":
            by the clock of a GPU, with whole CUDA graphs of calls launched.
        measure: the source of `seconds` or `cycles`: timed, counted or modelled, and by which tool.
        unix_time: time of the measurement, in seconds.
        note: a short description of the failure.
        origin: the file it was read from; not stored.
    """

    kind: Literal["trial"] = "trial"
    target: str
    rule: str
    rule_version: int
    workload: str
    config: KnobValues
    status: Status = "ok"
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    cycles: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    spread: float = 0.0
    runs: int = 0
    is_default: bool = False
    compared: bool = False
    in_model: bool = False
    model: str = ""
    device: str = "local"
    method: Literal["parallel", "serial", "timed"] = "parallel"
    measure: Measure = TIMED
    unix_time: int = 0
    note: str = ""
    origin: str = Field(default="", exclude=True)

    @property
    def task(self) -> str:
        """The key of the task within a target, in the format of `schedules.selection.apply.record_key`."""
        return f"{self.rule}@{self.rule_version}/{self.workload}"

    @property
    def cost(self) -> float | None:
        """Cost of one run in the unit of the measure; None unless "ok"."""
        return self.cycles if self.measure.unit == "cycles" else self.seconds

    @property
    def comparable(self) -> tuple[Measure, str]:
        """Equal for records whose costs may be compared."""
        return self.measure, self.method

    @property
    def config_key(self) -> str:
        """A canonical text of the config."""
        return json.dumps(self.config, sort_keys=True)


class ChosenKernel(BaseModel):
    """A kernel of a model that runs with another config or algorithm than when untuned.

    Attributes:
        task: the key of the untuned kernel.
        way: the key of the alternative kernel that replaces it; "" if only the config changes.
        config, default: config of the kernel that runs, and the rule's default at that time.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: str
    way: str = ""
    config: KnobValues
    default: KnobValues

    @property
    def kernel(self) -> str:
        """The key of the kernel that runs."""
        return self.way or self.task


class ModelLine(_Line):
    """The choices for one model on one target, made after comparing the module with the untuned one.

    Attributes:
        target, model: fingerprints; see `identity`.
        name: name of the model, for people.
        choices: all kernels that run differently than untuned; empty if nothing won.
        settings: choices for the whole model, if the target has such settings (of an accelerator).
        untuned, tuned: cost of a run of each module in the measure's unit; None if whole runs were not compared.
        spread: the relative uncertainty of the ratio of the two.
        measure, method, device, unix_time, origin: as in `Record`.
    """

    schema_version: Annotated[int, Field(alias="v")] = 2
    kind: Literal["model"] = "model"
    target: str
    model: str
    name: str = ""
    choices: tuple[ChosenKernel, ...] = ()
    settings: KnobValues = Field(default_factory=dict)
    untuned: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    tuned: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    spread: float = 0.0
    method: Literal["parallel", "serial", "timed"] = "parallel"
    measure: Measure = TIMED
    device: str = "local"
    unix_time: int = 0
    origin: str = Field(default="", exclude=True)


Line = TargetLine | Record | ModelLine


def encode(line: Line) -> bytes:
    """A line of a record file, including its end."""
    values = line.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    version = line.schema_version
    if isinstance(line, Record | ModelLine):
        # Earlier versions only support the clock as a measure, and no method "timed".
        version = max(version, 4 if line.measure != TIMED else 3 if line.method == "timed" else version)
    return json.dumps({"v": version, "kind": line.kind, **values}, separators=(",", ":")).encode() + b"\n"


@dataclass
class Loaded:
    """The result of reading record files; `problems` are notes for the user, one per kind of problem."""

    records: list[Record] = field(default_factory=list)
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: list[ModelLine] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def extend(self, other: Loaded) -> None:
        """Add all records of another result."""
        self.records += other.records
        self.targets |= other.targets
        self.models += other.models
        self.problems += other.problems


def read(path: str | Path) -> Loaded:
    """Read a record file, or every .jsonl file of a folder; empty if there is none.

    Damaged lines are skipped: the last one silently (a writer was killed), others with one note per file. Raises
    StorageError if a file cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            loaded = Loaded()
            for each in sorted(path.glob("*.jsonl")):
                loaded.extend(read(each))
            return loaded
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")  # reading a pipe would wait for a writer
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StorageError(f"{path}: the tuning records cannot be read: {error}") from error
    loaded, damaged, newer = Loaded(), 0, 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        parsed = _parse(line)
        if parsed is None:
            damaged += number < len(lines) - 1
        elif isinstance(parsed, int):
            newer += 1
        elif isinstance(parsed, TargetLine):
            loaded.targets[parsed.target] = parsed.description
        elif isinstance(parsed, ModelLine):
            loaded.models.append(parsed.model_copy(update={"origin": str(path)}))
        else:
            loaded.records.append(parsed.model_copy(update={"origin": str(path)}))
    if damaged:
        loaded.problems.append(f"{path}: {plural(damaged, 'damaged line')} ignored")
    if newer:
        loaded.problems.append(f"{path}: {plural(newer, 'record')} of a newer version of Tensorwright ignored")
    return loaded


def _parse(line: bytes) -> Line | int | None:
    """The line; the schema version if that is newer than the supported one; None if it is damaged."""
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            return None
        version = values.get("v", SCHEMA_VERSION)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            return version
        if values.get("kind") == "model":
            return ModelLine(**values)
        if values.get("kind") != "target":
            return Record(**values)
        target = TargetLine(**values)
        return target if fingerprint(target.description) == target.target else None
    except (ValueError, TypeError, ValidationError, RecursionError):
        return None


class RecordWriter:
    """Appends records of one target to a file, which begins with the target's line.

    Raises StorageError if the file cannot be written.
    """

    def __init__(self, path: str | Path, description: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.target = fingerprint(dict(description))
        self._synced = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise OSError("it is not a regular file")
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"{self.path}: tuning records cannot be written there: {error}") from error
        if self.target not in read(self.path).targets:
            self._write(encode(TargetLine(target=self.target, description=dict(description))))

    @classmethod
    def in_folder(cls, folder: str | Path, description: Mapping[str, object]) -> RecordWriter:
        """The writer for a target's file in a folder of records."""
        return cls(Path(folder) / file_name(dict(description)), description)

    def append(self, record: Record | ModelLine) -> None:
        """Write one record. Afterwards it survives the death of the process."""
        self._write(encode(record))
        if time.monotonic() - self._synced >= FSYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        """Flush to disk."""
        if self._file < 0:
            return
        try:
            self._sync()
        finally:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sync(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            raise StorageError(f"{self.path}: the last tuning records may not be on the disk: {error}") from error
        self._synced = time.monotonic()

    def _write(self, line: bytes) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                line = b"\n" + line  # a killed writer left half a line, which must not merge with ours
            if os.write(self._file, line) != len(line):
                os.ftruncate(self._file, size)
                raise OSError("the disk is full")
        except OSError as error:
            raise StorageError(f"{self.path}: a tuning record was not written: {error}") from error
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def write_all(
    path: str | Path,
    targets: Mapping[str, Mapping[str, object]],
    records: Iterable[Record],
    models: Iterable[ModelLine] = (),
) -> int:
    """Replace a record file by these records atomically; return the number of trials. Raises StorageError if the file
    cannot be written."""
    path = Path(path)
    record_list = list(records)
    trials_and_models: list[Record | ModelLine] = [*record_list, *models]
    used = {line.target for line in trials_and_models}
    lines = [encode(TargetLine(target=key, description=dict(targets[key]))) for key in sorted(used & set(targets))]
    lines += [encode(line) for line in trials_and_models]
    write_atomically(path, lines)
    return len(record_list)
