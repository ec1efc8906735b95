"""Files: mapped for reading; written completely or not at all."""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from compiler.errors import StorageError, storage_errors
from compiler.support.interrupts import uninterrupted

_ALIGNMENT = 64
_unfinished: set[str] = set()


def read_mapped(path: str | os.PathLike[str]) -> memoryview:
    """Map a regular file for reading; no byte is copied, and processes that load the same file share its pages.

    The file must not be changed in place while mapped (replacing it, as `write_atomically` does, is fine). Raises
    StorageError if it is missing, unreadable, or not a regular file.
    """
    descriptor, size = _open(path)
    try:
        if size == 0:
            return memoryview(b"")
        # Not populated at once: the threads that check the digests fault the pages in, in parallel.
        with storage_errors(path):
            return memoryview(mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)


def read_private(path: str | os.PathLike[str]) -> memoryview:
    """Read a regular file into this process's memory, 64-byte aligned, so that it cannot change after it was checked.
    Raises StorageError as for `read_mapped`."""
    import numpy as np  # opening a mapped file does not need it

    descriptor, size = _open(path)
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    buffer = raw.data[start : start + size]
    with storage_errors(path), open(descriptor, "rb", buffering=0) as file:
        position = 0
        while position < size and (count := file.readinto(buffer[position:])):
            position += count
    return buffer[:position].toreadonly()


def _open(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Open a regular file and return its descriptor and size in bytes."""
    with storage_errors(path):
        # O_NONBLOCK: opening a pipe must not block before the pipe is rejected.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise StorageError(f"{os.fspath(path)} is not a regular file")
    return descriptor, status.st_size


def write_atomically(path: str | os.PathLike[str], pieces: Iterable[bytes | memoryview]) -> None:
    """Write the pieces in sequence as one file that appears completely or not at all.

    They go to a temporary file in the same folder, which is synced and then renamed over `path`. Raises StorageError if
    the folder is missing or read-only, the disk is full, or the path is a device or a pipe, which the renaming would
    remove; no partial file is left.
    """
    destination = Path(path)
    temporary = None
    try:
        with storage_errors(path, "written"):
            if destination.exists() and not destination.is_file() and not destination.is_dir():
                raise StorageError(f"{os.fspath(path)} is not a regular file", "write to a regular file")
            descriptor, temporary = _unfinished_file(destination)
            with open(descriptor, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                os.fsync(file.fileno())
            _finish(temporary, destination)
            temporary = None
            _sync_folder(destination.parent)
    finally:
        if temporary is not None:
            _discard(temporary)


@uninterrupted
def _unfinished_file(destination: Path) -> tuple[int, str]:
    """Create a new file next to another and return its descriptor and path."""
    import tempfile  # most programs only read files

    descriptor, temporary = tempfile.mkstemp(prefix=f".{destination.name[:64]}.", dir=destination.parent)
    _unfinished.add(temporary)
    return descriptor, temporary


@uninterrupted
def _finish(temporary: str, destination: Path) -> None:
    os.replace(temporary, destination)
    _unfinished.discard(temporary)


@uninterrupted
def _discard(temporary: str) -> None:
    Path(temporary).unlink(missing_ok=True)
    _unfinished.discard(temporary)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a value as JSON, like `write_atomically`. Raises StorageError."""
    write_atomically(path, [(json.dumps(value, indent=1) + "\n").encode()])


def remove_unfinished() -> None:
    """Remove the temporary files of `write_atomically`, in a process that is about to end during a write."""
    for temporary in list(_unfinished):
        _discard(temporary)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # There is no system call that only reads it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
