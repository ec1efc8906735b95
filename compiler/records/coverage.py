"""Coverage of each target's records: by which measure, how many kernels, which models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compiler.records.record_set import newest_of_models
from compiler.records.records import ModelLine, Record


@dataclass(frozen=True)
class TargetCoverage:
    """The records of one target by one measure, whatever its tool's version.

    Attributes:
        kernels: distinct ones with a cost on record.
        models: that were tuned; `changed` of these have something chosen.
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
