"""32-bit Arm processors (ARMv7-A and later in 32-bit mode) with NEON, with the hard-float calling convention.

The presets are data (`armv7_presets.json`). They make LLVM use fused multiply-adds where its model of the Cortex-A7
would not, to avoid dependent sums: those of a register tile are independent. Elements broadcast to all lanes need
registers here, so LLVM spills sums of convolutions early; its machine scheduler ("use-misched") does so later than the
older one. Tiles of 3 x 2 sums take 2.4 to 2.6 instructions per multiply-add, 7 x 1 took 3.1 to 3.7 (1x1 and 3x3 on the
Cortex-A7).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from targets.cpu.family import CpuFamily, CrossToolchain, load_presets, preset
from targets.target import Target

_PRESETS_FILE = Path(__file__).with_name("armv7_presets.json")
FAMILY = CpuFamily(
    triple="armv7-linux-gnueabihf",
    toolchain=CrossToolchain("armv7", "arm-linux-gnueabihf", "arm"),
    codegen_features=frozenset({"neon", "vfp4", "hwdiv-arm", "fp-armv8", "fullfp16", "dotprod"}),
    options={"mfloat-abi": "hard"},
)


def presets() -> dict[str, Callable[[int | None], Target]]:
    """Named targets, as functions of the core count."""
    return {name: partial(preset, name, entry, FAMILY) for name, entry in load_presets(_PRESETS_FILE).items()}
