"""Machine code out of a lowered module: TVM generates objects, the target's toolchain links them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import tvm
from tvm import relax

import targets
from compiler.codegen.equal_kernels import alias_object, distinct_kernels
from compiler.codegen.kernel_lowering import PIPELINE
from compiler.codegen.parallel_build import build_objects, own_options, worth_parts
from compiler.codegen.shared_kernels import share_kernels
from compiler.errors import CompilationError, StorageError
from compiler.support.compile_lock import one_at_a_time
from schedules.ir.stages import kernels_of
from schedules.ir.tvm_private import generate_bytecode, link_bytecode

if TYPE_CHECKING:
    from schedules.ir.tvm_types import RuntimeModule

# Free space required before TVM writes objects: LLVM aborts the process when the disk is full.
# Objects and library took 12 to 16 KiB per kernel in networks of static shapes (mobilenet_v3_large, resnet18); kernels
# with dynamic shapes are larger.
_ROOM = 1 << 20
_ROOM_OF_A_KERNEL = 128 << 10


@one_at_a_time
def build_library(mod: tvm.IRModule, target: targets.Target) -> bytes:
    """Build a lowered module into a shared library that holds a Relax VM executable.

    Raises:
        CompilationError: TVM could not generate code; carries its message.
        StorageError: the temporary folder is full or not writable.
        targets.TargetError: no linker, or it failed.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as name:
            folder = Path(name)
            _check_room(folder, len(list(kernels_of(mod))))
            try:
                executable, objects = _generated(mod, target, folder)
            except Exception as error:  # TVM raises whatever its passes raise
                raise CompilationError(
                    f"code generation for target {target.name!r} failed: {error}", "this is a defect; please report it"
                ) from error
            path = folder / "model.so"
            target.export_library(executable, path, objects)
            return path.read_bytes()
    except OSError as error:
        raise StorageError(f"the library could not be written: {error}", "free space in TMPDIR") from error


def _check_room(folder: Path, kernels: int) -> None:
    """Raises StorageError where a folder has no room for a library of so many kernels."""
    disk = os.statvfs(folder)
    free, needed = disk.f_bavail * disk.f_frsize, _ROOM + kernels * _ROOM_OF_A_KERNEL
    if free < needed:
        raise StorageError(
            f"{folder.parent} has {free / 2**20:.1f} MiB free, and building may take {needed / 2**20:.1f}",
            "free some space, or set TMPDIR to a folder on another disk",
        )


def _generated(mod: tvm.IRModule, target: targets.Target, folder: Path) -> tuple[RuntimeModule, list[Path]]:
    """The executable, and objects of kernels to link to it."""
    engine_target = target.tvm_target()
    kernels = list(kernels_of(mod))
    in_parts = worth_parts(kernels) or any(own_options(kernel) for _, kernel in kernels)
    if not target.builds_in_parts or not in_parts:
        with engine_target:
            return relax.build(mod, engine_target, relax_pipeline=None, tir_pipeline=PIPELINE), []
    # As `relax.build` does, except that the kernels are built separately.
    builder = relax.ExecBuilder()
    generate_bytecode(builder, mod)
    distinct, aliases = distinct_kernels(kernels)
    built, calls = share_kernels(distinct)
    objects = build_objects(built, mod.attrs, engine_target, folder)
    if aliases or calls:
        objects.append(alias_object(aliases, calls, engine_target, PIPELINE, folder / "aliases.o"))
    return link_bytecode(builder, engine_target), objects
