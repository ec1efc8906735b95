"""The header of a pack; the program copies it into its results unchanged."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from compiler.records.records import KnobValues, Status


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PackedTask(_Part):
    """A task: its rule and workload as in a record, how often the model calls it, the default's config, the configs of
    each candidate (the first's have the default among them), and configs that gave no code."""

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
    """A pack: the target's fingerprint and description, the model's fingerprint and name, and the tasks in their
    order."""

    version: Literal[1] = 1
    target: str
    target_name: str
    description: dict[str, Any]
    model: str
    model_name: str
    tasks: tuple[PackedTask, ...]


class PackResult(_Part):
    """A measurement of the program; see compiler/device/cpp/tune_plan.h."""

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
