"""64-bit RISC-V processors with the vector extension, with registers of at least 128 bits (`zvl128b`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from targets.cpu.family import CpuFamily, CrossToolchain, preset
from targets.target import Target

_BASE = ("64bit", "a", "c", "d", "f", "m")
_EMULATED = "rv64,v=true,vlen=128,zfh=true,zvfh=true"
FAMILY = CpuFamily(
    triple="riscv64-unknown-linux-gnu",
    toolchain=CrossToolchain("riscv64", "riscv64-linux-gnu", "riscv64", ("-cpu", _EMULATED)),
    codegen_features=frozenset({*_BASE, "v", "zfh", "zvfh"}),
    options={"mabi": "lp64d"},
)
_MACHINE = {
    "vector_bits": 128,
    "vector_registers": 32,
    "l1_bytes": 32768,
    "l2_bytes": 524288,
    "l3_bytes": 0,
    "memory_rate": 4,
}
_PRESETS: dict[str, dict[str, Any]] = {
    "riscv64-linux": {
        "description": "64-bit RISC-V Linux with the vector extension (RVA22 + V, Zvfh: SpacemiT K1, SiFive X280)",
        "mcpu": "generic-rv64",
        "with": ("m", "a", "f", "d", "c", "v", "zfh", "zvfh"),
        "features": [*_BASE, "v", "zfh", "zvfh"],
        "machine": _MACHINE,
    }
}


def presets() -> dict[str, Callable[[int | None], Target]]:
    """Named targets, as functions of the core count."""
    return {name: partial(preset, name, entry, FAMILY) for name, entry in _PRESETS.items()}
