"""TVM's runtime library, loaded without its compiler and without its Python package.

`tvm_ffi` and `libtvm_runtime.so` are all that a compiled module needs. The compiler library links to the same
`libtvm_runtime.so`, so `import tvm` may come before or after.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import MissingDependencyError
from schedules.ir.without_torch import torch_hidden

if TYPE_CHECKING:
    from schedules.ir.tvm_types import PackedFunc

with torch_hidden():
    import tvm_ffi

__all__ = ["global_function", "runtime_library", "runtime_version", "tvm_ffi"]

LIBRARY_VARIABLE = "TENSORWRIGHT_RUNTIME_LIBRARY"
"""Environment variable: path of `libtvm_runtime.so` if there is no `tvm` package, as on a small device."""


_DISTRIBUTION = "apache_tvm"


@cache
def _package_folders() -> tuple[Path, ...]:
    """Folders of the package tvm, if it is installed."""
    # find_spec of a top-level package does not import it.
    spec = importlib.util.find_spec("tvm")
    return tuple(map(Path, spec.submodule_search_locations or ())) if spec else ()


def runtime_library_path() -> Path:
    """Path of libtvm_runtime.so. Raises MissingDependencyError."""
    if chosen := os.environ.get(LIBRARY_VARIABLE):
        return Path(chosen)
    for folder in _package_folders():
        path = folder / "lib" / "libtvm_runtime.so"
        if path.is_file():
            return path
    raise MissingDependencyError(
        "libtvm_runtime.so was not found: there is no tvm package",
        f"pip install apache-tvm, or set {LIBRARY_VARIABLE} to the library's path",
    )


@cache
def runtime_library() -> ctypes.CDLL:
    """Load TVM's runtime (once); the library's handle. Raises MissingDependencyError if it is not installed or cannot
    be loaded."""
    path = runtime_library_path()
    try:
        # Global: a compiled module's symbols are resolved against it.
        return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MissingDependencyError(f"{path} could not be loaded: {error}", "reinstall apache-tvm") from error


@cache
def global_function(name: str) -> PackedFunc:
    """Look a TVM function up by its global name; loads the runtime."""
    runtime_library()
    return tvm_ffi.get_global_func(name)


@cache
def runtime_version() -> str | None:
    """The version of the installed TVM, or None if only its library is installed."""
    beside = [each for folder in _package_folders() for each in folder.parent.glob(f"{_DISTRIBUTION}-*.dist-info")]
    if len(beside) == 1:
        return beside[0].name.removesuffix(".dist-info").partition("-")[2]
    import importlib.metadata  # importing it takes longer than loading a small model

    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
