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
    """An accelerator of the family.

    Attributes:
        name: Vela's name.
        macs: int8 multiply-adds per cycle and core.
        system: Vela's name of the assumed clocks and memories.
        memory: Vela's name of the memory mode (which data is in which memory).
        scratchpad_kib: internal memory; its end holds the lookup tables of activations.
        clock_mhz: clock frequency of that system, MHz.
        dedicated_sram_kib: SRAM that only the accelerator uses in that memory mode; 0 if it shares the processor's.
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
        """True for the U85, which has other commands, unknown to the simulator, and fewer limits."""
        return self.name.startswith("ethos-u85")

    @property
    def measure_name(self) -> str:
        """Name of Vela's cycle estimates for it, in tuning records."""
        return f"vela cycles {self.name}"

    @property
    def scratchpad_bytes(self) -> int:
        return self.scratchpad_kib * 1024

    @property
    def table_address(self) -> int:
        """Address of the lookup tables of activations."""
        return self.scratchpad_bytes - _TABLES_BYTES


@cache
def accelerators() -> dict[str, Accelerator]:
    """All accelerators, by name."""
    data = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Accelerator(name=name, **entry) for name, entry in data.items()}
