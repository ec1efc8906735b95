"""Bounds the memory that TVM's pool keeps between runs of different sizes.

The pool keeps the activations of every size that ran (a batch of 7 rows does not take those of 8), until it is cleared
as a whole.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable, Hashable

from compiler.runtime.library import release_memory

_KEPT_BYTES = 64 << 20  # of sizes that ran; more where a few of the largest size take more
_KEPT_LARGEST = 4
_KNOWN_SIZES = 4096
_KEPT_SIZES = 8  # where the C library does not tell what is allocated


class _Allocated(ctypes.Structure):
    """`struct mallinfo2` of the GNU C library."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def _allocated_bytes() -> Callable[[], int] | None:
    """Function that counts the bytes that this process has allocated; None for C libraries that do not count them."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return None
    mallinfo.restype = _Allocated

    def read() -> int:
        found = mallinfo()
        return int(found.hblkhd) + int(found.uordblks)

    return read


class PoolBound:
    """Clears the pool when the sizes that ran since the last time have left too much in it. Thread-safe."""

    def __init__(self) -> None:
        self._read = _allocated_bytes()
        self._lock = threading.Lock()
        self._codes = itertools.count()
        self._sizes: set[Hashable] = set()
        self._base: int | None = None
        self._largest = 0

    def register(self) -> int:
        """A number for a module's code; that of one which is gone is given to no other."""
        return next(self._codes)

    def allocated(self) -> int:
        """Bytes that this process has allocated; 0 where that is not known."""
        return 0 if self._read is None else self._read()

    def ran(self, size: Hashable, before: int) -> None:
        """A run of a size ended that its virtual machine did not run before.

        Args:
            before: `allocated()` when it began.
        """
        with self._lock:
            if size in self._sizes:
                return
            now = self.allocated()
            self._largest = max(self._largest, now - before)
            self._base = before if self._base is None else self._base
            self._sizes.add(size)
            if len(self._sizes) > 1 and self._is_full(now - self._base):
                release_memory()
                self._sizes.clear()
                self._base, self._largest = None, 0

    def _is_full(self, kept: int) -> bool:
        if len(self._sizes) > (_KEPT_SIZES if self._read is None else _KNOWN_SIZES):
            return True
        return kept > max(_KEPT_BYTES, _KEPT_LARGEST * self._largest)


POOL = PoolBound()
"""Bound of the one pool of this process."""
