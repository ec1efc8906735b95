"""A machine without Python, with a GPU that is a stand-in: programs run in a bare root folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from targets.toolchain import Compiler
from tests.targets import cuda_stand_in as stand_in

_PATH = f"{os.defpath}:/usr/sbin:/sbin"
_SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0")


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine with the stand-in for a GPU: its root folder, which holds what programs need of the
    system, and nothing else.

    Attributes:
        isolated: programs see nothing but the root folder; False where this system does not let us.
    """

    root: Path
    isolated: bool

    def run(self, program: str, *arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
        """A program of the root folder; `settings` are the stand-in's."""
        environment = self.environment(**settings)
        whole = [*self.prefix, self.path(program), *map(str, arguments)]
        return subprocess.run(whole, capture_output=True, text=True, timeout=600, env=environment, cwd=self.root)

    def environment(self, **settings: object) -> dict[str, str]:
        """A program's whole environment."""
        found = {f"STAND_IN_{name}": str(value) for name, value in settings.items()}
        found |= {"STAND_IN_KERNELS": self.path("kernels"), "PATH": _PATH}
        return found if self.isolated else {**found, "LD_LIBRARY_PATH": str(self.root / "lib")}

    def add_kernels(self, library: bytes, compiler: Compiler) -> None:
        """Give the stand-in the kernels of a library to run."""
        stand_in.add_kernels(library, compiler, self.root / "kernels")

    @property
    def prefix(self) -> list[str]:
        """Arguments that start a program in the root folder; empty where the system does not allow it."""
        return [*_isolation(self.root)] if self.isolated else []

    def path(self, name: str) -> str:
        return f"/{name}" if self.isolated else str(self.root / name)


def _isolation(root: Path) -> list[str]:
    # The module's code is loaded from /proc/self/fd.
    script = 'mount --rbind /proc "$0/proc" && root="$0" && exec chroot "$root" "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(root)]


def make_machine(root: Path, compiler: Compiler, libraries: Path) -> Machine:
    """A machine of a root folder. `libraries` is the folder in it where programs have NVIDIA's runtime, which the
    stand-in takes the place of."""
    for folder in ("proc", "tmp", "lib", "lib64", "kernels"):
        (root / folder).mkdir()
    stand_in.build_libraries(compiler, root / "lib")
    shutil.copytree(root / "lib", root / "python")
    (root / "lib" / stand_in.RUNTIME).replace(libraries / stand_in.RUNTIME)
    for name in _SYSTEM:
        shutil.copy(Path("/lib/x86_64-linux-gnu") / name, root / "lib")
    shutil.copy("/lib64/ld-linux-x86-64.so.2", root / "lib64")
    # Whether the system lets us: the loader says its version.
    tried = subprocess.run([*_isolation(root), "/lib64/ld-linux-x86-64.so.2", "--version"], capture_output=True)
    return Machine(root, tried.returncode == 0)


@contextmanager
def moved_away(path: Path) -> Iterator[None]:
    """A file that is not there for a while."""
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)
