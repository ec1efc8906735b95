"""The common part of processor families whose code LLVM generates and a GNU toolchain links."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from schedules.machine import Machine
from targets.cpu.cross import CrossToolchain
from targets.cpu.llvm import LlvmTarget
from targets.cpu.sockets import memory_rate, most_cores
from targets.processors import usable_cores
from targets.toolchain import Compiler, Linker, find_compiler, find_linker


@dataclass(frozen=True)
class CpuFamily:
    """Common properties of all processors of an architecture.

    Attributes:
        triple: LLVM's name of the platform.
        toolchain: how to build for it elsewhere, and run it there.
        codegen_features: LLVM's features that decide which instructions may appear in a kernel.
        options: further options of TVM's target (an ABI).
    """

    triple: str
    toolchain: CrossToolchain
    codegen_features: frozenset[str]
    options: Mapping[str, str]


@dataclass(frozen=True)
class CpuTarget(LlvmTarget):
    """A processor of a family."""

    name: str
    description: str
    machine: Machine
    family: CpuFamily
    mcpu: str
    features: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    most_cores: int | None = None

    @property
    def triple(self) -> str:
        return self.family.triple

    def linker(self) -> Linker:
        return self.family.toolchain.linker() if self.is_cross else find_linker()

    def compiler(self) -> Compiler:
        return self.family.toolchain.compiler() if self.is_cross else find_compiler()

    def binary_utility(self, name: str) -> str:
        return self.family.toolchain.program(name) if self.is_cross else super().binary_utility(name)

    def emulator(self) -> tuple[str, ...]:
        return self.family.toolchain.emulator() if self.is_cross else super().emulator()

    def engine_options(self) -> dict[str, object]:
        return {**super().engine_options(), **self.family.options}


@cache
def load_presets(path: Path) -> dict[str, dict[str, Any]]:
    """The processors of a presets file, by name: description, mcpu, features, without, machine."""
    data: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return data


def preset(name: str, entry: Mapping[str, Any], family: CpuFamily, cores: int | None) -> CpuTarget:
    """A target out of an entry of a presets file.

    `features` are those that kernels may use, turned on explicitly where `mcpu` does not imply them; `without` are
    implied ones that are turned off. The cores are the preset's own unless the caller says otherwise.
    """
    features = frozenset(entry["features"])
    cores = cores or entry["machine"].get("cores") or usable_cores()
    described = {**entry["machine"], **memory_rate(entry, cores), "cores": cores}
    machine = Machine(architecture=family.toolchain.architecture, features=features, **described)
    signed = signed_features(entry.get("with", ()), entry.get("without", ()))
    return CpuTarget(
        name,
        entry["description"],
        machine,
        family,
        entry["mcpu"],
        tuple(sorted(features)),
        signed,
        most_cores=most_cores(entry),
    )


def signed_features(on: Sequence[str], off: Sequence[str]) -> tuple[str, ...]:
    """Features as LLVM takes them: "+dotprod", "-sve"."""
    return (*(f"+{feature}" for feature in on), *(f"-{feature}" for feature in off))


@cache
def llvm_features(triple: str, mcpu: str, attributes: tuple[str, ...] = ()) -> frozenset[str]:
    """The features that LLVM turns on for a processor model and signed features."""
    from schedules.ir import tvm_private

    options: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": mcpu}
    if attributes:
        options["mattr"] = list(attributes)
    return tvm_private.llvm_features(options)
