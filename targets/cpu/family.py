"""The common part of processor families whose code LLVM generates and a GNU toolchain links.

Toolchains are Debian's cross compilers, with QEMU's user mode to run their programs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from schedules.machine import Machine
from targets.cpu.llvm import LlvmTarget, memory_rate, most_cores
from targets.errors import ToolchainMissing
from targets.processors import usable_cores
from targets.toolchain import Compiler, Linker, find_compiler, find_linker, install_line


@dataclass(frozen=True)
class CpuFamily:
    """Common properties of all processors of an architecture.

    Attributes:
        triple: LLVM's name of the platform.
        toolchain: how to build for it on other machines, and run the result there.
        codegen_features: LLVM features that decide which instructions may appear in a kernel.
        options: additional options of TVM's target (an ABI).
    """

    triple: str
    toolchain: CrossToolchain
    codegen_features: frozenset[str]
    options: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CpuTarget(LlvmTarget):
    """A processor of a family."""

    family: CpuFamily

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

    def tvm_options(self) -> dict[str, object]:
        return {**super().tvm_options(), **self.family.options}


@cache
def load_presets(path: Path) -> dict[str, dict[str, Any]]:
    """The processors of a presets file, by name: description, mcpu, features, without, machine."""
    data: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return data


def preset(name: str, entry: Mapping[str, Any], family: CpuFamily, cores: int | None) -> CpuTarget:
    """A target from an entry of a presets file.

    `features` are those that kernels may use, enabled explicitly if `mcpu` does not imply them; `without` are implied
    ones that are disabled. The number of cores is the preset's own unless `cores` is given.
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
        entry["mcpu"],
        tuple(sorted(features)),
        signed,
        most_cores=most_cores(entry),
        family=family,
    )


def signed_features(on: Sequence[str], off: Sequence[str]) -> tuple[str, ...]:
    """Features in LLVM's notation: "+dotprod", "-sve"."""
    return (*(f"+{feature}" for feature in on), *(f"-{feature}" for feature in off))


@cache
def llvm_features(triple: str, mcpu: str, attributes: tuple[str, ...] = ()) -> frozenset[str]:
    """The features that LLVM enables for a processor model and signed features."""
    from schedules.ir import tvm_private

    options: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": mcpu}
    if attributes:
        options["mattr"] = list(attributes)
    return tvm_private.llvm_features(options)


Architecture = Literal["x86_64", "aarch64", "armv7", "riscv64"]
EMULATOR_FOLDER = "TENSORWRIGHT_QEMU"
"""Environment variable: a folder whose `qemu-*` programs are used instead of those on the PATH."""


@dataclass(frozen=True)
class CrossToolchain:
    """Programs that build for another architecture.

    Attributes:
        prefix: GNU triplet that the programs' names start with; also the folder of libraries under /usr.
        qemu: QEMU's name of the architecture.
        emulator_options: options that make QEMU provide the processor's extensions.
    """

    architecture: Architecture
    prefix: str
    qemu: str
    emulator_options: tuple[str, ...] = ()

    def linker(self) -> Linker:
        """The cross linker. Raises ToolchainMissing with the line that installs it."""
        return Linker((self._program("g++"),))

    def compiler(self) -> Compiler:
        """The C++ cross compiler. Raises ToolchainMissing with the line that installs it."""
        return Compiler((self._program("g++"),))

    def program(self, name: str) -> str:
        """One of the toolchain's binary utilities ("objdump", "strip"). Raises ToolchainMissing."""
        return self._program(name)

    def emulator(self) -> tuple[str, ...]:
        """The command prefix that runs a program of this architecture here. Raises ToolchainMissing."""
        program = f"qemu-{self.qemu}"
        folder = os.environ.get(EMULATOR_FOLDER)
        path = shutil.which(program, path=folder) if folder else shutil.which(program)
        if path is None:
            where = f"in {folder} ({EMULATOR_FOLDER})" if folder else "on the PATH"
            raise ToolchainMissing(
                f"{program}, which runs {self.architecture} programs here, is not {where}",
                install_line("qemu-user", {"dnf": "qemu-user", "pacman": "qemu-user", "apk": f"qemu-{self.qemu}"}),
            )
        libraries = Path("/usr") / self.prefix
        return (path, *self.emulator_options, "-L", str(libraries))

    def _program(self, name: str) -> str:
        program = f"{self.prefix}-{name}"
        if shutil.which(program) is None:
            package = f"g++-{self.prefix}"
            raise ToolchainMissing(
                f"{program}, which builds for {self.architecture}, is not on the PATH",
                install_line(package, {"dnf": f"gcc-c++-{self.prefix}", "pacman": f"{self.prefix}-gcc"}),
            )
        return program
