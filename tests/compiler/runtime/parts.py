"""Counts the parts that parallel regions are cut into, in a process of its own.

    python -m tests.compiler.runtime.parts MODULE.twm python|c|thread THREADS ...

Runs the module once with each number of threads, by the Python package, the C API, or both kinds of threads of a Python
program, and prints the numbers of parts as JSON. TVM looks `TVMBackendParallelLaunch` up in a table when a module is
loaded, where the thread pool's is; a function that counts takes its place.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from compiler.runtime import load
from compiler.runtime.thread_pool import library_path, set_threads
from compiler.runtime.tvm_runtime import tvm_ffi

_SYMBOL = b"__TVMBackendParallelLaunch"


class _Group(ctypes.Structure):
    _fields_ = (("sync_handle", ctypes.c_void_p), ("num_task", ctypes.c_int32))


_PART = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Group), ctypes.c_void_p)
_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, _PART, ctypes.c_void_p, ctypes.c_int)


def main() -> None:
    """Hook the launch, run, print."""
    path, way, *numbers = sys.argv[1:]
    parts: set[int] = set()
    set_threads()
    original = _LAUNCH(("tensorwright_pool_launch", ctypes.CDLL(str(library_path()))))

    def launch(part: Any, closure: int, count: int) -> int:
        def counted(number: int, group: Any, _closure: int) -> int:
            parts.add(group.contents.num_task)
            return int(part(number, group, closure))

        return int(original(_PART(counted), None, count))

    hook = _LAUNCH(launch)
    ffi = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
    assert ffi.TVMFFIEnvModRegisterContextSymbol(_SYMBOL, ctypes.cast(hook, ctypes.c_void_p)) == 0
    run = _run_of(path, way)
    found = []
    for number in numbers:
        parts.clear()
        run(int(number))
        found.append(sorted(parts))
    print(json.dumps(found))


def _run_of(path: str, way: str) -> Callable[[int], object]:
    module = load(path)
    inputs = {each.name: np.ones([int(size) for size in each.shape], each.dtype) for each in module.inputs}
    if way == "c":
        from pathlib import Path

        from tests.compiler.device.c_library import CModule

        loaded = CModule(Path(path))

        def in_c(threads: int) -> None:
            loaded.set_threads(threads)
            loaded.run(inputs)

        return in_c

    def run(threads: int) -> None:
        module.threads = threads
        module.run(inputs)

    def on_a_thread(threads: int) -> None:
        thread = threading.Thread(target=run, args=(threads,))
        thread.start()
        thread.join()

    return run if way == "python" else on_a_thread


if __name__ == "__main__":
    main()
