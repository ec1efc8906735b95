"""Large arrays in files without a name, whose pages the system may write out instead of keeping them in memory."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from compiler.errors import StorageError

_LEAST = 1 << 20  # bytes: smaller arrays are not worth a file


class Room:
    """Allocates arrays: in memory at first, then each in a file of the folder for temporary files (TMPDIR)."""

    def __init__(self, in_memory: int) -> None:
        """Begin; `in_memory` are bytes that arrays in memory take together at most."""
        self._left = in_memory

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[np.generic]:
        """An array whose elements are not set, page-aligned where it is in a file.

        Raises StorageError where there is no room for the file.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size <= self._left or size < _LEAST:
            self._left -= size
            return np.empty(shape, dtype)
        try:
            with tempfile.TemporaryFile() as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and a signal later
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise StorageError(
                f"no room for {size} bytes in the folder for temporary files {tempfile.gettempdir()}: {error.strerror}",
                "set TMPDIR to a folder with room for the model (/dev/shm is memory)",
            ) from error
        return np.frombuffer(mapped, dtype).reshape(shape)
