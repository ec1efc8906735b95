"""The accelerators of the family, as data (`accelerators.json`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("accelerators.json")
_TABLES_BYTES = 2048


@dataclass(frozen=True)
class Accelerator:
    """One of the family.

    Attributes:
        name: as Vela knows it.
        macs: int8 multiply-adds per cycle and core.
        system: Vela's name of the clocks and memories it assumes.
        memory: Vela's name of what lies in which memory.
        scratchpad_kib: internal memory; its end holds the tables of activations.
        clock_mhz: clock frequency of that system, MHz.
        dedicated_sram_kib: SRAM that is the accelerator's alone in that memory mode; 0 where it shares the processor's.
    """

    name: str
    macs: int
    cores: int
    system: str
    memory: str
    scratchpad_kib: int
    clock_mhz: int
    dedicated_sram_kib: int = 0

    @property
    def is_u85(self) -> bool:
        """The U85 has other commands, which the simulator does not know, and fewer limits."""
        return self.name.startswith("ethos-u85")

    @property
    def measure_name(self) -> str:
        """Name of the cycles that Vela estimates for it, in tuning records."""
        return f"vela cycles {self.name}"

    @property
    def scratchpad_bytes(self) -> int:
        return self.scratchpad_kib * 1024

    @property
    def table_address(self) -> int:
        """Address of the tables of activations."""
        return self.scratchpad_bytes - _TABLES_BYTES


@cache
def accelerators() -> dict[str, Accelerator]:
    """All of them, by name."""
    data = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Accelerator(name=name, **entry) for name, entry in data.items()}
