"""Aliases of targets: "rpi5", "arm64", "avx2", "cuda" (the graphics processor of this machine)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

from targets.cuda import device as cuda_device
from targets.errors import TargetError

_ALIASES = {
    "native": "host",
    "local": "host",
    "cpu": "host",
    "llvm": "host",
    "x86-64": "x86-64-v2",
    "amd64": "x86-64-v2",
    "avx2": "x86-64-v3",
    "avx512": "x86-64-v4",
    "aarch64": "aarch64-linux",
    "arm64": "aarch64-linux",
    "arm": "armv7-linux",
    "armhf": "armv7-linux",
    "armv7": "armv7-linux",
    "riscv": "riscv64-linux",
    "riscv64": "riscv64-linux",
    "zen2": "znver2",
    "zen3": "znver3",
    "zen4": "znver4",
    "zen5": "znver5",
    "m1": "apple-m1",
    "orin": "jetson-orin",
}
# A name without a number stands for a kind of device: this machine decides which.
_GRAPHICS = frozenset({"cuda", "gpu", "nvidia"})
_PI = re.compile(r"(?:rpi|pi|raspberrypi)([245])(?:b|modelb)?(32|32bit)?")


def resolved(name: str, known: Collection[str]) -> str:
    """The canonical name of a target; the name itself (lower case, with hyphens) if it is no alias.

    Raises:
        TargetError: it means the graphics processor of this machine, which has none that there is a target for.
    """
    wanted = re.sub(r"[\s_]+", "-", name.strip().lower())
    if wanted in known:
        return wanted
    if wanted in _GRAPHICS:
        return _graphics_processor(wanted)
    if wanted in _ALIASES:
        return _ALIASES[wanted]
    plain = _plain(wanted)
    pi = _PI.fullmatch(plain)
    if pi is not None:
        wide = f"raspberry-pi-{pi[1]}"
        return f"{wide}-32bit" if pi[2] and f"{wide}-32bit" in known else wide
    same = [each for each in known if _plain(each) == plain]
    return same[0] if len(same) == 1 else wanted


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name)


def _graphics_processor(wanted: str) -> str:
    """The preset for the first graphics processor here: of its compute capability, or the next lower one."""
    presets = json.loads((Path(__file__).parent / "cuda" / "presets.json").read_text(encoding="utf-8"))
    capabilities = {
        name: int(entry["machine"]["compute_capability"])
        for name, entry in presets.items()
        if not entry.get("simulated")
    }
    names = ", ".join(capabilities)
    present = cuda_device.compute_capabilities()
    if not present:
        raise TargetError(
            f"target {wanted!r} means the NVIDIA graphics processor of this machine, and none was found",
            f"name the one to build for: {names}; or cuda-simulated, which needs none",
        )
    fitting = {name: value for name, value in capabilities.items() if value <= present[0]}
    if not fitting:
        raise TargetError(f"the graphics processor of this machine (sm_{present[0]}) is older than all of: {names}")
    return max(fitting, key=lambda name: fitting[name])
