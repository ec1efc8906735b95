"""What weight sharing and factorization return: the model, and what was done to it layer by layer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.errors import OptionError, StorageError
from compiler.frontends.imported_model import ImportedModel


@dataclass(frozen=True)
class LayerOutcome:
    """One layer of the model.

    Attributes:
        changed: whether the technique was applied to it.
        detail: how, or why not.
        noise: signal to noise of its weights, in decibels; None where it was left alone.
    """

    name: str
    changed: bool
    detail: str
    noise: float | None = None


@dataclass(frozen=True)
class CompressionReport:
    """What a technique did.

    Attributes:
        before, after: what the measure says of the model, higher is better; `drop` is the share that was lost.
        bytes_before, bytes_after: of the parameters as a module's file holds them.
        seconds_before, seconds_after: of a run here (the median); None for a target that this machine can not run.
    """

    technique: str
    target: str
    before: float
    after: float
    drop: float
    max_drop: float
    evaluations: int
    bytes_before: int
    bytes_after: int
    seconds_before: float | None
    seconds_after: float | None
    layers: tuple[LayerOutcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the numbers as .json.

        Raises:
            OptionError: another suffix.
            StorageError: the file can not be written.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise OptionError(f"{path}: a report is .json")
        try:
            path.write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path} can not be written: {error}") from error

    def __str__(self) -> str:
        changed = sum(layer.changed for layer in self.layers)
        lines = [
            f"{self.technique}: {changed} of {len(self.layers)} layers; score {self.before:.6g}, then {self.after:.6g}"
            f" (drop {self.drop:.3%}, limit {self.max_drop:.3%})",
            f"parameters {self.bytes_before} bytes before, {self.bytes_after} after",
        ]
        if self.seconds_before is not None and self.seconds_after is not None:
            lines[1] += f"; a run {self.seconds_before * 1e3:.3f} ms before, {self.seconds_after * 1e3:.3f} ms after"
        return "\n".join([*lines, *(f"  {layer.name}: {layer.detail}" for layer in self.layers)])


@dataclass(frozen=True, kw_only=True)
class CompressedModel(ImportedModel):
    """A smaller model, to be given to `compiler.compile`, `compiler.quantize` or another technique.

    Attributes:
        name: of the model it was made from.
        report: what was done and what it cost.
    """

    name: str
    report: CompressionReport
