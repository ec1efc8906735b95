"""The settings of `tune`, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compiler.device.credentials import Credentials
from compiler.errors import OptionError
from compiler.records.folders import user_folder
from compiler.support.options import check_choices
from compiler.tuning.cost_models import CostModel
from compiler.tuning.measuring.device_names import LOCAL, parse_device
from compiler.tuning.state import Progress

MIN_SECONDS = 10.0
"""The minimum budget: building and timing a few configs takes this long."""
DEFAULT_SECONDS = 600.0
"""Duration of the search if the caller sets no limit."""
_MEASURES = ("auto", "timed", "modelled")
_TIMINGS = ("auto", "parallel", "serial")


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """Options of `tune`, which documents the fields."""

    trials: int | None = None
    time_budget: float | None = None
    records: str | Path | None = None
    devices: Sequence[str] = (LOCAL,)
    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    precision: str = "float32"
    threads: int | None = None
    timing: str = "auto"
    measure: str = "auto"
    memory_limit: int | None = None
    cost_model: str | CostModel = "xgboost"
    search: str = "evolutionary"
    seed: int = 0
    progress: Callable[[Progress], None] | None = None

    @property
    def seconds(self) -> float | None:
        """Time budget of the search and the following steps; None if only the number of trials is limited."""
        unlimited = self.trials is None and self.time_budget is None
        return DEFAULT_SECONDS if unlimited else self.time_budget

    @property
    def folder(self) -> Path:
        """Folder of records."""
        return Path(self.records) if self.records is not None else user_folder()

    @property
    def names_devices(self) -> bool:
        """True if devices other than this machine are named."""
        return any(device != LOCAL for device in self.devices)

    def check(self) -> None:
        """Raise OptionError for invalid options."""
        if self.trials is not None and self.trials < 1:
            raise OptionError(f"trials={self.trials}: there must be at least one")
        if self.time_budget is not None and self.time_budget < MIN_SECONDS:
            raise OptionError(f"time_budget={self.time_budget}: it must be {MIN_SECONDS:.0f} seconds at least")
        check_choices(self, timing=_TIMINGS, measure=_MEASURES)
        if self.measure == "modelled" and self.names_devices:
            raise OptionError("measure 'modelled' uses no device", "leave out the devices, or measure='timed'")
        if self.memory_limit is not None and self.memory_limit <= 0:
            raise OptionError(f"memory_limit={self.memory_limit}: it must be a positive number of bytes")
        if not self.devices:
            raise OptionError("no device is named", "leave devices out for this machine")
        for device in self.devices:
            if device != LOCAL:
                parse_device(device)
