"""Targets by name: built-in ones, and those of other packages."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Collection, Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from targets.cuda import device as cuda_device
from targets.errors import RegistrationError, TargetError, UnknownTarget
from targets.target import Target

ENTRY_POINT_GROUP = "tensorwright.targets"
Factory = Callable[[int | None], Target]
_GUIDE = (
    "it is a defect of the package that registers it; targets.AcceleratedTarget is the base class for an accelerator "
    "beside a processor (docs/custom_target.md)"
)
_WANTED = {
    "name": "a string: what --target takes",
    "description": "a string: a line for listings",
    "machine": "a schedules.machine.Machine",
}
_MAX_CORES = 1024
_SUITE = "targets.conformance"  # defines no target, and imports onnx and TVM


def _foreign() -> dict[str, EntryPoint]:
    entries: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name in entries or entry.name in _own():
            raise RegistrationError(f"the target name {entry.name!r} of {entry.value} is taken already")
        entries[entry.name] = entry
    return entries


def _modules_with_presets(package: str) -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        if info.name == _SUITE:
            continue
        module = importlib.import_module(info.name)
        if hasattr(module, "presets"):
            yield module
        elif info.ispkg:
            yield from _modules_with_presets(info.name)


@cache
def _own() -> dict[str, Factory]:
    """The presets in the modules of this package: each may have a function `presets()` that returns functions of the
    core count."""
    targets: dict[str, Factory] = {}
    for module in _modules_with_presets("targets"):
        offered: dict[str, Factory] = module.presets()
        if twice := targets.keys() & offered.keys():
            raise RegistrationError(f"two targets are named {sorted(twice)[0]!r}")
        targets |= offered
    return targets


def names() -> list[str]:
    """All target names, sorted."""
    return sorted({*_own(), *_foreign()})


def get(name: str, *, cores: int | None = None) -> Target:
    """The target with a given name.

    Args:
        name: one of `names()`, or an alias ("rpi5", "arm64"); "cuda" is this machine's GPU. A colon and a number of
            cores may follow ("granite-rapids:32").
        cores: number of cores to schedule for if the name has none; by default those usable on this machine.

    Raises:
        UnknownTarget: with suggestions.
        TargetError: "cuda" on a machine without a GPU that has a target, or no machine of that name has this many
        cores.
        RegistrationError: an entry point is not a target.
    """
    plain, colon, count = name.partition(":")
    if colon:
        return _with_cores(plain.strip(), count.strip())
    built_in = _own()
    resolved_name = resolved(name, built_in)
    if resolved_name in built_in:
        return built_in[resolved_name](cores)
    foreign = _foreign()
    if name in foreign or resolved_name in foreign:
        return _load(foreign[name if name in foreign else resolved_name])
    raise UnknownTarget(name, [*built_in, *foreign])


def _with_cores(name: str, count: str) -> Target:
    """The target with the number of cores after the colon. Raises as `get`."""
    most = get(name).most_cores or _MAX_CORES
    if not (count.isascii() and count.isdigit() and 1 <= int(count[:9]) <= most):
        raise TargetError(
            f"target '{name}:{count}': {name} has 1 to {most} cores, and {count!r} is no such number",
            f"write {name}:{min(most, 16)}, or {name} alone",
        )
    target = get(name, cores=int(count))
    if target.machine.cores != int(count):
        raise TargetError(
            f"target '{name}:{count}': the package that registers {name!r} describes a machine with "
            f"{target.machine.cores} cores",
            f"leave :{count} out",
        )
    return target


def _load(entry: EntryPoint) -> Target:
    where = f"target {entry.name!r} ({entry.value})"
    try:
        loaded = entry.load()
        target = loaded if isinstance(loaded, Target) else loaded()
    except Exception as error:
        raise RegistrationError(f"{where} could not be loaded: {type(error).__name__}: {error}", _GUIDE) from error
    if not isinstance(target, Target):
        raise RegistrationError(f"{where} is of type {type(target).__name__}, not a Target", _GUIDE)
    if lacking := [f"{name} ({what})" for name, what in _WANTED.items() if not hasattr(target, name)]:
        raise RegistrationError(f"{where} has no {', no '.join(lacking)}", _GUIDE)
    if target.name != entry.name:
        raise RegistrationError(
            f"{where} calls itself {target.name!r}: modules of it would name a target that is not found",
            f"give it the entry point's name, name = {entry.name!r}",
        )
    return target


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
# A name without a number is a kind of device: this machine decides which.
_GRAPHICS = frozenset({"cuda", "gpu", "nvidia"})
_PI = re.compile(r"(?:rpi|pi|raspberrypi)([245])(?:b|modelb)?(32|32bit)?")


def resolved(name: str, known: Collection[str]) -> str:
    """The canonical name of a target; the name itself (lower case, with hyphens) if it is not an alias. Raises
    TargetError if it refers to this machine's GPU, and there is none that has a target."""
    normalized = re.sub(r"[\s_]+", "-", name.strip().lower())
    if normalized in known:
        return normalized
    if normalized in _GRAPHICS:
        return _graphics_processor(normalized)
    if normalized in _ALIASES:
        return _ALIASES[normalized]
    plain = _plain(normalized)
    pi = _PI.fullmatch(plain)
    if pi is not None:
        wide = f"raspberry-pi-{pi[1]}"
        return f"{wide}-32bit" if pi[2] and f"{wide}-32bit" in known else wide
    same = [each for each in known if _plain(each) == plain]
    return same[0] if len(same) == 1 else normalized


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name)


def _graphics_processor(alias: str) -> str:
    """The preset for the first GPU of this machine: for its compute capability, or the next lower one."""
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
            f"target {alias!r} means the NVIDIA GPU of this machine, and none was found",
            f"name the one to build for: {names}; or cuda-simulated, which needs none",
        )
    fitting = {name: value for name, value in capabilities.items() if value <= present[0]}
    if not fitting:
        raise TargetError(f"the GPU of this machine (sm_{present[0]}) is older than all of: {names}")
    return max(fitting, key=lambda name: fitting[name])
