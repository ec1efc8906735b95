"""Toolchains for other architectures: Debian's cross compilers, and QEMU's user mode to run what they make."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from targets.errors import ToolchainMissing
from targets.toolchain import Compiler, Linker, install_line

Architecture = Literal["x86_64", "aarch64", "armv7", "riscv64"]
EMULATOR_FOLDER = "TENSORWRIGHT_QEMU"
"""Environment variable: a folder whose `qemu-*` programs are used in place of those on the PATH."""


@dataclass(frozen=True)
class CrossToolchain:
    """Programs that build for an architecture on another one.

    Attributes:
        prefix: GNU triplet that the programs' names start with; also the folder of libraries under /usr.
        qemu: QEMU's name of the architecture.
        emulator_options: what QEMU needs to offer the processor's extensions.
    """

    architecture: Architecture
    prefix: str
    qemu: str
    emulator_options: tuple[str, ...] = ()

    def linker(self) -> Linker:
        """The cross linker. Raises ToolchainMissing with the line that installs it."""
        return Linker((self._program("g++"),))

    def compiler(self) -> Compiler:
        """The cross compiler of C++. Raises ToolchainMissing with the line that installs it."""
        return Compiler((self._program("g++"),))

    def program(self, name: str) -> str:
        """One of the toolchain's binary utilities ("objdump", "strip"). Raises ToolchainMissing."""
        return self._program(name)

    def emulator(self) -> tuple[str, ...]:
        """The command in front of a program of this architecture that runs it here. Raises ToolchainMissing."""
        program = f"qemu-{self.qemu}"
        folder = os.environ.get(EMULATOR_FOLDER)
        found = shutil.which(program, path=folder) if folder else shutil.which(program)
        if found is None:
            where = f"in {folder} ({EMULATOR_FOLDER})" if folder else "on the PATH"
            raise ToolchainMissing(
                f"{program}, which runs {self.architecture} programs here, is not {where}",
                install_line("qemu-user", {"dnf": "qemu-user", "pacman": "qemu-user", "apk": f"qemu-{self.qemu}"}),
            )
        libraries = Path("/usr") / self.prefix
        return (found, *self.emulator_options, "-L", str(libraries))

    def _program(self, name: str) -> str:
        program = f"{self.prefix}-{name}"
        if shutil.which(program) is None:
            package = f"g++-{self.prefix}"
            raise ToolchainMissing(
                f"{program}, which builds for {self.architecture}, is not on the PATH",
                install_line(package, {"dnf": f"gcc-c++-{self.prefix}", "pacman": f"{self.prefix}-gcc"}),
            )
        return program
