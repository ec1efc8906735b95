"""The thread pool for parallel regions (`compiler/device/cpp/thread_pool.c`): compiles it, loads it and registers it
with TVM.

Wheels include the library (`setup.py` imports this file, so it must only need Python at the top). A checkout compiles
it on first use, into the user's cache.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

from compiler.errors import InternalError, MissingDependencyError
from compiler.support.cache import cached, key_of
from targets.toolchain import find_c_compiler

LIBRARY = "libtensorwright_threads.so"
SOURCE = Path(__file__).parents[1] / "device" / "cpp" / "thread_pool.c"
# It must stay loaded, since its threads do.
_OPTIONS = ("-x", "c", "-std=gnu11", "-O2", "-s", "-fPIC", "-shared", "-pthread", "-Wl,-z,nodelete")


def build_pool(folder: Path) -> None:
    """Compile the library into a folder. Raises targets.TargetError if there is no C compiler, or it failed."""
    find_c_compiler().run([*_OPTIONS, SOURCE, "-o", folder / LIBRARY])


def cached_pool() -> Path:
    """Path of the library in the cache; compiled on first use in a source checkout. Raises StorageError if the cache
    cannot be written, and targets.TargetError like `build_pool`."""
    sources = [SOURCE.read_bytes(), SOURCE.with_suffix(".h").read_bytes()]
    key = key_of([*sources, platform.machine().encode(), " ".join(_OPTIONS).encode()])
    return cached("thread-pool", key, build_pool) / LIBRARY


_PACKAGED = Path(__file__).with_name(LIBRARY)


@cache
def set_threads() -> Callable[[int], int]:
    """The function that sets the number of threads for parallel regions of the calling thread; 0: TVM's own pool.

    It returns the actual number, fewer if the system cannot start more. Modules loaded after the first call of this run
    in the pool.

    Raises:
        MissingDependencyError: the library could not be loaded.
        targets.TargetError, StorageError: this is a checkout, and the library could not be compiled.
    """
    from compiler.runtime.tvm_runtime import global_function, runtime_library

    runtime_library()  # provides the TVM functions that the pool calls
    if _library().tensorwright_pool_register() != 0:
        raise InternalError("TVM did not accept the thread pool")
    return global_function("tensorwright.set_threads")  # may come from another library of this process


@cache
def _library() -> ctypes.CDLL:
    path = library_path()
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingDependencyError(f"{path} could not be loaded: {error}", "reinstall tensorwright") from error


class Work(ctypes.Structure):
    """Work of one thread in a parallel region.

    Attributes:
        begin, end: nanoseconds of `time.perf_counter_ns`.
        place: 0 for the thread that launched the region.
        parts: number of the region's parts that it ran.
    """

    begin: int
    end: int
    place: int
    parts: int
    _fields_ = (
        ("begin", ctypes.c_int64),
        ("end", ctypes.c_int64),
        ("place", ctypes.c_int32),
        ("parts", ctypes.c_int32),
    )


_MAX_WORKS = 1 << 16


class WorkTrace:
    """Records the work of threads in parallel regions of the calling thread, whose threads come from `set_threads`."""

    def __init__(self) -> None:
        self._works = (Work * _MAX_WORKS)()

    def during(self, run: Callable[[], object]) -> list[Work]:
        """Work of the threads in the regions of `run`; the first 65,536 entries."""
        trace = _library().tensorwright_pool_trace
        trace(self._works, _MAX_WORKS)
        try:
            run()
        finally:
            noted = trace(None, 0)
        return [Work.from_buffer_copy(each) for each in self._works[:noted]]


def library_path() -> Path:
    """Path of the pool's library; compiled on first use in a source checkout. Raises as `set_threads`."""
    return _PACKAGED if _PACKAGED.is_file() else cached_pool()
