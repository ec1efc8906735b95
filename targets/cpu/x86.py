"""x86-64 processors. The presets are data (`x86_presets.json`); `host` is this machine, detected.

`memory_rate` was measured with two cores on Zen 4 and Zen 5. For other models it is the bandwidth of a few cores on the
memory channels that the vendor states, some 0.7 of their peak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from schedules.machine import Machine
from targets import cpuinfo
from targets.cpu.family import load_presets
from targets.cpu.llvm import LlvmTarget, memory_rate, most_cores
from targets.errors import TargetError
from targets.processors import usable_cores
from targets.target import Target

_PRESETS_FILE = Path(__file__).with_name("x86_presets.json")
_TRIPLE = "x86_64-unknown-linux-gnu"

# Features that the code generator selects instructions by; others (sha, rdseed, ...) never appear in kernels unasked.
_CODEGEN_PREFIXES = ("sse", "ssse", "avx", "amx", "bmi")
_CODEGEN_FEATURES = frozenset({"fma", "f16c", "lzcnt", "movbe", "popcnt", "gfni", "cx16", "vpclmulqdq"})


class X86Target(LlvmTarget):
    """An x86-64 processor."""

    @property
    def triple(self) -> str:
        return _TRIPLE

    def tvm_options(self) -> dict[str, object]:
        options = super().tvm_options()
        if self.machine.vector_bits == 512:
            # Several AVX-512 models default to 256-bit vectors, from the days of large frequency drops.
            options["mattr"] = [*self.attributes, "-prefer-256-bit"]
        return options


def level_features(level: str) -> frozenset[str]:
    """The features of a micro-architecture level of the x86-64 psABI ("x86-64-v3"), lower levels included."""
    levels = load_presets(_PRESETS_FILE)["levels"]
    names = list(levels)
    if level not in levels:
        raise TargetError(f"unknown x86-64 level {level!r}")
    return frozenset(feature for name in names[: names.index(level) + 1] for feature in levels[name])


def _preset(name: str, cores: int | None) -> Target:
    entry = load_presets(_PRESETS_FILE)["processors"][name]
    features = _features_of(entry)
    simulated = load_presets(_PRESETS_FILE)["processors"][entry["simulates"]] if "simulates" in entry else None
    described = entry if simulated is None else simulated
    cores = cores or usable_cores()
    machine = Machine(
        architecture="x86_64",
        cores=cores,
        features=_features_of(described),
        executed_features=None if simulated is None else features,
        **_vector_unit(_features_of(described)),
        **{**described["machine"], **memory_rate(described, cores)},
    )
    return X86Target(
        name, entry["description"], machine, entry["mcpu"], tuple(sorted(features)), most_cores=most_cores(described)
    )


def _features_of(entry: Mapping[str, Any]) -> frozenset[str]:
    return level_features(entry["level"]) | frozenset(entry.get("features", ()))


def _vector_unit(features: frozenset[str]) -> dict[str, Any]:
    if "avx512f" in features:
        return {"vector_bits": 512, "vector_registers": 32}
    return {"vector_bits": 256 if "avx" in features else 128, "vector_registers": 16}


def _known(mcpu: str, features: frozenset[str], cores: int) -> dict[str, Any]:
    """Facts of a preset that the system does not report: the memory bandwidth and, if its vectors are as wide as this
    machine's, its multiply-add units and instruction rates.

    The preset is that of the same model or, if the processor has features that LLVM's model lacks (virtual machines
    misreport their model), the one with the most features among those with no features missing here.
    Memory bandwidth is not measured at compile time: on a shared machine every compilation would produce a different
    module.
    """
    entries = [each for each in load_presets(_PRESETS_FILE)["processors"].values() if "simulates" not in each]
    if features <= llvm_features(mcpu):
        preset = next((each for each in entries if each["mcpu"] == mcpu), None)
    else:
        fitting = [each for each in entries if _features_of(each) <= features]
        preset = max(fitting, key=lambda each: len(_features_of(each)), default=None)
    if preset is None:
        return {}
    as_wide = _vector_unit(_features_of(preset)) == _vector_unit(features)
    names = ("fma_ports", "fma_latency", "rates") if as_wide else ()
    known = {name: preset["machine"][name] for name in names if name in preset["machine"]}
    return {**known, **memory_rate(preset, cores)}


def presets() -> dict[str, Callable[[int | None], Target]]:
    """Named targets, as functions of the core count."""
    return {name: partial(_preset, name) for name in load_presets(_PRESETS_FILE)["processors"]}


def host(cores: int | None = None) -> Target:
    """This machine: LLVM's model name, corrected by the features that the operating system reports.

    Raises TargetError if this is not an x86-64 machine.
    """
    if cpuinfo.architecture() != "x86_64":
        raise TargetError(
            f"target 'host' does not support this machine's architecture ({cpuinfo.architecture()}) yet",
            "name a target",
        )
    mcpu, enabled = _llvm_host()
    features = frozenset(feature for feature in enabled if is_codegen_feature(feature))
    cores = cores or usable_cores()
    caches = cpuinfo.caches()
    defaults = Machine()
    machine = Machine(
        architecture="x86_64",
        cores=cores,
        features=features,
        l1_bytes=caches.l1 or defaults.l1_bytes,
        l2_bytes=caches.l2 or defaults.l2_bytes,
        l3_bytes=caches.l3 or defaults.l3_bytes,
        **_vector_unit(features),
        **_known(mcpu, features, cores),
    )
    count = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
    refused = "amx-tile" in cpuinfo.reported_features() and "amx-tile" not in features
    note = "; the system does not permit AMX, which the processor has" if refused else ""
    description = f"this machine: {cpuinfo.model_name()} ({mcpu}), {count}{note}"
    return X86Target("host", description, machine, mcpu, tuple(sorted(features)), _corrections(mcpu, features))


def is_codegen_feature(feature: str) -> bool:
    """True if the code generator may emit instructions of this feature in a kernel."""
    return feature in _CODEGEN_FEATURES or feature.startswith(_CODEGEN_PREFIXES)


@cache
def _llvm_host() -> tuple[str, frozenset[str]]:
    """LLVM's name for this processor, and the features that both LLVM and the operating system report."""
    from schedules.ir import tvm_private

    enabled, seen = tvm_private.llvm_host_features(), cpuinfo.features()
    return tvm_private.llvm_host_model(), enabled & seen if seen else enabled


def _corrections(mcpu: str, features: frozenset[str]) -> tuple[str, ...]:
    """Signed features that correct LLVM's model to the features of this (possibly virtual) machine."""
    implied = llvm_features(mcpu)
    missing = sorted(f"-{name}" for name in implied - features if is_codegen_feature(name))
    extra = sorted(f"+{name}" for name in features - implied)
    return tuple(extra + missing)


@cache
def llvm_features(mcpu: str) -> frozenset[str]:
    """The features that LLVM enables for a processor model."""
    from schedules.ir import tvm_private

    return tvm_private.llvm_features({"kind": "llvm", "mtriple": _TRIPLE, "mcpu": mcpu})
