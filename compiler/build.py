"""Machine code out of a lowered module: the engine generates objects, the target's toolchain links them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tvm
from tvm import relax

import targets
from compiler.errors import CompilationError, StorageError
from compiler.kernel_lowering import PIPELINE


def build_library(mod: tvm.IRModule, target: targets.Target) -> bytes:
    """Build a lowered module into a shared library that holds a Relax VM executable.

    Raises:
        CompilationError: the engine could not generate code; carries its message.
        StorageError: the temporary folder is full or not writable.
        targets.TargetError: no linker, or it failed.
    """
    engine_target = target.tvm_target()
    try:
        with engine_target:
            executable = relax.build(mod, engine_target, relax_pipeline=None, tir_pipeline=PIPELINE)
    except Exception as error:  # the engine raises whatever its passes raise
        raise CompilationError(
            f"code generation for target {target.name!r} failed: {error}", "this is a defect; please report it"
        ) from error
    try:
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
            path = Path(folder) / "model.so"
            target.export_library(executable, path)
            return path.read_bytes()
    except OSError as error:
        raise StorageError(f"the library could not be written: {error}", "free space in TMPDIR") from error
