"""Finds a program that links shared libraries, and runs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.errors import LinkError, ToolchainMissing

OVERRIDE = "TENSORWRIGHT_LINKER"
_TIMEOUT_SECONDS = 120

# Drivers first: they know the system's paths. A bare linker is enough for a library whose symbols the loader resolves.
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
_C_COMPILERS: tuple[tuple[str, ...], ...] = (("cc",), ("gcc",), ("clang",), ("zig", "cc"))
_COMPILERS: tuple[tuple[str, ...], ...] = (("c++",), ("g++",), ("clang++",), ("zig", "c++"))
_INSTALL_COMMANDS = {
    "apt-get": "sudo apt-get install -y",
    "dnf": "sudo dnf install -y",
    "apk": "sudo apk add",
    "pacman": "sudo pacman -S --noconfirm",
    "zypper": "sudo zypper install -y",
}


@dataclass(frozen=True)
class Linker:
    """A command that links object files to a shared library."""

    command: tuple[str, ...]

    def link(self, output: Path, objects: Sequence[str | Path], options: Sequence[str] = ()) -> None:
        """Write the shared library `output`. Raises LinkError with the program's output."""
        # -s: without debug information, which is 30 to 45 % of a small library.
        arguments = [*self.command, "-shared", "-s", "-o", str(output), *map(str, objects), *options]
        _run(arguments, _TIMEOUT_SECONDS)


@dataclass(frozen=True)
class Compiler:
    """A command that compiles C or C++ and links programs."""

    command: tuple[str, ...]

    def run(self, arguments: Sequence[str | Path], *, timeout_seconds: int = 900) -> None:
        """Run it. Raises LinkError with the program's output."""
        _run([*self.command, *map(str, arguments)], timeout_seconds)

    def version(self) -> str:
        """The first line of its version output; part of the cache key of its outputs."""
        done = subprocess.run([*self.command, "--version"], capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.partition("\n")[0]


def limited(command: Sequence[str], seconds: int) -> list[str]:
    """The command, stopped after this many seconds of processor time, however busy the machine is; see `ran_over`."""
    return ["sh", "-c", f'ulimit -t {seconds}; exec "$0" "$@"', *command]


def ran_over(code: int) -> bool:
    """True if a `limited` command was stopped by its limit, given `subprocess`'s exit code."""
    return code in (-signal.SIGXCPU, -signal.SIGKILL)


def _run(arguments: Sequence[str], timeout_seconds: int) -> None:
    try:
        code, output = _finished(arguments, timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise LinkError(f"{arguments[0]} did not finish in {timeout_seconds} s") from error
    except OSError as error:
        raise LinkError(f"{arguments[0]} could not be started: {error}") from error
    if code != 0:
        raise LinkError(
            f"{arguments[0]} failed with exit code {code}:\n{output.strip()[-2000:]}",
            f"check the free space and the toolchain, or set {OVERRIDE} to another linker",
        )


def _finished(arguments: Sequence[str], timeout_seconds: int) -> tuple[int, str]:
    """Exit code and output of a program. On an interrupt, it is ended with all processes that it started, and its
    temporary files are removed."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        environment = {**os.environ, "TMPDIR": folder}
        with subprocess.Popen(arguments, **pipes, text=True, env=environment, start_new_session=True) as process:
            try:
                output, _ = process.communicate(timeout=timeout_seconds)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
    return process.returncode, output


def install_line(package: str, other_names: Mapping[str, str] | None = None) -> str:
    """The command that installs a package on this system.

    Args:
        package: its Debian name.
        other_names: its names by package manager ("dnf", "apk", ...) if they differ.
    """
    for program, command in _INSTALL_COMMANDS.items():
        if shutil.which(program):
            return f"{command} {(other_names or {}).get(program, package)}"
    if shutil.which("brew"):
        return "xcode-select --install" if package == "gcc" else f"brew install {package}"
    return f"install {package} with the system's package manager"


def _gcc_line() -> str:
    if any(shutil.which(program) for program in (*_INSTALL_COMMANDS, "brew")):
        return install_line("gcc", {"apk": "gcc musl-dev"})
    return f"pip install ziglang && export {OVERRIDE}='python -m ziglang cc'"


def find_compiler() -> Compiler:
    """This machine's C++ compiler. Raises ToolchainMissing with the line that installs one."""
    return _compiler("C++", _COMPILERS, install_line("g++", {"dnf": "gcc-c++"}))


def find_c_compiler() -> Compiler:
    """This machine's C compiler. Raises ToolchainMissing with the line that installs one."""
    return _compiler("C", _C_COMPILERS, _gcc_line())


def _compiler(language: str, candidates: Sequence[tuple[str, ...]], install: str) -> Compiler:
    for candidate in candidates:
        if shutil.which(candidate[0]) is not None:
            return Compiler(candidate)
    tried = ", ".join(candidate[0] for candidate in candidates)
    raise ToolchainMissing(f"no {language} compiler found (tried {tried})", install)


def find_binary_utility(name: str) -> str:
    """One of GNU's binary utilities ("nm"). Raises ToolchainMissing with the line that installs them."""
    if shutil.which(name) is None:
        raise ToolchainMissing(f"{name} is not on the PATH", install_line("binutils"))
    return name


def find_linker(candidates: Sequence[Sequence[str]] = _CANDIDATES) -> Linker:
    """The linker named by TENSORWRIGHT_LINKER, or the first candidate on the PATH.

    Raises ToolchainMissing with the line that installs one.
    """
    override = os.environ.get(OVERRIDE)
    if override:
        command = tuple(override.split())
        if shutil.which(command[0]) is None:
            raise ToolchainMissing(
                f"{OVERRIDE} is {override!r}, but {command[0]!r} is not on the PATH", f"correct or unset {OVERRIDE}"
            )
        return Linker(command)
    for candidate in candidates:
        if shutil.which(candidate[0]) is not None:
            return Linker(tuple(candidate))
    tried = ", ".join(candidate[0] for candidate in candidates)
    raise ToolchainMissing(f"no linker found (tried {tried})", f"install one: {_gcc_line()}")
