"""Compiling C++ for a target."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compiler.runtime.engine import tvm_ffi
from targets import Target


def include_folders() -> tuple[Path, ...]:
    """The headers that the programs need: those of the engine's foreign function interface, and DLPack's."""
    return Path(tvm_ffi.libinfo.find_include_path()), Path(tvm_ffi.libinfo.find_dlpack_include_path())


def include_options(folders: Sequence[Path]) -> list[str]:
    """As system headers, whose warnings are not ours."""
    return [part for folder in folders for part in ("-isystem", str(folder))]


def compile_objects(target: Target, sources: Sequence[Path], options: Sequence[str], folder: Path) -> list[Path]:
    """Object files of C++ sources, in their order; two are compiled at a time.

    Raises:
        targets.TargetError: no compiler for the target, or it failed.
    """
    compiler = target.compiler()

    def one(source: Path) -> Path:
        made = folder / f"{source.parent.name}_{source.stem}.o"
        compiler.run([*options, "-c", source, "-o", made])
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sources))
