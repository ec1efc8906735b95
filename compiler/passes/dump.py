"""Writing the module after each pass, as TVMScript that can be read back."""

from __future__ import annotations

from pathlib import Path

from tvm.ir import IRModule

from compiler.errors import StorageError
from compiler.passes.memory.lift_parameters import lift_constants
from compiler.passes.registry import GraphPass
from compiler.passes.rewriting.constant_pool import ConstantPool

_HEADER = """\
# Module after pass {name!r} of phase {phase!r}.
# Constants with dimensions are elided: they are trailing parameters of main, parameter_N by content,
# and the same N is the same constant in every file of this folder.
"""


class ModuleDump:
    """A folder with one numbered file for each pass that changed the module; 00 is the module as it came in.

    Raises:
        StorageError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, mod: IRModule) -> None:
        self._folder = folder
        self._count = 0
        self._pool = ConstantPool()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the dump folder {folder}: {error.strerror}") from error
        self._write("import", "import", mod)

    def after_pass(self, phase: str, _position: int, each: GraphPass, mod: IRModule) -> None:
        """Write `mod`."""
        self._write(phase, each.name, mod)

    def after_phase(self) -> None:
        """Nothing to do: each pass has been written."""

    def _write(self, phase: str, name: str, mod: IRModule) -> None:
        path = self._folder / f"{self._count:02d}-{phase}-{name.replace('/', '-')}.py"
        self._count += 1
        lifted, _ = lift_constants(mod, self._pool)
        text = _HEADER.format(name=name, phase=phase) + importable(lifted.script(show_meta=True))
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error


def importable(script: str) -> str:
    """TVMScript as a Python module: the printer leaves the imports as comments."""
    lines = script.splitlines(keepends=True)
    return "".join(line.removeprefix("# ") if line.startswith("# from ") else line for line in lines)
