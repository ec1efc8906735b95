"""Modules built without LLVM's optimizations, for tests of what comes before code generation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

import targets


def unoptimized_machine(mod: tvm.IRModule, *, own_processor: bool = False, **pipelines: Any) -> relax.VirtualMachine:
    """A virtual machine that runs a module: the same numbers as optimized code, sooner.

    The code goes through a shared library, since TVM's JIT compiler generates machine code with all optimizations
    whatever a target's `opt-level`.

    Args:
        own_processor: use all instructions of this machine.
        pipelines: `relax_pipeline` and `tir_pipeline` of `relax.build`.
    """
    options: dict[str, Any] = {"kind": "llvm", "opt-level": 0}
    if own_processor:
        options["mcpu"] = tvm.target.codegen.llvm_get_system_cpu()
    return relax.VirtualMachine(loaded(relax.build(mod, tvm.target.Target(options), **pipelines)), tvm.cpu())


def loaded(executable: Any) -> tvm.runtime.Module:
    """A built module or executable, written to a shared library and loaded from it."""
    with tempfile.TemporaryDirectory(prefix="tensorwright-test-") as folder:
        path = Path(folder) / "model.so"
        targets.get("host").export_library(executable, path)
        return tvm.runtime.load_module(str(path))
