"""Puts a module's buffers between inaccessible pages with a preloaded library (`guard.c`)."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.dtypes import ElementType

GUARD_STATUS = 117
"""With which a process ends that touched an inaccessible page, as in `guard.c`."""

LIBRARY_VARIABLE = "TENSORWRIGHT_GUARD_LIBRARY"
_SOURCE = Path(__file__).with_name("guard.c")
_ALIGNMENT = 64
Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """Layout of buffers in a run.

    Attributes:
        fill: the byte that fills new memory.
        at_start: True if a buffer's start, instead of its end, is next to an inaccessible page.
    """

    fill: int
    at_start: bool


LAYOUTS = (Layout(0x5A, at_start=False), Layout(0xC3, at_start=True))
"""Values read beside a buffer, or before they are written, differ between them."""


def is_available() -> bool:
    """True if this system can build and preload the library."""
    return os.name == "posix" and os.uname().sysname == "Linux" and shutil.which("gcc") is not None


def build_library(folder: Path) -> Path:
    """Compile the library into `folder`."""
    library = folder / "guard.so"
    subprocess.run(["gcc", "-O1", "-fPIC", "-shared", "-o", library, _SOURCE, "-lpthread"], check=True)
    return library


@contextmanager
def preloaded(library: Path) -> Iterator[None]:
    """Context manager in which new processes preload the library."""
    changes = {"LD_PRELOAD": str(library), LIBRARY_VARIABLE: str(library)}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Guard:
    """The preloaded library in this process; once created, the runtime's own arrays are guarded, too.

    The runtime copies inputs and parameters into arrays that are flush with their pages, and its virtual machines
    use the allocator that keeps no memory.
    """

    def __init__(self, report: Path) -> None:
        """`report`: file with the touched address after the process ended with GUARD_STATUS."""
        self._library = ctypes.CDLL(os.environ[LIBRARY_VARIABLE])
        self._library.guard_allocate.restype = ctypes.c_void_p
        self._library.guard_allocate.argtypes = [ctypes.c_size_t]
        self._library.guard_free.argtypes = [ctypes.c_void_p]
        self._library.guard_end.restype = ctypes.c_long
        self._library.guard_report(os.fsencode(report))
        _replace_in_runtime(self._empty, self._tensor_over)

    @contextmanager
    def on(self, layout: Layout) -> Iterator[list[int]]:
        """Guard allocations in this context; the list gets the number of writes next to freed buffers."""
        if self._library.guard_begin(layout.fill, layout.at_start):
            raise MemoryError("no address space for guarded memory")
        written: list[int] = []
        try:
            yield written
        finally:
            written.append(self._library.guard_end())

    def _bytes(self, count: int) -> Array:
        address = self._library.guard_allocate(count)
        if not address:
            raise MemoryError(f"{count} bytes of guarded memory")
        memory = (ctypes.c_uint8 * max(count, 1)).from_address(address)
        weakref.finalize(memory, self._library.guard_free, address)
        return np.ctypeslib.as_array(memory)[:count]

    def _empty(self, shape: tuple[int, ...], element: ElementType) -> Array:
        """Like `compiler.runtime.tensors.empty_aligned`."""
        count = int(np.prod(shape, dtype=np.int64)) * element.numpy.itemsize
        return self._bytes(count).view(element.numpy).reshape(shape)

    def _tensor_over(self, array: Array, element: ElementType) -> Any:
        """Like `compiler.runtime.tensors.tensor_over`; the data of an empty array is an inaccessible page."""
        from compiler.runtime import tensors

        if array.size:
            return _TENSOR_OVER[0](array, element)
        address = self._library.guard_allocate(0)
        memory = (ctypes.c_uint8 * element.carrier.itemsize).from_address(address)
        one = np.ctypeslib.as_array(memory).view(element.carrier)
        return tensors.view_as(_TENSOR_OVER[0](one, element), array.shape, element.name)


_TENSOR_OVER: list[Callable[..., Any]] = []


def _replace_in_runtime(empty: Callable[..., Any], tensor_over: Callable[..., Any]) -> None:
    from compiler.runtime import executor, inputs, library, tensors

    _TENSOR_OVER.append(tensors.tensor_over)
    naive_allocator = 1
    changes: list[tuple[Any, str, Any]] = [
        (library, "_POOLED_ALLOCATOR", naive_allocator),
        (inputs, "_ALWAYS_COPY_BYTES", 1 << 62),
        (executor, "is_usable", lambda array: False),
    ]
    changes += [(home, "empty_aligned", empty) for home in (tensors,)]
    changes += [(home, "tensor_over", tensor_over) for home in (tensors, inputs, executor)]
    for home, name, value in changes:
        if not hasattr(home, name):
            raise AttributeError(f"{home.__name__} has no {name} any more")
        setattr(home, name, value)
