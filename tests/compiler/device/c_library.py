"""The C API of a bundle's library, called by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import targets
from compiler.device.programs import SHARED_LIBRARY, device_programs


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
    )


class CallError(Exception):
    """What `tensorwright_last_error` said."""


@cache
def library() -> Any:
    """The library for this machine."""
    loaded = ctypes.CDLL(str(device_programs(targets.get("host", cores=1)) / SHARED_LIBRARY))
    loaded.tensorwright_last_error.restype = ctypes.c_char_p
    return loaded


def _call(name: str, *arguments: Any) -> None:
    if getattr(library(), name)(*arguments):
        raise CallError(library().tensorwright_last_error().decode())


class CModule:
    """A `tensorwright_module`; each is for one thread at a time."""

    def __init__(self, path: Path | None, shared: CModule | None = None) -> None:
        """Load a file, or share another one's code and parameters."""
        self._handle = ctypes.c_void_p()
        if shared is not None:
            _call("tensorwright_share", shared._handle, ctypes.byref(self._handle))
        else:
            _call("tensorwright_load", str(path).encode(), ctypes.byref(self._handle))

    def set_threads(self, threads: int) -> None:
        """`tensorwright_set_threads`."""
        _call("tensorwright_set_threads", self._handle, threads)

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Copies of the outputs, in order; the inputs are in order too."""
        given, shapes = (_Tensor * len(inputs))(), []
        for place, (name, array) in enumerate(inputs.items()):
            shapes.append((ctypes.c_int64 * array.ndim)(*array.shape))
            given[place] = _Tensor(
                name.encode(), str(array.dtype).encode(), array.ndim, shapes[-1], array.ctypes.data, array.nbytes
            )
        results = (_Tensor * library().tensorwright_output_count(self._handle))()
        _call("tensorwright_run", self._handle, given, results)
        return [_copied(each) for each in results]

    def free(self) -> None:
        """`tensorwright_free`."""
        library().tensorwright_free(self._handle)


def _copied(tensor: Any) -> np.ndarray[Any, Any]:
    shape: Sequence[int] = tensor.shape[: tensor.rank]
    return np.frombuffer(ctypes.string_at(tensor.data, tensor.bytes), tensor.dtype.decode()).reshape(shape)
