"""Loads the thread pool for parallel regions (`compiler/device/cpp/thread_pool.c`) and registers it with TVM."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

from compiler.errors import InternalError, MissingDependencyError
from compiler.runtime.tvm_runtime import global_function, runtime_library

_PACKAGED = Path(__file__).with_name("libtensorwright_threads.so")


@cache
def set_threads() -> Callable[[int], int]:
    """The function that sets how many threads parallel regions of the calling thread use, 0: those of TVM's own pool.

    It returns how many there are, fewer where the system starts no more. Modules that are loaded after the first call
    of this run in the pool.

    Raises:
        MissingDependencyError: the library could not be loaded.
        targets.TargetError, StorageError: this is a checkout, and the library could not be compiled.
    """
    runtime_library()  # provides the TVM functions that the pool calls
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingDependencyError(f"{path} could not be loaded: {error}", "reinstall tensorwright") from error
    if library.tensorwright_pool_register() != 0:
        raise InternalError("TVM did not take the thread pool")
    return global_function("tensorwright.set_threads")  # may come from another library of this process


def library_path() -> Path:
    """Path of the pool's library; compiled on first use in a source checkout. Raises as `set_threads`."""
    if _PACKAGED.is_file():
        return _PACKAGED
    from compiler.support.pool_library import cached_pool

    return cached_pool()
