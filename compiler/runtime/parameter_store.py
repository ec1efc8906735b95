"""Deduplicates parameters with equal bytes across modules.

Modules of the same model for several batch sizes, its variants, and a new version loaded while the old one is still
being served have most parameters in common. Within a process each is stored once, as long as a module uses it.
Processes that load the same file share its mapped pages. Parameters expanded at load are shared through files in the
folder named by TENSORWRIGHT_SHARED_PARAMETERS, if set; preferably one in memory, such as a folder in /dev/shm.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import stat
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from compiler.artifact.storage import read_mapped, write_atomically
from compiler.errors import StorageError, storage_errors

FOLDER_VARIABLE = "TENSORWRIGHT_SHARED_PARAMETERS"
_MIN_BYTES = 16 << 10  # smaller arrays are not worth sharing
_SAMPLES = 256
_HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # Linux; the second one since 6.1

Array = np.ndarray
_Key = tuple[int, bytes]


class ParameterStore:
    """Finds arrays in use that have equal bytes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[_Key, list[weakref.ref[Array]]] = {}

    def shared(self, array: Array) -> Array:
        """An array of the same bytes, element type and shape, whose memory is shared by all users of these bytes.

        Args:
            array: compact and read-only from now on; it must begin at a multiple of 64 bytes.

        The memory is kept as long as the returned array is referenced. Pages of a mapped file that are no longer needed
        are released.
        """
        if array.nbytes < _MIN_BYTES:
            return array
        key = _key(array)
        with self._lock:
            same = self._find(key, array)
            if same is None:
                same = array if _mapped_file(array) is not None else _in_folder(array)
            if same is not array:
                _give_pages_back(array)
                same = _bytes(same).view(array.dtype).reshape(array.shape)
            self._used.setdefault(key, []).append(weakref.ref(same))
            return same

    def _find(self, key: _Key, array: Array) -> Array | None:
        """An array in use with these bytes; forgets arrays that are no longer used."""
        used = [(each, stored) for each in self._used.get(key, ()) if (stored := each()) is not None]
        if key in self._used:
            self._used[key] = [each for each, _ in used]
        return next((stored for _, stored in used if _equal(stored, array)), None)


PARAMETERS = ParameterStore()
"""The store of this process."""


def _bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def _key(array: Array) -> _Key:
    """A hash of the bytes; collisions are possible."""
    flat = _bytes(array)
    return array.nbytes, flat[:: max(1, flat.size // _SAMPLES)].tobytes()


_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_madvise.restype = ctypes.c_int


def _equal(one: Array, other: Array) -> bool:
    return one.nbytes == other.nbytes and _memcmp(one.ctypes.data, other.ctypes.data, one.nbytes) == 0


def _mapped_file(array: Array) -> mmap.mmap | None:
    """The mapping of the file that contains an array, if any."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None


def _give_pages_back(array: Array) -> None:
    """Release the whole pages of a mapped file that hold an array; later reads load them from the file again."""
    mapping = _mapped_file(array)
    if mapping is None:
        return
    offset = array.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (offset + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        mapping.madvise(mmap.MADV_DONTNEED, start, end - start)


def _in_folder(array: Array) -> Array:
    """The array's bytes in a file mapped by other processes, too; the array itself if no folder is set. Raises
    StorageError if other users can access the folder, or it cannot be written."""
    name = os.environ.get(FOLDER_VARIABLE)
    if not name:
        return array
    folder = Path(name)
    _check_private(folder)
    path = folder / hashlib.sha256(_bytes(array).data).hexdigest()
    if not path.exists():
        _publish(array, path)
    mapped = np.frombuffer(read_mapped(path), np.uint8)
    # Damaged files are not used.
    return mapped if mapped.nbytes == array.nbytes and _equal(mapped, array) else array


def _publish(array: Array, path: Path) -> None:
    """Write a file atomically, or leave the one that another process wrote meanwhile. Raises StorageError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        write_atomically(temporary, [_bytes(array).data])
        with storage_errors(path, "written"), contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise StorageError(f"{folder}, which {FOLDER_VARIABLE} names, cannot be used: {error}") from error
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise StorageError(
            f"{folder}, which {FOLDER_VARIABLE} names, can be read or written by others",
            f"make a folder for this user alone: chmod 700 {folder}",
        )


def use_huge_pages(arrays: Iterable[Array]) -> None:
    """Ask the kernel to back arrays with huge pages, as far as neighbors together fill some.

    With pages of 4 KiB, the core that first reads parameters in a run walks the page tables for each page: with 0.6 MB
    of filters, the first part of a convolution took 59 microseconds instead of 40 (Zen 4, virtual machine). Linux does
    it at once (6.1 and later), some time later, or not at all.
    """
    for begin, end in huge_pages(arrays):
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
            _madvise(begin, end - begin, advice)


def huge_pages(arrays: Iterable[Array]) -> list[tuple[int, int]]:
    """Address ranges, in whole huge pages, that arrays fill. Allocator headers between neighbors are tolerated."""
    filled: list[tuple[int, int]] = []
    for begin, end in sorted((each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays):
        if filled and begin - filled[-1][1] <= mmap.PAGESIZE:
            begin, end = filled[-1][0], max(end, filled.pop()[1])
        filled.append((begin, end))
    whole = [(-(-begin // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE) for begin, end in filled]
    return [(begin, end) for begin, end in whole if begin < end]
