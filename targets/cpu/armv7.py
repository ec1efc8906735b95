"""32-bit Arm processors (ARMv7-A and later in 32-bit mode) with NEON, whose functions take floats in registers.

The presets are data (`armv7_presets.json`). There LLVM is told to multiply and add in one instruction where its model
of the Cortex-A7 would not, for fear of sums that wait for each other: those of a register tile do not. Elements
repeated in all lanes take registers here, so LLVM spills sums of convolutions early; its machine scheduler
("use-misched") does so later than the older one. Tiles of 3 x 2 sums take 2.4 to 2.6 instructions a multiply-add,
7 x 1 took 3.1 to 3.7 (1x1 and 3x3 on the Cortex-A7).
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
    """Functions of the core count that make the named targets."""
    return {name: partial(preset, name, entry, FAMILY) for name, entry in load_presets(_PRESETS_FILE).items()}
