"""Compiling C++ for a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compiler.runtime.tvm_runtime import tvm_ffi
from targets import Target


def include_folders() -> tuple[Path, ...]:
    """The headers that the programs need: those of TVM's foreign function interface, and DLPack's."""
    return Path(tvm_ffi.libinfo.find_include_path()), Path(tvm_ffi.libinfo.find_dlpack_include_path())


def include_options(folders: Sequence[Path]) -> list[str]:
    """Options that add them as system headers, for which warnings are suppressed."""
    return [part for folder in folders for part in ("-isystem", str(folder))]


def compile_objects(
    target: Target, groups: Mapping[str, Sequence[Path]], options: Sequence[str], folder: Path
) -> list[Path]:
    """Object files in a folder, in the order of their names in `groups`, each of several C++ sources; two are compiled
    at a time. Sources are compiled together because most of the work is in the headers that they share.

    Raises:
        targets.TargetError: no compiler for the target, or it failed.
    """
    compiler = target.compiler()

    def one(name: str) -> Path:
        together, made = folder / f"{name}.cc", folder / f"{name}.o"
        together.write_text("".join(f'#include "{source}"\n' for source in groups[name]), encoding="utf-8")
        compiler.run([*options, "-c", together, "-o", made])
        together.unlink()
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, groups))
