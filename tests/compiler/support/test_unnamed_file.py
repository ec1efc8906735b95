"""Arrays in unnamed temporary files."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from compiler.errors import StorageError
from compiler.support.unnamed_file import SpillingAllocator


def test_arrays_are_in_memory_first_then_in_files() -> None:
    room = SpillingAllocator(1 << 20)
    arrays = [room.empty((1 << 18,), np.float32), room.empty((2, 1 << 18), np.float32), room.empty((3,), np.int8)]
    kinds = [(each.shape, str(each.dtype)) for each in arrays]
    assert kinds == [((1 << 18,), "float32"), ((2, 1 << 18), "float32"), ((3,), "int8")]
    assert [each.base is None for each in arrays] == [True, False, True]
    for value, each in enumerate(arrays):
        each[...] = value
    assert [float(each.reshape(-1)[-1]) for each in arrays] == [0.0, 1.0, 2.0]


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fallocate(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with pytest.raises(StorageError, match=r"no room for 4194304 bytes .*No space left on device"):
        SpillingAllocator(0).empty((1 << 20,), np.float32)
