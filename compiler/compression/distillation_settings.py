"""The settings of `distill`, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.compression.learning_rate import SCHEDULES
from compiler.errors import OptionError

METHODS = ("response", "feature", "relation", "self")


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """What `distill` is asked for; it describes the fields."""

    teacher: Any
    batches: Iterable[Any]
    method: str = "response"
    task: Callable[[Any, Any], Any] | None = None
    weight: float = 0.5
    temperature: float = 4.0
    features: Sequence[tuple[str, str]] = ()
    epochs: int = 5
    learning_rate: float = 1e-3
    optimizer: Callable[[Any], Any] | None = None
    schedule: str = "constant"

    def check(self) -> None:
        """Raises OptionError for what cannot be done; the submodules in `features` are the nets' to know."""
        if self.batches is None:
            raise OptionError("distill needs batches=", "compress(..., distill={'teacher': net, 'batches': data})")
        if self.method not in METHODS:
            raise OptionError(f"method={self.method!r}", f"use one of {', '.join(METHODS)}")
        if self.schedule not in SCHEDULES:
            raise OptionError(f"schedule={self.schedule!r}", f"use one of {', '.join(SCHEDULES)}")
        numbers = {name: getattr(self, name) for name in ("temperature", "epochs", "learning_rate")}
        wrong = [f"{name}={value}" for name, value in numbers.items() if not 0 < value < math.inf]
        if wrong or not 0 < self.weight <= 1:
            raise OptionError(", ".join([f"weight={self.weight}", *wrong]), "0 < weight <= 1, the rest positive")
        if self.method == "self" and self.teacher is not None:
            raise OptionError("method='self' has no teacher but the student", "give teacher=None")
        if self.method != "self" and not callable(self.teacher):
            raise OptionError("teacher= is neither a module nor a function", "give one, or method='self'")
        if (self.method == "feature") != bool(self.features):
            raise OptionError(
                "features= goes with method='feature'", "features=[('layer of student', 'layer of teacher')]"
            )
        if isinstance(self.batches, Iterator) and self.epochs > 1:
            raise OptionError("batches= can be gone through once only", "give a list or a DataLoader, or epochs=1")
