"""The settings of `factorize`, checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from compiler.compression.quantization.precisions import MEASURED, PREDICTED
from compiler.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class FactorizationOptions:
    """What `factorize` is asked for; it describes the fields."""

    energy: float = 0.9
    speedup: float | None = None
    minimum_gain: float = 1.1
    keep: Collection[str] = ()
    decide: str = PREDICTED

    @property
    def wanted(self) -> float:
        """How many times faster a layer has to be."""
        return self.minimum_gain if self.speedup is None else self.speedup

    def check(self) -> None:
        """Raises OptionError for what cannot be done; the names of layers in `keep` are the model's to know."""
        if not 0 < self.energy <= 1:
            raise OptionError(f"energy={self.energy}", "give a share above 0 and up to 1, like 0.95")
        if self.speedup is not None and not self.speedup > 1:
            raise OptionError(f"speedup={self.speedup}", "give a number above 1, like 1.5")
        if not self.minimum_gain >= 1:
            raise OptionError(f"minimum_gain={self.minimum_gain}", "give 1 or more")
        if self.decide not in (PREDICTED, MEASURED):
            raise OptionError(f"decide={self.decide!r}", f"use {PREDICTED!r} or {MEASURED!r}")
