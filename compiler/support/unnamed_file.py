"""Large arrays in files without a name, whose pages the system may write to disk instead of keeping them in memory."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from compiler.errors import StorageError

_MIN_BYTES = 1 << 20  # bytes: smaller arrays stay in memory


class SpillingAllocator:
    """Allocates arrays: in memory at first, then each in its own file in the folder for temporary files (TMPDIR)."""

    def __init__(self, in_memory: int) -> None:
        """Create the allocator; `in_memory` is the maximum total size of arrays in memory."""
        self._left = in_memory

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[np.generic]:
        """An array with uninitialized elements, page-aligned if it is in a file.

        Raises StorageError if there is no room for the file.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size <= self._left or size < _MIN_BYTES:
            self._left -= size
            return np.empty(shape, dtype)
        try:
            with tempfile.TemporaryFile() as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk raises an error here, but sends a signal later
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise StorageError(
                f"no room for {size} bytes in the folder for temporary files {tempfile.gettempdir()}: {error.strerror}",
                "set TMPDIR to a folder with room for the model (/dev/shm is memory)",
            ) from error
        return np.frombuffer(mapped, dtype).reshape(shape)
