"""The C API of a bundle's library through ctypes: one method for each function."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import targets
from compiler.device.programs import SHARED_LIBRARY, device_programs

Array = np.ndarray[Any, Any]


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
    """The message of `tensorwright_last_error`."""


@cache
def library() -> Any:
    """The library for this machine."""
    loaded = ctypes.CDLL(str(device_programs(targets.get("host", cores=1)) / SHARED_LIBRARY))
    loaded.tensorwright_last_error.restype = ctypes.c_char_p
    loaded.tensorwright_session_length.restype = ctypes.c_int64
    return loaded


def _call(name: str, *arguments: Any) -> None:
    if getattr(library(), name)(*arguments):
        raise CallError(library().tensorwright_last_error().decode())


class CModule:
    """A `tensorwright_module`, used by one thread at a time."""

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

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run on inputs in order; return copies of the outputs in order."""
        count = library().tensorwright_output_count(self._handle)
        return _run("tensorwright_run", self._handle, inputs, count)

    def session(self, capacity: int) -> CSession:
        """`tensorwright_session_open`."""
        handle = ctypes.c_void_p()
        _call("tensorwright_session_open", self._handle, ctypes.c_int64(capacity), ctypes.byref(handle))
        return CSession(handle)

    def free(self) -> None:
        """`tensorwright_free`."""
        library().tensorwright_free(self._handle)


class CSession:
    """A `tensorwright_session`."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle = handle

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run one step; return copies of the outputs that are not states."""
        count = library().tensorwright_session_output_count(self._handle)
        return _run("tensorwright_session_run", self._handle, inputs, count)

    def names(self) -> tuple[list[str], list[str]]:
        """Names of the inputs and outputs of a run."""
        return _names(self._handle, "input"), _names(self._handle, "output")

    @property
    def length(self) -> int:
        """Rows in use."""
        return int(library().tensorwright_session_length(self._handle))

    def reset(self) -> None:
        """`tensorwright_session_reset`."""
        _call("tensorwright_session_reset", self._handle)

    def rewind(self, count: int) -> None:
        """`tensorwright_session_rewind`."""
        _call("tensorwright_session_rewind", self._handle, ctypes.c_int64(count))

    def fork(self) -> CSession:
        """`tensorwright_session_fork`."""
        handle = ctypes.c_void_p()
        _call("tensorwright_session_fork", self._handle, ctypes.byref(handle))
        return CSession(handle)

    def save(self, path: Path) -> None:
        """`tensorwright_session_save`."""
        _call("tensorwright_session_save", self._handle, str(path).encode())

    def load(self, path: Path) -> None:
        """`tensorwright_session_load`."""
        _call("tensorwright_session_load", self._handle, str(path).encode())

    def free(self) -> None:
        """`tensorwright_session_free`."""
        library().tensorwright_session_free(self._handle)


def _names(session: ctypes.c_void_p, kind: str) -> list[str]:
    names = []
    for index in range(getattr(library(), f"tensorwright_session_{kind}_count")(session)):
        described = _Tensor()
        _call(f"tensorwright_session_{kind}", session, index, ctypes.byref(described))
        names.append(described.name.decode())
    return names


def _run(function: str, handle: ctypes.c_void_p, inputs: Mapping[str, Array], outputs: int) -> list[Array]:
    given, shapes = (_Tensor * len(inputs))(), []
    arrays = [np.ascontiguousarray(array) for array in inputs.values()]  # kept until the call is done
    for place, (name, array) in enumerate(zip(inputs, arrays, strict=True)):
        shapes.append((ctypes.c_int64 * array.ndim)(*array.shape))
        given[place] = _Tensor(
            name.encode(), str(array.dtype).encode(), array.ndim, shapes[-1], array.ctypes.data, array.nbytes
        )
    results = (_Tensor * outputs)()
    _call(function, handle, given, results)
    return [_copied(each) for each in results]


def _copied(tensor: Any) -> Array:
    shape: Sequence[int] = tensor.shape[: tensor.rank]
    return np.frombuffer(ctypes.string_at(tensor.data, tensor.bytes), tensor.dtype.decode()).reshape(shape)


def read_image(path: Path) -> Array:
    """`tensorwright_image_open`: a copy of the pixels."""
    image, pixels = ctypes.c_void_p(), _Tensor()
    _call("tensorwright_image_open", str(path).encode(), ctypes.byref(image), ctypes.byref(pixels))
    copy = _copied(pixels)
    library().tensorwright_image_free(image)
    return copy
