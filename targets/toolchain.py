"""Finds a program that links shared libraries, and runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from targets.errors import LinkError, ToolchainMissing

OVERRIDE = "TENSORWRIGHT_LINKER"
_TIMEOUT_SECONDS = 120

# Drivers first: they know the system's paths. A bare linker is enough for a library that leaves symbols to
# the loader.
_CANDIDATES: tuple[tuple[str, ...], ...] = (
    ("cc",),
    ("gcc",),
    ("g++",),
    ("clang",),
    ("clang++",),
    ("zig", "cc"),
    ("ld.lld",),
    ("ld",),
)
_PACKAGE_MANAGERS = (
    ("apt-get", "sudo apt-get install -y gcc"),
    ("dnf", "sudo dnf install -y gcc"),
    ("apk", "sudo apk add gcc musl-dev"),
    ("pacman", "sudo pacman -S --noconfirm gcc"),
    ("zypper", "sudo zypper install -y gcc"),
    ("brew", "xcode-select --install"),
)


@dataclass(frozen=True)
class Linker:
    """A command that makes a shared library out of object files."""

    command: tuple[str, ...]

    def link(self, output: Path, objects: Sequence[str | Path], options: Sequence[str] = ()) -> None:
        """Write the shared library `output`. Raises LinkError with the program's own words."""
        # -s: without debug information, which is 30 to 45 % of a small library.
        arguments = [*self.command, "-shared", "-s", "-o", str(output), *map(str, objects), *options]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise LinkError(f"{self.command[0]} did not finish in {_TIMEOUT_SECONDS} s") from error
        except OSError as error:
            raise LinkError(f"{self.command[0]} could not be started: {error}") from error
        if done.returncode != 0:
            tail = (done.stderr or done.stdout).strip()[-2000:]
            raise LinkError(
                f"{' '.join(self.command)} failed with exit code {done.returncode}:\n{tail}",
                f"check the free space and the linker, or set {OVERRIDE} to another one",
            )


def install_line() -> str:
    """The line that installs a compiler on this system."""
    for program, line in _PACKAGE_MANAGERS:
        if shutil.which(program):
            return line
    return "pip install ziglang && export TENSORWRIGHT_LINKER='python -m ziglang cc'"


def find_linker(candidates: Sequence[Sequence[str]] = _CANDIDATES) -> Linker:
    """The linker named by TENSORWRIGHT_LINKER, or the first candidate on the PATH.

    Raises ToolchainMissing with the line that installs one.
    """
    override = os.environ.get(OVERRIDE)
    if override:
        command = tuple(override.split())
        if shutil.which(command[0]) is None:
            raise ToolchainMissing(
                f"{OVERRIDE} is {override!r}, but {command[0]!r} is not on the PATH",
                f"correct or unset {OVERRIDE}",
            )
        return Linker(command)
    for candidate in candidates:
        if shutil.which(candidate[0]) is not None:
            return Linker(tuple(candidate))
    tried = ", ".join(candidate[0] for candidate in candidates)
    raise ToolchainMissing(f"no linker found (tried {tried})", f"install one: {install_line()}")
