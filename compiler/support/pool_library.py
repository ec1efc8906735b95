"""Compiles the thread pool of parallel regions, `compiler/device/cpp/thread_pool.c`, for the Python package.

Wheels hold the library (`setup.py`, which imports this file, so that it needs nothing but Python). A checkout compiles
it on first use, into the user's cache.
"""

from __future__ import annotations

import platform
from pathlib import Path

from compiler.support.cache import cached, key_of
from targets.toolchain import find_c_compiler

LIBRARY = "libtensorwright_threads.so"
SOURCE = Path(__file__).parents[1] / "device" / "cpp" / "thread_pool.c"
# It stays loaded: its threads do.
_OPTIONS = ("-x", "c", "-std=gnu11", "-O2", "-s", "-fPIC", "-shared", "-pthread", "-Wl,-z,nodelete")


def build_pool(folder: Path) -> None:
    """Compile the library into a folder.

    Raises:
        targets.TargetError: there is no C compiler, or it failed.
    """
    find_c_compiler().run([*_OPTIONS, SOURCE, "-o", folder / LIBRARY])


def cached_pool() -> Path:
    """Path of the library in the cache; compiled on first use in a source checkout.

    Raises:
        StorageError: the cache cannot be written.
        targets.TargetError: as `build_pool`.
    """
    sources = [SOURCE.read_bytes(), SOURCE.with_suffix(".h").read_bytes()]
    key = key_of([*sources, platform.machine().encode(), " ".join(_OPTIONS).encode()])
    return cached("thread-pool", key, build_pool) / LIBRARY
