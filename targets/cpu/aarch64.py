"""64-bit Arm processors. The presets are data (`aarch64_presets.json`).

SVE is disabled: the schedules need vectors of a fixed length, like NEON's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from schedules.machine import Machine
from targets import cpuinfo
from targets.cpu.family import CpuFamily, CpuTarget, CrossToolchain, load_presets, preset, signed_features
from targets.processors import usable_cores
from targets.target import Target

_PRESETS_FILE = Path(__file__).with_name("aarch64_presets.json")
FAMILY = CpuFamily(
    triple="aarch64-linux-gnu",
    toolchain=CrossToolchain("aarch64", "aarch64-linux-gnu", "aarch64"),
    codegen_features=frozenset(
        {"neon", "dotprod", "fullfp16", "fp16fml", "bf16", "i8mm", "complxnum", "jsconv", "lse", "rdm", "sve", "sve2"}
    ),
    options={},
)

# A processor's part number and LLVM's name of the model; from Linux's arch/arm64/include/asm/cputype.h.
_PARTS = {
    "0xd03": "cortex-a53",
    "0xd05": "cortex-a55",
    "0xd08": "cortex-a72",
    "0xd0b": "cortex-a76",
    "0xd0c": "neoverse-n1",
    "0xd40": "neoverse-v1",
    "0xd42": "cortex-a78ae",
    "0xd49": "neoverse-n2",
    "0xd4f": "neoverse-v2",
}


def presets() -> dict[str, Callable[[int | None], Target]]:
    """Named targets, as functions of the core count."""
    return {name: partial(preset, name, entry, FAMILY) for name, entry in load_presets(_PRESETS_FILE).items()}


def host(cores: int | None = None) -> CpuTarget:
    """This machine: NEON and any other features that the operating system reports, on the model that it names."""
    seen = cpuinfo.features()
    features = (FAMILY.codegen_features & seen | {"neon"}) - {"sve", "sve2"}
    caches = cpuinfo.caches()
    defaults = Machine()
    machine = Machine(
        architecture="aarch64",
        cores=cores or usable_cores(),
        features=features,
        vector_bits=128,
        vector_registers=32,
        l1_bytes=caches.l1 or defaults.l1_bytes,
        l2_bytes=caches.l2 or defaults.l2_bytes,
        l3_bytes=caches.l3 or defaults.l3_bytes,
    )
    model = _model()
    description = f"this machine: {model}, {machine.cores} {'core' if machine.cores == 1 else 'cores'}"
    # LLVM's "generic" model implies only NEON, so features that are not reported are not used.
    attributes = signed_features(sorted(features - {"neon"}), ())
    return CpuTarget("host", description, machine, "generic", tuple(sorted(features)), attributes, family=FAMILY)


def _model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "aarch64"
    found = re.search(r"^CPU part\s*:\s*(\w+)$", text, flags=re.MULTILINE)
    return _PARTS.get(found.group(1), "aarch64") if found else "aarch64"
