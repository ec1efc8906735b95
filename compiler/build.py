"""Machine code out of a lowered module: the engine generates objects, the target's toolchain links them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.relax import vm_build

import targets
from compiler.errors import CompilationError, StorageError
from compiler.kernel_lowering import PIPELINE
from compiler.one_at_a_time import one_at_a_time
from compiler.parallel_build import build_objects, worth_parts
from schedules.kernel import kernels_of


@one_at_a_time
def build_library(mod: tvm.IRModule, target: targets.Target) -> bytes:
    """Build a lowered module into a shared library that holds a Relax VM executable.

    Raises:
        CompilationError: the engine could not generate code; carries its message.
        StorageError: the temporary folder is full or not writable.
        targets.TargetError: no linker, or it failed.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as name:
            folder = Path(name)
            try:
                executable, objects = _generated(mod, target, folder)
            except Exception as error:  # the engine raises whatever its passes raise
                raise CompilationError(
                    f"code generation for target {target.name!r} failed: {error}", "this is a defect; please report it"
                ) from error
            path = folder / "model.so"
            target.export_library(executable, path, objects)
            return path.read_bytes()
    except OSError as error:
        raise StorageError(f"the library could not be written: {error}", "free space in TMPDIR") from error


def _generated(mod: tvm.IRModule, target: targets.Target, folder: Path) -> tuple[Any, list[Path]]:
    """The executable, and objects of kernels to link to it."""
    engine_target = target.tvm_target()
    kernels = list(kernels_of(mod))
    if not target.builds_in_parts or not worth_parts(kernels):
        with engine_target:
            return relax.build(mod, engine_target, relax_pipeline=None, tir_pipeline=PIPELINE), []
    # What `relax.build` does; the kernels go another way.
    builder = relax.ExecBuilder()
    vm_build._vmcodegen(builder, mod)
    objects = build_objects(kernels, mod.attrs, engine_target, folder)
    return vm_build._vmlink(builder, engine_target), objects
